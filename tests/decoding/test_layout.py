"""Parameters cut by layers and stacked again are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding.layout import cut_layers, stack_layers
from tests.decoding import tiny


@pytest.mark.parametrize("unrolled", [True, False])
def test_stacking_undoes_cutting(unrolled):
    _, params = tiny.target()
    pieces = cut_layers(params, unrolled=unrolled)
    assert (len(jax.tree.leaves(pieces)) > len(jax.tree.leaves(params))) == unrolled
    again = stack_layers(pieces)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        assert np.array_equal(ours, theirs)


def test_pieces_go_in_and_out_of_programs():
    stacked = {"layers": {"scale": jnp.arange(6.0).reshape(3, 2)}, "head": jnp.ones(2)}
    pieces = jax.jit(lambda pieces: jax.tree.map(lambda leaf: leaf * 2, pieces))(
        cut_layers(stacked)
    )
    assert np.array_equal(stack_layers(pieces)["layers"]["scale"], 2 * np.arange(6).reshape(3, 2))


def test_trees_without_layers_stay_as_they_are():
    script = jnp.ones((2, 3))
    assert cut_layers(script) is script
    assert stack_layers({"script": script})["script"] is script
