"""Intervals: what they rest on, and how often they contain the true value."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from jaxspec.evals.intervals import (
    FEWEST_PROMPTS,
    FEWEST_ROUNDS,
    _wilson,
    bootstrap,
    bootstrap_ratio,
    bracketed,
    by_conversation,
    conversations_of,
    share_interval,
)


def test_the_fewest_prompts_follow_from_the_median():
    """The range of n values misses their median in 2 of 2^n cases."""

    def misses(prompts):
        return 2 * 0.5**prompts

    assert misses(FEWEST_PROMPTS) <= 0.05 < misses(FEWEST_PROMPTS - 1)


def test_few_prompts_have_no_interval():
    few = [3] * (FEWEST_PROMPTS - 1)
    assert bootstrap_ratio(few, few) is share_interval(few, few) is None
    enough = [3] * FEWEST_PROMPTS
    assert bootstrap_ratio(enough, enough) == (1.0, 1.0)
    assert share_interval(enough, [*enough[1:], 0]) is None, "a prompt without trials says nothing"


def test_a_figure_of_several_sums_equals_its_slow_twin():
    parts = np.random.default_rng(0).uniform(1.0, 3.0, (4, 8))
    found = bootstrap(list(parts), lambda a, b, c, d: (a / b) / (c / d), seed=5, resamples=100)
    generator = np.random.default_rng(5)
    ratios = []
    for pick in generator.integers(0, 8, size=(100, 8)):
        a, b, c, d = (sum(part[place] for place in pick) for part in parts)
        ratios.append((a / b) / (c / d))
    assert found == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


@pytest.mark.parametrize(("hits", "trials"), [(0, 30), (30, 30), (7, 40), (499, 1000)])
def test_wilson_is_that_of_scipy(hits, trials):
    theirs = binomtest(hits, trials).proportion_ci(method="wilson")
    assert _wilson(hits, trials) == pytest.approx((theirs.low, theirs.high))


def test_trials_that_all_went_alike_are_no_certainty():
    low, high = share_interval([5] * 6, [5] * 6)
    assert (low, high) == _wilson(30, 30) and low < 0.9


def test_trials_of_a_prompt_depend_on_each_other():
    """All or none of a prompt's trials: 40 prompts say as much as 40 trials, not as 400."""
    hits = [10, 0] * 20
    low, high = share_interval(hits, [10] * 40)
    assert (low, high) == bootstrap_ratio(hits, [10] * 40)
    assert high - low > 2.5 * np.ptp(_wilson(200, 400))


def test_intervals_of_shares_hold_the_truth():
    """Rounds of a response are alike: their chance is drawn per response."""
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(100):
        chances = generator.beta(4.0, 2.0, size=20)
        trials = generator.integers(FEWEST_ROUNDS // 20, 12, size=20)
        low, high = share_interval(generator.binomial(trials, chances), trials, seed=trial)
        covered += low <= 2 / 3 <= high
    assert covered >= 88


def test_turns_of_a_conversation_are_one_prompt():
    names = ["a", "b", "a#2", "b#2", "c#2", "c#3", "d#1", "d", "e#x", "e", "2", "3"]
    firsts = ["a", "b", "a", "b", "c", "c", "d#1", "d", "e#x", "e", "2", "3"]
    assert conversations_of(names) == firsts, "c has no first turn here; #1 and #x are no turns"
    single, wide = by_conversation(["a", "b", "a#2"], ([1, 2, 4], [[1, 0], [0, 5], [7, 0]]))
    assert single.tolist() == [5, 2]
    assert wide.tolist() == [[8, 0], [0, 5]]
    (flags,) = by_conversation(["a", "b", "a#2"], ([True, False, True],))
    assert flags.tolist() == [2, 0]


def test_intervals_as_text():
    assert bracketed((1.0, 2.345), of="prompts") == "[1.00, 2.35]"
    assert bracketed(None, of="timed prompts") == "(no interval: fewer than 6 timed prompts)"
