"""Cross-entropy, and other objectives to compare it with, from the same per-slot statistics.

Each is a small dataclass with one method, `slot_values`, that returns the value of every slot and
the slots it is averaged over. It takes the place of cross-entropy in the combined loss: positional
weights, normalisation and the other terms apply to it in the same way (for an objective as in its
own paper, set ``decay=None, focal=0, chain=0``). To add one, write its class here and enter it in
`OBJECTIVES`.

Sources: D-PACE, arXiv 2605.18810; LK losses, arXiv 2602.23881 (there also total variation and
forward KL as baselines); Spec-AUF (cross-entropy up to the first predicted failure); streak
distillation, SpecDiff-2, arXiv 2511.00606.

Dimension key: N blocks (any leading dimensions), G drafted slots of a block.

>>> [name for name, objective in OBJECTIVES.items() if objective.needs_target_rows]
['lk', 'tv', 'forward_kl']
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from jaxspec.losses.chain import prefix_probability
from jaxspec.losses.reduction import counted_slots, reached_slots
from jaxspec.losses.slots import SlotStatistics
from jaxspec.names import did_you_mean


class Objective(Protocol):
    """What the leading term of the combined loss is made of.

    Classes that inherit from it have the defaults of the two attributes.
    """

    needs_target_rows: ClassVar[bool] = False
    """Whether it compares the drafter's distribution with the target's in every slot."""
    counts_follow_predictions: ClassVar[bool] = False
    """Whether the slots it averages over depend on what the drafter predicts, and not only on the
    masks."""

    def slot_values(
        self, slots: SlotStatistics, mask_NG: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (values_NG, mask_NG): what each slot costs, and the slots to average over."""
        ...


def d_pace_weights(
    log_p_NG: jax.Array, *, mask_NG: jax.Array | None = None, smoothing: float = 0.5
) -> jax.Array:
    """How much of the drafter's expected accepted length depends on each slot, a detached weight.

    Formula: ``w[n, k] = sum_{g >= k} prod_{i <= g} ((1 - a) p[n, i] + a)`` over counted slots, with
    a the smoothing; no gradient flows through them.

    Args:
      log_p_NG: [..., G] log-probabilities of the labels.
      mask_NG: [..., G] or None.
      smoothing: a in [0, 1]; keeps the weights of late slots above 0 while early slots are poor.

    Returns:
      float32 [..., G]; 0 in slots that do not count.

    Raises:
      ValueError: a smoothing outside [0, 1], or shapes that do not fit.

    Source: D-PACE, arXiv 2605.18810 (a = 0.5).
    Limiting case: a = 0 gives cross-entropy the gradient of streak distillation; a = 1 weights each
    slot by the number of counted slots from it to the end.
    """
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"smoothing must lie in [0, 1]: got {smoothing}.")
    smoothed_NG = (1.0 - smoothing) * jnp.exp(jax.lax.stop_gradient(log_p_NG)) + smoothing
    reach_NG = prefix_probability(jnp.log(smoothed_NG), mask_NG=mask_NG)
    return jnp.flip(jnp.cumsum(jnp.flip(reach_NG, axis=-1), axis=-1), axis=-1)


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy: ``-log p`` in every counted slot (arXiv 2606.11552)."""

    def slot_values(
        self, slots: SlotStatistics, mask_NG: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns ``-log p`` and the counted slots."""
        return -slots.log_p_NG, counted_slots(mask_NG, shape=slots.log_p_NG.shape)


