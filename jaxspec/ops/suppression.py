"""Tokens that must not be drafted or emitted: their logits become -inf.

Mask and padding tokens are in the vocabulary, and so are rows that only pad the embedding. Drafter
and target may suppress different ids: verification is exact for any distribution of the drafts.
What is suppressed in the target changes its answers, so that happens only if
`evaluation.suppress` asks for it.

Dimension key: V vocabulary; leading axes ("...") are batch axes.

>>> suppress(jnp.zeros((2, 4)), (3,))[0]
Array([  0.,   0.,   0., -inf], dtype=float32)
>>> fit_vocabulary(jnp.zeros(2), 3)
Array([  0.,   0., -inf], dtype=float32)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def fit_vocabulary(logits_V: jax.Array, size: int) -> jax.Array:
    """A drafter's logits [..., V] over the target's ids, [..., size].

    Models that share a tokenizer may pad their embeddings to different numbers of rows: Qwen2.5
    with 0.5B parameters has 151,936, with 7B 152,064. Rows that only the drafter has are left out,
    and those that it lacks are -inf.
    """
    logits_V, missing = logits_V[..., :size], size - logits_V.shape[-1]
    if missing <= 0:
        return logits_V
    widths = [(0, 0)] * (logits_V.ndim - 1) + [(0, missing)]
    return jnp.pad(logits_V, widths, constant_values=-jnp.inf)


def suppress(logits_V: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    """Logits [..., V] with -inf at `ids`; NaN at other ids stays, so that it gets noticed.

    Raises:
      ValueError: ids outside the vocabulary, or ids that leave no token.
    """
    if not ids:
        return logits_V
    size = logits_V.shape[-1]
    wrong = [i for i in ids if not 0 <= i < size]
    if wrong:
        raise ValueError(f"Suppressed ids must lie in 0..{size - 1}: got {wrong}.")
    # A constant of the compiled program: one select, no scatter.
    banned_V = np.zeros(size, bool)
    banned_V[list(ids)] = True
    if banned_V.all():
        raise ValueError(f"All {size} tokens are suppressed: at least one must be left.")
    return jnp.where(banned_V, -jnp.inf, logits_V)
