"""Which size is chosen, and that the choice changes no output."""

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import Adaptive, Speculative, TreeSpeculative
from jaxspec.decoding import adaptive as adaptive_module
from jaxspec.decoding.adaptive import AcceptanceByRank, Costs, LossLimit, _Counts
from tests.decoding import tiny


def chains(sizes, *, proposer=None):
    model, params = tiny.target()
    if proposer is None:
        proposer, drafter = tiny.dflash(model, suppressed_ids=tiny.RULES.suppressed_ids)
    else:
        drafter = None
    strategies = [
        Speculative(model, dataclasses.replace(proposer, block_size=size), tiny.RULES)
        for size in sizes
    ]
    return strategies, {"target": params, "drafter": drafter}


def expected_tokens():
    plain, params = tiny.strategies()[0]
    return [response.tokens for response in tiny.decode(plain, params)]


def scripts(right):
    """What is going to be said, or nothing of it."""
    rows = np.array([(*t, *[0] * (24 - len(t))) for t in expected_tokens()])
    return jnp.asarray(rows if right else (rows + 1) % 60, jnp.int32)


def test_acceptance_is_a_share_that_fades():
    seen = AcceptanceByRank(3, fading=0.5, trust=2.0)
    assert seen.probabilities().tolist() == [1, 1, 1]  # Untried: as good as can be.
    seen.observe(np.array([6, 0, 0]), ranks=1, row_rounds=8, rounds=1)
    assert seen.probabilities().tolist() == pytest.approx([0.8, 0.8, 0.8])
    seen.observe(np.array([4, 2, 0]), ranks=2, row_rounds=8, rounds=1)
    first = (3 + 4 + 2) / (4 + 8 + 2)
    second = (2 + 2 * first) / (8 + 2)
    assert seen.probabilities().tolist() == pytest.approx([first, second, second])
    # After long silence everything is possible again.
    seen.observe(np.zeros(3, np.int64), ranks=0, row_rounds=8, rounds=50)
    assert seen.probabilities().tolist() == pytest.approx([1, 1, 1])


def test_the_size_with_most_tokens_per_second_is_chosen():
    strategies, _ = chains((1, 2, 5))
    adaptive = Adaptive(strategies, costs=[1.0, 1.5, 2.0])
    assert adaptive.sizes == [1, 2, 5]
    assert adaptive.choose() == 2  # (1, 2, 5) tokens at best.
    for accepted, choice in (([900, 800, 700, 600], 2), ([600, 100, 0, 0], 1), ([200, 0, 0, 0], 0)):
        adaptive.acceptance = AcceptanceByRank(4)
        adaptive.acceptance.observe(np.array(accepted), ranks=4, row_rounds=1000, rounds=1)
        tokens = 1 + np.cumsum([0, *accepted])[[0, 1, 4]] / 1000
        assert np.argmax(tokens / [1.0, 1.5, 2.0]) == choice
        assert adaptive.choose() == choice
    unknown = Adaptive(strategies)
    with pytest.raises(ValueError, match="not known yet"):
        unknown.choose()


@pytest.mark.parametrize(("enough_s", "turns"), [(1e9, 1 + 7), (0.0, 1 + 3)])
def test_slow_rounds_are_measured_less_often(monkeypatch, enough_s, turns):
    def seconds(strategy, params, state, rounds):
        asked.append(rounds)
        return 0.5 + rounds * strategy.round_tokens, rounds, state

    asked = []
    monkeypatch.setattr(adaptive_module, "_timed", seconds)
    monkeypatch.setattr(adaptive_module, "_COST_SECONDS", enough_s)
    strategies, params = chains((1, 3))
    costs, _ = Adaptive(strategies).measure_costs(params, None)
    assert costs.rounds == pytest.approx([1.0, 3.0]) and costs.call == pytest.approx(0.5)
    assert costs.is_whole
    assert asked == [1, 9, 1, 9] * turns


