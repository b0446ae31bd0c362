"""Rows of a running batch: refilled, and read when they have ended.

A prompt is prefilled by itself and then takes the place of a row that has ended, while the other
rows stay where they are: shapes do not change, so nothing is compiled again.

Dimension key: B batch rows, T positions of a response, O rounds, L layers, R key/value heads, C
head width.

>>> state = spread(first, rows=8)  # doctest: +SKIP
>>> state = insert(state, second, 1)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxspec.decoding.placement import SHARED, placed
from jaxspec.decoding.state import DecodeState
from jaxspec.models.cache import KVCache

StateT = TypeVar("StateT")
"""`DecodeState`, or another dataclass of arrays whose fields have rows."""


def _is_cache(node: Any) -> bool:
    return isinstance(node, KVCache)


def _row_parts(state: Any) -> dict[str, Any]:
    """The fields that have rows."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if name not in SHARED}


@functools.partial(jax.jit, static_argnames="rows")
def spread(single: StateT, *, rows: int) -> StateT:
    """A batch of `rows` rows, of which the first is the given one and the others are not active.

    Args:
      single: a state of one row.
      rows: B.
    """

    def repeated(node: Any) -> Any:
        if _is_cache(node):
            return KVCache(
                jnp.repeat(node.keys_LBRTC, rows, axis=1),
                jnp.repeat(node.values_LBRTC, rows, axis=1),
                jnp.repeat(node.lengths_B, rows),
            )
        return jnp.repeat(node, rows, axis=0)

    state: Any = dataclasses.replace(
        single,  # type: ignore[type-var]
        **jax.tree.map(repeated, _row_parts(single), is_leaf=_is_cache),
    )
    state = dataclasses.replace(state, active_B=state.active_B & (jnp.arange(rows) == 0))
    return placed(state)


@functools.partial(jax.jit, donate_argnums=0)
def insert(state: StateT, single: StateT, row: jax.Array | int) -> StateT:
    """Puts a state of one row in place of row `row`; the batch's state is donated."""

    def inserted(node: Any, new: Any) -> Any:
        def at(axis: int, old: jax.Array, added: jax.Array) -> jax.Array:
            # With guidance a cache has two rows for each of the batch: those without a prompt come
            # after all others.
            copies = added.shape[axis]
            for copy, part in enumerate(jnp.split(added, copies, axis=axis)):
                place = row + copy * (old.shape[axis] // copies)
                old = jax.lax.dynamic_update_slice_in_dim(old, part, place, axis=axis)
            return old

        if _is_cache(node):
            return KVCache(
                at(1, node.keys_LBRTC, new.keys_LBRTC),
                at(1, node.values_LBRTC, new.values_LBRTC),
                at(0, node.lengths_B, new.lengths_B),
            )
        return at(0, node, new)

    parts = jax.tree.map(inserted, _row_parts(state), _row_parts(single), is_leaf=_is_cache)
    return placed(dataclasses.replace(state, **parts))  # type: ignore[type-var]


class RowResult(NamedTuple):
    """What the host needs of a row that has ended."""

    tokens_T: jax.Array
    num_tokens: jax.Array
    failed: jax.Array
    verified_O: jax.Array | None
    emitted_O: jax.Array | None
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
        state.draft_passes_B,
    )
    return RowResult(*jax.tree.map(lambda leaf: leaf[row], fields))
