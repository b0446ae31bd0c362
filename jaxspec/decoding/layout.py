"""The layout of parameters while a loop runs.

Parameters are stacked over layers, so that one compiled body can scan them. An unrolled model takes
each layer's slice of the stack instead, and inside a loop XLA copies those slices anew in every
iteration: a one-token pass then moves all its weights twice. If the stack is cut before the loop
and put together again inside it, it never exists: a slice of a concatenation is its operand.

>>> pieces = cut_layers(params)  # doctest: +SKIP
>>> params = stack_layers(pieces)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.ops.array_dataclass import array_dataclass

_STACKED = "layers"

MOST_UNROLLED = {"cpu": 8, "tpu": 8, "gpu": 128}
"""Models of at most this many layers are unrolled, by platform. On a GPU and a CPU, a scan copies
each layer's weights out of the stack before it multiplies by them, so that a step moves them three
times. Compiling takes longer with each layer, which counts most on a CPU. On a TPU, products read
the stack where it lies."""


def unrolls(num_layers: int, *, platform: str | None = None) -> bool:
    """Whether a model is decoded with its layers unrolled.

    Args:
      num_layers: L.
      platform: "cpu", "gpu" or "tpu"; None: the default device's.

    >>> unrolls(28, platform="gpu"), unrolls(28, platform="tpu")
    (True, False)
    """
    return num_layers <= MOST_UNROLLED.get(platform or jax.default_backend(), MOST_UNROLLED["cpu"])


@array_dataclass
class _Cut:
    """A stacked subtree as one tree for each layer."""

    layers: tuple[Any, ...]


def cut_layers(tree: Any, *, unrolled: bool = True, now: bool = False) -> Any:
    """The tree with every subtree called "layers" cut along its first axis.

    With `unrolled` false the tree is returned unchanged: a scanned model wants the stack. Subtrees
    that are already cut stay so. `now`: for use outside a compiled function; arrays that are not
    cut are returned as they are, not copied.
    """
    if not isinstance(tree, Mapping) or not unrolled:
        return tree
    return {
        key: (_cut_now if now else _cut)(subtree)
        if key == _STACKED and not isinstance(subtree, _Cut)
        else cut_layers(subtree, now=now)
        for key, subtree in tree.items()
    }


def cut_in_turn(tree: Any, *, unrolled: bool = True) -> Any:
    """`cut_layers(now=True)` for parameters that nobody else needs: the tree's dicts are emptied.

    Stacks are freed one after the other, so that a model's weights are in memory once, and only one
    of the stacks twice.
    """
    if not isinstance(tree, dict) or not unrolled:
        return tree
    found = {}
    for key in list(tree):
        # Popped in the call: a name here would keep the stacks.
        if key == _STACKED and not isinstance(tree[key], _Cut):
            found[key] = _by_layer(_pieces(tree.pop(key)))
        else:
            found[key] = cut_in_turn(tree.pop(key))
    return found


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


def _pieces(tree: Any) -> Any:
    """Each stack as a tuple of its layers; the tree's dicts are emptied."""
    if isinstance(tree, dict):
        return {key: _pieces(tree.pop(key)) for key in list(tree)}
    return _unstack(tree)


def _by_layer(pieces: Any) -> _Cut:
    """A tree of tuples as one tree for each layer."""

    def is_tuple(node: Any) -> bool:
        return isinstance(node, tuple)

    count = len(jax.tree.leaves(pieces, is_leaf=is_tuple)[0])
    return _Cut(
        tuple(
            jax.tree.map(lambda layers, layer=layer: layers[layer], pieces, is_leaf=is_tuple)
            for layer in range(count)
        )
    )


_unstack = jax.jit(lambda stack: tuple(stack[layer] for layer in range(stack.shape[0])))
