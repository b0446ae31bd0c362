"""Parameters cut by layers and stacked again are the same."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import layout
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


def test_cutting_outside_of_a_program_copies_nothing_but_the_layers():
    """A large model's parameters must not be there twice."""
    head, stack = jnp.ones((4, 2)), jnp.arange(6.0).reshape(3, 2)
    params = {"head": head, "layers": {"scale": stack}}
    pieces = cut_layers(params, now=True)
    assert pieces["head"] is head
    assert len(jax.tree.leaves(pieces)) == 4
    assert np.array_equal(stack_layers(pieces)["layers"]["scale"], stack)
    assert cut_layers(pieces, now=True)["layers"] is pieces["layers"]
    assert cut_layers(params, unrolled=False, now=True)["layers"]["scale"] is stack
    for strategy, whole in tiny.strategies():
        prepared = strategy.prepare(whole)
        ours, theirs = jax.tree.leaves(prepared), jax.tree.leaves(whole)
        assert all(leaf is other for leaf, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("unrolled", [True, False])
def test_an_owned_tree_is_cut_without_a_copy_of_the_whole(monkeypatch, unrolled):
    """While a stack is cut, those before it are no longer there."""
    shape = (3, 1000)
    params = {
        "head": jnp.ones((4, 2)),
        "layers": {"a": {name: jnp.full(shape, ord(name)) for name in "wxy"}, "z": jnp.ones(shape)},
    }
    expected = jax.tree.map(np.array, params)
    stacks = [weakref.ref(leaf) for leaf in jax.tree.leaves(params["layers"])]
    alive = []
    unstack = layout._unstack

    def watched(stack):
        alive.append(sum(each() is not None for each in stacks))
        return unstack(stack)

    monkeypatch.setattr(layout, "_unstack", watched)
    head = params["head"]
    cut = layout.cut_in_turn(params, unrolled=unrolled)
    assert cut["head"] is head
    assert alive == ([4, 3, 2, 1] if unrolled else [])
    assert any(each() is not None for each in stacks) != unrolled
    for ours, theirs in zip(
        jax.tree.leaves(stack_layers(cut)), jax.tree.leaves(expected), strict=True
    ):
        assert np.array_equal(ours, theirs)
    # Nothing is left to do before a loop.
    again = cut_layers(cut, unrolled=unrolled, now=True)
    assert jax.tree.structure(again) == jax.tree.structure(cut)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(cut), strict=True):
        assert ours is theirs
    assert layout.cut_in_turn(cut, unrolled=unrolled)["layers"] is again["layers"]
