"""The losses of absorbing diffusion: MDLM's bound on the likelihood, and SEDD's score entropy.

MDLM (Sahoo et al. 2024, arXiv 2406.07524): tokens are masked independently, a denoiser predicts
the clean ones, and its cross-entropy weighted by 1 / t bounds the negative log-likelihood. SEDD
(Lou et al. 2024, arXiv 2310.16834) learns ratios of probabilities from the same corrupted tokens.
`jaxspec.ops.noise` draws times and masks.

Values are per token; `token_terms` reduces them to a sum and a count, which data-parallel callers
add over devices before dividing.

Dimension key: B batch rows, S tokens of a row, V vocabulary (the mask included).

>>> from jaxspec.losses.reduction import ratio
>>> tokens_BS, times_BS = jnp.zeros((2, 8), jnp.int32), jnp.full((2, 8), 0.5)
>>> values_BS = elbo_values(
...     jnp.zeros((2, 8, 5)), tokens_BS, masked_BS=tokens_BS == 0, times_BS=times_BS, mask_id=4)
>>> round(float(ratio(*token_terms(values_BS))), 3)  # ln 4 nats at a weight of 1 / t = 2
2.773
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxspec.losses.cross_entropy import label_log_prob
from jaxspec.losses.reduction import count
from jaxspec.ops.noise import LogLinearSchedule
from jaxspec.ops.sampling import at_least_float32, signed_ids
from jaxspec.ops.suppression import suppress


def subs_log_probs(logits_BSV: jax.Array, tokens_BS: jax.Array, *, mask_id: int) -> jax.Array:
    """Log-probabilities of the clean tokens in the SUBS parameterisation.

    The mask is never predicted (its logit is -inf), and a token that is not masked is carried over:
    log-probability 0 for itself and -inf for all others.

    Args:
      logits_BSV: [B, S, V], the denoiser's output for `tokens_BS`.
      tokens_BS: [B, S], what it was given, masks included.
      mask_id: the mask's id.

    Returns:
      [B, S, V], float32 (float64 for float64 logits).

    Raises:
      ValueError: a mask id outside the vocabulary, or a vocabulary that has only the mask.

    Source: MDLM, arXiv 2406.07524, section 3.2.3.
    """
    tokens_BS = signed_ids(tokens_BS)
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
    """What each token contributes to the bound on the negative log-likelihood.

    Formula: ``-log p(x0 | x_t) / t`` where the token is masked, 0 where it is not. Its expectation
    over t uniform in [0, 1] and the masks, summed over tokens, is the negative ELBO; for the ideal
    schedule (eps = 0) it is the mean of ``-log p`` over all orders of generation.

    Args:
      logits_BSV: [..., V], the denoiser's output for the corrupted tokens; the mask's logit is
        ignored.
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
    """Turns logits into log-scores of absorbing SEDD, scaled by the noise.

    Formula: ``log s(y) = logits - log expm1(sigma(t)) - log(V - 1)``, so that zero logits are the
    score of a uniform guess, as in SEDD's models with `scale_by_sigma`.

    Args:
      logits_BSV: [..., V].
      times_BS: [...], in (0, 1].
      schedule: gives sigma.

    Returns:
      [..., V], float32 or wider. Entries for the mask and for unmasked tokens are meaningless.
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
    """SEDD's denoising score entropy for absorbing diffusion, one value per token.

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
      [...], float32 or wider, never negative except for rounding.

    Raises:
      ValueError: a mask id outside the vocabulary.

    Source: SEDD, arXiv 2310.16834, equation 9 and section 3.3 (absorbing).
    Limiting case: ``s(y) = r p(y)`` for a distribution p gives `elbo_values` of log p.
    """
    scores_BSV = log_scores_BSV.astype(at_least_float32(log_scores_BSV.dtype))
    inverse_BS = 1 / jnp.expm1(schedule.sigma(jnp.asarray(times_BS, scores_BSV.dtype)))
    labels_BS = signed_ids(labels_BS)
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

    Formula: ``ratio(*token_terms(v))`` is the bound in nats per token. Include tokens that could
    not be masked (a prefix) in `attended_BS` only if the loss is to be per token of the whole row.

    Args:
      values_BS: one value per token.
      attended_BS: bool of the same shape, False for padding; None: every token.

    Returns:
      Two float32 scalars.

    Raises:
      ValueError: the shapes differ.

    Source: MDLM's released code divides by the number of attended tokens.
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