@pytest.mark.parametrize("costs", [None, [1.0, 1.2, 1.5]], ids=["measured", "given"])
def test_output_is_the_targets(costs):
    strategies, params = chains((1, 3, 5))
    adaptive = Adaptive(strategies, costs=costs, stretch=2)
    # A row at a time, as in the test below: both use the same programs.
    responses = tiny.decode(adaptive, params, batch_size=1)
    assert [response.tokens for response in responses] == expected_tokens()
    for response in responses:
        assert len(response.tokens) == 1 + sum(response.emitted)
    assert sum(rounds for _, rounds in adaptive.history) >= 24
    assert adaptive.costs is not None
    assert min(adaptive.costs) > 0


def test_each_round_says_how_much_it_drafted():
    strategies, params = chains((1, 3, 5))
    adaptive = Adaptive(strategies, costs=[1.0, 1.2, 1.5], stretch=2)
    responses = tiny.decode(adaptive, params, batch_size=1)
    assert all(len(r.slots) == len(r.emitted) for r in responses)
    drafted = collections.Counter(slots + 1 for r in responses for slots in r.slots)
    expected: collections.Counter[int] = collections.Counter()
    for size, rounds in adaptive.history:
        expected[size] += rounds
    assert drafted == +expected
    assert len(drafted) > 1


def test_trees_of_several_budgets():
    model, params = tiny.target()
    proposer, drafter = tiny.dflash(model, suppressed_ids=tiny.RULES.suppressed_ids)
    strategies = [TreeSpeculative(model, proposer, tiny.RULES, num_nodes=n) for n in (4, 12)]
    rest = Speculative(model, dataclasses.replace(proposer, block_size=1), tiny.RULES)
    adaptive = Adaptive([*strategies, rest], costs=[1.5, 2.0, 1.0], stretch=2)
    assert adaptive.sizes == [1, 5, 13]
    # Rows are refilled while others go on.
    both = {"target": params, "drafter": drafter}
    responses = tiny.decode(adaptive, both, batch_size=2)
    assert [response.tokens for response in responses] == expected_tokens()


def test_drafting_is_turned_off_where_nothing_is_accepted_and_tried_again():
    strategies, params = chains((1, 5), proposer=tiny.Scripted())
    adaptive = Adaptive(strategies, costs=[1.0, 2.0], stretch=2)
    wrong = {**params, "drafter": scripts(right=False)}
    assert [r.tokens for r in tiny.decode(adaptive, wrong)] == expected_tokens()
    rounds = {size: sum(n for s, n in adaptive.history if s == size) for size in (1, 5)}
    assert adaptive.history[0][0] == 5
    assert rounds[1] > rounds[5]


def test_what_was_learned_from_other_texts_can_be_forgotten():
    strategies, params = chains((1, 5), proposer=tiny.Scripted())
    runs = [Adaptive(strategies, costs=[1.0, 2.5], stretch=2) for _ in range(2)]
    tiny.decode(runs[0], {**params, "drafter": scripts(right=False)})
    runs[0].forget()
    before = len(runs[0].history)
    for adaptive in runs:
        tiny.decode(adaptive, {**params, "drafter": scripts(right=True)})
    assert runs[0].history[before:] == runs[1].history


def test_what_was_learned_can_be_put_back():
    """As often as a prompt is timed: its text has taught nothing then."""
    strategies, params = chains((1, 5), proposer=tiny.Scripted())
    adaptive = Adaptive(strategies, costs=[1.0, 2.5], stretch=2)
    wrong = {**params, "drafter": scripts(right=False)}
    put_back = adaptive.remember()
    found = []
    for _ in range(3):
        put_back()
        before = len(adaptive.history)
        tiny.decode(adaptive, wrong)
        found.append(adaptive.history[before:])
    assert found[0] == found[1] == found[2]
    before = len(adaptive.history)
    tiny.decode(adaptive, wrong)
    assert adaptive.history[before:] != found[0]


