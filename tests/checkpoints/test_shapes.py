from __future__ import annotations

import jax
import numpy as np

from jaxspec.checkpoints.shapes import compare_shapes, flatten_paths, nest_paths


def test_paths_and_back() -> None:
    tree = {"layers": {"q": {"kernel": 1}, "k": {"kernel": 2}}, "norm": {"scale": 3}}
    leaves = flatten_paths(tree)
    assert leaves == {"layers/q/kernel": 1, "layers/k/kernel": 2, "norm/scale": 3}
    assert nest_paths(leaves) == tree


def test_equal_trees_have_no_messages() -> None:
    expected = {"a": {"b": jax.ShapeDtypeStruct((2, 3), "float32")}, "c": (4,)}
    assert compare_shapes(expected, {"c": np.zeros(4), "a": {"b": np.zeros((2, 3))}}) == []


def test_every_difference_is_named() -> None:
    expected = {"a": np.zeros((2, 3)), "b": {"c": np.zeros(4)}, "scalar": np.zeros(())}
    got = {"a": np.zeros((3, 2)), "d": np.zeros(1), "scalar": []}
    assert compare_shapes(expected, got) == [
        "a: got [3, 2], expected [2, 3]",
        "b/c: missing, expected [4]",
        "d: unexpected, got [1]",
    ]
