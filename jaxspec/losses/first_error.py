"""First-error focal term: extra cross-entropy at the slot where each block goes wrong.

"Teaching Diffusion to Speculate Left-to-Right", arXiv 2606.11552. It has no ``(1 - p)^gamma``:
"focal" is plain cross-entropy at one position, the one that ends the accepted run.

Dimension key: N blocks (any leading dimensions), G drafted slots of a block.

>>> import jax.numpy as jnp
>>> first_error_slots(jnp.array([[True, False, False]]), mask_NG=None).tolist()
[[False, True, False]]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.losses.reduction import ratio, reached_slots, slot_weights


def first_error_slots(correct_NG: jax.Array, *, mask_NG: jax.Array | None) -> jax.Array:
    """Marks the first wrong counted slot of each block.

    Formula: ``k*[n] = min {g counted : not correct[n, g]}``, as a one-hot row; a block without an
    error has no mark.

    Args:
      correct_NG: [..., G] bool, whether the drafter's argmax is the label.
      mask_NG: [..., G] or None.

    Returns:
      Boolean [..., G] with at most one true entry per block.

    Raises:
      ValueError: the shapes differ.

    Limiting case: a wrong slot after a masked one is not an error.
    """
    return reached_slots(correct_NG, mask_NG=mask_NG) & ~correct_NG.astype(bool)


def first_error_terms(
    log_p_NG: jax.Array,
    *,
    correct_NG: jax.Array,
    weights_G: jax.Array | None,
    mask_NG: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Numerator and denominator of `first_error_focal`, for callers that add them over devices."""
    if correct_NG.shape != log_p_NG.shape:
        raise ValueError(
            f"correct_NG and log_p_NG must have one shape: got {correct_NG.shape} and "
            f"{log_p_NG.shape}."
        )
    weights_G = slot_weights(weights_G, num_slots=log_p_NG.shape[-1])
    first_NG = first_error_slots(correct_NG, mask_NG=mask_NG)
    numerator = jnp.sum(jnp.where(first_NG, -log_p_NG, 0.0) * weights_G, dtype=jnp.float32)
    denominator = jnp.sum(jnp.where(first_NG, weights_G, 0.0), dtype=jnp.float32)
    return numerator, denominator


def first_error_focal(
    log_p_NG: jax.Array,
    *,
    correct_NG: jax.Array,
    weights_G: jax.Array | None = None,
    mask_NG: jax.Array | None = None,
) -> jax.Array:
    """Weighted mean cross-entropy at each block's first error.

    Formula: ``sum_n w[k*_n] (-log p[n, k*_n]) / sum_n w[k*_n]`` over the blocks that have an error.
    The paper adds eps to the denominator; here a zero is guarded against instead, without a bias.

    Args:
      log_p_NG: [..., G] log-probabilities of the labels.
      correct_NG: [..., G] bool, whether the drafter's argmax is the label. No gradient flows
        through the choice of the slot.
      weights_G: [G] positional weights, or None for ones.
      mask_NG: [..., G], true where the slot counts; None: all count.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes that do not fit.

    Source: arXiv 2606.11552, first-error focal loss (best weight 0.3).
    Limiting case: if no block has an error, 0 with a zero gradient.
    """
    return ratio(
        *first_error_terms(log_p_NG, correct_NG=correct_NG, weights_G=weights_G, mask_NG=mask_NG)
    )
