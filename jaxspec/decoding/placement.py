"""Decoding on several devices: rows over the mesh's data and fsdp axes, heads over tensor.

The mesh is the one on which the parameters lie, so nothing else has to be told about it. Weights
are where they were put (`jaxspec.parallel.rules`), caches have their heads split like the weights
that make them, and everything else that a loop carries is split by rows.

>>> with on_mesh_of(params):  # doctest: +SKIP
...     state = strategy.start(params, prompts, capacity=192)
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec

from jaxspec.models.cache import KVCache
from jaxspec.ops.mesh_axes import is_spread, row_axes
from jaxspec.ops.mesh_axes import mesh_of as mesh_of
from jaxspec.ops.mesh_axes import on_mesh_of as on_mesh_of

StateT = TypeVar("StateT")
"""`DecodeState`, or another dataclass of arrays whose fields have rows."""

SHARED = ("step", "accepted_at_X")
"""Fields that belong to the batch, not to a row."""


def placed(state: StateT) -> StateT:
    """The state, split over the mesh of the program that is being traced, if it has one.

    A loop returns it as it was given, so that its memory can be used again.
    """
    if not is_spread():
        return state
    spread: Any = state
    fields = {field.name: getattr(spread, field.name) for field in dataclasses.fields(spread)}
    split = {
        name: jax.tree.map(_whole if name in SHARED else _by_rows, value, is_leaf=_is_cache)
        for name, value in fields.items()
    }
    changed: StateT = dataclasses.replace(spread, **split)
    return changed


def _is_cache(node: Any) -> bool:
    return isinstance(node, KVCache)


def _by_rows(node: Any) -> Any:
    constrain = jax.lax.with_sharding_constraint
    if _is_cache(node):
        return KVCache(
            constrain(node.keys_LBRTC, node.spec),
            constrain(node.values_LBRTC, node.spec),
            _by_rows(node.lengths_B),
        )
    return constrain(node, PartitionSpec(row_axes(node.shape[0])))


def _whole(leaf: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec())