@dataclasses.dataclass(frozen=True)
class DPace(Objective):
    """Cross-entropy with the detached dynamic weights of `d_pace_weights` (arXiv 2605.18810)."""

    smoothing: float = 0.5

    def slot_values(
        self, slots: SlotStatistics, mask_NG: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns ``-w log p`` and the counted slots; smoothing 1 is a fixed linear schedule."""
        counted_NG = counted_slots(mask_NG, shape=slots.log_p_NG.shape)
        weights_NG = d_pace_weights(slots.log_p_NG, mask_NG=counted_NG, smoothing=self.smoothing)
        return jnp.where(counted_NG, -weights_NG * slots.log_p_NG, 0.0), counted_NG


@dataclasses.dataclass(frozen=True)
class SpecAUF(Objective):
    """Cross-entropy up to and including the first predicted failure of each block (Spec-AUF)."""

    counts_follow_predictions: ClassVar[bool] = True

    def slot_values(
        self, slots: SlotStatistics, mask_NG: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns ``-log p`` and the slots reached; all correct is plain cross-entropy.

        The slots after the failure are left out of the average too (`normalize="weight"`).
        """
        return -slots.log_p_NG, reached_slots(slots.correct_NG, mask_NG=mask_NG)


@dataclasses.dataclass(frozen=True)
class LK(Objective):
    """Negative log acceptance probability, ``-log sum_v min(p_v, q_v)`` (arXiv 2602.23881)."""

    needs_target_rows: ClassVar[bool] = True

    def slot_values(
        self, slots: SlotStatistics, mask_NG: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns ``-log overlap`` and the counted slots; 0 where drafter and target agree.

        Raises:
          ValueError: the statistics were made without target logits.
        """
        overlap_NG = _needed(slots.overlap_NG, "lk")
        # Rows without any overlap would cost infinity; the floor is float32's smallest number.
        floor = float(jnp.finfo(jnp.float32).tiny)
        return -jnp.log(jnp.maximum(overlap_NG, floor)), counted_slots(
            mask_NG, shape=overlap_NG.shape
        )


@dataclasses.dataclass(frozen=True)
class TV(Objective):
    """Total variation or rejection probability, ``1 - sum_v min(p_v, q_v)`` (arXiv 2602.23881)."""

    needs_target_rows: ClassVar[bool] = True

    def slot_values(
        self, slots: SlotStatistics, mask_NG: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns ``1 - overlap`` and the counted slots; its gradient fades at small overlaps.

        Raises:
          ValueError: the statistics were made without target logits.
        """
        overlap_NG = _needed(slots.overlap_NG, "tv")
        return 1.0 - overlap_NG, counted_slots(mask_NG, shape=overlap_NG.shape)


@dataclasses.dataclass(frozen=True)
class ForwardKL(Objective):
    """Divergence from target to drafter, ``sum_v p_v (log p_v - log q_v)`` (distillation)."""

    needs_target_rows: ClassVar[bool] = True

    def slot_values(
        self, slots: SlotStatistics, mask_NG: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns ``KL(p || q)`` and the counted slots; a one-hot target makes it cross-entropy.

        Raises:
          ValueError: the statistics were made without target logits.
        """
        kl_NG = _needed(slots.kl_NG, "forward_kl")
        return kl_NG, counted_slots(mask_NG, shape=kl_NG.shape)


@dataclasses.dataclass(frozen=True)
class Streak(Objective):
    """Streak distillation, plain form: ``-prod_{i <= g} p_i``, summed over a block (2511.00606).

    Minus the expected accepted length under point-mass acceptance. Its gradient vanishes while
    early probabilities are small: it is for drafters that can already draft, or next to another
    term.
    """

    def slot_values(
        self, slots: SlotStatistics, mask_NG: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns minus the cumulative products and the counted slots; p = 1 is -1 in each slot."""
        counted_NG = counted_slots(mask_NG, shape=slots.log_p_NG.shape)
        return -prefix_probability(slots.log_p_NG, mask_NG=counted_NG), counted_NG


@dataclasses.dataclass(frozen=True)
class DetachedStreak(Objective):
    """Streak distillation, second form: ``-sg[prod_{i < g} p_i] log p_g`` (arXiv 2511.00606).

    Cross-entropy weighted by the chance that the slot is reached; its first slot never fades.
    """

    def slot_values(
        self, slots: SlotStatistics, mask_NG: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the weighted ``-log p`` and the counted slots; p = 1 before g is plain CE."""
        counted_NG = counted_slots(mask_NG, shape=slots.log_p_NG.shape)
        log_p_NG = jnp.where(counted_NG, slots.log_p_NG, 0.0)
        before_NG = jnp.cumsum(log_p_NG, axis=-1)[..., :-1]
        # Shifted, not subtracted: -inf - -inf would be NaN.
        before_NG = jnp.concatenate([jnp.zeros_like(log_p_NG[..., :1]), before_NG], axis=-1)
        reach_NG = jnp.exp(jax.lax.stop_gradient(before_NG))
        return -reach_NG * log_p_NG, counted_NG


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "cross_entropy": CrossEntropy(),
        "d_pace": DPace(),
        "lk": LK(),
        "tv": TV(),
        "forward_kl": ForwardKL(),
        "spec_auf": SpecAUF(),
        "streak": Streak(),
        "detached_streak": DetachedStreak(),
    }
)
"""The objectives that `LossConfig.objective` names."""


def find_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
      ValueError: there is none.
    """
    if name not in OBJECTIVES:
        raise ValueError(
            f"unknown objective {name!r}: loss.objective is one of {', '.join(OBJECTIVES)}."
            f"{did_you_mean(name, OBJECTIVES)}"
        )
    return OBJECTIVES[name]


def _needed(statistic_NG: jax.Array | None, objective: str) -> jax.Array:
    if statistic_NG is None:
        raise ValueError(
            f"objective {objective!r} compares the drafter's distribution with the target's, but "
            "the slot statistics were made without target logits. Pass target_logits_NGV to "
            "slot_statistics or drafter_loss (target_hidden_BNGD to chunked_slot_statistics), or "
            "choose an objective that needs only labels, such as 'cross_entropy'."
        )
    return statistic_NG
