from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxspec.evals.intervals import FEWEST_PROMPTS, share_interval
from jaxspec.evals.tau import (
    DEFINITIONS,
    Rounds,
    SlotCounts,
    bootstrap_interval,
    definitions,
    is_repetitive,
    repeated_share,
    summarise,
    tau_macro,
    tau_micro,
)

# Two rounds of 4 and 2 tokens, and four rounds of 1 token.
TWO = [Rounds(emitted=(4, 2)), Rounds(emitted=(1, 1, 1, 1))]


def test_micro_is_over_rounds_and_macro_over_responses():
    assert tau_micro(TWO) == pytest.approx(10 / 6)
    assert tau_macro(TWO) == pytest.approx((3.0 + 1.0) / 2)


def test_accepted_leaves_out_the_bonus():
    summary = summarise(TWO, num_slots=3)
    assert summary.accepted_per_round == pytest.approx(10 / 6 - 1)
    assert (summary.rounds, summary.tokens, summary.prompts) == (6, 10, 2)


def test_conditional_acceptance_by_hand():
    # Accepted: 3, 1 and four times 0, of 3 slots.
    # Slot 0: accepted in 2 of 6 rounds. Slot 1: 1 of 2. Slot 2: 1 of 1.
    counts = SlotCounts.of(TWO, num_slots=3)
    assert counts.acceptance == pytest.approx((2 / 6, 1 / 2, 1.0))
    assert counts.reached == summarise(TWO, num_slots=3).reached_at == (6, 2, 1)
    assert counts.intervals() == (None,) * 3, "two responses are too few"


def test_slots_that_no_round_reached_are_none():
    counts = SlotCounts.of([Rounds(emitted=(2, 1))], num_slots=4)
    assert (counts.acceptance, counts.reached) == ((0.5, 0.0, None, None), (2, 1, 0, 0))


def test_a_stop_inside_the_drafts_is_no_rejection():
    # The second accepted draft was the stop token: 2 tokens, no bonus, slot 2 never looked at.
    stopped = Rounds(emitted=(3, 2), accepted=(2, 2))
    summary = summarise([stopped], num_slots=4)
    assert summary.tau_micro == 2.5
    assert summary.accepted_per_round == 2.0
    # Slot 2 was rejected once, in the first round.
    assert summary.accept_at == (1.0, 1.0, 0.0, None)
    assert summary.reached_at == (2, 2, 1, 0)


def test_a_slot_that_a_round_did_not_draft_was_not_rejected():
    """Adaptive sizes, by hand: of 10 rounds, 6 drafted nothing, 3 one slot and 1 all three.

    Slot 0: drafted 4 times, accepted 3 times. Slot 1: drafted once and looked at once.
    """
    rounds = Rounds(emitted=(1,) * 6 + (2, 2, 1, 2), slots=(0,) * 6 + (1, 1, 1, 3))
    counts = SlotCounts.of([rounds], num_slots=3)
    assert (counts.acceptance, counts.reached) == ((3 / 4, 0.0, None), (4, 1, 0))
    assert definitions([rounds], num_slots=3)["vllm_draft_acceptance_rate"] == 3 / 6
    assert definitions([rounds], num_slots=3)["vllm"] == 1 + 3 / 4, "of 4 rounds that drafted"
    idle = Rounds(emitted=(1, 1), slots=(0, 0))
    assert definitions([idle], num_slots=3)["vllm_draft_acceptance_rate"] == 0.0
    assert definitions([idle], num_slots=3)["vllm"] == 1.0
    with pytest.raises(ValueError, match="cannot accept more than it drafted"):
        Rounds(emitted=(3,), slots=(1,))


def test_turns_of_a_conversation_are_resampled_together():
    """The second turns repeat the first ones: they add nothing that narrows an interval."""
    lengths = [(4, 2), (1, 1), (3, 3), (2, 1), (4, 4), (1, 2)]
    first = [Rounds(emitted, name=f"p{i}") for i, emitted in enumerate(lengths)]
    both = first + [Rounds(emitted, name=f"p{i}#2") for i, emitted in enumerate(lengths)]
    one, two, apart = (
        summarise(rounds, num_slots=3)
        for rounds in (first, both, [Rounds(each.emitted) for each in both])
    )
    assert two.tau_ci95 == one.tau_ci95 != apart.tau_ci95
    assert two.prompts == 12 and two.reached_at[0] == 2 * one.reached_at[0]
    few = summarise([*both[:3], *both[6:9]], num_slots=3)
    assert few.tau_ci95 is None, "six turns of three conversations"


def test_acceptance_and_tau_tell_the_same():
    """Without stops: accepted per round = sum of products of conditional acceptances."""
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 6, size=400)
    rounds = [Rounds(emitted=tuple(int(n) + 1 for n in counts))]
    summary = summarise(rounds, num_slots=5)
    assert None not in summary.accept_at
    products = itertools.accumulate(summary.accept_at, lambda a, b: a * b)
    assert sum(products) == pytest.approx(summary.accepted_per_round)
    assert summary.tau_micro == pytest.approx(1 + summary.accepted_per_round)


