"""Masked diffusion: schedule, times, corruption, and the two objectives of absorbing diffusion.

MDLM (Sahoo et al. 2024, arXiv 2406.07524): tokens are masked independently with probability
(1 - eps) t, a denoiser says what stood there, and its cross-entropy weighted by 1 / t bounds the
negative log-likelihood. SEDD (Lou et al. 2024, arXiv 2310.16834) learns ratios of probabilities
from the same corrupted tokens. Block diffusion (BD3LM, Arriola et al. 2025, arXiv 2503.09573) draws
one time a block instead of one a sequence.

Values are per token; `token_terms` reduces them to a sum and a count, which data-parallel callers
add over devices before dividing.

Dimension key: B sequences, S tokens, N blocks of a sequence, V vocabulary (the mask included).

>>> schedule, (key_times, key_masks) = LogLinearSchedule(), jax.random.split(jax.random.key(0))
>>> times_BS = token_times(antithetic_times(key_times, (2,)), length=8)
>>> noisy = corrupt(key_masks, jnp.zeros((2, 8), jnp.int32), schedule.mask_probability(times_BS),
...                 mask_id=3)
>>> values_BS = elbo_values(logits_BSV, tokens_BS, masked_BS=noisy.masked_BS, times_BS=times_BS,
...                         mask_id=3)
>>> loss = ratio(*token_terms(values_BS))
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.losses.cross_entropy import label_log_prob
from jaxspec.losses.reduction import count
from jaxspec.ops.sampling import at_least_float32
from jaxspec.ops.suppression import suppress

SMALLEST_TIME = 1e-3
"""Training times lie in [SMALLEST_TIME, 1]: the weight 1 / t is unbounded at 0."""


@dataclasses.dataclass(frozen=True)
class LogLinearSchedule:
    """The log-linear schedule: alpha(t) = 1 - (1 - eps) t is the share of tokens left at time t.

    Args:
      eps: share of tokens left at t = 1; 0 is the ideal schedule, whose bound is tight for a
        perfect denoiser (sigma is then infinite at t = 1).

    Raises:
      ValueError: eps outside [0, 1).

    Source: MDLM, arXiv 2406.07524, and its released code (eps = 1e-3).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps must lie in [0, 1): got {self.eps}.")

    def mask_probability(self, times: jax.Array) -> jax.Array:
        """The chance that a token is masked at time t: (1 - eps) t."""
        return (1 - self.eps) * times

    def sigma(self, times: jax.Array) -> jax.Array:
        """Total noise, -log alpha(t): what a time-conditioned denoiser is given."""
        return -jnp.log1p(-self.mask_probability(times))

    def sigma_rate(self, times: jax.Array) -> jax.Array:
        """The derivative of `sigma`: (1 - eps) / alpha(t)."""
        return (1 - self.eps) / (1 - self.mask_probability(times))

    def weight(self, times: jax.Array) -> jax.Array:
        """Weight of a masked token's cross-entropy, sigma' / expm1(sigma): 1 / t for every eps."""
        return 1 / times


def antithetic_times(
    key: jax.Array, shape: tuple[int, ...], *, smallest: float = SMALLEST_TIME
) -> jax.Array:
    """Times that are spread evenly over [smallest, 1]: one in each of n equal strata.

    Formula: ``e_i = (u_i + stratum_i) / n`` with u uniform and the n strata in random order, then
    ``t = (1 - smallest) e + smallest``. The set of times is the released code's. Which entry gets
    which stratum is drawn as well: taken in order, block 0 of a single row would always get small
    times and the last block large ones, and the loss would not be the bound.

    Args:
      key: a typed key (`jax.random.key`).
      shape: (B,) for one time a sequence, (B, N) for one a block; n is its product.
      smallest: the lower end; 0 < smallest < 1.

    Returns:
      float32 of that shape; each entry by itself is uniform.

    Raises:
      ValueError: `smallest` outside (0, 1).

    Limiting case: n = 1 is a plain uniform draw.
    """
    if not 0 < smallest < 1:
        raise ValueError(f"smallest must lie in (0, 1): got {smallest}.")
    key_within, key_order = jax.random.split(key)
    size = math.prod(shape)
    stratum = jax.random.permutation(key_order, size).astype(jnp.float32)
    even = (jax.random.uniform(key_within, (size,)) + stratum) / max(size, 1)
    return ((1 - smallest) * even + smallest).reshape(shape)


