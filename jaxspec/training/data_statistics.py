"""What a run says about its data before the first step.

Dimension key: B rows, N blocks of a row, G drafted slots of a block.

>>> data_lines(pipeline, objective, held_out=None, steps=1000)[1]              # doctest: +SKIP
'1,000 steps are 6.99 epochs of 143 steps.'
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.data.anchors import coverage
from jaxspec.data.pipeline import Pipeline
from jaxspec.training.denoiser import DenoiserObjective
from jaxspec.training.lora import LowRankObjective
from jaxspec.training.objectives import DrafterObjective, Objective
from jaxspec.training.validation import HeldOut

_ROWS = 64
"""Rows that the anchors are drawn for, once, to say how they spread."""


@dataclasses.dataclass(frozen=True)
class AnchorStatistics:
    """How the anchors of one epoch spread over some rows."""

    covered: float
    """Share of the learned tokens that are in a block."""
    per_document: np.ndarray
    """Anchors of each document."""

    @property
    def summary(self) -> str:
        """One line for a log."""
        counts = self.per_document
        return (
            f"Anchors: one epoch drafts {self.covered:.0%} of the learned tokens; a document gets "
            f"{counts.mean():.1f} anchors on average, from {counts.min()} to {counts.max()}."
        )


def data_lines(
    pipeline: Pipeline, objective: Objective, *, held_out: HeldOut | None, steps: int
) -> list[str]:
    """Lines for the log: what is in the rows, how often they are read, and what is held out.

    Args:
      pipeline: the run's data.
      objective: what it learns.
      held_out: data to measure it on.
      steps: length of the run.
    """
    per_epoch = pipeline.steps_per_epoch
    lines = [
        f"Data: {pipeline.statistics.summary}",
        *pipeline.notes,
        f"{steps:,} steps are {steps / per_epoch:.2f} epochs of {per_epoch:,.4g} steps.",
    ]
    if found := anchor_statistics(pipeline, objective):
        lines.append(found.summary)
    if held_out is not None:
        lines.append(f"Held out for validation: {held_out.rows.statistics.summary}")
    return lines


def anchor_statistics(pipeline: Pipeline, objective: Objective) -> AnchorStatistics | None:
    """Draws the anchors of the first rows; None for an objective without anchors."""
    inner: Any = objective.inner if isinstance(objective, LowRankObjective) else objective
    has_anchors = isinstance(inner, DrafterObjective) or (
        isinstance(inner, DenoiserObjective) and inner.in_blocks
    )
    if not has_anchors:
        return None
    numbers = range(min(_ROWS, len(pipeline.rows)))
    rows = [pipeline.rows[number] for number in numbers]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["rows"] = np.array(numbers, np.int32)
    drawn = jax.device_get(_draw(batch, jax.random.key(0), objective=inner))
    anchors_BN, mask_BNG, (covered, learned) = drawn
    counts = []
    for row, segments_S in enumerate(batch["segments"]):
        valid_N = mask_BNG[row].any(axis=-1)
        found = np.bincount(segments_S[anchors_BN[row][valid_N]], minlength=segments_S.max() + 1)
        counts.append(found[1:])
    return AnchorStatistics(covered / max(learned, 1.0), np.concatenate(counts))


@partial(jax.jit, static_argnames="objective")
def _draw(batch: dict[str, jax.Array], key: jax.Array, *, objective: Any) -> Any:
    anchors_BN, _, mask_BNG = objective.blocks(batch, key)
    loss_mask_BS = jnp.asarray(batch["loss_mask"])
    return anchors_BN, mask_BNG, coverage(loss_mask_BS, anchors_BN, mask_BNG)