def test_responses_without_rounds_count_as_prompts_only():
    six = TWO * 3
    summary = summarise([*six, Rounds(emitted=())], num_slots=3)
    assert summary.prompts == 7
    assert (summary.tau_micro, summary.tau_macro) == (tau_micro(six), tau_macro(six))
    assert summary.tau_ci95 == bootstrap_interval(six)
    assert summary.tau_ci95 is not None


# Of 4 drafted slots. A stop token was the second of three verified drafts.
STOPPED = Rounds(emitted=(5, 2), accepted=(4, 2), verified=(4, 3), stopped=True)
# There was room for two of four verified drafts.
LIMITED = Rounds(emitted=(1, 1, 2), accepted=(0, 0, 2), verified=(0, 0, 4))


def test_definitions_differ_where_rounds_are_cut():
    found = definitions([STOPPED, LIMITED, Rounds(emitted=())], num_slots=4)
    expected = {
        "micro": (7 + 4) / 5,
        "micro_without_bonus": (6 + 2) / 5,
        "macro": (7 / 2 + 4 / 3) / 2,
        "macro_without_bonus": (6 / 2 + 2 / 3) / 2,
        # The cut rounds count as 4 and 5 tokens.
        "z_lab": (9 / 2 + 7 / 3) / 2,
        "vllm": 1 + (7 + 4) / 5,
        # The stopped round counts as 2 tokens, the one at the limit as 5.
        "deepspec": (7 + 7) / 5,
        "vllm_draft_acceptance_rate": (7 + 4) / (5 * 4),
    }
    assert found == pytest.approx(expected)
    assert list(found) == list(expected) == list(DEFINITIONS)
    assert len({round(value, 6) for value in found.values()}) == len(found)


def test_definitions_of_a_response_that_stops_in_its_drafts():
    found = definitions([STOPPED], num_slots=4)
    assert found["micro"] == found["macro"] == found["deepspec"] == 7 / 2
    assert found["vllm"] == found["z_lab"] == 9 / 2
    # A stop token as the last draft leaves no bonus, but servers count one.
    last = definitions([Rounds((2,), (2,), verified=(2,), stopped=True)], num_slots=2)
    assert (last["micro"], last["deepspec"], last["vllm"], last["z_lab"]) == (2, 2, 3, 3)


def test_definitions_of_a_response_cut_by_the_limit():
    found = definitions([LIMITED], num_slots=4)
    assert found["micro"] == found["macro"] == 4 / 3
    assert found["vllm"] == found["z_lab"] == found["deepspec"] == 7 / 3


def test_definitions_agree_where_nothing_was_cut():
    # The last token of the first response, a stop token, is the target's own.
    uncut = [Rounds((4, 2), stopped=True), Rounds((1, 1, 1, 1))]
    found = definitions(uncut, num_slots=3)
    assert found["micro"] == found["vllm"] == found["deepspec"] == pytest.approx(10 / 6)
    assert found["macro"] == found["z_lab"] == 2.0
    assert found["micro_without_bonus"] == pytest.approx(4 / 6)
    assert found["macro_without_bonus"] == 1.0


def test_definitions_are_those_of_the_summary():
    responses = [STOPPED, LIMITED, Rounds(emitted=())]
    summary = summarise(responses, num_slots=4)
    found = summary.tau_definitions
    assert found == definitions(responses, num_slots=4)
    assert found["micro"] == pytest.approx(summary.tau_micro)
    assert found["macro"] == pytest.approx(summary.tau_macro)
    assert found["micro_without_bonus"] == pytest.approx(summary.accepted_per_round)


def slow_bootstrap(responses, *, seed, resamples):
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(responses), size=(resamples, len(responses)))
    taus = []
    for pick in picks:
        drawn = [responses[i] for i in pick]
        taus.append(sum(sum(r.emitted) for r in drawn) / sum(len(r.emitted) for r in drawn))
    return np.quantile(taus, 0.025), np.quantile(taus, 0.975)


def test_bootstrap_equals_its_slow_twin_and_repeats():
    generator = np.random.default_rng(1)
    responses = [
        Rounds(emitted=tuple(generator.integers(1, 9, size=generator.integers(1, 12)).tolist()))
        for _ in range(20)
    ]
    interval = bootstrap_interval(responses, seed=3, resamples=200)
    assert interval == pytest.approx(slow_bootstrap(responses, seed=3, resamples=200))
    assert interval == bootstrap_interval(responses, seed=3, resamples=200)
    assert interval != bootstrap_interval(responses, seed=4, resamples=200)
    assert interval[0] < tau_micro(responses) < interval[1]


def test_interval_shrinks_with_the_prompts():
    generator = np.random.default_rng(2)

    def width(prompts):
        responses = [
            Rounds(emitted=tuple(generator.integers(1, 9, size=10).tolist()))
            for _ in range(prompts)
        ]
        low, high = bootstrap_interval(responses)
        return high - low

    assert width(400) < 0.5 * width(20)


