"""The walk down a draft tree: its exact law, a hand-made tree, failures, arguments."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.ops.sampling import Sampling
from jaxspec.verify import verify_point_mass, verify_tree
from jaxspec.verify.tree import walk_tree
from tests.verify import laws

VOCABULARY, DEPTH = 3, 2
LENGTH = DEPTH + 1


NODES = 6
"""Of three chains that share nothing."""


def merged(chains):
    """Tokens, parents (as rows) and prefixes of the tree that holds the given chains.

    Empty nodes fill it up, so that all trees share programs; the anchor's row is theirs, too.
    """
    prefixes = [()]
    for chain in chains:
        for length in range(1, len(chain) + 1):
            if chain[:length] not in prefixes:
                prefixes.append(chain[:length])
    parents = [prefixes.index(prefix[:-1]) for prefix in prefixes[1:]]
    tokens = [prefix[-1] for prefix in prefixes[1:]]
    empty = NODES - len(tokens)
    return tokens + [-1] * empty, parents + [0] * empty, prefixes + [()] * empty


def tree_law(target, chains):
    """The exact law of the first tokens: each sequence of draws, weighted by the rows it met."""
    tokens, parents, prefixes = merged(chains)
    rows = np.stack([target.rows[len(prefix)][prefix] for prefix in prefixes])
    draws = np.array(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    met = []

    def draw(step, p):
        met.append(np.asarray(p)[np.arange(len(draws)), draws[:, step]])
        return jnp.asarray(draws[:, step])

    def repeated(values):
        return np.broadcast_to(values, (len(draws), *np.shape(values)))

    with jax.enable_x64(True):
        end = walk_tree(repeated(tokens), repeated(parents), repeated(rows), draw=draw, depth=DEPTH)
    law = np.zeros((VOCABULARY,) * LENGTH)
    seen = set()
    for number, count in enumerate(end.num_accepted_B.tolist()):
        path = end.path_BG[number, :count].tolist()
        emitted = (*(tokens[row - 1] for row in path), int(end.next_token_B[number]))
        if emitted in seen:  # draws after the end of the walk were not used
            continue
        seen.add(emitted)
        chance = np.prod([met[step][number] for step in range(count + 1)])
        law[emitted] += chance * target.continuation(count + 1, LENGTH)[emitted]
    return law


@pytest.mark.parametrize("chains", [2, 3])
def test_output_law_is_the_targets_for_every_choice_of_chains(chains):
    sequences = list(itertools.product(range(VOCABULARY), repeat=DEPTH))
    rng = np.random.default_rng(0)
    target = laws.random_tree(rng, vocabulary=VOCABULARY, depth=LENGTH)
    picks = list(itertools.combinations(sequences, chains))
    for pick in [picks[i] for i in rng.permutation(len(picks))[:20]]:
        law = tree_law(target, pick)
        assert laws.total_variation(law, target.law(LENGTH)) < 1e-12


# Anchor -> 4, 7;  4 -> 5, 6;  6 -> 8.
TOKENS, PARENTS = [4, 7, 5, 6, 8], [0, 0, 1, 1, 4]


@functools.partial(jax.jit, static_argnames="depth")
def verified(tokens, parents, probs, *, depth):
    return verify_tree(jax.random.key(0), tokens, parents, probs, depth=depth)


@jax.jit
def greedy_rows(logits):
    return Sampling(0.0).probabilities(logits)[None]


def greedy_walk(argmaxes, *, depth=3):
    probs = greedy_rows(np.eye(10, dtype=np.float32)[argmaxes])
    verdict = verified(np.array([TOKENS]), np.array([PARENTS]), probs, depth=depth)
    return (
        verdict.num_accepted_B.tolist(),
        verdict.path_BG.tolist(),
        verdict.next_token_B.tolist(),
    )


def test_greedy_walk_by_hand():
    # Rows: after the anchor, then after 4, 7, 5, 6, 8.
    assert greedy_walk([4, 6, 0, 0, 8, 9]) == ([3], [[1, 4, 5]], [9])
    assert greedy_walk([4, 6, 0, 0, 3, 9]) == ([2], [[1, 4, 0]], [3])
    assert greedy_walk([7, 5, 5, 0, 0, 0]) == ([1], [[2, 0, 0]], [5])
    assert greedy_walk([1, 0, 0, 0, 0, 0]) == ([0], [[0, 0, 0]], [1])
    # A token elsewhere in the tree is not a child of the anchor.
    assert greedy_walk([5, 0, 0, 0, 0, 0]) == ([0], [[0, 0, 0]], [5])


def test_law_of_the_jitted_walk_and_its_early_end():
    # A key for each row, as in the decoding loop.
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.ones(VOCABULARY), 4)
    tokens, parents = jnp.array([[0, 2, 1]]), jnp.array([[0, 0, 1]])

    @jax.jit
    def walks(keys, rows):
        one = functools.partial(verify_tree, depth=DEPTH)
        return jax.vmap(lambda key: one(key, tokens, parents, rows))(keys)

    keys = jax.random.split(jax.random.key(3), laws.ROUNDS)
    end = walks(keys, jnp.asarray(p, jnp.float32)[None])
    paths, last = np.asarray(end.path_BG[:, 0]), np.asarray(end.next_token_B[:, 0])
    # Row 1 follows token 0, row 2 token 2, row 3 tokens 0, 1.
    law = np.zeros((4, VOCABULARY))
    law[0] = p[0] * [0, 1, 0]
    law[1] = p[0, 0] * p[1] * [1, 0, 1]
    law[2] = p[0, 2] * p[2]
    law[3] = p[0, 0] * p[1, 1] * p[3]
    counts = np.zeros((4, VOCABULARY), int)
    np.add.at(counts, (np.where(paths[:, 1] > 0, paths[:, 1], paths[:, 0]), last), 1)
    assert laws.chi_square(counts, law) > laws.FALSE_ALARM
    assert (np.asarray(end.num_accepted_B[:, 0]) == (paths > 0).sum(axis=1)).all()
    # Outside jit, with a Python loop: the same draws.
    plain = verify_tree(keys[0], tokens, parents, jnp.asarray(p, jnp.float32)[None], depth=DEPTH)
    assert plain.next_token_B.tolist() == end.next_token_B[0].tolist()
    assert plain.path_BG.tolist() == end.path_BG[0].tolist()


def test_draws_after_the_end_are_not_made():
    steps = []

    def draw(step, p_BV):
        steps.append(step)
        return jnp.argmax(p_BV, axis=1)

    probs = jax.nn.one_hot(jnp.array([[4, 1, 0, 0, 8, 9]]), 10)
    verdict = walk_tree(jnp.array([TOKENS]), jnp.array([PARENTS]), probs, draw=draw, depth=3)
    assert verdict.next_token_B.tolist() == [1]
    assert steps == [0, 1]


def test_empty_nodes_are_no_children():
    probs = jax.nn.one_hot(jnp.array([[2, 1, 1]]), 3)
    verdict = verified(jnp.array([[-1, 2]]), jnp.array([[0, 0]]), probs, depth=2)
    assert verdict.path_BG.tolist() == [[2, 0]]


def test_acceptance_of_a_chain_is_that_of_point_mass_verification():
    rng = np.random.default_rng(1)
    rounds = 40_000
    p = rng.dirichlet(np.ones(4), 3)
    draft = np.tile(np.array([[2, 0]]), (rounds, 1))
    rows = np.tile(p.astype(np.float32), (rounds, 1, 1))
    parents = np.tile(np.array([[0, 1]]), (rounds, 1))
    chain = jax.jit(verify_point_mass)(jax.random.key(1), draft, rows).num_accepted_B
    tree = verified(draft, parents, rows, depth=2).num_accepted_B
    shares = [np.bincount(np.asarray(counts), minlength=3) / rounds for counts in (chain, tree)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.015)
    np.testing.assert_allclose(shares[1][0], 1 - p[0, 2], atol=0.015)


def test_rows_on_the_way_that_cannot_be_judged_fail_alone():
    probs = np.tile(np.eye(10, dtype=np.float32)[[4, 6, 0, 0, 8, 9]], (4, 1, 1))
    probs[1, 4] = np.nan  # met
    probs[2, 2] = np.nan  # after token 7, which the walk does not reach
    probs[3, 0] = 0
    tokens, parents = (np.tile(np.array(values), (4, 1)) for values in (TOKENS, PARENTS))
    verdict = verified(tokens, parents, probs, depth=3)
    assert verdict.failed_B.tolist() == [False, True, False, True]
    assert verdict.next_token_B.tolist() == [9, -1, 9, -1]


def test_mistakes_are_refused():
    tokens, parents, probs = jnp.array([TOKENS]), jnp.array([PARENTS]), jnp.ones((1, 6, 10))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="parents_BX must hold integers"):
        verify_tree(key, tokens, parents[:, 1:], probs, depth=3)
    with pytest.raises(ValueError, match="target_probs_BYV must hold floats"):
        verify_tree(key, tokens, parents, probs[:, 1:], depth=3)
