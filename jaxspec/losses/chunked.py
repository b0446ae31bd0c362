"""Slot statistics with the logits of only a few blocks in memory at a time.

512 blocks of 15 slots over 151,936 ids are 4.7 GB of float32 logits per row, and as much again for
their gradient. Here the head runs over chunks of whole blocks inside a scan; each chunk's logits
are reduced to a few numbers per slot and dropped.

The gradient comes in one of two ways. A frozen head is read once: every statistic of a slot is a
number, so its gradient by the slot's hidden state, [D], is computed while the logits are there, and
the backward pass only multiplies it by the statistic's cotangent. That holds for any loss,
since losses couple slots through their statistics and in no other way. A head that is trained has a
gradient of its own, which depends on the cotangents: its logits are computed again in the backward
pass.

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
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxspec.losses.slots import SlotStatistics, slot_statistics
from jaxspec.ops.chunks import join_blocks, split_blocks
from jaxspec.ops.mesh_axes import context_parts

Head = Callable[[jax.Array], jax.Array]
_Statistics = Callable[[jax.Array, jax.Array, jax.Array | None], SlotStatistics]


def chunked_slot_statistics(
    hidden_BNGD: jax.Array,
    labels_BNG: jax.Array,
    *,
    head: Head,
    chunk_blocks: int,
    target_hidden_BNGD: jax.Array | None = None,
    target_head: Head | None = None,
    frozen_head: bool = False,
) -> SlotStatistics:
    """`slot_statistics` of ``head(hidden)``, with the logits of `chunk_blocks` blocks in memory.

    Formula: that of `slot_statistics`; value and gradient do not depend on `chunk_blocks`. The
    gradient reaches the hidden states and, unless `frozen_head`, whatever parameters `head` closes
    over.

    Args:
      hidden_BNGD: [..., N, G, D] final hidden states of the drafted slots.
      labels_BNG: [..., N, G] integer ids.
      head: maps [..., D] to logits [..., V]. If it is trained, chunks run it once more in the
        backward pass.
      chunk_blocks: the most blocks of a row whose logits are in memory at once: the blocks are
        spread evenly over as few chunks as that allows. 0, or at least N: all blocks at once,
        without a scan and without recomputation. Where a mesh splits the blocks of a row, it
        counts those of a device.
      target_hidden_BNGD: [..., N, G, D'] of the target in the same slots, for terms that compare
        distributions. No gradient flows into it.
      target_head: the target's head; None: `head` (DFlash drafters use the target's own head).
      frozen_head: `head` closes over nothing that is differentiated; jax refuses to differentiate
        it if it does. The gradient of the hidden states is then made in the forward pass.

    Returns:
      Statistics of shape [..., N, G].

    Raises:
      ValueError: shapes that do not fit, a negative `chunk_blocks`, or a target head without
        target hidden states.

    Source: DFlash, arXiv 2602.06036, trains 512 blocks a sequence, which needs this. Gradients in
    the forward pass: Liger Kernel, arXiv 2410.10989, there for the mean cross-entropy.
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
        # As a matrix of logits: a TPU lays out rows in eights, and would copy [N, G, V] into one.
        # Where a mesh splits the blocks of a row, rows stay an axis of their own.
        apart = labels.shape[:-2] if context_parts(labels.shape[-2]) > 1 else ()
        flat, target_logits = labels.reshape(*apart, -1), None
        if target_hidden is not None:
            target_logits = (target_head or head)(target_hidden.reshape(*flat.shape, -1))
        logits = head(hidden.reshape(*flat.shape, -1))
        slots = slot_statistics(logits, flat, target_logits_NGV=target_logits)
        return jax.tree.map(lambda values: values.reshape(labels.shape), slots)

    arrays = (hidden_BNGD, labels_BNG, target_hidden_BNGD)
    # Whole blocks along N, never along B: the batch dimension may be sharded over devices.
    axis = labels_BNG.ndim - 2
    slots: SlotStatistics
    if frozen_head and _takes_chunks(labels_BNG.shape[axis], chunk_blocks):
        slots = _with_gradient_ahead(statistics, chunk_blocks, axis=axis)(*arrays)
    else:
        slots = _recomputed(statistics, chunk_blocks, axis=axis)(*arrays)
    return slots


