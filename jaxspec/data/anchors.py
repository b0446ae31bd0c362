"""Anchors: where the blocks of a packed row start, and what each block should predict.

DFlash (arXiv 2602.06036) trains on blocks at random places in the response: an anchor is a response
token that is followed by another one. Everything here is jit-able and takes whole batches.

A row holds several documents. Drawn from the row as a whole, anchors follow its learned tokens: a
short answer gets few of them or none, and how many depends on the documents next to it. Drawn by
document, each gets the share of the row's anchors that it has of the row's tokens, and at least
one. That is the only share which uses all anchors of a full row and still does not depend on the
neighbours, because the tokens of the documents add up to the row whichever they are.

>>> anchors, valid = sample_anchors(key, loss_mask, segments, count=16)         # doctest: +SKIP
>>> labels, mask = block_labels(                                                # doctest: +SKIP
...     tokens, loss_mask, segments, anchors, valid, block_size=16)

Dimension key: B rows, S positions per row, N blocks per row, G drafted slots (block_size - 1).
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxspec.config import AnchorSampling


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
    key: jax.Array,
    loss_mask_BS: jax.Array,
    segments_BS: jax.Array,
    *,
    count: int,
    sampling: AnchorSampling = "document",
) -> tuple[jax.Array, jax.Array]:
    """Draws the anchors of each row without replacement.

    Every position gets a random score, and the `count` best candidates are taken. Rows with fewer
    candidates have invalid blocks at the end.

    Args:
      key: random key.
      loss_mask_BS: bool, True on learned tokens.
      segments_BS: document of each token, 0 on padding.
      count: N, blocks per row.
      sampling: "row": uniformly over the candidates of a row. "document": about N * (tokens of the
        document) / (tokens of all documents) for each document, at least one, and at most as many
        as it has candidates; uniformly within a document. What a document cannot use goes to the
        others. If there are more documents than anchors, those that get one are drawn uniformly.

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
    if sampling == "row":
        score_BS = jax.random.uniform(key, candidate_BS.shape)
    else:
        score_BS = _document_scores(key, candidate_BS, segments_BS)
    score_BN, anchors_BN = jax.lax.top_k(jnp.where(candidate_BS, score_BS, -jnp.inf), taken)
    # Ascending, with `length` standing in for blocks that do not exist.
    ordered_BN = jnp.sort(jnp.where(score_BN > -jnp.inf, anchors_BN, length), axis=1)
    ordered_BN = jnp.pad(ordered_BN, ((0, 0), (0, count - taken)), constant_values=length)
    valid_BN = ordered_BN < length
    return jnp.where(valid_BN, ordered_BN, 0).astype(jnp.int32), valid_BN


def _document_scores(key: jax.Array, candidate_BS: jax.Array, segments_BS: jax.Array) -> jax.Array:
    """Scores [B, S] whose best candidates are spread over the documents like their tokens.

    The candidates of a document come in random order: number r has the score -(r + u) / tokens,
    where u, uniform in [0, 1), is the document's own. So about t * tokens of its candidates are
    above a score of -t (the apportionment of seats by systematic sampling). Number 0 of every
    document comes before all others.
    """
    for_order, for_offsets = jax.random.split(key)
    batch, length = candidate_BS.shape
    shuffle_BS = jax.random.uniform(for_order, candidate_BS.shape)
    offset_BS = jax.random.uniform(for_offsets, (batch, length + 1))

    def row(
        candidate_S: jax.Array, segments_S: jax.Array, shuffle_S: jax.Array, offset_S: Any
    ) -> Any:
        order_S = jnp.lexsort((shuffle_S, ~candidate_S, segments_S))
        place_S = jnp.zeros(length, jnp.int32).at[order_S].set(jnp.arange(length))
        tokens_S = jnp.zeros(length + 1, jnp.int32).at[segments_S].add(1)
        first_S = jnp.cumsum(tokens_S) - tokens_S
        number_S = place_S - first_S[segments_S]
        offset_S = offset_S[segments_S]
        score_S = -(number_S + offset_S) / tokens_S[segments_S]
        return jnp.where(number_S == 0, 1.0 - offset_S, score_S)

    return jax.vmap(row)(candidate_BS, segments_BS, shuffle_BS, offset_BS)


def coverage(
    loss_mask_BS: jax.Array, anchors_BN: jax.Array, mask_BNG: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How many of the learned tokens are in at least one block.

    Args:
      loss_mask_BS: bool, True on learned tokens.
      anchors_BN: positions of the anchors.
      mask_BNG: which slots count, from `block_labels`.

    Returns:
      (learned tokens that are a label of some block, learned tokens), as float32 scalars: a metric
      to be summed over batches before it is divided.
    """
    length = loss_mask_BS.shape[1]
    slots = jnp.arange(1, mask_BNG.shape[-1] + 1)
    # Slots that do not count point past the end, where a scatter drops them.
    position_BNG = jnp.where(mask_BNG, anchors_BN[..., None] + slots, length)
    covered_BS = jax.vmap(
        lambda position_NG: jnp.zeros(length, bool).at[position_NG.ravel()].set(True, mode="drop")
    )(position_BNG)
    learned_BS = loss_mask_BS.astype(bool)
    return (
        jnp.sum(covered_BS & learned_BS, dtype=jnp.float32),
        jnp.sum(learned_BS, dtype=jnp.float32),
    )


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
