"""How parameters lie while a loop runs.

Parameters are stacked over layers, which one compiled body can scan. An unrolled model takes every
layer's slice of the stack instead, and inside a loop XLA makes those slices anew, by copying, in
every iteration: a one-token pass then moves all its weights twice. Cut apart before the loop and
put together again inside it, the stack never exists: a slice of a concatenation is its operand.

>>> pieces = cut_layers(params)
>>> params = stack_layers(pieces)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_STACKED = "layers"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Cut:
    """A stacked subtree as one tree for each layer."""

    layers: tuple[Any, ...]


def cut_layers(tree: Any, *, unrolled: bool = True, now: bool = False) -> Any:
    """The tree with every subtree called "layers" cut along its first axis.

    With `unrolled` false the tree is left as it is: a scanned model wants the stack. So is what has
    been cut already. `now`: outside of a compiled function; all else stays the very same arrays.
    """
    if not isinstance(tree, Mapping) or not unrolled:
        return tree
    return {
        key: (_cut_now if now else _cut)(subtree)
        if key == _STACKED and not isinstance(subtree, _Cut)
        else cut_layers(subtree, now=now)
        for key, subtree in tree.items()
    }


def stack_layers(tree: Any) -> Any:
    """The inverse of `cut_layers`."""
    if isinstance(tree, _Cut):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tree.layers)
    if not isinstance(tree, Mapping):
        return tree
    return {key: stack_layers(subtree) for key, subtree in tree.items()}


def _cut(stacked: Any) -> _Cut:
    count = jax.tree.leaves(stacked)[0].shape[0]
    return _Cut(
        tuple(
            jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked) for layer in range(count)
        )
    )


_cut_now = jax.jit(_cut)
