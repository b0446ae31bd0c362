"""The drafter's loss: weighted cross-entropy + focal * first error - chain * chain reward.

"Teaching Diffusion to Speculate Left-to-Right", arXiv 2606.11552.

Dimension key: N blocks (any leading dimensions), G drafted slots of a block, V vocabulary.

>>> import jax.numpy as jnp
>>> logits, labels = jnp.zeros((2, 3, 5)), jnp.zeros((2, 3), jnp.int32)
>>> loss, metrics = drafter_loss(logits, labels, config=LossConfig(chain=1.0))
>>> metrics["accepted"]  # (sum, count): equal logits are won by label 0
(Array(6., dtype=float32), Array(2., dtype=float32))
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from jaxspec.config import LossConfig
from jaxspec.losses.chain import chain_terms
from jaxspec.losses.first_error import first_error_slots, first_error_terms
from jaxspec.losses.objectives import OBJECTIVES
from jaxspec.losses.positional import decay_weights
from jaxspec.losses.reduction import count, counted_slots, ratio, reached_slots, weighted_terms
from jaxspec.losses.slots import SlotStatistics, slot_statistics

Term = tuple[jax.Array, jax.Array]


@struct.dataclass
class LossWeights:
    """The numbers of a `LossConfig`, as arrays: one compiled step serves a whole ladder of losses.

    Only `LossConfig.normalize` and `LossConfig.objective` are left to fix at compile time.
    """

    decay_reciprocal: jax.Array
    """1 / decay; 0 is the uniform baseline."""
    focal: jax.Array
    chain: jax.Array

    @classmethod
    def from_config(cls, config: LossConfig) -> LossWeights:
        """Takes the weights out of a configuration; decay None or inf becomes reciprocal 0."""
        decay = math.inf if config.decay is None else config.decay
        return cls(
            decay_reciprocal=jnp.float32(1.0 / decay),
            focal=jnp.float32(config.focal),
            chain=jnp.float32(config.chain),
        )

    def positional(self, num_slots: int) -> jax.Array:
        """Returns the positional weights [G], see `jaxspec.losses.positional_weights`."""
        return decay_weights(num_slots, reciprocal=self.decay_reciprocal)


def loss_terms(
    slots: SlotStatistics,
    mask_NG: jax.Array | None = None,
    *,
    config: LossConfig,
    weights: LossWeights | None = None,
) -> dict[str, Term]:
    """The parts of the loss, each as (numerator, denominator).

    Formula: `cross_entropy` (or the objective in its place), `first_error_focal` and
    `chain_reward`, not yet divided. With data split over devices, add numerators and denominators
    over them, then divide: the result is that of one device.

    Args:
      slots: statistics of [..., G] slots.
      mask_NG: [..., G], true where the slot counts; None: all count.
      config: its `objective` and `normalize` decide what is computed.
      weights: decay, focal and chain as arrays; None: those of `config`.

    Returns:
      A dictionary of three terms: the objective under its own name ("cross_entropy" for
      cross-entropy and for nothing else), "first_error_focal" and "chain_reward".

    Raises:
      ValueError: shapes that do not fit, or an objective that needs target logits without them.

    Source: arXiv 2606.11552.
    Limiting case: with no counted slot all six numbers are 0.
    """
    if config.objective not in OBJECTIVES:
        raise ValueError(
            f"unknown objective {config.objective!r}: choose one of {', '.join(OBJECTIVES)}."
        )
    weights = LossWeights.from_config(config) if weights is None else weights
    weights_G = weights.positional(slots.log_p_NG.shape[-1])
    values_NG, value_mask_NG = OBJECTIVES[config.objective].slot_values(slots, mask_NG)
    return {
        config.objective: weighted_terms(
            values_NG, weights_G=weights_G, mask_NG=value_mask_NG, normalize=config.normalize
        ),
        "first_error_focal": first_error_terms(
            slots.log_p_NG, correct_NG=slots.correct_NG, weights_G=weights_G, mask_NG=mask_NG
        ),
        "chain_reward": chain_terms(slots.log_p_NG, mask_NG=mask_NG),
    }


def total_from_terms(
    terms: dict[str, Term], *, config: LossConfig, weights: LossWeights | None = None
) -> jax.Array:
    """Divides the terms of `loss_terms` and adds them up.

    Formula: ``L = objective + focal * first_error_focal - chain * chain_reward``, each its
    numerator over its denominator, 0 where the denominator is 0.

    A data-parallel caller replaces the denominators by their sum over devices; the losses of the
    devices then add up to the loss of the whole batch, and so do their gradients.

    Args:
      terms: what `loss_terms` returned.
      config: the configuration the terms were made with.
      weights: focal and chain as arrays; None: those of `config`.

    Returns:
      float32 scalar.

    Raises:
      ValueError: a term is missing.

    Source: arXiv 2606.11552 (best: decay 10, focal 0.3, chain 40).
    Limiting case: focal = chain = 0 is the objective alone.
    """
    missing = {config.objective, "first_error_focal", "chain_reward"} - terms.keys()
    if missing:
        raise ValueError(
            f"terms lack {', '.join(sorted(missing))}: got {', '.join(terms)}. Make them by "
            "loss_terms with the same config."
        )
    weights = LossWeights.from_config(config) if weights is None else weights
    return (
        ratio(*terms[config.objective])
        + weights.focal * ratio(*terms["first_error_focal"])
        - weights.chain * ratio(*terms["chain_reward"])
    )


def drafter_metrics(slots: SlotStatistics, mask_NG: jax.Array | None = None) -> dict[str, Term]:
    """What to watch, independent of the loss trained, so that runs with other losses compare.

    Formula, as sum / count over the counted slots:

    - cross_entropy: ``-log p`` / slots, without positional weights;
    - first_error_focal: ``-log p`` at the first error / blocks with an error, without weights;
    - chain_reward: mean cumulative product of a block / blocks;
    - accepted: leading correct slots of a block / blocks, the accepted length of greedy decoding
      without the bonus token, if the text of the labels is what the target would say;
    - accept_at: [G] arrays, blocks accepted up to and including slot g / blocks accepted up to
      slot g - 1 in which slot g counts: the conditional acceptance;
    - wasted: correct slots behind the first error / blocks;
    - overlap and kl, with target logits alone: ``sum_v min(p_v, q_v)`` and ``KL(p || q)`` / slots.

    Args:
      slots: statistics of [..., G] slots.
      mask_NG: [..., G], true where the slot counts; None: all count.

    Returns:
      A dictionary of name to (sum, count), float32, without gradient. Add both over steps and
      devices; divide when writing.

    Raises:
      ValueError: the shapes differ.

    Source: arXiv 2606.11552 for the losses and the wasted tokens.
    Limiting case: a drafter that is always right has accepted = G, accept_at = 1, wasted = 0.
    """
    slots = jax.lax.stop_gradient(slots)
    counted_NG = counted_slots(mask_NG, shape=slots.log_p_NG.shape)
    reached_NG = reached_slots(slots.correct_NG, mask_NG=counted_NG)
    accepted_NG = reached_NG & slots.correct_NG
    wasted_NG = counted_NG & slots.correct_NG & ~accepted_NG
    first_NG = first_error_slots(slots.correct_NG, mask_NG=counted_NG)
    blocks = count(jnp.any(counted_NG, axis=-1))
    leading = tuple(range(counted_NG.ndim - 1))

    def mean_over(values_NG: jax.Array, where_NG: jax.Array) -> Term:
        return jnp.sum(jnp.where(where_NG, values_NG, 0.0), dtype=jnp.float32), count(where_NG)

    metrics = {
        "cross_entropy": mean_over(-slots.log_p_NG, counted_NG),
        "first_error_focal": mean_over(-slots.log_p_NG, first_NG),
        "chain_reward": chain_terms(slots.log_p_NG, mask_NG=counted_NG),
        "accepted": (count(accepted_NG), blocks),
        "accept_at": (
            jnp.sum(accepted_NG, axis=leading, dtype=jnp.float32),
            jnp.sum(reached_NG, axis=leading, dtype=jnp.float32),
        ),
        "wasted": (count(wasted_NG), blocks),
    }
    if slots.overlap_NG is not None:
        metrics["overlap"] = mean_over(slots.overlap_NG, counted_NG)
    if slots.kl_NG is not None:
        metrics["kl"] = mean_over(slots.kl_NG, counted_NG)
    return metrics


def drafter_loss(
    logits_NGV: jax.Array,
    labels_NG: jax.Array,
    mask_NG: jax.Array | None = None,
    *,
    config: LossConfig,
    weights: LossWeights | None = None,
    target_logits_NGV: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Term]]:
    """The loss of a batch of drafted blocks, and its metrics.

    Formula: ``L = L_CE + focal * L_fe - chain * R`` with the parts `cross_entropy` (weighted by
    `positional_weights`), `first_error_focal` and `chain_reward`.

    Args:
      logits_NGV: [..., G, V] of the drafter, slots 1..K-1 of the blocks without the anchor.
      labels_NG: [..., G] integer ids.
      mask_NG: [..., G], true where the slot counts; a slot behind a masked one of its block does
        not count either. None: all count.
      config: decay, focal, chain, normalisation and objective. `chunk_blocks` has no effect here:
        see `chunked_slot_statistics`.
      weights: decay, focal and chain as arrays, to vary them without compiling again; None:
        those of `config`.
      target_logits_NGV: [..., G, V] of the target, for the objectives that compare distributions.

    Returns:
      (loss, metrics): a float32 scalar, and name to (sum, count) of `drafter_metrics`, to which
      the parts of the loss itself are added as "term/NAME" (numerator, denominator).

    Raises:
      ValueError: shapes that do not fit, or an objective that needs target logits without them.

    Source: arXiv 2606.11552.
    Limiting case: ``LossConfig(decay=None, focal=0, chain=0)`` is the position-uniform baseline.
    """
    slots = slot_statistics(logits_NGV, labels_NG, target_logits_NGV=target_logits_NGV)
    terms = loss_terms(slots, mask_NG, config=config, weights=weights)
    metrics = drafter_metrics(slots, mask_NG)
    metrics |= {f"term/{name}": jax.lax.stop_gradient(term) for name, term in terms.items()}
    return total_from_terms(terms, config=config, weights=weights), metrics
