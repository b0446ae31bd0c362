"""The best-first tree against a heap, and what its rows may see."""

from __future__ import annotations

import functools
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.drafters.tree import DraftTree, best_first_tree, chain_tree

built = jax.jit(best_first_tree, static_argnames="num_nodes")


def by_heap(log_probs: np.ndarray, num_nodes: int) -> dict[tuple[int, ...], float]:
    """The likeliest prefixes, taken one at a time."""
    slots, vocabulary = log_probs.shape
    heap = [(-log_probs[0, v], (v,)) for v in range(vocabulary)]
    heapq.heapify(heap)
    found: dict[tuple[int, ...], float] = {}
    while len(found) < num_nodes:
        cost, prefix = heapq.heappop(heap)
        found[prefix] = -cost
        if len(prefix) < slots:
            for v in range(vocabulary):
                heapq.heappush(heap, (cost - log_probs[len(prefix), v], (*prefix, v)))
    return found


def prefixes(tree: DraftTree, row: int) -> list[tuple[int, ...]]:
    tokens, parents = tree.tokens_BX[row].tolist(), tree.parents_BX[row].tolist()
    found: list[tuple[int, ...]] = [()]
    for number, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        assert parent <= number, "a parent stands before its children"
        found.append((*found[parent], token))
    return found[1:]


@functools.cache
def random_log_probs(slots: int, vocabulary: int) -> np.ndarray:
    rng = np.random.default_rng(slots)
    return np.log(rng.dirichlet(np.full(vocabulary, 0.4), (3, slots))).astype(np.float32)


@pytest.mark.parametrize(("slots", "vocabulary", "num_nodes"), [(1, 5, 4), (4, 6, 16), (7, 11, 64)])
def test_tree_is_what_a_heap_finds(slots, vocabulary, num_nodes):
    log_probs = random_log_probs(slots, vocabulary)
    tree = built(log_probs, num_nodes=num_nodes)
    for row in range(3):
        expected = by_heap(log_probs[row].astype(np.float64), num_nodes)
        found = prefixes(tree, row)
        assert set(found) == set(expected)
        # In order, so that a smaller budget is the beginning of a larger one.
        falling = np.array([expected[prefix] for prefix in found])
        assert (np.diff(falling) < 1e-5).all()
        assert tree.depths_BX[row].tolist() == [len(prefix) for prefix in found]


def test_ties_and_zeros_keep_parents_with_their_children():
    uniform = jnp.log(jnp.full((1, 3, 2), 0.5))
    assert sorted(map(len, prefixes(built(uniform, num_nodes=6), 0))) == [1, 1, 2, 2, 2, 2]
    one_hot = jnp.log(jax.nn.one_hot(jnp.array([[2, 0, 1]]), 3))
    assert prefixes(built(one_hot, num_nodes=3), 0) == [(2,), (2, 0), (2, 0, 1)]
    # More nodes than there are prefixes with a chance: the others are filling, with their parents.
    prefixes(built(one_hot, num_nodes=20), 0)


def test_rows_see_their_ancestors():
    tree = DraftTree(
        tokens_BX=jnp.array([[4, 7, 5, 6]]),
        parents_BX=jnp.array([[0, 0, 1, 3]]),
        depths_BX=jnp.array([[1, 1, 2, 3]]),
    )
    assert tree.ancestors_BYY(depth=3)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


def test_impossible_budgets_are_refused():
    for num_nodes in (0, 7):
        with pytest.raises(ValueError, match="has 1 to 6 nodes: got"):
            best_first_tree(jnp.zeros((1, 2, 2)), num_nodes=num_nodes)


def test_a_tree_of_chains_holds_what_they_share_once():
    chains = np.array([[[5, 6, 7], [5, 6, 8], [4, 6, 7], [5, 6, 7]]], np.int32)
    tree, rows = jax.jit(chain_tree)(chains)
    kept = [
        prefix
        for prefix, token in zip(prefixes(tree, 0), tree.tokens_BX[0].tolist(), strict=True)
        if token >= 0
    ]
    assert sorted(kept) == [(4,), (4, 6), (4, 6, 7), (5,), (5, 6), (5, 6, 7), (5, 6, 8)]
    assert tree.tokens_BX[0].tolist() == [5, 6, 7, -1, -1, 8, 4, 6, 7, -1, -1, -1]
    assert rows[0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 6], [0, 7, 8, 9], [0, 1, 2, 3]]
    assert tree.depths_BX[0].tolist() == [1, 2, 3] * 4
    # Along its rows every chain reads as it was drawn.
    found = [(), *prefixes(tree, 0)]
    assert [found[row] for row in rows[0, :, -1].tolist()] == [tuple(c) for c in chains[0].tolist()]
