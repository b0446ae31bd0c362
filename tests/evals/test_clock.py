"""Timing: who runs when, and what counts."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from jaxspec.decoding import Prompts
from jaxspec.evals import clock
from jaxspec.evals.clock import (
    Clock,
    median_seconds,
    seconds_by_turn,
    speedup_interval,
    take_turns,
)


@pytest.fixture
def seconds(monkeypatch):
    """A clock that only moves when told."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def spend(amount):
        now[0] += amount

    return spend


def batch(width=3):
    return Prompts(
        tokens_BS=jnp.zeros((1, width), jnp.int32),
        lengths_B=jnp.ones(1, jnp.int32),
        active_B=jnp.ones(1, bool),
        keys_B=jnp.zeros(1),
    )


def ticking(name, durations, *, spend, log):
    """A clock whose loops take the given seconds, and whose start takes one."""
    left = iter(durations)

    def start(prompts):
        spend(1.0)
        return prompts.tokens_BS.shape[1]

    def run(width):
        log.append(name)
        spend(next(left))
        return width

    return Clock(start, run, lambda width, prompt: (width, 10 * width))


def test_medians_of_turns_without_what_is_compiled(seconds):
    log = []
    ours = ticking("ours", [9.0, 4.0, 2.0, 3.0], spend=seconds, log=log)
    theirs = ticking("theirs", [5.0, 5.0, 5.0, 6.0], spend=seconds, log=log)
    take_turns([ours, theirs], [batch()], ids=["a"], repeats=3)
    assert log[:2] == ["ours", "theirs"], "one lap each to compile"
    assert log[2:] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (ours.compile_s, theirs.compile_s) == (5.0, 0.0)
    assert (ours.run_s, theirs.run_s) == ([3.0], [5.0])
    assert (ours.fastest_s, theirs.fastest_s) == ([2.0], [5.0])
    assert ours.whole_s == [4.0] and ours.start_s == [1.0] * 3
    assert (ours.steps, ours.tokens) == ([3], [30])


def test_repeats_with_other_answers_count_by_their_tokens(seconds):
    """Samples of adaptive sizes differ from repeat to repeat: 4, 8 and 2 tokens, 0.5 s each."""
    ours = ticking("ours", [9.0, 2.0, 4.0, 1.0], spend=seconds, log=[])
    counts = iter([(2, 4), (8, 8), (2, 2)])
    ours.count = lambda state, name: next(counts)
    take_turns([ours], [batch()], ids=["a"], repeats=3)
    assert (ours.steps, ours.tokens) == ([2], [4])
    assert ours.run_s == ours.fastest_s == [2.0] and ours.whole_s == [3.0]


def test_every_repeat_begins_with_what_earlier_prompts_taught(seconds):
    """A decoder that knows a text decodes it in fewer steps."""
    ours = ticking("ours", [1.0] * 7, spend=seconds, log=[])
    known, steps = [], []

    def count(width, name):
        steps.append((name, 10 - len(known)))
        known.append(name)
        return 10 - len(known), 10

    def remember():
        kept = list(known)
        return lambda: known.__setitem__(slice(None), kept)

    ours.count, ours.remember = count, remember
    take_turns([ours], [batch(), batch()], ids=["a", "b"], repeats=3)
    assert steps == [("a", 10)] * 3 + [("b", 9)] * 3
    assert known == ["a", "b"]


def test_what_is_no_decoding_is_in_no_repeat(seconds):
    ours = ticking("ours", [9.0, 4.0, 7.0, 4.0], spend=seconds, log=[])
    aside = iter([0.0, 0.0, 5.0, 5.0, *[5.0, 5.0], *[5.0, 8.0], *[8.0, 8.0]])
    ours.aside_s = lambda: next(aside)
    take_turns([ours], [batch()], ids=["a"], repeats=3)
    assert ours.run_s == ours.fastest_s == [4.0]
    # The first lap took 10 seconds, and a repeat takes 5.
    assert ours.compile_s == 5.0


def test_each_shape_is_compiled_once(seconds):
    log = []
    ours = ticking("ours", [2.0, 1.0, 1.0, 5.0, 1.0], spend=seconds, log=log)
    take_turns([ours], [batch(3), batch(3), batch(4)], ids=["a", "b", "c"], repeats=1)
    assert len(log) == 2 + 1 + 2
    assert ours.compile_s == 1.0 + 4.0 and ours.steps == [3, 3, 4]
    with pytest.raises(ValueError, match="timing_repeats must be at least 1: got 0"):
        take_turns([ours], [batch()], ids=["a"], repeats=0)


def test_calls_take_turns_and_the_first_compiles(seconds):
    log = []

    def call(name, *durations):
        left = iter(durations)
        return lambda: (log.append(name), seconds(next(left)))[1]

    found = median_seconds(
        {"a": call("a", 9.0, 1.0, 3.0), "b": call("b", 9.0, 2.0, 2.0)}, repeats=2
    )
    assert log == ["a", "b"] * 3
    assert found == {"a": 2.0, "b": 2.0}


@pytest.mark.parametrize(("at_most_s", "turns"), [(None, 10), (110.0, 10), (35.0, 3), (55.0, 5)])
def test_slow_calls_get_fewer_turns(seconds, at_most_s, turns):
    def make():
        return lambda: seconds(10.0)

    found = seconds_by_turn({"a": make}, repeats=10, at_most_s=at_most_s)
    assert found == {"a": [10.0] * turns}


def clock_of(tokens, seconds, names=None):
    found = ticking("any", [], spend=None, log=[])
    found.tokens, found.run_s = tokens, seconds
    found.names = names or [f"p{number}" for number in range(len(tokens))]
    found.whole_s = [2 * value for value in seconds]
    return found


def test_a_speed_ratio_draws_prompts_with_both_times():
    tokens, plain_s = [10, 20, 30, 40, 50, 60], [1.0, 2.0, 3.5, 4.0, 5.0, 6.0]
    plain = clock_of(tokens, plain_s)
    twice = clock_of(tokens, [value / 2 for value in plain_s])
    found = speedup_interval(twice, plain, of="run_s", seed=0)
    assert found == pytest.approx((2.0, 2.0)), "the same ratio on every prompt"
    faster = [value / ratio for value, ratio in zip(plain_s, (1, 2, 1, 2, 1, 2), strict=True)]
    for of in ("run_s", "whole_s"):
        low, high = speedup_interval(clock_of(tokens, faster), plain, of=of, seed=0)
        assert 1.0 <= low < sum(plain_s) / sum(faster) < high <= 2.0
    assert speedup_interval(twice, plain, of="run_s", seed=1) == pytest.approx((2.0, 2.0))


def test_a_speed_ratio_of_few_prompts_has_no_interval():
    five = clock_of([10] * 5, [1.0] * 5)
    assert speedup_interval(five, five, of="run_s", seed=0) is None
    turns = ["a", "b", "c", "a#2", "b#2", "c#2"]
    three = clock_of([10] * 6, [1.0] * 6, turns)
    assert speedup_interval(three, three, of="run_s", seed=0) is None
    silent = clock_of([10] * 5 + [0], [1.0] * 6)
    assert speedup_interval(silent, silent, of="run_s", seed=0) is None, "no tokens, no speed"
    none = clock_of([0], [1.0])
    assert speedup_interval(none, none, of="run_s", seed=0) is None
