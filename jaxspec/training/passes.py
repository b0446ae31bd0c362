"""The passes of a step that trains one model, a target or a denoiser: who reads what, of one row.

A row is one document, and the anchors of its blocks are spread evenly.

Dimension key: S tokens of a row, N blocks of a row, G masked slots of a block, K tokens of a
block-causal block.

>>> causal(4).pairs(window=100), causal(4).pairs(window=2)
(10, 7)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxspec.training.denoiser import DenoiserObjective
from jaxspec.training.lora import LowRankObjective
from jaxspec.training.objectives import Objective, TargetObjective


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens that see alike."""

    before: np.ndarray
    """How many tokens each of them sees up to itself."""
    after: np.ndarray
    """How many it sees after itself."""
    is_read: bool
    """Whether the last layer's output is read, and not only its keys and values."""

    def pairs(self, *, window: int) -> int:
        """Tokens and those that they see, with a window towards earlier ones."""
        return int(np.minimum(self.before, window).sum() + self.after.sum())


@dataclasses.dataclass(frozen=True)
class Pass:
    """What one call of the model computes of a row, whether it is needed or not."""

    tokens: int
    keys: int
    """With which each token is compared."""
    copies: int = 1
    """Of the row, which are computed side by side."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """All that a model reads of one row in a step."""

    model: Any
    """Its configuration."""
    tokens: tuple[Tokens, ...]
    """What the mathematics asks for."""
    passes: tuple[Pass, ...]
    """What is computed."""
    places: int
    """Positions whose logits are asked for."""
    noises: int = 0
    """Levels of noise that a model with time conditioning is told."""


def reading(objective: Objective, *, length: int) -> Reading | None:
    """What a step reads of one row; None: it trains a drafter on a frozen target.

    Args:
      objective: what the step computes.
      length: S.
    """
    if isinstance(objective, LowRankObjective):
        return reading(objective.inner, length=length)
    once = (Pass(length, length),)
    if isinstance(objective, TargetObjective):
        return Reading(objective.model.config, (causal(length),), once, places=length - 1)
    if not isinstance(objective, DenoiserObjective):
        return None
    config = objective.model.config
    if objective.in_blocks:
        return _blocks(objective, length)
    index = np.arange(length)
    if config.context == "block_causal":
        block = config.block_length  # type: ignore[union-attr]
        after = block - 1 - index % block
        # Noisy tokens and clean ones see clean blocks and their own.
        noisy, clean = (Tokens(index + 1, after, is_read=read) for read in (True, False))
        return Reading(config, (noisy, clean), (Pass(2 * length, 2 * length),), places=length)
    both_ways = Tokens(index + 1, length - 1 - index, is_read=True)
    return Reading(config, (both_ways,), once, places=length, noises=1)


def logits_at_once(objective: Objective) -> int:
    """Positions of a row whose logits are in memory at once; 0: all.

    Args:
      objective: of a target or a denoiser.
    """
    if isinstance(objective, LowRankObjective):
        return logits_at_once(objective.inner)
    if isinstance(objective, DenoiserObjective) and objective.goal == "draft":
        return objective.loss.chunk_blocks * (objective.block_size - 1)
    return int(getattr(objective, "chunk_tokens", 0))


def _blocks(objective: DenoiserObjective, length: int) -> Reading:
    """Blocks of masks, each behind the part of the row up to its anchor."""
    blocks, slots = objective.anchors, objective.block_size - 1
    prefix_N = spread_anchors(blocks, length=length) + 1
    slot_NG = np.arange(slots) + np.zeros((blocks, 1), int)
    masks = Tokens(
        (prefix_N[:, None] + slot_NG + 1).ravel(), (slots - 1 - slot_NG).ravel(), is_read=True
    )
    if objective.model.config.context == "causal":
        clean = causal(length, is_read=False)
        passes: tuple[Pass, ...] = (
            Pass(length, length),
            Pass(blocks * slots, length + blocks * slots),
        )
    else:  # Masks change what the prefix computes: it is read again for every block.
        index = np.concatenate([np.arange(prefix) for prefix in prefix_N])
        whole = np.repeat(prefix_N, prefix_N)
        clean = Tokens(index + 1, whole - 1 - index + slots, is_read=False)
        passes = (Pass(length + slots, length + slots, copies=blocks),)
    places = blocks * slots
    return Reading(objective.model.config, (masks, clean), passes, places=places, noises=blocks)


def causal(length: int, *, is_read: bool = True) -> Tokens:
    """A row whose tokens see what is before them."""
    return Tokens(np.arange(length) + 1, np.zeros(length, int), is_read=is_read)


def spread_anchors(blocks: int, *, length: int) -> np.ndarray:
    """Anchors of blocks that lie evenly in a row, [N]."""
    return ((np.arange(blocks) + 0.5) * length / blocks).astype(int)
