"""The least arithmetic of a training step: what its mathematics asks for, whoever computes it.

A matrix of n entries takes 2 n operations for each token that passes it, and as many again for the
gradient of its input and for that of its entries. Attention takes 4 C for a query, a key that it
sees and a head of width C. Layers that nobody reads do not count, and nothing is computed twice.

Dimension key: S tokens of a row, N blocks of a row, K block slots, G = K - 1 drafted slots, D
width, V vocabulary, C head width.

>>> task = DRAFTER.build(RunConfig())                                          # doctest: +SKIP
>>> least_operations(task)["head"]                                             # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from jaxspec.config import DrafterConfig, LanguageModelConfig, RunConfig, TransformerConfig
from jaxspec.losses import terms_needing_target_rows
from jaxspec.training.objectives import DrafterObjective, TargetObjective
from jaxspec.training.tasks.task import Task


def least_operations(task: Task) -> Mapping[str, float] | None:
    """Operations of a step over all devices, by what they are for.

    Args:
      task: as `TaskKind.build` makes it.

    Returns:
      None for kinds of training that are not counted here (diffusion language models).
    """
    objective, config = task.objective, task.config
    rows = config.data.batch_size
    if isinstance(objective, DrafterObjective):
        parts = _drafter(task, objective)
    elif isinstance(objective, TargetObjective):
        parts = _target(task, objective.model.config)
    else:
        return None
    return {name: rows * operations for name, operations in parts.items()}


def _drafter(task: Task, objective: DrafterObjective) -> dict[str, float]:
    """Of one row."""
    config, drafter = task.config, objective.drafter.config
    target = objective.target.config
    needs_rows = terms_needing_target_rows(config.loss)
    last = target.num_layers - 1 if needs_rows else drafter.target_layer_ids[-1]
    length, blocks = config.data.sequence_length, config.data.anchors
    slots = blocks * drafter.block_size

    forward = drafter_products(trained_shapes(task), slots=slots, context=length)
    forward += _drafter_attention(drafter, blocks=blocks, length=length)
    # The target's features are frozen: nobody asks for their gradient.
    features = 2.0 * target.hidden_size**2 * len(drafter.target_layer_ids) * length

    drafted = blocks * (drafter.block_size - 1)
    head = 2.0 * target.hidden_size * target.vocab_size * drafted
    return {
        "target forward": target_forward(task.frozen_shapes, target, length, layers=last + 1),
        "drafter forward": forward,
        "drafter backward": 2 * forward - features,
        # The head is frozen: only the gradient of the hidden states.
        "head": (3 if needs_rows else 2) * head,
    }


def drafter_products(params: Any, *, slots: int, context: int) -> float:
    """Operations of a DFlash drafter's products in a forward pass.

    Args:
      params: its parameters, or their shapes.
      slots: of all blocks.
      context: tokens whose features it reads.
    """
    operations = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [entry.key for entry in path]
        if names[-1] != "kernel":
            continue
        tokens = slots if names[0] == "layers" else context
        if names[-2] in ("k", "v"):  # Of the context, too.
            tokens += context
        operations += 2.0 * leaf.size * tokens
    return operations


def _drafter_attention(drafter: DrafterConfig, *, blocks: int, length: int) -> float:
    """Blocks are spread evenly, so that they see half of the row on average."""
    slots = drafter.block_size
    seen = 0.0
    for behind, ahead in drafter.reach or ((length, slots),) * drafter.num_layers:
        before = sum(min(behind, anchor) for anchor in _spread(blocks, length))
        own = sum(min(slots, slot + ahead + 1) - max(0, slot - behind) for slot in range(slots))
        seen += slots * before + blocks * own
    return 4.0 * drafter.num_heads * drafter.head_dim * seen


def _spread(blocks: int, length: int) -> list[float]:
    return [(number + 0.5) * length / blocks for number in range(blocks)]


def _target(task: Task, target: LanguageModelConfig) -> dict[str, float]:
    """Of one row; the target itself is trained."""
    length = task.config.data.sequence_length
    forward = target_forward(trained_shapes(task), target, length, layers=target.num_layers)
    head = 2.0 * target.hidden_size * target.vocab_size * (length - 1)
    return {"target forward": forward, "target backward": 2 * forward, "head": 3 * head}


def target_forward(
    params: Any, target: LanguageModelConfig, length: int, *, layers: int, behind: int = 0
) -> float:
    """Operations of the first layers over tokens of one row, without the head.

    Args:
      params: the target's parameters, or their shapes.
      target: its configuration.
      length: tokens that are read.
      layers: how many layers.
      behind: tokens of the row that are in the cache already.
    """
    matrices = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["layers"]):
        if path[-1].key == "kernel":
            matrices += leaf.size * _share_used(target, leaf.ndim)
    windows = target.windows or (behind + length,) * target.num_layers
    pairs = sum(_causal_pairs(length, window, behind) for window in windows[:layers])
    attention = 4.0 * target.num_heads * target.head_dim * pairs
    return 2.0 * matrices * length * layers / target.num_layers + attention


def _share_used(target: LanguageModelConfig, dimensions: int) -> float:
    """A token passes only some of the experts, whose matrices are stacked: [L, J, D, F]."""
    if isinstance(target, TransformerConfig) and target.experts and dimensions == 4:
        return target.experts.per_token / target.experts.num_experts
    return 1.0


def _causal_pairs(length: int, window: int, behind: int = 0) -> float:
    """Queries after `behind` others and the keys that they see, in a row of one document."""

    def pairs_of_first(count: int) -> float:
        reach = min(count, window)
        return reach * (reach + 1) / 2 + (count - reach) * reach

    return pairs_of_first(behind + length) - pairs_of_first(behind)


def trained_shapes(task: Task) -> Any:
    """Shapes of the parameters that are trained."""
    return jax.eval_shape(task.init, jax.random.key(0))


def parameters(tree: Any) -> int:
    """How many numbers a tree of arrays or shapes has."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def without_recomputation(config: RunConfig) -> RunConfig:
    """The same mathematics, with everything kept that the backward pass needs."""

    def kept(architecture: Any) -> Any:
        if architecture is None:
            return None
        return dataclasses.replace(architecture, remat=False)

    return dataclasses.replace(
        config,
        target=dataclasses.replace(config.target, architecture=kept(config.target.architecture)),
        denoiser=dataclasses.replace(
            config.denoiser, architecture=kept(config.denoiser.architecture)
        ),
        drafter=dataclasses.replace(config.drafter, remat=False, chunk_blocks=0),
        loss=dataclasses.replace(config.loss, chunk_blocks=0),
    )
