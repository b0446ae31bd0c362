"""Several chains: exact laws by enumeration, the slow reference, oracles, edge rows, arguments."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.verify import verify_chains, verify_token
from jaxspec.verify.chains import chain_walk
from tests.verify import laws, reference

VOCABULARY, SLOTS = 3, 2
LENGTH = SLOTS + 1
RULES = ["recursive", "recursive_without_replacement", "k_seq"]
LAST_BELOW_ONE = 1 - 2**-53

jitted_chains = jax.jit(verify_chains, static_argnames="rule")
jitted_token = jax.jit(verify_token)


@functools.partial(jax.jit, static_argnames="rule")
def follow(drafts, q, p, uniforms, *, rule):
    walk = chain_walk(drafts, q, p, rule=rule)
    end = walk.follow(uniforms)
    return end.heads_BGA, end.num_accepted_B, end.chain_B, end.next_weights_BV, walk.valid_B


def chain_weights(draft, drafts_BAG, *, rule):
    """How likely each row of chains is."""
    law = draft.law(SLOTS)
    chances = law[tuple(np.moveaxis(drafts_BAG, 2, 0))]
    if rule != "recursive_without_replacement":
        return chances.prod(axis=1)
    first = draft.rows[0][drafts_BAG[..., 0]]
    rest = np.where(first > 0, chances / np.where(first > 0, first, 1), 0).prod(axis=1)
    weights = np.ones(len(drafts_BAG))
    for k in range(drafts_BAG.shape[1]):
        before = first[:, :k].sum(axis=1)
        left = 1 - before
        fresh = (drafts_BAG[:, :k, 0] != drafts_BAG[:, k : k + 1, 0]).all(axis=1)
        is_empty = left < 1e-12
        drawn = np.where(fresh & ~is_empty, first[:, k] / np.where(is_empty, 1, left), 0)
        # Where q has no other token, the rest repeat the first one (`ChainSpeculative`).
        repeated = drafts_BAG[:, k, 0] == drafts_BAG[:, 0, 0]
        weights *= np.where(is_empty, repeated, drawn)
    return weights * rest


def chain_law(rule, chains, *, target, draft, q=None, weights=None):
    """The exact law of the first G + 1 tokens, and P(num_accepted)."""
    sequences = laws.all_sequences(VOCABULARY, SLOTS)
    picks = np.array(list(itertools.product(range(len(sequences)), repeat=chains)))
    drafts_BAG = sequences[picks]
    weights_B = chain_weights(draft, drafts_BAG, rule=rule) if weights is None else weights
    patterns = np.array(list(itertools.product([0.0, LAST_BELOW_ONE], repeat=SLOTS * chains)))
    q = draft if q is None else q
    flat = drafts_BAG.reshape(-1, SLOTS)
    q_BAGV = q.along(flat, count=SLOTS).reshape(-1, chains, SLOTS, VOCABULARY)
    p_BAHV = target.along(flat, count=LENGTH).reshape(-1, chains, LENGTH, VOCABULARY)
    law, accepted_H = np.zeros((VOCABULARY,) * LENGTH), np.zeros(LENGTH)
    for pattern in patterns.reshape(-1, SLOTS, chains):
        uniforms = np.broadcast_to(pattern, (len(flat) // chains, SLOTS, chains))
        with jax.enable_x64(True):
            heads, count, chain, rest, valid = jax.tree.map(
                np.asarray,
                follow(drafts_BAG, q_BAGV, p_BAHV, uniforms, rule=rule),
            )
        assert heads.dtype == np.float64
        assert valid.all()
        chance = np.where(uniforms == 0, heads, 1 - heads).prod(axis=(1, 2)) * weights_B
        rest = rest / rest.sum(axis=1, keepdims=True)
        for n in range(LENGTH):
            rows = np.flatnonzero((count == n) & (chance > 0))
            accepted_H[n] += chance[rows].sum()
            # Prefixes as numbers in base V.
            prefix = drafts_BAG[rows, chain[rows], :n] @ VOCABULARY ** np.arange(n)[::-1]
            first = np.zeros((VOCABULARY**n, VOCABULARY))
            np.add.at(first, prefix, chance[rows, None] * rest[rows])
            first = first.reshape((VOCABULARY,) * (n + 1))
            law += first.reshape(first.shape + (1,) * (LENGTH - n - 1)) * target.continuation(
                n + 1, LENGTH
            )
    return law, accepted_H


def trees(seed, *, factorised):
    rng = np.random.default_rng(seed)
    target = laws.random_tree(rng, vocabulary=VOCABULARY, depth=LENGTH)
    draft = laws.random_tree(rng, vocabulary=VOCABULARY, depth=SLOTS, factorised=factorised)
    return target, draft


@pytest.mark.parametrize("chains", [2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_output_law_is_the_targets(rule, chains):
    for seed in range(4 if chains == 2 else 2):
        target, draft = trees(seed, factorised=seed % 2 == 0)
        law, accepted = chain_law(rule, chains, target=target, draft=draft)
        assert laws.total_variation(law, target.law(LENGTH)) < 1e-12
        assert accepted.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_output_law_with_zeros_in_both_distributions(rule):
    for seed in range(4):
        rng = np.random.default_rng([seed, 1])

        def thinned(rows, rng=rng):
            largest = rows == rows.max(-1, keepdims=True)
            return np.where(largest | (rng.random(rows.shape) < 0.5), rows, 0)

        target, draft = (tree.map(thinned) for tree in trees(seed, factorised=False))
        law, accepted = chain_law(rule, 2, target=target, draft=draft)
        assert accepted.sum() == pytest.approx(1)
        assert laws.total_variation(law, target.law(LENGTH)) < 1e-12


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("same", [True, False])
def test_first_tokens_may_run_out(tokens, same):
    """Three chains, but the draft's first slot has only one or two tokens, as after top-p.

    The chains that repeat the first one stay alive after it was accepted.
    """
    target, draft = trees(5, factorised=True)
    first = np.where(np.arange(VOCABULARY) < tokens, draft.rows[0], 0)
    draft = laws.Tree((first / first.sum(), *draft.rows[1:]))
    if same:
        target = laws.Tree((draft.rows[0], *target.rows[1:]))
    law, accepted = chain_law("recursive_without_replacement", 3, target=target, draft=draft)
    assert accepted.sum() == pytest.approx(1, abs=1e-12)
    assert laws.total_variation(law, target.law(LENGTH)) < 1e-12


def test_more_chains_accept_more():
    target, draft = trees(0, factorised=True)
    for rule in ("recursive", "k_seq"):
        means = [
            chain_law(rule, chains, target=target, draft=draft)[1] @ np.arange(LENGTH)
            for chains in (1, 2, 3)
        ]
        assert means[0] < means[1] < means[2]


def test_drafts_without_replacement_need_their_own_rule():
    # The known mistake: q is used as it was, though the second token cannot equal the first.
    target, draft = trees(1, factorised=True)
    sequences = laws.all_sequences(VOCABULARY, SLOTS)
    drafts = sequences[np.array(list(itertools.product(range(len(sequences)), repeat=2)))]
    weights = chain_weights(draft, drafts, rule="recursive_without_replacement")
    assert weights.sum() == pytest.approx(1)
    law, _ = chain_law("recursive", 2, target=target, draft=draft, weights=weights)
    assert laws.total_variation(law, target.law(LENGTH)) > 0.01


@pytest.mark.parametrize("rule", ["recursive", "k_seq"])
def test_wrong_q_is_seen(rule):
    target, draft = trees(2, factorised=True)
    law, _ = chain_law(rule, 2, target=target, draft=draft, q=draft.map(lambda rows: rows**2))
    assert laws.total_variation(law, target.law(LENGTH)) > 0.01


@pytest.mark.parametrize("rule", RULES)
def test_walk_equals_the_reference(rule):
    rng = np.random.default_rng(5)
    batch, chains, slots, vocabulary = 400, 3, 4, 5
    drafts = rng.integers(0, 2, (batch, chains, slots))
    drafts[:, :, 0] = rng.permuted(np.tile(np.arange(vocabulary), (batch, 1)), axis=1)[:, :chains]
    drafts[::2, 1:, 0] = drafts[::2, :1, 0]  # every second row: all chains agree at first
    if rule == "recursive_without_replacement":
        drafts = drafts[1::2]
    batch = len(drafts)
    q_row = rng.dirichlet(np.ones(vocabulary), (batch, 1, slots))
    q = np.repeat(q_row, chains, axis=1)
    # The same target row wherever chains share a prefix.
    codes = np.cumsum(drafts * vocabulary ** np.arange(slots), axis=2)
    table = rng.dirichlet(np.ones(vocabulary), (batch, vocabulary**slots))
    codes = np.concatenate([np.zeros((batch, chains, 1), int), codes[..., :]], axis=2)
    p = table[np.arange(batch)[:, None, None], codes % vocabulary**slots]
    p[:, :, 0] = p[:, :1, 0]
    uniforms = rng.random((batch, slots, chains))
    with jax.enable_x64(True):
        _, count, chain, rest, _ = jax.tree.map(
            np.asarray, follow(drafts, q, p, uniforms, rule=rule)
        )
    for b in range(batch):
        expected, row = reference.chains(uniforms[b], drafts[b], q[b], p[b], rule=rule)
        assert count[b] == expected
        np.testing.assert_allclose(rest[b] / rest[b].sum(), row, atol=1e-9)
        if expected:
            assert tuple(drafts[b, chain[b], :expected]) in {
                tuple(sequence[:expected]) for sequence in drafts[b]
            }
    assert set(count) == set(range(slots + 1))


# Means over p, q ~ Dirichlet(0.7) with V = 4, for one slot: acceptance worked out from the rules'
# definitions for each of 100,000 pairs (p, q), which leaves a standard error of 0.001.
@pytest.mark.parametrize(
    ("rule", "chains", "expected"),
    [
        ("recursive", 1, 0.514),
        ("recursive", 3, 0.658),
        ("k_seq", 3, 0.678),
        ("recursive_without_replacement", 3, 0.834),
    ],
)
def test_acceptance_of_the_dirichlet_oracle(rule, chains, expected):
    rng = np.random.default_rng(7)
    vocabulary, rounds = 4, 30_000
    p, q = rng.dirichlet(np.full(vocabulary, 0.7), (2, rounds))
    if rule == "recursive_without_replacement":
        # The largest of log q + Gumbel noise, in order, are draws without replacement.
        noisy = np.log(q) + rng.gumbel(size=q.shape)
        drafts = np.argsort(-noisy, axis=1)[:, :chains]
    else:
        uniforms = rng.random((rounds, chains, 1))
        drafts = (uniforms >= q.cumsum(axis=1)[:, None, :-1]).sum(axis=2)
    verdict = verify_chains(
        jax.random.key(0),
        drafts[..., None],
        q[:, None],
        np.broadcast_to(p[:, None, None], (rounds, chains, 2, vocabulary)),
        rule=rule,
    )
    assert float(verdict.num_accepted_B.mean()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("rule", RULES)
def test_one_chain_is_token_verification(rule):
    rng = np.random.default_rng(8)
    drafts = rng.integers(0, 5, (64, 1, 3))
    q = rng.dirichlet(np.ones(5), (64, 3)).astype(np.float32)
    p = rng.dirichlet(np.ones(5), (64, 4)).astype(np.float32)
    verdict = jitted_chains(jax.random.key(1), drafts, q, p[:, None], rule=rule)
    single = jitted_token(jax.random.key(1), drafts[:, 0], q, p)
    np.testing.assert_array_equal(verdict.num_accepted_B, single.num_accepted_B)
    np.testing.assert_array_equal(verdict.next_token_B, single.next_token_B)
    assert not verdict.chain_B.any()


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_cannot_be_judged_fail_alone(rule):
    drafts = np.tile(np.array([[[0, 1], [1, 0]]]), (6, 1, 1))
    q = np.full((6, 2, 3), 1 / 3)
    p = np.full((6, 2, 3, 3), 1 / 3)
    p[1, 0, 1, 2] = np.nan
    p[2, 1, 2] = 0
    q[3, 0, 0] = -1
    drafts[4, 1, 1] = 3
    verdict = jax.jit(functools.partial(verify_chains, rule=rule))(jax.random.key(0), drafts, q, p)
    assert verdict.failed_B.tolist() == [False, True, True, True, True, False]
    assert (verdict.next_token_B < 0).tolist() == verdict.failed_B.tolist()


def test_mistakes_are_refused():
    key, q, p = jax.random.key(0), jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3, 3))
    drafts = jnp.zeros((1, 2, 2), jnp.int32)
    with pytest.raises(ValueError, match="unknown rule 'best'"):
        verify_chains(key, drafts, q, p, rule="best")
    with pytest.raises(ValueError, match="drafts_BAG must hold integer token ids"):
        verify_chains(key, drafts[:, 0], q, p)
    with pytest.raises(ValueError, match="target_probs_BAHV must hold floats"):
        verify_chains(key, drafts, q, p[:, :, :2])
    with pytest.raises(ValueError, match="draft_probs_BGV must hold floats"):
        verify_chains(key, drafts, q[:, :1], p)
