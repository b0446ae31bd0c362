"""LLaDA's two objectives: cross-entropy of masked tokens over p, for pre-training and for answers.

LLaDA (Nie et al. 2025, arXiv 2502.09992): each sequence has a masking probability p, its tokens are
masked independently with it, and the cross-entropy of the masked ones is divided by p. This is
MDLM's bound (`jaxspec.losses.diffusion`) with another floor: p itself is at least 1e-3
(`jaxspec.ops.noise.masking_probabilities`), so t need not be kept away from 0. In supervised
fine-tuning only the answer is masked. The end-of-text tokens that fill the row after the answer
belong to it: they are masked and learned, and that is how the model learns to stop.

The softmax is over the whole vocabulary, the mask included, as in the released code; a sampler
has to make sure that the mask is never drawn.

Values are per token; `token_terms` (pre-training) and `answer_terms` (fine-tuning) reduce them to a
numerator and a denominator, which data-parallel callers add over devices before dividing.

Dimension key: B batch rows, S tokens of a row, V vocabulary.

>>> tokens_BS, answer_BS = jnp.zeros((2, 8), jnp.int32), jnp.arange(8) >= jnp.array([[4], [6]])
>>> values_BS = masked_values(
...     jnp.zeros((2, 8, 4)), tokens_BS, masked_BS=answer_BS, probabilities=jnp.float32(0.5))
>>> round(float(ratio(*answer_terms(values_BS, answer_BS=answer_BS))), 3)  # ln 4 over 1 / 2
2.773
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.losses.cross_entropy import label_log_prob
from jaxspec.losses.reduction import count, ratio


def masked_values(
    logits_BSV: jax.Array,
    labels_BS: jax.Array,
    *,
    masked_BS: jax.Array,
    probabilities: jax.Array,
) -> jax.Array:
    """What each token contributes to the loss.

    Formula: ``-log p(x0 | x_t) / p`` where the token is masked, 0 where it is not.

    Args:
      logits_BSV: [..., V], the model's output for the corrupted tokens.
      labels_BS: clean ids, [...]; ids outside the vocabulary are harmless where nothing is masked.
      masked_BS: bool [...].
      probabilities: the probabilities with which tokens were masked, broadcastable to [...].

    Returns:
      float32 [...], never negative; NaN where a masked label is outside the vocabulary.

    Raises:
      ValueError: shapes or types that do not fit.

    Source: LLaDA, arXiv 2502.09992, equation 3.
    Limiting case: if the mask has no probability, this is `jaxspec.losses.elbo_values` at time p.
    """
    log_p_BS = label_log_prob(logits_BSV, labels_BS)
    # Selected, not multiplied: 0 * NaN of an ignored label would be NaN.
    return jnp.where(masked_BS, -log_p_BS / probabilities, 0.0)


def answer_terms(values_BS: jax.Array, *, answer_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum over rows of the mean over the row's answer, and the number of rows that have one.

    Formula: numerator ``sum_b sum_s v[b, s] / n_b`` with n_b the tokens of the answer, masked or
    not, including end-of-text padding; denominator ``#{b: n_b > 0}``.

    Args:
      values_BS: `masked_values`; entries outside the answer are ignored.
      answer_BS: bool of the same shape.

    Returns:
      Two float32 scalars.

    Raises:
      ValueError: the shapes differ.

    Source: LLaDA, arXiv 2502.09992, equation 5 and algorithm 2.
    Limiting case: if every token belongs to an answer, their ratio is that of
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
