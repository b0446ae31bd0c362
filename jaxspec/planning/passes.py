"""The least work of single passes: a decode step, a draft, a verification, a prefill, a train step.

Every weight is read once, and so is the cache; keys and values are written once, and each layer
reads and writes its tokens' states. Logits, attention scores and what else lies between stay on the
chip. `jaxspec.planning.roofline` turns work into the time that a chip takes at least.

>>> step = target_pass(shapes, config, rows=1, tokens=1, cached=512)           # doctest: +SKIP
>>> step.memory_bytes, step.operations                                         # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.config import DrafterConfig, LanguageModelConfig
from jaxspec.parallel.chips import Chip
from jaxspec.planning.minimum import (
    drafter_products,
    expert_kernels,
    least_operations,
    share_of_experts,
    target_forward,
)
from jaxspec.planning.roofline import Roofline
from jaxspec.training.state import TrainState
from jaxspec.training.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Work:
    """What a pass has to do, on one device."""

    operations: float
    """Of matrix products."""
    memory_bytes: float
    """Read from and written to memory."""

    def roofline(self, chip: Chip) -> Roofline:
        """The least time on a device of this chip."""
        return Roofline.of(
            chip,
            operations=self.operations,
            memory_bytes=self.memory_bytes,
            wire_bytes={},
        )


def target_pass(
    params: Any,
    target: LanguageModelConfig,
    *,
    rows: int,
    tokens: int,
    cached: int,
    judged: int | None = None,
) -> Work:
    """A pass of the target.

    Args:
      params: its parameters, or their shapes.
      target: its configuration.
      rows: of the batch.
      tokens: that each row reads.
      cached: tokens of each row that are in the cache.
      judged: tokens of each row whose logits are wanted; None: all.
    """
    judged = tokens if judged is None else judged
    forward = target_forward(params, target, tokens, layers=target.num_layers, behind=cached)
    head = 2.0 * judged * target.hidden_size * target.vocab_size
    windows = target.windows or (cached,) * target.num_layers
    read = sum(min(cached, window) for window in windows) / target.num_layers
    kept = (read + tokens) * cache_bytes(target, target.num_layers)
    states = 2.0 * target.num_layers * tokens * target.hidden_size * itemsize(target.dtype)
    return Work(
        operations=rows * (forward + head),
        memory_bytes=target_weights_read(params, target, tokens=rows * tokens)
        + rows * (kept + states),
    )


def draft_pass(
    params: Any,
    drafter: DrafterConfig,
    target: LanguageModelConfig,
    *,
    rows: int,
    cached: int,
) -> Work:
    """A draft of a DFlash drafter, and taking in the block of the round before.

    Args:
      params: its parameters, or their shapes.
      drafter: its configuration, resolved for the target.
      target: whose embedding and head it uses.
      rows: of the batch.
      cached: tokens of each row that are in the cache.
    """
    slots = drafter.block_size
    products = drafter_products(params, slots=slots, context=slots)
    pairs = drafter.num_layers * drafter.num_heads * slots * (cached + slots)
    head = 2.0 * (slots - 1) * target.hidden_size * target.vocab_size
    kept = (cached + slots) * cache_bytes(drafter, drafter.num_layers)
    states = 2.0 * drafter.num_layers * slots * target.hidden_size * itemsize(drafter.dtype)
    return Work(
        operations=rows * (products + 4.0 * drafter.head_dim * pairs + head),
        memory_bytes=tree_bytes(params) + head_bytes(target) + rows * (kept + states),
    )


def training_step(task: Task, state: TrainState) -> Work:
    """A training step: the target's weights once, the trained ones forward, backward and updated.

    Args:
      task: as `TaskKind.build` makes it.
      state: the training state, or its shapes.
    """
    least = least_operations(task)
    trained = tree_bytes(state.params)
    # Forward, both gradients, the update's read and write; the gradient is written and read.
    moved = 7 * trained + 2 * tree_bytes(state.opt_state) + tree_bytes(task.frozen_shapes)
    return Work(operations=sum(least.values()), memory_bytes=moved)


def target_weights_read(params: Any, target: LanguageModelConfig, *, tokens: int) -> float:
    """Bytes of weights that a pass reads.

    Rows of an untied embedding are only looked up. Of a mixture's experts, those are read that a
    token is sent to, where all are equally likely.

    Args:
      params: the target's parameters, or their shapes.
      target: its configuration.
      tokens: of all rows together.
    """
    read = tree_bytes(params) - (0.0 if target.tie_embeddings else head_bytes(target))
    used = share_of_experts(target)
    return read - tree_bytes(expert_kernels(params, target)) * (1 - used) ** tokens


def head_bytes(target: LanguageModelConfig) -> float:
    """Bytes of the head, or of an embedding, which has its shape."""
    return float(target.vocab_size * target.hidden_size * itemsize(target.dtype))


def cache_bytes(config: LanguageModelConfig | DrafterConfig, layers: int) -> float:
    """Bytes of the keys and values of one cache slot."""
    return 2.0 * layers * config.num_kv_heads * config.head_dim * itemsize(config.dtype)


def tree_bytes(tree: Any) -> float:
    """Bytes of a tree of arrays or shapes."""
    return float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))


def itemsize(dtype: str) -> int:
    """Bytes of a number."""
    return jnp.dtype(dtype).itemsize
