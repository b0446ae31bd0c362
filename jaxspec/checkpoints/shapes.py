"""Trees of arrays as tables of paths, and the differences between two of them.

A path is the keys of the nested dictionaries joined by "/": ``layers/attention/q/kernel``.

>>> compare_shapes({"fc": {"kernel": (4, 2)}}, {"fc": {"kernel": (6, 2)}})
['fc/kernel: got [6, 2], expected [4, 2]']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten_paths(tree: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Leaves by path, in the tree's order. Anything that is not a mapping is a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves.update(flatten_paths(value, prefix=f"{path}/"))
        else:
            leaves[path] = value
    return leaves


def nest_paths(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten_paths`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def compare_shapes(expected_tree: Mapping[str, Any], got_tree: Mapping[str, Any]) -> list[str]:
    """One message for every leaf that is missing, unexpected or of another shape.

    Args:
      expected_tree: nested dicts whose leaves have `.shape` (arrays, `jax.ShapeDtypeStruct`) or are
        shapes themselves.
      got_tree: the same for what was found.

    Returns:
      Messages that start with the leaf's path, sorted by path; empty if the trees agree.
    """
    expected, got = flatten_paths(expected_tree), flatten_paths(got_tree)
    messages = []
    for path in sorted(expected.keys() | got.keys()):
        if path not in got:
            messages.append(f"{path}: missing, expected {_shape(expected[path])}")
        elif path not in expected:
            messages.append(f"{path}: unexpected, got {_shape(got[path])}")
        elif _shape(expected[path]) != _shape(got[path]):
            messages.append(f"{path}: got {_shape(got[path])}, expected {_shape(expected[path])}")
    return messages


def _shape(leaf: Any) -> list[int]:
    return [int(size) for size in getattr(leaf, "shape", leaf)]
