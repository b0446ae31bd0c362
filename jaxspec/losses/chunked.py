"""Slot statistics with the logits of only a few blocks in memory at a time.

512 blocks of 15 slots over 151,936 ids are 4.7 GB of float32 logits per row, and as much again for
their gradient. Here the head runs over chunks of whole blocks inside a scan; each chunk's logits
are reduced to a few numbers per slot, dropped, and computed again in the backward pass.

Dimension key: B batch rows, N blocks (of a row, or of a chunk of it), G drafted slots of a block,
D width, V vocabulary, O chunks.

>>> import jax.numpy as jnp
>>> kernel_DV = jnp.ones((4, 7))
>>> slots = chunked_slot_statistics(
...     jnp.ones((1, 5, 3, 4)), jnp.zeros((1, 5, 3), jnp.int32),
...     head=lambda hidden: hidden @ kernel_DV, chunk_blocks=2)
>>> slots.log_p_NG.shape
(1, 5, 3)
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from jaxspec.losses.slots import SlotStatistics, slot_statistics
from jaxspec.ops.chunks import join_blocks, split_blocks
from jaxspec.ops.mesh_axes import context_parts

Head = Callable[[jax.Array], jax.Array]


def chunked_slot_statistics(
    hidden_BNGD: jax.Array,
    labels_BNG: jax.Array,
    *,
    head: Head,
    chunk_blocks: int,
    target_hidden_BNGD: jax.Array | None = None,
    target_head: Head | None = None,
) -> SlotStatistics:
    """`slot_statistics` of ``head(hidden)``, with the logits of `chunk_blocks` blocks in memory.

    Formula: that of `slot_statistics`; value and gradient do not depend on `chunk_blocks`. The
    gradient reaches the hidden states and whatever parameters `head` closes over.

    Args:
      hidden_BNGD: [..., N, G, D] final hidden states of the drafted slots.
      labels_BNG: [..., N, G] integer ids.
      head: maps [..., D] to logits [..., V]; it is run once more in the backward pass.
      chunk_blocks: the most blocks of a row whose logits are in memory at once: the blocks are
        spread evenly over as few chunks as that allows. 0, or at least N: all blocks at once,
        without a scan and without recomputation. Where a mesh splits the blocks of a row, it
        counts those of a device.
      target_hidden_BNGD: [..., N, G, D'] of the target in the same slots, for terms that compare
        distributions. No gradient flows into it.
      target_head: the target's head; None: `head` (DFlash drafters use the target's own head).

    Returns:
      Statistics of shape [..., N, G].

    Raises:
      ValueError: shapes that do not fit, a negative `chunk_blocks`, or a target head without
        target hidden states.

    Source: DFlash, arXiv 2602.06036, trains 512 blocks a sequence, which needs this.
    Limiting case: chunk_blocks = 0 is `slot_statistics` of all logits.
    """
    if hidden_BNGD.ndim < 3 or hidden_BNGD.shape[:-1] != labels_BNG.shape:
        raise ValueError(
            "hidden_BNGD must be [..., N, G, D] with labels_BNG [..., N, G]: got "
            f"{hidden_BNGD.shape} and {labels_BNG.shape}."
        )
    if chunk_blocks < 0:
        raise ValueError(f"chunk_blocks must be 0 (no chunks) or positive: got {chunk_blocks}.")
    if target_hidden_BNGD is None:
        if target_head is not None:
            raise ValueError(
                "target_head was given without target_hidden_BNGD: pass both, or neither."
            )
    elif target_hidden_BNGD.shape[:-1] != labels_BNG.shape:
        raise ValueError(
            "target_hidden_BNGD must agree with labels_BNG up to its width: got "
            f"{target_hidden_BNGD.shape} and {labels_BNG.shape}."
        )

    def statistics(
        hidden: jax.Array, labels: jax.Array, target_hidden: jax.Array | None
    ) -> SlotStatistics:
        target_logits = None
        if target_hidden is not None:
            target_logits = (target_head or head)(target_hidden)
        return slot_statistics(head(hidden), labels, target_logits_NGV=target_logits)

    num_blocks = labels_BNG.shape[-2]
    if chunk_blocks == 0 or chunk_blocks >= num_blocks // context_parts(num_blocks):
        return statistics(hidden_BNGD, labels_BNG, target_hidden_BNGD)

    # Whole blocks along N, never along B: the batch dimension may be sharded over devices.
    split = functools.partial(split_blocks, most=chunk_blocks)
    chunks = (
        split(hidden_BNGD, axis=-3),
        split(labels_BNG, axis=-2),
        None if target_hidden_BNGD is None else split(target_hidden_BNGD, axis=-3),
    )

    def step(
        carry: None, chunk: tuple[jax.Array, jax.Array, jax.Array | None]
    ) -> tuple[None, SlotStatistics]:
        return carry, statistics(*chunk)

    # prevent_cse keeps the compiler from undoing the recomputation, which it cannot do in a scan.
    _, slots = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), None, chunks)
    return jax.tree.map(functools.partial(join_blocks, axis=-2, blocks=num_blocks), slots)
