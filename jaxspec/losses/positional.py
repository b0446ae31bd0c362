"""Positional weights: early slots matter more, because everything after an error is thrown away.

"Teaching Diffusion to Speculate Left-to-Right", arXiv 2606.11552 (token positional weighting); the
same schedule is in DFlash, arXiv 2602.06036.

Dimension key: G drafted slots of a block.

>>> positional_weights(3, decay=None).tolist()
[1.0, 1.0, 1.0]
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def positional_weights(num_slots: int, *, decay: float | jax.Array | None) -> jax.Array:
    """Weights that fall exponentially with the slot.

    Formula: ``w[g] = exp(-g / decay)``, g = 0..G-1 (the paper's ``exp(-(k - 1) / gamma)`` with
    k = 1..K-1; slot g predicts the token g + 1 places after the anchor).

    Args:
      num_slots: G, the block size minus one.
      decay: scale in slots, a positive number or traced scalar; None or inf: no decay.

    Returns:
      float32 [G]; the first weight is 1.

    Raises:
      ValueError: fewer than one slot, or a decay that is a number and not positive.

    Source: arXiv 2606.11552, token positional weighting (best at gamma = 10 for K = 16).
    Limiting case: decay = inf is the uniform baseline; decay -> 0 trains only the first slot.
    """
    if decay is None:
        return decay_weights(num_slots, reciprocal=0.0)
    if isinstance(decay, jax.Array):
        return decay_weights(num_slots, reciprocal=1.0 / decay)
    if math.isnan(decay) or decay <= 0:
        raise ValueError(
            f"decay must be positive, or None or inf for no decay: got {decay}. "
            "It is a length in slots; the paper's best is 10 for blocks of 16."
        )
    return decay_weights(num_slots, reciprocal=1.0 / decay)


def decay_weights(num_slots: int, *, reciprocal: float | jax.Array) -> jax.Array:
    """Positional weights from 1 / decay, which a compiled step can take as an argument.

    Formula: ``w[g] = exp(-g * reciprocal)``. Uniform weights are reciprocal 0; as a ``decay`` they
    would need inf.

    Args:
      num_slots: G, the block size minus one.
      reciprocal: 1 / decay, a number or a traced scalar.

    Returns:
      float32 [G].

    Raises:
      ValueError: fewer than one slot.

    Limiting case: reciprocal = 0 is the uniform baseline.
    """
    if num_slots < 1:
        raise ValueError(
            f"num_slots must be at least 1: got {num_slots}. It is the block size minus one."
        )
    slots_G = jnp.arange(num_slots, dtype=jnp.float32)
    return jnp.exp(-slots_G * jnp.asarray(reciprocal, dtype=jnp.float32))