def chunked_token_values(
    values: Callable[..., jax.Array],
    hidden_BSD: jax.Array,
    *arrays_BS: jax.Array,
    head: Head,
    chunk_tokens: int,
) -> jax.Array:
    """``values(head(hidden), *arrays)``, with the logits of `chunk_tokens` tokens in memory.

    Value and gradient do not depend on `chunk_tokens`. The gradient reaches the hidden states and
    whatever parameters `head` and `values` close over.

    Args:
      values: maps logits [B, S', V] and arrays [B, S'] to one value per token, [B, S']. It is also
        given tokens that are zero in all arrays, if the last chunk has to be filled up.
      hidden_BSD: [B, S, D] final hidden states.
      *arrays_BS: what else `values` reads, [B, S] each.
      head: maps [..., D] to logits [..., V]. Chunks run it once more in the backward pass.
      chunk_tokens: the most tokens of a row whose logits are in memory at once. 0, or at least S:
        all of them, without a scan and without recomputation.

    Returns:
      [B, S].

    Raises:
      ValueError: an array of another shape, or a negative `chunk_tokens`.

    Source: as `chunked_slot_statistics`.
    Limiting case: chunk_tokens = 0 is ``values(head(hidden), *arrays)``.
    """
    for array in arrays_BS:
        if array.shape != hidden_BSD.shape[:-1]:
            raise ValueError(
                "The arrays must have one entry for each hidden state: got "
                f"{array.shape}, expected {hidden_BSD.shape[:-1]}."
            )
    if chunk_tokens < 0:
        raise ValueError(f"chunk_tokens must be 0 (no chunks) or positive: got {chunk_tokens}.")

    def of_chunk(hidden_BSD: jax.Array, *arrays_BS: jax.Array) -> jax.Array:
        return values(head(hidden_BSD), *arrays_BS)

    result: jax.Array = _recomputed(of_chunk, chunk_tokens, axis=1)(hidden_BSD, *arrays_BS)
    return result


def _takes_chunks(number: int, most: int) -> bool:
    """Whether so many blocks are more than a device may have in memory at once; 0: never."""
    return 0 < most < number // context_parts(number)


def _recomputed(function: Callable[..., Any], most: int, *, axis: int) -> Callable[..., Any]:
    """`function`, by chunks if needed, each computed once more in the backward pass."""

    def whole(*arrays: Any) -> Any:
        if not _takes_chunks(arrays[0].shape[axis], most):
            return function(*arrays)
        # prevent_cse keeps the compiler from undoing the recomputation; in a scan it cannot anyway.
        return _by_chunks(jax.checkpoint(function, prevent_cse=False), most, axis=axis)(*arrays)

    return whole


def _with_gradient_ahead(
    statistics: _Statistics, chunk_blocks: int, *, axis: int
) -> Callable[..., Any]:
    """`statistics` by chunks, whose forward pass computes the gradients of the hidden states."""

    def with_gradients(hidden: jax.Array, labels: jax.Array, target_hidden: Any) -> Any:
        def split(hidden: jax.Array) -> tuple[dict[str, jax.Array], SlotStatistics]:
            slots = statistics(hidden, labels, target_hidden)
            return _differentiable(slots), slots

        values, pullback, slots = jax.vjp(split, hidden, has_aux=True)
        # A slot's statistics depend on no other slot, so one product serves all slots.
        zeros = {name: jnp.zeros_like(value) for name, value in values.items()}
        gradients = {
            name: pullback(zeros | {name: jnp.ones_like(value)})[0]
            for name, value in values.items()
        }
        return slots, gradients

    @jax.custom_vjp
    def whole(hidden: jax.Array, labels: jax.Array, target_hidden: Any) -> Any:
        return _by_chunks(statistics, chunk_blocks, axis=axis)(hidden, labels, target_hidden)

    def forward(*arguments: Any) -> tuple[Any, Any]:
        slots, gradients = _by_chunks(with_gradients, chunk_blocks, axis=axis)(
            *(jax.tree.map(lambda leaf: leaf.value, argument) for argument in arguments)
        )
        return slots, gradients

    def backward(gradients: dict[str, jax.Array], cotangents: SlotStatistics) -> Any:
        # What no loss term reads has a symbolic cotangent; its gradient is then dead code.
        parts = [
            cotangent[..., None] * gradients[name].astype(jnp.float32)
            for name, cotangent in _differentiable(cotangents).items()
            if not isinstance(cotangent, SymbolicZero)
        ]
        hidden_dtype = gradients["log_p_NG"].dtype
        return sum(parts).astype(hidden_dtype), None, None

    whole.defvjp(forward, backward, symbolic_zeros=True)
    return whole


def _differentiable(slots: SlotStatistics) -> dict[str, Any]:
    """The statistics that have a gradient, by the name of their field."""
    named = {"log_p_NG": slots.log_p_NG, "overlap_NG": slots.overlap_NG, "kl_NG": slots.kl_NG}
    return {name: value for name, value in named.items() if value is not None}


def _by_chunks(function: Callable[..., Any], most: int, *, axis: int) -> Callable[..., Any]:
    """`function` of arrays, run over chunks of them one after the other.

    Args:
      function: maps arrays, or None, to a tree of arrays.
      most: the most blocks of a chunk, fewer than there are.
      axis: where the blocks are, in all arrays and in what `function` returns.
    """

    def chunked(*arrays: Any) -> Any:
        number = arrays[0].shape[axis]
        split = functools.partial(split_blocks, axis=axis, most=most)
        chunks = jax.tree.map(split, arrays)
        _, results = jax.lax.scan(lambda _, chunk: (None, function(*chunk)), None, chunks)
        return jax.tree.map(functools.partial(join_blocks, axis=axis, blocks=number), results)

    return chunked
