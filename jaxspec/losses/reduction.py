"""Which slots count, and how per-slot values become one number.

Dimension key: N blocks (any leading dimensions), G drafted slots of a block.

Every loss of this package is a per-slot value followed by one of the reductions below. They return
a numerator and a denominator, never their quotient, so that data-parallel callers can add both over
devices before dividing: a mean of means is wrong if shards have different numbers of slots.

>>> import jax.numpy as jnp
>>> counted_slots(jnp.array([[True, False, True]]), shape=(1, 3)).tolist()
[[True, False, False]]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def counted_slots(mask_NG: jax.Array | None, *, shape: tuple[int, ...]) -> jax.Array:
    """Tells which slots count: unmasked ones with no masked slot before them in their block.

    Formula: ``counted[n, g] = all(mask[n, :g + 1])``. A drafted token after a gap can never be
    accepted, so it is neither trained nor measured.

    Args:
      mask_NG: [..., G], true (or non-zero) where a slot may count; None: everywhere.
      shape: the shape the mask must have.

    Returns:
      Boolean [..., G]; a block whose first slot is masked has no counted slot, and is not counted
      as a block.

    Raises:
      ValueError: the mask has another shape.

    Limiting case: a mask that is already a prefix is returned as it is.
    """
    if mask_NG is None:
        return jnp.ones(shape, dtype=bool)
    if mask_NG.shape != shape:
        raise ValueError(
            f"mask_NG must have one entry for each slot: got {mask_NG.shape}, expected {shape}. "
            "The anchor (slot 0 of the block) is not passed to the losses."
        )
    gaps_NG = jnp.logical_not(mask_NG.astype(bool)).astype(jnp.int32)
    return jnp.cumsum(gaps_NG, axis=-1) == 0


def reached_slots(correct_NG: jax.Array, *, mask_NG: jax.Array | None) -> jax.Array:
    """Tells which counted slots greedy decoding reaches: all slots before them are correct.

    Formula: ``reached[n, g] = counted[n, g] and all(correct[n, :g])``. The leading run of accepted
    slots is ``reached & correct``, the first error ``reached & ~correct``.

    Args:
      correct_NG: [..., G] bool, whether the drafter's argmax is the label.
      mask_NG: [..., G] or None, see `counted_slots`.

    Returns:
      Boolean [..., G].

    Raises:
      ValueError: the shapes differ.

    Limiting case: a block without an error reaches all its counted slots.
    """
    counted_NG = counted_slots(mask_NG, shape=correct_NG.shape)
    errors_NG = jnp.logical_not(correct_NG).astype(jnp.int32)
    return counted_NG & (jnp.cumsum(errors_NG, axis=-1) - errors_NG == 0)


def slot_weights(weights_G: jax.Array | None, *, num_slots: int) -> jax.Array:
    """Returns the positional weights as float32 [G]; None means all ones.

    Raises:
      ValueError: not exactly one weight for each slot.
    """
    if weights_G is None:
        return jnp.ones((num_slots,), dtype=jnp.float32)
    weights_G = jnp.asarray(weights_G, dtype=jnp.float32)
    if weights_G.shape != (num_slots,):
        raise ValueError(
            f"weights_G must hold one weight for each of the {num_slots} slots: got shape "
            f"{weights_G.shape}. positional_weights({num_slots}, decay=...) makes them."
        )
    return weights_G


def weighted_terms(
    values_NG: jax.Array,
    *,
    weights_G: jax.Array | None,
    mask_NG: jax.Array | None,
    normalize: str,
) -> tuple[jax.Array, jax.Array]:
    """Reduces per-slot values to a numerator and a denominator.

    Formula: numerator ``sum_n sum_g w_g v[n, g]`` over counted slots; denominator, for "block", the
    number of blocks with a counted slot; for "weight", ``sum_n sum_g w_g`` over counted slots.

    Args:
      values_NG: [..., G] per-slot values.
      weights_G: [G] positional weights, or None for ones.
      mask_NG: [..., G] or None, see `counted_slots`.
      normalize: "block" (sum over slots, mean over blocks) or "weight" (weighted mean).

    Returns:
      Two float32 scalars.

    Raises:
      ValueError: an unknown normalisation, or shapes that do not fit.

    Limiting case: with all-one weights and full blocks, "block" is G times "weight".
    """
    weights_G = slot_weights(weights_G, num_slots=values_NG.shape[-1])
    counted_NG = counted_slots(mask_NG, shape=values_NG.shape)
    # Set to zero before multiplying: a masked slot may hold inf or NaN, and 0 * inf is NaN.
    numerator = jnp.sum(jnp.where(counted_NG, values_NG, 0.0) * weights_G, dtype=jnp.float32)
    if normalize == "block":
        denominator = count(jnp.any(counted_NG, axis=-1))
    elif normalize == "weight":
        denominator = jnp.sum(jnp.where(counted_NG, weights_G, 0.0), dtype=jnp.float32)
    else:
        raise ValueError(f'normalize must be "block" or "weight": got {normalize!r}.')
    return numerator, denominator


def count(flags: jax.Array) -> jax.Array:
    """Counts the true entries, as float32 so that it sums and divides like any other metric."""
    return jnp.sum(flags, dtype=jnp.float32)


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Divides; 0 with a zero gradient where the denominator is 0 (nothing counted)."""
    # The inner guard keeps the unused branch finite; otherwise its gradient would be NaN.
    safe = jnp.where(denominator > 0, denominator, 1.0)
    return jnp.where(denominator > 0, numerator / safe, 0.0)
