"""The drafter's loss: objective + focal * first error - chain * chain reward + extra terms.

"Teaching Diffusion to Speculate Left-to-Right", arXiv 2606.11552. `jaxspec.losses.terms` has the
table of terms; this file adds them up.

Dimension key: N blocks (any leading dimensions), G drafted slots of a block, V vocabulary.

>>> logits, labels = jnp.zeros((2, 3, 5)), jnp.zeros((2, 3), jnp.int32)
>>> loss, metrics = drafter_loss(logits, labels, config=LossConfig(chain=1.0))
>>> metrics["accepted"]  # (sum, count): equal logits are won by label 0
(Array(6., dtype=float32), Array(2., dtype=float32))
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxspec.config import LossConfig
from jaxspec.losses.positional import decay_weights
from jaxspec.losses.reduction import count, counted_slots, ratio, reached_slots
from jaxspec.losses.slots import SlotStatistics, slot_statistics
from jaxspec.losses.terms import TERMS, Fraction, mean_over, terms_of
from jaxspec.ops.array_dataclass import array_dataclass


@array_dataclass
class LossWeights:
    """The numbers of a `LossConfig`, as arrays: one compiled step serves a whole ladder of losses.

    What is left to fix at compile time is `LossConfig.objective`, `LossConfig.normalize` and the
    names in `LossConfig.extra`.
    """

    decay_reciprocal: jax.Array
    """1 / decay; 0 is the uniform baseline."""
    terms: tuple[jax.Array, ...]
    """The weight of each term of `terms_of` after the objective, whose weight is 1."""

    @classmethod
    def from_config(cls, config: LossConfig) -> LossWeights:
        """Takes the weights out of a configuration; decay None or inf becomes reciprocal 0."""
        decay = math.inf if config.decay is None else config.decay
        weights = [getattr(config, term.field) for term in TERMS.values() if term.field]
        weights += [extra.weight for extra in config.extra_terms]
        return cls(
            decay_reciprocal=jnp.float32(1.0 / decay),
            terms=tuple(jnp.float32(weight) for weight in weights),
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
) -> dict[str, Fraction]:
    """The parts of the loss, each as (numerator, denominator).

    Formula: `cross_entropy` (or the objective in its place), `first_error_focal`, `chain_reward`
    and the extra terms, not yet divided. With data split over devices, add up numerators and
    denominators over them, then divide: the result is that of one device.

    Args:
      slots: statistics of [..., G] slots.
      mask_NG: [..., G], true where the slot counts; None: all count.
      config: its `objective`, `normalize` and `extra` decide what is computed.
      weights: the positional decay, and the terms' weights, as arrays; None: those of `config`.

    Returns:
      A dictionary of the terms: the objective under its own name ("cross_entropy" for
      cross-entropy and nothing else), "first_error_focal", "chain_reward", and the extra terms.

    Raises:
      ValueError: shapes that do not fit, an unknown objective or extra term, one that needs target
        logits without them, or an extra term that does not return two scalars.

    Source: arXiv 2606.11552.
    Limiting case: if no slot counts, all numbers of the built-in terms are 0.
    """
    weights = LossWeights.from_config(config) if weights is None else weights
    weights_G = weights.positional(slots.log_p_NG.shape[-1])
    terms = {
        name: term.function(slots, mask_NG=mask_NG, weights_G=weights_G)
        for name, term in terms_of(config).items()
    }
    for extra in config.extra_terms:
        terms[extra.name] = _checked(terms[extra.name], name=extra.name)
    return terms


def total_from_terms(
    terms: dict[str, Fraction], *, config: LossConfig, weights: LossWeights | None = None
) -> jax.Array:
    """Divides the terms of `loss_terms` and adds them up.

    Formula: ``L = objective + focal * first_error_focal - chain * chain_reward`` plus each extra
    term times its weight (minus, if it is a reward). Each term is its numerator over its
    denominator, 0 where the denominator is 0.

    A data-parallel caller replaces the denominators by their sum over devices; the losses of the
    devices then add up to the loss of the whole batch, and so do their gradients.

    Args:
      terms: what `loss_terms` returned.
      config: the configuration that the terms were made with.
      weights: the terms' weights as arrays; None: those of `config`.

    Returns:
      float32 scalar.

    Raises:
      ValueError: a term is missing, or the weights are those of other terms.

    Source: arXiv 2606.11552 (best: decay 10, focal 0.3, chain 40).
    Limiting case: if every weight is 0, the objective is left.
    """
    table = terms_of(config)
    missing = table.keys() - terms.keys()
    if missing:
        raise ValueError(
            f"terms lack {', '.join(sorted(missing))}: got {', '.join(terms)}. Make them with "
            "loss_terms and the same config."
        )
    weights = LossWeights.from_config(config) if weights is None else weights
    objective, *others = table
    if len(weights.terms) != len(others):
        raise ValueError(
            f"weights must hold one number for each of {', '.join(others)}: got "
            f"{len(weights.terms)}. Make them with LossWeights.from_config of a config with the "
            "same names in its extra."
        )
    total = ratio(*terms[objective])
    for name, weight in zip(others, weights.terms, strict=True):
        # Selected: a term of weight 0 may be infinite (a label that the logits forbid), and 0 * inf
        # would be NaN.
        share = jnp.where(weight == 0, 0.0, weight * ratio(*terms[name]))
        total = total - share if table[name].reward else total + share
    return total


def _checked(term: Fraction, *, name: str) -> Fraction:
    """An extra term, whose denominator is a count: no gradient flows through it."""
    shapes = [jnp.shape(part) for part in term] if isinstance(term, tuple | list) else None
    if shapes != [(), ()]:
        raise ValueError(
            f"loss.extra {name!r} must return two scalars, numerator and denominator: got "
            f"{'shapes ' + str(shapes) if shapes is not None else type(term).__name__}. Sum over "
            "the slots that count, and return both sums."
        )
    numerator, denominator = (jnp.asarray(part, jnp.float32) for part in term)
    return numerator, jax.lax.stop_gradient(denominator)


def drafter_metrics(
    slots: SlotStatistics, mask_NG: jax.Array | None = None, *, config: LossConfig | None = None
) -> dict[str, Fraction]:
    """What to watch. It does not depend on the loss, so runs with different losses compare.

    Formula, as sum / count over the counted slots:

    - cross_entropy: ``-log p`` / slots, without positional weights;
    - first_error_focal: ``-log p`` at the first error / blocks with an error, without weights;
    - chain_reward: mean cumulative product of a block / blocks;
    - accepted: leading correct slots of a block / blocks, the accepted length of greedy decoding
      without the bonus token, if the labels are what the target would emit;
    - accept_at: [G] arrays, blocks accepted up to and including slot g / blocks accepted up to
      slot g - 1 in which slot g counts: the conditional acceptance;
    - wasted: correct slots after the first error / blocks;
    - overlap and kl, only with target logits: ``sum_v min(p_v, q_v)`` and ``KL(p || q)`` / slots;
    - extra/NAME: of each extra term of `config`, without positional weights.

    Args:
      slots: statistics of [..., G] slots.
      mask_NG: [..., G], true where the slot counts; None: all count.
      config: the loss whose extra terms are logged too; None: no extra terms.

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
    blocks = count(jnp.any(counted_NG, axis=-1))
    leading = tuple(range(counted_NG.ndim - 1))

    metrics = {
        "cross_entropy": mean_over(-slots.log_p_NG, counted_NG),
        **{
            name: term.logged(slots, mask_NG=counted_NG)
            for name, term in TERMS.items()
            if term.field
        },
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
    if config is not None and config.extra:
        table = terms_of(config)
        for extra in config.extra_terms:
            total, number = table[extra.name].logged(slots, mask_NG=counted_NG)
            metrics[f"extra/{extra.name}"] = (jnp.float32(total), jnp.float32(number))
    return metrics


def drafter_loss(
    logits_NGV: jax.Array,
    labels_NG: jax.Array,
    mask_NG: jax.Array | None = None,
    *,
    config: LossConfig,
    weights: LossWeights | None = None,
    target_logits_NGV: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Fraction]]:
    """The loss of a batch of drafted blocks, and its metrics.

    Formula: ``L = L_CE + focal * L_fe - chain * R`` with the parts `cross_entropy` (weighted by
    `positional_weights`), `first_error_focal` and `chain_reward`, plus the extra terms.

    Args:
      logits_NGV: [..., G, V] of the drafter, slots 1..K-1 of the blocks (the anchor is slot 0).
      labels_NG: [..., G] integer ids.
      mask_NG: [..., G], true where the slot counts; a slot after a masked one of its block does
        not count either. None: all count.
      config: objective, normalisation, decay and the weights of the terms. `chunk_blocks` has no
        effect here: see `chunked_slot_statistics`.
      weights: decay and the weights of the terms as arrays, to vary them without compiling again;
        None: those of `config`.
      target_logits_NGV: [..., G, V] of the target, for terms that compare distributions.

    Returns:
      (loss, metrics): a float32 scalar, and name to (sum, count) of `drafter_metrics`, to which
      the parts of the loss itself are added as "term/NAME" (numerator, denominator).

    Raises:
      ValueError: shapes that do not fit, an unknown objective or extra term, or one that needs
        target logits without them.

    Source: arXiv 2606.11552.
    Limiting case: ``LossConfig(decay=None, focal=0, chain=0)`` is the position-uniform baseline.
    """
    slots = slot_statistics(logits_NGV, labels_NG, target_logits_NGV=target_logits_NGV)
    terms = loss_terms(slots, mask_NG, config=config, weights=weights)
    metrics = drafter_metrics(slots, mask_NG, config=config)
    metrics |= {f"term/{name}": jax.lax.stop_gradient(term) for name, term in terms.items()}
    return total_from_terms(terms, config=config, weights=weights), metrics
