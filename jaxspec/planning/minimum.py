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
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxspec.config import DrafterConfig, LanguageModelConfig, RunConfig, TransformerConfig
from jaxspec.losses import terms_needing_target_rows
from jaxspec.training.lora import LowRankObjective
from jaxspec.training.objectives import DrafterObjective
from jaxspec.training.passes import Reading, Tokens, causal, reading, spread_anchors
from jaxspec.training.tasks.task import Task


def least_operations(task: Task) -> Mapping[str, float]:
    """Operations of a step over all devices, by what they are for.

    Random masks may lie anywhere: every position that could be masked counts.

    Args:
      task: as `TaskKind.build` makes it.
    """
    objective, config = task.objective, task.config
    read = reading(objective, length=config.data.sequence_length)
    if read is not None:
        parts = _one_model(task, read)
    else:
        assert isinstance(objective, DrafterObjective), "there is no other kind"
        parts = _drafter(task, objective)
    return {name: config.data.batch_size * operations for name, operations in parts.items()}


def computed_operations(task: Task) -> float:
    """Operations of a step over all devices with everything that masks hide.

    Of a drafter they are the least: little is hidden. Low-rank updates ask for the whole gradients
    of the weights that they change.

    Args:
      task: as `TaskKind.build` makes it.
    """
    read = reading(task.objective, length=task.config.data.sequence_length)
    if read is None:
        return sum(least_operations(task).values())
    tokens = tuple(
        Tokens(
            np.full(each.copies * each.tokens, each.keys),
            np.zeros(each.copies * each.tokens, int),
            is_read=True,
        )
        for each in read.passes
    )
    parts = _one_model(task, dataclasses.replace(read, tokens=tokens))
    name = task.config.training.task
    parts[f"{name} backward"] = 2 * parts[f"{name} forward"]
    return task.config.data.batch_size * sum(parts.values())


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
        before = sum(min(behind, anchor) for anchor in spread_anchors(blocks, length=length))
        own = sum(min(slots, slot + ahead + 1) - max(0, slot - behind) for slot in range(slots))
        seen += slots * before + blocks * own
    return 4.0 * drafter.num_heads * drafter.head_dim * seen


def _one_model(task: Task, read: Reading) -> dict[str, float]:
    """Of one row; a target or denoiser is trained, or updates of it."""
    name, model = task.config.training.task, read.model
    is_low_rank = isinstance(task.objective, LowRankObjective)
    params = task.frozen_shapes if is_low_rank else trained_shapes(task)
    forward = sum(_read_tokens(params, model, tokens) for tokens in read.tokens)
    noises = read.noises * getattr(model, "time_conditioning", False)
    forward += noises * 2.0 * sum(size for _, size in _kernels(params, model, of_noise=True))
    head = 2.0 * model.hidden_size * model.vocab_size * read.places
    parts = {f"{name} forward": forward, f"{name} backward": 2 * forward, "head": 3 * head}
    if is_low_rank:  # What is frozen asks for no gradients of its entries.
        parts |= {f"{name} backward": forward, "head": 2 * head}
        of_tokens = {k: v for k, v in trained_shapes(task).items() if "modulation" not in k}
        passed = sum(len(tokens.before) for tokens in read.tokens)
        parts["updates"] = 6.0 * parameters(of_tokens) * passed
    return parts


def _read_tokens(params: Any, model: Any, tokens: Tokens) -> float:
    """The layers over tokens that see alike."""
    windows = getattr(model, "windows", None) or (2**31,) * model.num_layers
    scores = [4.0 * model.num_heads * model.head_dim * tokens.pairs(window=w) for w in windows]
    kernels = list(_kernels(params, model))
    matrices = sum(size for _, size in kernels)
    if not tokens.is_read:  # Only the last layer's keys and values are needed.
        scores.pop()
        shares = {"k": 1.0, "v": 1.0, "qkv": 2 / 3}
        matrices -= sum(
            size * (1 - shares.get(name, 0.0)) / model.num_layers for name, size in kernels
        )
    return 2.0 * matrices * len(tokens.before) + sum(scores)


def _kernels(params: Any, model: Any, *, of_noise: bool = False) -> Iterator[tuple[str, float]]:
    """The matrices of a model's layers, or those that the noise passes: name and entries."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(entry.key) for entry in path]
        is_of_noise = bool({"noise", "modulation", "final_modulation"}.intersection(names))
        if names[-1] != "kernel" or is_of_noise != of_noise:
            continue
        if of_noise or names[0] == "layers":
            is_of_experts = leaf.ndim == _OF_EXPERTS
            yield names[-2], leaf.size * (share_of_experts(model) if is_of_experts else 1.0)


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
    matrices = sum(size for _, size in _kernels(params, target))
    windows = target.windows or (behind + length,) * target.num_layers
    seen, before = causal(behind + length), causal(behind)
    pairs = sum(seen.pairs(window=w) - before.pairs(window=w) for w in windows[:layers])
    attention = 4.0 * target.num_heads * target.head_dim * pairs
    return 2.0 * matrices * length * layers / target.num_layers + attention


_OF_EXPERTS = 4
"""Axes of the stacked matrices of a mixture's experts: [L, J, D, F]."""


def share_of_experts(target: Any) -> float:
    """The share of a layer's experts that a token passes; 1 where there are none."""
    if isinstance(target, TransformerConfig) and target.experts:
        return target.experts.per_token / target.experts.num_experts
    return 1.0


def expert_kernels(params: Any, target: Any) -> list[Any]:
    """The matrices of a mixture's experts, or their shapes."""
    if share_of_experts(target) == 1.0:
        return []
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == _OF_EXPERTS]


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
        target=dataclasses.replace(
            config.target, remat=False, architecture=kept(config.target.architecture)
        ),
        denoiser=dataclasses.replace(
            config.denoiser, remat=False, architecture=kept(config.denoiser.architecture)
        ),
        drafter=dataclasses.replace(config.drafter, remat=False, chunk_blocks=0),
        loss=dataclasses.replace(config.loss, chunk_blocks=0),
        training=dataclasses.replace(config.training, chunk_tokens=0),
    )
