"""Rows of a running batch: refilled, and read when they have ended.

A few prompts are prefilled together and then take the places of rows that have ended, while the
other rows stay where they are: shapes do not change, so nothing is compiled again.

Dimension key: B batch rows, T positions of a response, O rounds, L layers, R key/value heads, C
head width.

>>> state = vacant(prefilled, rows=8)  # doctest: +SKIP
>>> state = insert(state, prefilled, places([4, 6], of=prefilled))  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxspec.decoding.placement import SHARED, placed
from jaxspec.decoding.state import DecodeState
from jaxspec.models.cache import KVCache

StateT = TypeVar("StateT")
"""`DecodeState`, or another dataclass of arrays whose fields have rows."""


def _is_cache(node: Any) -> bool:
    return isinstance(node, KVCache)


def _rows_of(state: Any) -> int:
    return int(state.active_B.shape[0])


def _row_parts(state: Any) -> dict[str, Any]:
    """The fields that have rows."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if name not in SHARED}


@functools.partial(jax.jit, static_argnames="rows")
def vacant(prefilled: StateT, *, rows: int) -> StateT:
    """A batch of `rows` rows like those of the given state, none of which is active."""
    given = _rows_of(prefilled)

    def repeated(node: Any) -> Any:
        def at(axis: int, leaf: jax.Array) -> jax.Array:
            first = jax.lax.slice_in_dim(leaf, 0, 1, axis=axis)
            return jnp.repeat(first, leaf.shape[axis] // given * rows, axis=axis)

        if _is_cache(node):
            return KVCache(at(1, node.keys_LBRTC), at(1, node.values_LBRTC), at(0, node.lengths_B))
        return at(0, node)

    state: Any = dataclasses.replace(
        prefilled,  # type: ignore[type-var]
        **jax.tree.map(repeated, _row_parts(prefilled), is_leaf=_is_cache),
    )
    return placed(dataclasses.replace(state, active_B=jnp.zeros_like(state.active_B)))


def places(rows: Sequence[int], *, of: Any) -> npt.NDArray[np.int32]:
    """What `insert` is told: which rows of a state take which rows of a batch, [2, B].

    Args:
      rows: the batch's, for the first rows of the state. The others only fill it up: the first
        row is put once more in place of each.
      of: the state.
    """
    found = np.full((2, _rows_of(of)), [[0], [rows[0]]], np.int32)
    found[:, : len(rows)] = range(len(rows)), rows
    return found


@functools.partial(jax.jit, donate_argnums=0)
def insert(
    state: StateT, prefilled: StateT, places_2B: jax.Array | npt.NDArray[np.int32]
) -> StateT:
    """Puts rows of a state in place of rows of a batch, as `places` says; the batch is donated."""
    given, rows = _rows_of(prefilled), _rows_of(state)
    sources_B, targets_B = jnp.asarray(places_2B)

    def at(axis: int, old: jax.Array, new: jax.Array) -> jax.Array:
        def put(i: jax.Array, old: jax.Array) -> jax.Array:
            # With guidance a cache has two rows for each of the batch: those without a prompt come
            # after all others.
            for copy in range(new.shape[axis] // given):
                row = jax.lax.dynamic_slice_in_dim(new, copy * given + sources_B[i], 1, axis=axis)
                place = copy * rows + targets_B[i]
                old = jax.lax.dynamic_update_slice_in_dim(old, row, place, axis=axis)
            return old

        return jax.lax.fori_loop(0, given, put, old)

    def inserted(node: Any, new: Any) -> Any:
        if _is_cache(node):
            return KVCache(
                at(1, node.keys_LBRTC, new.keys_LBRTC),
                at(1, node.values_LBRTC, new.values_LBRTC),
                at(0, node.lengths_B, new.lengths_B),
            )
        return at(0, node, new)

    parts = jax.tree.map(inserted, _row_parts(state), _row_parts(prefilled), is_leaf=_is_cache)
    return placed(dataclasses.replace(state, **parts))  # type: ignore[type-var]


class RowResult(NamedTuple):
    """What the host needs of a row that has ended."""

    tokens_T: jax.Array
    num_tokens: jax.Array
    failed: jax.Array
    verified_O: jax.Array | None
    emitted_O: jax.Array | None
    slots_O: jax.Array | None
    draft_passes: jax.Array | None


@jax.jit
def read(state: DecodeState, row: jax.Array | int) -> RowResult:
    """One row's response."""
    fields = (
        state.tokens_BT,
        state.count_B,
        state.failed_B,
        state.verified_BO,
        state.emitted_BO,
        state.slots_BO,
        state.draft_passes_B,
    )
    return RowResult(*jax.tree.map(lambda leaf: leaf[row], fields))