@pytest.mark.parametrize("cost", [1.2, 2.0, 3.5])
def test_drafts_that_always_fail_cost_a_twentieth_at_most(cost):
    """Counted in costs of rounds, not in seconds: one stretch is free, then 3% of the time."""
    strategies, _ = chains((1, 5))
    adaptive = Adaptive(strategies, costs=[1.0, cost])
    spent = tokens = 0.0
    trials = []
    while tokens < 4000:
        choice, rounds = adaptive.plan()
        trials += [rounds] if choice else []
        counted = (int(tokens), int(tokens) + rounds)
        before, after = (
            _Counts(step=n, active=1, row_rounds=n, tokens=n, accepted_X=np.zeros(4, np.int64))
            for n in counted
        )
        adaptive._count(choice, before, after)
        adaptive.acceptance.observe(
            np.zeros(4, np.int64), ranks=adaptive.sizes[choice] - 1, row_rounds=rounds,
            rounds=rounds,
        )  # fmt: skip
        spent += rounds * adaptive.costs[choice]
        tokens += rounds
        assert spent - tokens <= 0.02 * spent + adaptive.stretch * (cost - 1)
    assert spent <= 1.05 * tokens
    # It goes on trying, in trials that are long enough to tell.
    assert len(trials) > 3
    assert min(trials) >= 4


def test_what_good_drafts_gained_may_be_lost_again():
    limit = LossLimit()
    limit.observe(rounds=16, cost=2.0, alone_rounds=16, alone_cost=1.0)
    assert limit.rounds(cost=2.0, alone_cost=1.0, stretch=16) == 0
    limit.observe(rounds=16, cost=2.0, alone_rounds=64, alone_cost=1.0)
    assert limit.rounds(cost=2.0, alone_cost=1.0, stretch=16) == 16
    assert LossLimit(lost=99.0).rounds(cost=1.0, alone_cost=1.0, stretch=16) == 16


def test_the_loss_is_counted_from_what_was_emitted():
    """Of each row its own tokens: a round of the target alone would have given one to each."""
    strategies, params = chains((1, 5), proposer=tiny.Scripted())
    adaptive = Adaptive(strategies, costs=[1.0, 2.0], stretch=2)
    tiny.decode(adaptive, {**params, "drafter": scripts(right=False)})
    drafted = sum(rounds for size, rounds in adaptive.history if size == 5)
    assert adaptive.loss.lost == pytest.approx(drafted)
    assert adaptive.loss.spent == sum(
        rounds * {1: 1.0, 5: 2.0}[size] for size, rounds in adaptive.history
    )


def test_drafts_grow_where_everything_is_accepted():
    strategies, params = chains((1, 5), proposer=tiny.Scripted())
    adaptive = Adaptive(strategies, costs=[1.0, 2.0], stretch=4)
    right = {**params, "drafter": scripts(right=True)}
    responses = tiny.decode(adaptive, right)
    assert [response.tokens for response in responses] == expected_tokens()
    assert {size for size, _ in adaptive.history} == {5}
    assert responses[1].emitted == (5, 5, 5, 5, 3)


def test_a_busy_machine_does_not_change_the_costs(monkeypatch):
    """Some measurements take ten times as long, and one size seems cheaper than a smaller one."""
    strategies, params = chains((1, 3, 5))
    adaptive = Adaptive(strategies)
    calls = itertools.count()
    per_round = {1: 1.0, 3: 2.0, 5: 1.9}

    def seconds(strategy, params, state, rounds):
        call = next(calls)
        busy = 10 if call < 6 or call % 5 == 0 else 1  # The first six compile.
        return busy * (0.5 + rounds * per_round[strategy.verified_rows]), rounds, state

    monkeypatch.setattr(adaptive_module, "_timed", seconds)
    costs, _ = adaptive.measure_costs(params, None)
    assert costs.rounds == pytest.approx([1.0, 2.0, 2.0])
    assert costs.call == pytest.approx(0.5)


def test_a_batch_that_ends_at_once_has_costs_too(monkeypatch):
    strategies, params = chains((1, 3))
    monkeypatch.setattr(adaptive_module, "_timed", lambda *_: (2.0, 1, None))
    costs, _ = Adaptive(strategies).measure_costs(params, None)
    assert costs == Costs([2.0, 2.0], 0.0, is_whole=False)


