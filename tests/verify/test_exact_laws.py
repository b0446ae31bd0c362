"""The whole output law of every rule, enumerated from the shipped functions in float64."""

from __future__ import annotations

import numpy as np
import pytest

from jaxspec.verify.block import block_law
from jaxspec.verify.point_mass import point_mass_law
from jaxspec.verify.token import token_law
from tests.verify import laws

VOCABULARY, SLOTS = 3, 2
LENGTH = SLOTS + 1
DRAFTS = laws.all_sequences(VOCABULARY, SLOTS)


def point_mass_without_q(draft, draft_probs, target_probs):
    del draft_probs
    return point_mass_law(draft, target_probs)


RULES = {"token": token_law, "point_mass": point_mass_without_q, "block": block_law}


def trees(seed, *, factorised=False, concentration=0.7):
    rng = np.random.default_rng(seed)
    target = laws.random_tree(rng, vocabulary=VOCABULARY, depth=LENGTH, concentration=concentration)
    draft = laws.random_tree(
        rng,
        vocabulary=VOCABULARY,
        depth=SLOTS,
        factorised=factorised,
        concentration=concentration,
    )
    return target, draft


def law_of(rule, target, draft, *, weights=None):
    weights = draft.law(SLOTS).ravel() if weights is None else weights
    return laws.output_law(
        RULES[rule], target=target, draft=draft, drafts_BG=DRAFTS, weights_B=weights
    )


def mean_accepted(accepted):
    return float(accepted @ np.arange(len(accepted)))


@pytest.mark.parametrize("factorised", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_output_law_is_the_targets(rule, factorised):
    for seed in range(20):
        target, draft = trees(seed, factorised=factorised)
        law, accepted = law_of(rule, target, draft)
        assert laws.total_variation(law, target.law(LENGTH)) < 1e-12
        assert accepted.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_output_law_with_zeros_in_both_distributions(rule):
    for seed in range(20):
        rng = np.random.default_rng([seed, 1])

        def thinned(rows, rng=rng):
            largest = rows == rows.max(-1, keepdims=True)
            return np.where(largest | (rng.random(rows.shape) < 0.5), rows, 0)

        target, draft = (tree.map(thinned) for tree in trees(seed))
        law, _ = law_of(rule, target, draft)
        assert laws.total_variation(law, target.law(LENGTH)) < 1e-12


# Every draft with 0, 1 and 2 of its slots filled.
COUNTS = np.repeat(np.arange(LENGTH), len(DRAFTS))


def partly_filled_token(draft, draft_probs, target_probs):
    return token_law(draft, draft_probs, target_probs, num_drafted_B=COUNTS)


def partly_filled_point_mass(draft, draft_probs, target_probs):
    del draft_probs
    return point_mass_law(draft, target_probs, num_drafted_B=COUNTS)


def partly_filled_block(draft, draft_probs, target_probs):
    return block_law(draft, draft_probs, target_probs, num_drafted_B=COUNTS)


@pytest.mark.parametrize(
    "make_law", [partly_filled_token, partly_filled_point_mass, partly_filled_block]
)
def test_output_law_of_partly_filled_blocks(make_law):
    for seed in range(5):
        target, draft = trees(seed)
        for num_drafted in range(LENGTH):
            law, accepted = laws.output_law(
                make_law,
                target=target,
                draft=draft,
                drafts_BG=np.tile(DRAFTS, (LENGTH, 1)),
                weights_B=np.tile(draft.law(SLOTS).ravel(), LENGTH) * (num_drafted == COUNTS),
            )
            assert laws.total_variation(law, target.law(LENGTH)) < 1e-12
            assert accepted[num_drafted + 1 :].sum() == 0


def test_point_mass_is_exact_for_every_single_draft():
    target, draft = trees(0)
    for number in range(len(DRAFTS)):
        weights = np.eye(len(DRAFTS))[number]
        law, _ = law_of("point_mass", target, draft, weights=weights)
        assert laws.total_variation(law, target.law(LENGTH)) < 1e-12


@pytest.mark.parametrize("rule", ["token", "block"])
def test_rules_with_q_are_not_exact_for_every_single_draft(rule):
    target, draft = trees(0)
    law, _ = law_of(rule, target, draft, weights=np.eye(len(DRAFTS))[0])
    assert laws.total_variation(law, target.law(LENGTH)) > 0.05


@pytest.mark.parametrize("rule", ["token", "block"])
def test_wrong_q_is_seen(rule):
    for seed in range(5):
        target, draft = trees(seed)
        sharper = draft.map(lambda rows: rows**2)
        law, _ = law_of(rule, target, sharper, weights=draft.law(SLOTS).ravel())
        assert laws.total_variation(law, target.law(LENGTH)) > 0.01


@pytest.mark.parametrize(("rule", "expected"), [("token", 10 / 9), ("block", 11 / 9)])
def test_expected_acceptance_of_the_two_token_oracle(rule, expected):
    # A third token of probability 0 keeps the shape that is compiled already.
    p, q = np.array([1, 2, 0]) / 3, np.array([2, 1, 0]) / 3
    target = laws.Tree(tuple(np.broadcast_to(p, (3,) * (g + 1)) for g in range(LENGTH)))
    draft = laws.Tree(tuple(np.broadcast_to(q, (3,) * (g + 1)) for g in range(SLOTS)))
    law, accepted = law_of(rule, target, draft)
    assert mean_accepted(accepted) == pytest.approx(expected, abs=1e-12)
    assert laws.total_variation(law, target.law(3)) < 1e-12


@pytest.mark.parametrize("rule", ["token", "block"])
def test_equal_distributions_accept_everything(rule):
    for seed in range(5):
        target, _ = trees(seed)
        _, accepted = law_of(rule, target, target)
        assert accepted[SLOTS] == pytest.approx(1, abs=1e-12)


def test_acceptance_is_the_overlap_and_compounds():
    rng = np.random.default_rng(3)
    p, q = rng.dirichlet(np.ones(VOCABULARY), size=2)
    target = laws.Tree(tuple(np.broadcast_to(p, (VOCABULARY,) * (g + 1)) for g in range(LENGTH)))
    draft = laws.Tree(tuple(np.broadcast_to(q, (VOCABULARY,) * (g + 1)) for g in range(SLOTS)))
    alpha = np.minimum(p, q).sum()
    assert alpha == pytest.approx(1 - laws.total_variation(p, q))
    _, accepted = law_of("token", target, draft)
    assert accepted[1:].sum() == pytest.approx(alpha, abs=1e-12)
    emitted = 1 + mean_accepted(accepted)
    assert emitted == pytest.approx((1 - alpha**LENGTH) / (1 - alpha), abs=1e-12)
    _, accepted = law_of("point_mass", target, draft)
    assert accepted[1:].sum() == pytest.approx(p @ q, abs=1e-12)


def test_block_never_accepts_less_than_token_and_often_more():
    gains = []
    for seed in range(30):
        target, draft = trees(seed, factorised=seed % 2 == 0)
        _, by_token = law_of("token", target, draft)
        _, by_block = law_of("block", target, draft)
        gains.append(mean_accepted(by_block) - mean_accepted(by_token))
    assert min(gains) > -1e-12
    assert max(gains) > 0.01


def test_block_gains_nothing_on_a_point_mass_draft():
    for seed in range(5):
        target, draft = trees(seed)
        one_hot = draft.map(lambda rows: (rows == rows.max(-1, keepdims=True)).astype(float))
        by_rule = [mean_accepted(law_of(rule, target, one_hot)[1]) for rule in RULES]
        assert by_rule == pytest.approx([by_rule[0]] * 3, abs=1e-12)