def token_times(times: jax.Array, *, length: int) -> jax.Array:
    """The time of each token, [B, S], from one a sequence [B] or one a block [B, N].

    Blocks have S / N tokens each.

    Raises:
      ValueError: times of another rank, or blocks that do not divide the length.
    """
    if times.ndim == 1:
        return jnp.broadcast_to(times[:, None], (times.shape[0], length))
    if times.ndim != 2 or times.shape[1] == 0 or length % times.shape[1]:
        raise ValueError(
            "times must be [B] (one a sequence) or [B, N] with N blocks of equal size: got shape "
            f"{times.shape} for sequences of {length} tokens."
        )
    return jnp.repeat(times, length // times.shape[1], axis=1)


def maskable_tokens(
    attended_BS: jax.Array,
    *,
    prefix_lengths_B: jax.Array | None = None,
    suffix: int | None = None,
) -> jax.Array:
    """Which tokens corruption may touch: attended ones behind the prefix and within the suffix.

    Args:
      attended_BS: bool, False where the row is padded.
      prefix_lengths_B: attended tokens at the start of each row that are never masked (a prompt, an
        anchor). None: no prefix.
      suffix: only the last so many attended tokens may be masked: with ``times = 1`` it is what
        drafting looks like, [prefix | masks], which random masks hardly ever show. None: all.

    Returns:
      bool [B, S].

    Raises:
      ValueError: a suffix below 1.
    """
    if suffix is not None and suffix < 1:
        raise ValueError(f"suffix counts the last tokens and must be at least 1: got {suffix}.")
    attended_BS = attended_BS.astype(bool)
    maskable_BS = attended_BS
    if prefix_lengths_B is not None:
        before_BS = jnp.cumsum(attended_BS, axis=1) - attended_BS
        maskable_BS = maskable_BS & (before_BS >= prefix_lengths_B[:, None])
    if suffix is not None:
        from_here_BS = jnp.cumsum(attended_BS[:, ::-1], axis=1)[:, ::-1]
        maskable_BS = maskable_BS & (from_here_BS <= suffix)
    return maskable_BS


class Corrupted(NamedTuple):
    """What the denoiser sees, and which of it is hidden."""

    tokens_BS: jax.Array
    masked_BS: jax.Array


def corrupt(
    key: jax.Array,
    tokens_BS: jax.Array,
    mask_probability: jax.Array,
    *,
    mask_id: int,
    maskable_BS: jax.Array | None = None,
) -> Corrupted:
    """Masks each token independently.

    Args:
      key: a typed key.
      tokens_BS: ids without masks.
      mask_probability: broadcastable to [B, S]; `LogLinearSchedule.mask_probability` of the times.
      mask_id: the mask's id.
      maskable_BS: tokens that may be masked (`maskable_tokens`); None: all.

    Returns:
      `Corrupted`. A token that is `mask_id` already counts as masked only where it was drawn.

    Limiting case: probability 0 masks nothing, probability 1 every maskable token.
    """
    masked_BS = jax.random.uniform(key, tokens_BS.shape) < mask_probability
    if maskable_BS is not None:
        masked_BS = masked_BS & maskable_BS
    return Corrupted(jnp.where(masked_BS, mask_id, tokens_BS), masked_BS)


def subs_log_probs(logits_BSV: jax.Array, tokens_BS: jax.Array, *, mask_id: int) -> jax.Array:
    """Log-probabilities of the clean tokens in the SUBS parameterisation.

    The mask is never predicted (its logit is -inf), and a token that is not masked is carried over:
    log-probability 0 for itself and -inf for all others.

    Args:
      logits_BSV: the denoiser's output for `tokens_BS`.
      tokens_BS: what it was given, masks included.
      mask_id: the mask's id.

    Returns:
      [B, S, V], float32 (float64 for float64 logits).

    Raises:
      ValueError: a mask id outside the vocabulary, or a vocabulary of the mask alone.

    Source: MDLM, arXiv 2406.07524, section 3.2.3.
    """
    # float32: a sum over 50,000 exponentials is noise in bfloat16.
    wide_BSV = logits_BSV.astype(at_least_float32(logits_BSV.dtype))
    log_p_BSV = jax.nn.log_softmax(suppress(wide_BSV, (mask_id,)), axis=-1)
    own_BSV = jnp.arange(log_p_BSV.shape[-1]) == tokens_BS[..., None]
    carried_BSV = jnp.where(own_BSV, 0, -jnp.inf).astype(log_p_BSV.dtype)
    return jnp.where((tokens_BS == mask_id)[..., None], log_p_BSV, carried_BSV)


def elbo_values(
    logits_BSV: jax.Array,
    labels_BS: jax.Array,
    *,
    masked_BS: jax.Array,
    times_BS: jax.Array,
    mask_id: int,
) -> jax.Array:
    """What each token adds to the bound on the negative log-likelihood.

    Formula: ``-log p(x0 | x_t) / t`` where the token is masked, 0 where it is not. Its expectation
    over t uniform in [0, 1] and the masks, summed over tokens, is the negative ELBO; for the ideal
    schedule (eps = 0) it is the mean of ``-log p`` over all orders of generation.

    Args:
      logits_BSV: [..., V], the denoiser's output for the corrupted tokens; the mask's logit is not
        looked at.
      labels_BS: clean ids, [...]; ids outside the vocabulary are harmless where nothing is masked.
      masked_BS: bool [...].
      times_BS: times in (0, 1], broadcastable to [...].
      mask_id: the mask's id.

    Returns:
      float32 [...], never negative; NaN where a masked label is outside the vocabulary.

    Raises:
      ValueError: shapes or types that do not fit.

    Source: MDLM, arXiv 2406.07524, equation 10 with the log-linear schedule.
    Limiting case: a denoiser that knows the tokens gives 0; t = 1 is plain cross-entropy.
    """
    log_p_BS = label_log_prob(suppress(logits_BSV, (mask_id,)), labels_BS)
    # Selected, not multiplied: 0 * NaN of an ignored label would be NaN.
    return jnp.where(masked_BS, -log_p_BS / times_BS, 0.0)


def log_scores(
    logits_BSV: jax.Array, *, times_BS: jax.Array, schedule: LogLinearSchedule
) -> jax.Array:
    """Logits as log-scores of absorbing SEDD, scaled by the noise.

    Formula: ``log s(y) = logits - log expm1(sigma(t)) - log(V - 1)``: zero logits are then the
    score of a uniform guess. As in SEDD's models with `scale_by_sigma`.

    Args:
      logits_BSV: [..., V].
      times_BS: [...], in (0, 1].
      schedule: gives sigma.

    Returns:
      [..., V], float32 or wider. Entries of the mask and of unmasked tokens have no meaning.
    """
    wide_BSV = logits_BSV.astype(at_least_float32(logits_BSV.dtype))
    log_noise_BS = jnp.log(jnp.expm1(schedule.sigma(times_BS)))
    return wide_BSV - log_noise_BS[..., None] - math.log(max(wide_BSV.shape[-1] - 1, 1))


def score_entropy_values(
    log_scores_BSV: jax.Array,
    labels_BS: jax.Array,
    *,
    masked_BS: jax.Array,
    times_BS: jax.Array,
    schedule: LogLinearSchedule,
    mask_id: int,
) -> jax.Array:
    """SEDD's denoising score entropy for absorbing diffusion, one value a token.

    Formula: ``sigma'(t) (sum_{y != mask} s(y) - r log s(x0) + r (log r - 1))`` with
    ``r = 1 / expm1(sigma(t))`` where the token is masked, 0 where it is not.

    Args:
      log_scores_BSV: [..., V], log s; see `log_scores`.
      labels_BS: clean ids, [...].
      masked_BS: bool [...].
      times_BS: times in (0, 1], broadcastable to [...]; below 1 if the schedule's eps is 0.
      schedule: gives sigma and its derivative.
      mask_id: the mask's id.

    Returns:
      [...], float32 or wider, not negative but for rounding.

    Raises:
      ValueError: a mask id outside the vocabulary.

    Source: SEDD, arXiv 2310.16834, equation 9 and section 3.3 (absorbing).
    Limiting case: ``s(y) = r p(y)`` for a distribution p gives `elbo_values` of log p.
    """
    scores_BSV = log_scores_BSV.astype(at_least_float32(log_scores_BSV.dtype))
    inverse_BS = 1 / jnp.expm1(schedule.sigma(jnp.asarray(times_BS, scores_BSV.dtype)))
    inside_BS = (labels_BS >= 0) & (labels_BS < scores_BSV.shape[-1])
    ids_BS1 = jnp.where(inside_BS, labels_BS, 0)[..., None]
    label_BS = jnp.take_along_axis(scores_BSV, ids_BS1, axis=-1)[..., 0]
    total_BS = jnp.exp(suppress(scores_BSV, (mask_id,))).sum(axis=-1)
    values_BS = total_BS - inverse_BS * label_BS + inverse_BS * (jnp.log(inverse_BS) - 1)
    values_BS = jnp.where(inside_BS, schedule.sigma_rate(times_BS) * values_BS, jnp.nan)
    return jnp.where(masked_BS, values_BS, 0.0)


def token_terms(
    values_BS: jax.Array, *, attended_BS: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Sum of the values over attended tokens, and their number, masked or not.

    Formula: ``ratio(*token_terms(v))`` is the bound in nats a token. Tokens that could not be
    masked (a prefix) belong in `attended_BS` only if the loss is meant a token of the whole row.

    Args:
      values_BS: values by token.
      attended_BS: bool of the same shape, False for padding; None: every token.

    Returns:
      Two float32 scalars.

    Raises:
      ValueError: the shapes differ.

    Source: the released code of MDLM normalises by the attended tokens.
    """
    if attended_BS is None:
        attended_BS = jnp.ones(values_BS.shape, bool)
    if attended_BS.shape != values_BS.shape:
        raise ValueError(
            f"attended_BS must have one entry for each value: got {attended_BS.shape}, expected "
            f"{values_BS.shape}."
        )
    attended_BS = attended_BS.astype(bool)
    return jnp.sum(jnp.where(attended_BS, values_BS, 0.0), dtype=jnp.float32), count(attended_BS)
