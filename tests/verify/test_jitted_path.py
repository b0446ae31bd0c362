"""Chi-square of the jitted rules, coins and draws included, against the exact law, and controls."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.ops.sampling import Sampling
from jaxspec.verify import verify_block, verify_greedy, verify_point_mass, verify_token
from tests.verify import laws

VOCABULARY, SLOTS = 3, 2
LENGTH = SLOTS + 1


@functools.partial(jax.jit, static_argnames="rule")
def one_round(key, draft_BG, draft_probs_BGV, target_probs_BHV, *, rule):
    if rule == "point_mass":
        verdict = verify_point_mass(key, draft_BG, target_probs_BHV)
    else:
        verify = {"token": verify_token, "block": verify_block}[rule]
        verdict = verify(key, draft_BG, draft_probs_BGV, target_probs_BHV)
    return verdict.emitted_BH(draft_BG)


def judge(rule, *, target, draft, drafts_OG, seed):
    """What each row's round emits, [O, G + 1], then -1."""
    rows = one_round(
        jax.random.key(seed),
        jnp.asarray(drafts_OG, jnp.int32),
        jnp.asarray(draft.along(drafts_OG, count=SLOTS), jnp.float32),
        jnp.asarray(target.along(drafts_OG, count=LENGTH), jnp.float32),
        rule=rule,
    )
    return np.asarray(rows)


def decode(rule, *, target, draft, drafts_OG, seed):
    """One round a row, and sampled from the target as far as the round left open."""
    rows = judge(rule, target=target, draft=draft, drafts_OG=drafts_OG, seed=seed)
    return target.sample(np.random.default_rng([seed, 1]), rows, length=LENGTH)


def sampled(tree, *, seed, length=SLOTS, rounds=laws.ROUNDS):
    return tree.sample(np.random.default_rng([seed, 2]), np.zeros((rounds, 0), int), length=length)


def trees(seed, *, factorised=True, flatness=0.7):
    rng = np.random.default_rng(seed)
    target = laws.random_tree(rng, vocabulary=VOCABULARY, depth=LENGTH)
    draft = laws.random_tree(
        rng, vocabulary=VOCABULARY, depth=SLOTS, factorised=factorised, concentration=flatness
    )
    return target, draft


@pytest.mark.parametrize("factorised", [True, False])
@pytest.mark.parametrize("rule", ["token", "block", "point_mass"])
def test_jitted_rounds_have_the_targets_law(rule, factorised):
    for seed in range(2):
        target, draft = trees(seed, factorised=factorised)
        drafts = sampled(draft, seed=seed)
        tokens = decode(rule, target=target, draft=draft, drafts_OG=drafts, seed=seed)
        laws.assert_same_law(tokens, target.law(LENGTH))


@pytest.mark.parametrize("rule", ["token", "block"])
def test_acceptance_rate_of_the_oracle(rule):
    # A third token of probability 0 keeps the shape that is compiled already.
    p, q = np.array([1, 2, 0]) / 3, np.array([2, 1, 0]) / 3
    target = laws.Tree(tuple(np.broadcast_to(p, (3,) * (g + 1)) for g in range(LENGTH)))
    draft = laws.Tree(tuple(np.broadcast_to(q, (3,) * (g + 1)) for g in range(SLOTS)))
    drafts = sampled(draft, seed=0)
    rows = judge(rule, target=target, draft=draft, drafts_OG=drafts, seed=0)
    assert rows.max() == 1
    mean = float((rows >= 0).sum(axis=1).mean()) - 1
    # 7 standard errors of a variable in 0..2.
    assert mean == pytest.approx({"token": 10 / 9, "block": 11 / 9}[rule], abs=7 / 20_000**0.5)


@pytest.mark.parametrize("rule", ["token", "block"])
def test_control_wrong_temperature_of_q_is_refused(rule):
    target, draft = trees(0)
    colder = draft.map(lambda rows: rows**2)
    tokens = decode(rule, target=target, draft=colder, drafts_OG=sampled(draft, seed=0), seed=0)
    laws.assert_different_law(tokens, target.law(LENGTH))


def best_of(count, *, target, draft):
    """The sampled draft that the target likes best of `count`."""
    pool_AOG = np.stack([sampled(draft, seed=10 + k) for k in range(count)])
    score_AO = target.law(SLOTS)[tuple(np.moveaxis(pool_AOG, -1, 0))]
    return np.take_along_axis(pool_AOG, score_AO.argmax(0)[None, :, None], axis=0)[0]


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("count", [2, 4])
def test_control_selection_by_the_verifier_is_refused(rule, count):
    target, draft = trees(1)
    drafts = best_of(count, target=target, draft=draft)
    tokens = decode(rule, target=target, draft=draft, drafts_OG=drafts, seed=0)
    laws.assert_different_law(tokens, target.law(LENGTH))


def test_point_mass_stays_exact_under_selection_by_the_verifier():
    target, draft = trees(1)
    drafts = best_of(4, target=target, draft=draft)
    tokens = decode("point_mass", target=target, draft=draft, drafts_OG=drafts, seed=0)
    laws.assert_same_law(tokens, target.law(LENGTH))


def shaped_drafts(sampling, draft):
    """Rows of q as `sampling` shapes them, as a tree, and blocks that it drew from them."""
    rows = [np.asarray(sampling.probabilities(jnp.log(rows))) for rows in draft.rows]
    shaped = laws.Tree(tuple(rows))
    # Factorised: the row of a slot is the same after every prefix.
    probs_GV = jnp.stack([row.reshape(-1, VOCABULARY)[0] for row in rows])
    probs_OGV = jnp.broadcast_to(probs_GV, (laws.ROUNDS, SLOTS, VOCABULARY))
    return shaped, np.asarray(sampling.sample(jax.random.key(5), probs_OGV))


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=2), Sampling(0.6, top_p=0.8)])
def test_control_raw_q_of_shaped_drafts_is_refused(rule, sampling):
    # A flat draft, from which the filters take something that matters.
    target, draft = trees(2, flatness=10.0)
    shaped, drafts = shaped_drafts(sampling, draft)
    honest = decode(rule, target=target, draft=shaped, drafts_OG=drafts, seed=0)
    laws.assert_same_law(honest, target.law(LENGTH))
    raw = decode(rule, target=target, draft=draft, drafts_OG=drafts, seed=0)
    laws.assert_different_law(raw, target.law(LENGTH))


def test_greedy_rounds_give_the_targets_greedy_output():
    target, draft = trees(4)
    drafts = sampled(draft, seed=4, rounds=64)
    logits = jnp.log(jnp.asarray(target.along(drafts, count=LENGTH), jnp.float32))
    draft_BG = jnp.asarray(drafts, jnp.int32)
    rows = np.asarray(jax.jit(verify_greedy)(draft_BG, logits).emitted_BH(draft_BG))
    greedy = target.map(lambda rows: (rows == rows.max(-1, keepdims=True)).astype(float))
    expected = sampled(greedy, seed=0, length=LENGTH, rounds=1)[0]
    for row in rows:
        length = int((row >= 0).sum())
        assert row[:length].tolist() == expected[:length].tolist()
    assert len({int((row >= 0).sum()) for row in rows}) > 1