def test_interval_of_equal_prompts_is_a_point():
    assert bootstrap_interval([Rounds(emitted=(3, 1))] * 6) == (2.0, 2.0)


def test_few_responses_have_no_interval():
    """Drawing one response again and again gives a point, which looks certain."""
    few = [Rounds(emitted=(3, 1))] * (FEWEST_PROMPTS - 1)
    assert bootstrap_interval(few) is bootstrap_interval(few[:1]) is None
    assert bootstrap_interval([*few, Rounds(emitted=())]) is None, "without rounds it says nothing"
    summary = summarise(few, num_slots=2)
    assert summary.tau_ci95 is None and summary.tau_micro == 2.0
    assert summary.as_dict()["tau_ci95"] is None


def test_slots_have_intervals_of_what_reached_them():
    responses = [Rounds(emitted=(3, 1, 2))] * 6 + [Rounds(emitted=(1, 1))] * 2
    summary = summarise(responses, num_slots=3, seed=3)
    assert summary.reached_at == (22, 12, 6)
    first, second, third = summary.accept_at_intervals
    assert first == share_interval([2] * 6 + [0] * 2, [3] * 6 + [2] * 2, seed=3)
    assert first[0] < 12 / 22 < first[1]
    assert second == share_interval([1] * 6, [2] * 6, seed=3)
    assert third[0] == 0.0 < third[1], "none of 6 accepted does not say never"
    assert summary.as_dict()["accept_at_intervals"][0] == list(first)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        responses = [
            Rounds(emitted=tuple(generator.geometric(0.4, size=8).tolist())) for _ in range(40)
        ]
        low, high = bootstrap_interval(responses, seed=trial, resamples=300)
        covered += low <= 2.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_repeated_share_by_hand():
    # 4-grams: 1234 2341 3412 4123 1234: one of five stood there before.
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated_share(list(range(50))) == 0.0
    assert repeated_share([1, 1, 1]) == 0.0
    assert repeated_share([]) == 0.0


def test_loops_are_repetitive():
    assert is_repetitive([*range(20), *[7, 8, 9] * 10])
    assert not is_repetitive([*range(20), *[7, 8, 9] * 3])


def test_summary_with_and_without_repetitive_responses():
    loop = Rounds(emitted=(8, 8), tokens=(1, 2) * 10)
    fresh = Rounds(emitted=(2, 1, 3), tokens=tuple(range(20)))
    summary = summarise([loop, fresh], num_slots=7)
    assert summary.repetitive_share == 0.5
    assert summary.tau_micro == pytest.approx(22 / 5)
    assert summary.tau_micro_without_repetitive == pytest.approx(2.0)
    assert summary.responses_without_repetitive == 1
    only_loops = summarise([loop], num_slots=7)
    assert only_loops.repetitive_share == 1.0
    assert only_loops.tau_micro_without_repetitive is None
    assert only_loops.responses_without_repetitive == 0


def test_repetition_is_unknown_without_tokens():
    summary = summarise(TWO, num_slots=3)
    assert summary.repetitive_share is None
    assert summary.tau_micro_without_repetitive is None
    assert summary.responses_without_repetitive is None


def test_as_dict_has_lists_and_plain_numbers():
    row = summarise(TWO * 3, num_slots=3).as_dict()
    assert row["tau_ci95"] == list(summarise(TWO * 3, num_slots=3).tau_ci95)
    assert isinstance(row["accept_at"], list)
    assert {type(value) for value in row.values()} <= {int, float, list, dict, type(None)}
    assert {type(value) for value in row["tau_definitions"].values()} == {float}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"emitted": (2, 0)}, "at least one token"),
        ({"emitted": (2, 2), "accepted": (1,)}, "all 2 rounds"),
        ({"emitted": (3,), "accepted": (1,)}, "at most one token more"),
        ({"emitted": (1,), "accepted": (2,)}, "at most one token more"),
        ({"emitted": (1,), "accepted": (-1,)}, "at most one token more"),
        ({"emitted": (2, 2), "verified": (1,)}, "verified counts for all 2 rounds"),
        ({"emitted": (2,), "accepted": (1,), "verified": (2,)}, "1 accepted and 2 verified"),
        ({"emitted": (2,), "accepted": (2,), "verified": (1,)}, "2 accepted and 1 verified"),
    ],
)
def test_impossible_rounds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rounds(**arguments)


def test_more_accepted_than_drafted_is_refused():
    with pytest.raises(ValueError, match="2 drafted slots cannot accept 3"):
        summarise([Rounds(emitted=(4,))], num_slots=2)
    with pytest.raises(ValueError, match="2 drafted slots cannot accept 3"):
        definitions([Rounds((1,), (1,), verified=(3,))], num_slots=2)


@pytest.mark.parametrize("responses", [[], [Rounds(emitted=())]])
def test_nothing_measured_is_refused(responses):
    with pytest.raises(ValueError, match="at least one draft-verify round"):
        summarise(responses, num_slots=3)
    with pytest.raises(ValueError, match="at least one draft-verify round"):
        definitions(responses, num_slots=3)
