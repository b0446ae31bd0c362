"""The text about speeds follows from what was measured."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from jaxspec.config import TransformerConfig
from jaxspec.decoding import Adaptive, DecodeRules, Speculative
from jaxspec.decoding.generate import pad_prompts
from jaxspec.drafters.ngram import NGramProposer
from jaxspec.evals.speculative import timing
from jaxspec.evals.speculative.timing import Speed, beyond_noise, explain, measure_round_parts
from jaxspec.evals.speculative.turns import take_turns_on
from jaxspec.models.transformer import Transformer

SPEED = Speed(
    tokens_per_s=200.0,
    baseline_tokens_per_s=100.0,
    speedup=2.0,
    speedup_ci95=(1.8, 2.25),
    timed_prompts=6,
    compile_s=1.0,
    prefill_ms=1.0,
    baseline_prefill_ms=1.0,
    round_ms=15.0,
    draft_ms=3.0,
    verify_ms=10.0,
    rule_ms=1.0,
    looped_round_ms=16.0,
    rest_ms=2.0,
    autoregressive_step_ms=10.0,
    tau=3.0,
    verified_rows=8,
    platform="cpu",
)


def speed(**changes):
    return dataclasses.replace(SPEED, **changes)


def test_the_formula_by_hand():
    assert SPEED.formula() == (
        "2.00x [1.80, 2.25] measured; tau 3.00 x step 10.00 ms / round 15.00 ms = 2.00x (timed "
        "alone: draft 3.00 + verification of 8 rows 10.00 + rule 1.00 + rest 2.00, of a round of "
        "16.00 ms)"
    )
    few = speed(speedup_ci95=None, timed_prompts=1)
    assert few.formula().startswith("2.00x (no interval: fewer than 6 timed prompts) measured;")


def test_without_drafts_a_round_is_a_step():
    text = speed(verified_rows=1, draft_ms=0.0, rest_ms=None).formula()
    assert text.endswith("(nothing is drafted: a round is one step)")


def test_parts_that_overlap_have_no_negative_rest():
    text = speed(looped_round_ms=13.0, rest_ms=None).formula()
    assert (
        "these add up to 14.00 ms, more than the 13.00 ms of the round: they overlap inside "
        "the compiled loop"
    ) in text
    assert "rest" not in text


def test_a_rest_within_the_noise_is_not_told():
    text = speed(looped_round_ms=14.2, rest_ms=None).formula()
    assert "of a round of 14.20 ms; the rest does not exceed the noise" in text


@pytest.mark.parametrize("looped", [0.1, 13.9, 14.0, 14.1, 100.0])
@pytest.mark.parametrize("rest", [None, 0.5])
def test_no_number_of_a_formula_is_negative(looped, rest):
    text = speed(looped_round_ms=looped, rest_ms=rest).formula()
    assert not re.search(r"-\d", text)


def test_a_rest_has_to_be_there_in_most_turns():
    assert beyond_noise([1.0] * 12 + [-5.0] * 3) == 1.0
    assert beyond_noise([1.0] * 11 + [-5.0] * 4) is None
    assert beyond_noise([-1.0] * 15) is None
    assert beyond_noise([0.0] * 15) is None


@pytest.mark.parametrize(
    ("verify_ms", "found", "not_found"),
    [
        (8.0, "cost about as much as one", "bound by arithmetic"),
        (14.0, "not into arithmetic", "bound by arithmetic"),
        (30.0, "part is arithmetic", "bound by arithmetic"),
        (75.0, "here, a pass is bound by arithmetic", "as much as one"),
    ],
)
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_explanation_follows_the_cost_of_verification(verify_ms, found, not_found, platform):
    text = explain([speed(verify_ms=verify_ms, platform=platform)])
    assert f"verifying 8 rows costs {verify_ms / 10:.1f}" in text
    assert found in text and not_found not in text


def test_drafters_that_differ_are_said_to_differ():
    text = explain([speed(), speed(verify_ms=75.0)])
    assert "differs between the measurements" in text
    assert "bound by" not in text


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"draft_ms": 20.0}, "is mainly the draft: it costs 2.0 steps per round."),
        ({"verify_ms": 25.0}, "is mainly verification beyond the cost of one step: it costs 1.5"),
        ({"rule_ms": 8.0}, "is mainly the rejection rule: it costs 0.8 steps"),
        ({"rest_ms": 9.0}, "is mainly bookkeeping: it costs 0.9 steps"),
        ({"speedup": 2.8}, "The speed-up (2.80) is close to tau (3.00)"),
        (
            {"draft_ms": 0.0, "verify_ms": 8.0, "rule_ms": 0.0, "rest_ms": None},
            "mainly time that the parts, timed alone, do not show: it costs 0.7 steps per round.",
        ),
        (
            {"draft_ms": 0.0, "verify_ms": 8.0, "rule_ms": 0.0, "rest_ms": None, "round_ms": 8.0},
            "None of the parts timed alone keeps the speed-up (2.00) below tau (3.00).",
        ),
    ],
)
def test_the_part_that_keeps_the_speed_below_tau_is_named(changes, found):
    text = explain([speed(**changes)])
    assert found in text


def test_nothing_to_explain():
    with pytest.raises(ValueError, match="nothing was timed"):
        explain([])


@pytest.fixture(scope="module")
def looking_up():
    """A tiny target with prompt look-up, and its parameters."""
    config = TransformerConfig(
        vocab_size=32,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    model = Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return model, {"target": params, "drafter": {}}


def test_repeats_teach_adaptive_sizes_once(looking_up):
    """Every repeat of a prompt, the first to compile among them, takes the same rounds."""
    model, params = looking_up
    strategies = [
        Speculative(model, NGramProposer(size), DecodeRules(16, (), (0,))) for size in (1, 2)
    ]
    # Drafts that fail are too costly to be tried twice.
    adaptive = Adaptive(strategies, costs=[1.0, 1.9], stretch=2)
    take_turns_on([(adaptive, params)], [[3, 4, 5]], ids=["a"], repeats=2, seed=0)
    laps = len(adaptive.history) // 3
    assert adaptive.history == 3 * adaptive.history[:laps]
    assert {size for size, _ in adaptive.history} == {1, 2}


def test_rounds_of_a_response_that_ends_early_are_counted(looking_up, monkeypatch):
    """The loop asks for ten rounds; the rest is computed from those that really ran."""
    model, params = looking_up
    loops_s = {"round": 0.06, "draft": 0.1, "target": 0.2, "rule": 0.0, "finish": 0.0}
    asked = []

    def seconds_by_turn(makers, *, repeats, at_most_s):
        asked.append(list(makers))
        return {name: [loops_s[name]] * repeats for name in makers}

    monkeypatch.setattr(timing, "seconds_by_turn", seconds_by_turn)
    prompts = pad_prompts([[3, 4, 5]], ids=["a"], length=8, rows=1, seed=0)

    def measured(max_new_tokens):
        strategy = Speculative(model, NGramProposer(2), DecodeRules(max_new_tokens))
        return measure_round_parts(strategy, params, prompts, capacity=64, turns=10)

    short = measured(2)
    assert asked == [list(loops_s)]
    assert short.round_ms == pytest.approx(60.0), "one round: its second token is the last"
    assert short.draft_ms + short.target_ms == pytest.approx(30.0)
    assert short.rest_ms == pytest.approx(30.0)
    long = measured(40)
    assert long.round_ms == pytest.approx(6.0) and long.rest_ms is None
    with pytest.raises(ValueError, match="no round to time"):
        measured(1)
