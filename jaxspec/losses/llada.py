"""LLaDA's two objectives: masked cross-entropy over 1 / p, for pre-training and for answers.

LLaDA (Nie et al. 2025, arXiv 2502.09992): one masking probability p a sequence, tokens masked
independently with it, and the cross-entropy of the masked ones divided by p. It is MDLM's bound
(`jaxspec.losses.diffusion`) with another floor: p itself is at least 1e-3, so t is not kept away
from 0. In supervised fine-tuning only the answer is masked. The end-of-text tokens that fill a row
behind its answer are part of the answer: they are masked and learnt, and that is how the model
learns to stop.

The softmax is over the whole vocabulary, the mask included, as in the released code; a sampler
must see to it that the mask is never drawn.

Values are per token; `token_terms` (pre-training) and `answer_terms` (fine-tuning) reduce them to a
numerator and a denominator, which data-parallel callers add over devices before dividing.

Dimension key: B sequences, S tokens, V vocabulary.

>>> p_B1 = masking_probabilities(key_p, (2,))[:, None]
>>> noisy = corrupt(key_masks, tokens_BS, p_B1, mask_id=3, maskable_BS=answer_BS)
>>> values_BS = masked_values(logits_BSV, tokens_BS, masked_BS=noisy.masked_BS, probabilities=p_B1)
>>> loss = ratio(*answer_terms(values_BS, answer_BS=answer_BS))
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.losses.cross_entropy import label_log_prob
from jaxspec.losses.reduction import count, ratio

SMALLEST_PROBABILITY = 1e-3


def masking_probabilities(
    key: jax.Array, shape: tuple[int, ...], *, smallest: float = SMALLEST_PROBABILITY
) -> jax.Array:
    """The chance that a token is masked, one a sequence.

    Formula: ``p = (1 - smallest) t + smallest`` with t uniform in [0, 1).

    Args:
      key: a typed key (`jax.random.key`).
      shape: (B,).
      smallest: the lower end; 0 < smallest < 1.

    Returns:
      float32 of that shape. `jaxspec.losses.antithetic_times` gives the same law by itself with
      less variance of their mean.

    Raises:
      ValueError: `smallest` outside (0, 1).

    Source: LLaDA, arXiv 2502.09992, appendix A, and its released guidelines (eps = 1e-3).
    """
    if not 0 < smallest < 1:
        raise ValueError(f"smallest must lie in (0, 1): got {smallest}.")
    return (1 - smallest) * jax.random.uniform(key, shape) + smallest


def masked_values(
    logits_BSV: jax.Array,
    labels_BS: jax.Array,
    *,
    masked_BS: jax.Array,
    probabilities: jax.Array,
) -> jax.Array:
    """What each token adds to the loss.

    Formula: ``-log p(x0 | x_t) / p`` where the token is masked, 0 where it is not.

    Args:
      logits_BSV: [..., V], the model's output for the corrupted tokens.
      labels_BS: clean ids, [...]; ids outside the vocabulary are harmless where nothing is masked.
      masked_BS: bool [...].
      probabilities: with which tokens were masked, broadcastable to [...].

    Returns:
      float32 [...], never negative; NaN where a masked label is outside the vocabulary.

    Raises:
      ValueError: shapes or types that do not fit.

    Source: LLaDA, arXiv 2502.09992, equation 3.
    Limiting case: without mass on the mask it is `jaxspec.losses.elbo_values` at time p.
    """
    log_p_BS = label_log_prob(logits_BSV, labels_BS)
    # Selected, not multiplied: 0 * NaN of an ignored label would be NaN.
    return jnp.where(masked_BS, -log_p_BS / probabilities, 0.0)


def answer_terms(values_BS: jax.Array, *, answer_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum over sequences of the mean over the answer, and the number of sequences with one.

    Formula: numerator ``sum_b sum_s v[b, s] / n_b`` with n_b the tokens of the answer, masked or
    not, end-of-text padding included; denominator ``#{b: n_b > 0}``.

    Args:
      values_BS: `masked_values`; entries outside the answer are not looked at.
      answer_BS: bool of the same shape.

    Returns:
      Two float32 scalars.

    Raises:
      ValueError: the shapes differ.

    Source: LLaDA, arXiv 2502.09992, equation 5 and algorithm 2.
    Limiting case: where every token is an answer's, their ratio is that of
    `jaxspec.losses.token_terms`.
    """
    if answer_BS.shape != values_BS.shape:
        raise ValueError(
            f"answer_BS must have one entry for each value: got {answer_BS.shape}, expected "
            f"{values_BS.shape}."
        )
    answer_BS = answer_BS.astype(bool)
    lengths_B = jnp.sum(answer_BS, axis=1, dtype=jnp.float32)
    sums_B = jnp.sum(jnp.where(answer_BS, values_BS, 0.0), axis=1, dtype=jnp.float32)
    return jnp.sum(ratio(sums_B, lengths_B)), count(lengths_B > 0)