def test_costs_of_a_batch_that_ended_at_once_are_measured_again(monkeypatch):
    strategies, params = chains((1, 3))
    biased, whole = Costs([2.0, 2.0], 0.0, is_whole=False), Costs([1.0, 1.5], 0.5, is_whole=True)

    def used(found):
        """The costs of a few calls, and how often they were measured."""
        adaptive, left = Adaptive(strategies), iter(found)
        monkeypatch.setattr(adaptive, "measure_costs", lambda params, state: (next(left), state))
        prompts, capacity = tiny.batch()
        state = adaptive.start(params, prompts, capacity=capacity)
        costs = []
        ended = dataclasses.replace(state, active_B=jnp.zeros_like(state.active_B))
        assert adaptive.run(params, ended) is ended, "there is nothing to measure"
        for _ in range(4):
            state = adaptive.run(params, state, max_rounds=1)
            costs.append(adaptive.costs)
        return costs, len(found) - len(list(left))

    assert used([biased, whole, biased]) == ([[2.0, 2.0], *[[1.0, 1.5]] * 3], 2)
    assert used([biased] * 9) == ([[2.0, 2.0]] * 4, 3), "here no batch lasts longer"


def test_costs_are_measured_without_a_copy_of_the_caches():
    strategies, params = chains((1, 3))
    prompts, capacity = tiny.batch()
    adaptive = Adaptive(strategies)
    before, state = (adaptive.start(params, prompts, capacity=capacity) for _ in range(2))
    caches = state.cache.keys_LBRTC, state.drafter.values_LBRTC
    costs, state = adaptive.measure_costs(params, state)
    assert min(costs.rounds) > 0
    assert all(cache.is_deleted() for cache in caches), "the loops took them over"
    for ours, theirs in ((state.cache, before.cache), (state.drafter, before.drafter)):
        committed_LBRTC = theirs.committed_BT()[None, :, None, :, None]
        assert np.array_equal(ours.lengths_B, theirs.lengths_B)
        for name in ("keys_LBRTC", "values_LBRTC"):
            kept = jnp.where(committed_LBRTC, getattr(ours, name), 0)
            assert np.array_equal(kept, jnp.where(committed_LBRTC, getattr(theirs, name), 0))
    rest = {"cache": None, "drafter": None, "keys_B": None}
    for ours, theirs in zip(
        jax.tree.leaves(dataclasses.replace(state, **rest)),
        jax.tree.leaves(dataclasses.replace(before, **rest)),
        strict=True,
    ):
        assert np.array_equal(ours, theirs)


def test_drafting_that_fails_is_tried_less_and_less_often():
    strategies, _ = chains((1, 5), proposer=tiny.Scripted())
    adaptive = Adaptive(strategies, costs=[1.0, 2.0], stretch=2)

    def counted(rounds, tokens):
        counts = _Counts(step=0, active=1, row_rounds=0, tokens=0, accepted_X=np.zeros(4, int))
        after = dataclasses.replace(counts, step=rounds, row_rounds=rounds, tokens=tokens)
        adaptive._count(1, counts, after)
        adaptive.acceptance.accepted_X[:] = 0
        adaptive.acceptance.tried_X[:] = 1000
        return adaptive.plan()

    offs = [counted(2, 2) for _ in range(7)]
    assert offs == [(0, 2 * stretches) for stretches in (8, 16, 32, 64, 64, 64, 64)]
    assert counted(2, 10) == (0, 2 * 4)


def test_arguments_are_checked():
    strategies, _ = chains((1, 5))
    for arguments, settings, message in (
        ([], {}, "got none"),
        ([strategies[0]] * 2, {}, "Sizes must differ"),
        (strategies, {"stretch": 0}, "at least 1 round"),
        (strategies, {"costs": [1.0]}, "cost for each of 2"),
        (strategies, {"costs": [1.0, 0.0]}, "positive cost"),
    ):
        with pytest.raises(ValueError, match=message):
            Adaptive(arguments, **settings)
    other = dataclasses.replace(
        strategies[0], rules=dataclasses.replace(tiny.RULES, max_new_tokens=3)
    )
    with pytest.raises(ValueError, match="share model and rules"):
        Adaptive([other, strategies[1]])


@pytest.mark.parametrize("rounds", [0, 3])
def test_it_stops_after_the_rounds_that_are_asked_for(rounds):
    strategies, params = chains((1, 5), proposer=tiny.Scripted())
    params["drafter"] = scripts(right=False)
    adaptive = Adaptive(strategies, costs=[1.0, 1.0], stretch=2)
    prompts, capacity = tiny.batch()
    state = adaptive.start(params, prompts, capacity=capacity)
    assert int(adaptive.run(params, state, max_rounds=rounds).step) == rounds
    assert sum(ran for _, ran in adaptive.history) == rounds
