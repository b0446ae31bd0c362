"""Chain reward: the mean of the block's cumulative products, a soft accepted length in [0, 1].

"Teaching Diffusion to Speculate Left-to-Right", arXiv 2606.11552.

Dimension key: N blocks (any leading dimensions), G drafted slots of a block.

>>> import jax.numpy as jnp
>>> float(chain_reward(jnp.log(jnp.array([[0.5, 0.5]]))))
0.375
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.losses.reduction import count, counted_slots, ratio


def prefix_probability(log_p_NG: jax.Array, *, mask_NG: jax.Array | None) -> jax.Array:
    """Probability that the drafter samples every label up to and including a slot.

    Formula: ``rho[n, g] = prod_{i <= g} p[n, i] = exp(cumsum(log p)[n, g])``; 0 in slots that do
    not count.

    Args:
      log_p_NG: [..., G] log-probabilities of the labels.
      mask_NG: [..., G] or None.

    Returns:
      float32 [..., G], falling along the block. A product that underflows is 0 with a zero
      gradient, never NaN.

    Raises:
      ValueError: the shapes differ.

    Limiting case: p = 1 gives 1 in every counted slot.
    """
    counted_NG = counted_slots(mask_NG, shape=log_p_NG.shape)
    # Summed as logarithms, so that the gradient never divides by a zero probability.
    total_NG = jnp.cumsum(jnp.where(counted_NG, log_p_NG, 0.0).astype(jnp.float32), axis=-1)
    return jnp.where(counted_NG, jnp.exp(total_NG), 0.0)


def chain_terms(log_p_NG: jax.Array, *, mask_NG: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Numerator (sum of the blocks' rewards) and denominator (their number) of `chain_reward`."""
    counted_NG = counted_slots(mask_NG, shape=log_p_NG.shape)
    slots_N = jnp.sum(counted_NG, axis=-1, dtype=jnp.float32)
    rho_NG = prefix_probability(log_p_NG, mask_NG=mask_NG)
    reward_N = ratio(jnp.sum(rho_NG, axis=-1), slots_N)
    return jnp.sum(reward_N, dtype=jnp.float32), count(slots_N > 0)


def chain_reward(log_p_NG: jax.Array, *, mask_NG: jax.Array | None = None) -> jax.Array:
    """Mean over blocks of the cumulative products, divided by the block's counted slots.

    Formula: ``R = 1/N' sum_n 1/G_n sum_{g < G_n} prod_{i <= g} p[n, i]`` with G_n the counted slots
    of block n and N' the blocks that have one. Gradient (nothing is detached):
    ``dR / dlog p[n, k] = 1/(N' G_n) sum_{g >= k} rho[n, g]``.

    Args:
      log_p_NG: [..., G] log-probabilities of the labels.
      mask_NG: [..., G], true where the slot counts; a slot after a masked one of its block does
        not count either. None: all count.

    Returns:
      float32 scalar in [0, 1], to be maximised; 0 if nothing counts.

    Raises:
      ValueError: the shapes differ.

    Source: arXiv 2606.11552, chain reward (best weight 40). It does not state the divisor of a
    partial block, nor that blocks are averaged.
    Limiting case: 1 where every p is 1; 0 where the first p of every block is 0. G * R is the
    expected accepted length if drafts are sampled and the target's token is always the label.
    """
    return ratio(*chain_terms(log_p_NG, mask_NG=mask_NG))
