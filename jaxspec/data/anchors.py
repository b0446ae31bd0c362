"""Anchors: where the blocks of a packed row start, and what each block should predict.

DFlash (arXiv 2602.06036) trains on blocks at random places in the response: an anchor is a response
token that is followed by another one. Everything here is jit-able and takes whole batches.

>>> anchors, valid = sample_anchors(key, loss_mask, segments, count=16)         # doctest: +SKIP
>>> labels, mask = block_labels(                                                # doctest: +SKIP
...     tokens, loss_mask, segments, anchors, valid, block_size=16)

Dimension key: B rows, S positions per row, N blocks per row, G drafted slots (block_size - 1).
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def anchor_candidates(loss_mask_BS: jax.Array, segments_BS: jax.Array) -> jax.Array:
    """Which positions may be anchors.

    Position a may be one if a and a + 1 are both learned and in the same document, so that the
    first label of its block always counts.

    Args:
      loss_mask_BS: bool, True on learned tokens.
      segments_BS: document of each token, 0 on padding.

    Returns:
      bool [B, S].
    """
    chex.assert_equal_shape([loss_mask_BS, segments_BS])
    learned_BS = loss_mask_BS.astype(bool) & (segments_BS > 0)
    pair_BS = learned_BS[:, :-1] & learned_BS[:, 1:] & (segments_BS[:, :-1] == segments_BS[:, 1:])
    return jnp.pad(pair_BS, ((0, 0), (0, 1)))


def sample_anchors(
    key: jax.Array, loss_mask_BS: jax.Array, segments_BS: jax.Array, *, count: int
) -> tuple[jax.Array, jax.Array]:
    """Draws the anchors of each row uniformly without replacement.

    Every position gets a random score, and the `count` best candidates are taken. Rows with fewer
    candidates have invalid blocks at the end.

    Args:
      key: random key.
      loss_mask_BS: bool, True on learned tokens.
      segments_BS: document of each token, 0 on padding.
      count: N, blocks per row.

    Returns:
      anchors_BN: int32, ascending in each row; 0 where invalid.
      valid_BN: bool.
    """
    if count < 1:
        raise ValueError(
            f"count must be at least 1: got {count}. It is set by data.anchors in the config."
        )
    candidate_BS = anchor_candidates(loss_mask_BS, segments_BS)
    length = candidate_BS.shape[1]
    taken = min(count, length)
    score_BS = jnp.where(candidate_BS, jax.random.uniform(key, candidate_BS.shape), -1.0)
    score_BN, anchors_BN = jax.lax.top_k(score_BS, taken)
    # Ascending, with `length` standing in for blocks that do not exist.
    ordered_BN = jnp.sort(jnp.where(score_BN >= 0, anchors_BN, length), axis=1)
    ordered_BN = jnp.pad(ordered_BN, ((0, 0), (0, count - taken)), constant_values=length)
    valid_BN = ordered_BN < length
    return jnp.where(valid_BN, ordered_BN, 0).astype(jnp.int32), valid_BN


def block_labels(
    tokens_BS: jax.Array,
    loss_mask_BS: jax.Array,
    segments_BS: jax.Array,
    anchors_BN: jax.Array,
    valid_BN: jax.Array,
    *,
    block_size: int,
) -> tuple[jax.Array, jax.Array]:
    """What the drafted slots of each block should predict.

    Slot g (counted from 0, after the anchor) is at position anchor + 1 + g. It counts as long as
    that position and all earlier ones in the block are learned tokens of the anchor's document, so
    the slots that count are a prefix of the block.

    Args:
      tokens_BS: token ids.
      loss_mask_BS: bool, True on learned tokens.
      segments_BS: document of each token, 0 on padding.
      anchors_BN: positions of the anchors.
      valid_BN: False for blocks that do not exist.
      block_size: slots of a block, including the anchor: G + 1.

    Returns:
      labels_BNG: int32, 0 where nothing counts.
      mask_BNG: bool, True where the slot counts.
    """
    chex.assert_equal_shape([tokens_BS, loss_mask_BS, segments_BS])
    chex.assert_equal_shape([anchors_BN, valid_BN])
    inside_BNG, labels_BNG, learned_BNG, segment_BNG = _at_slots(
        (tokens_BS, loss_mask_BS.astype(bool), segments_BS), anchors_BN, block_size=block_size
    )
    segment_BN = jnp.take_along_axis(segments_BS, anchors_BN, axis=1)
    counts_BNG = (
        inside_BNG
        & learned_BNG
        & (segment_BNG == segment_BN[..., None])
        & (segment_BN > 0)[..., None]
        & valid_BN[..., None]
    )
    mask_BNG = jnp.cumprod(counts_BNG, axis=-1).astype(bool)
    return jnp.where(mask_BNG, labels_BNG, 0).astype(jnp.int32), mask_BNG


def _at_slots(
    arrays_BS: tuple[jax.Array, ...], anchors_BN: jax.Array, *, block_size: int
) -> tuple[jax.Array, ...]:
    """Whether each slot is inside the row, then each array's values there; all are [B, N, G]."""
    length = arrays_BS[0].shape[1]
    position_BNG = anchors_BN[..., None] + jnp.arange(1, block_size)
    inside_BNG = position_BNG < length
    batch, blocks, slots = position_BNG.shape
    flat_BI = jnp.minimum(position_BNG, length - 1).reshape(batch, blocks * slots)
    return (
        inside_BNG,
        *(
            jnp.take_along_axis(array_BS, flat_BI, axis=1).reshape(position_BNG.shape)
            for array_BS in arrays_BS
        ),
    )
