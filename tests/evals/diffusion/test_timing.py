"""Whether drafting pays is judged from what was measured."""

from __future__ import annotations

import dataclasses

import pytest

from jaxspec.evals.diffusion.timing import DiffusionSpeed, explain

SPEED = DiffusionSpeed(
    tokens_per_s=150.0,
    baseline_tokens_per_s=100.0,
    compile_s=1.0,
    block_pass_ms=2.0,
    drafted_pass_ms=2.4,
    states=5,
    speedup_ci95=(1.4, 1.6),
    timed_prompts=6,
    platform="cpu",
)


def speed(**changes):
    return dataclasses.replace(SPEED, **changes)


def test_the_formula_by_hand():
    assert SPEED.formula(reduction=1.8) == (
        "1.50x [1.40, 1.60] measured; 1.80 times fewer passes / a pass with drafts costs 1.20 = "
        "1.50x (block alone 2.00 ms, with drafts 2.40 ms): drafting pays"
    )
    few = speed(speedup_ci95=None).formula(reduction=1.8)
    assert few.startswith("1.50x (no interval: fewer than 6 timed prompts) measured;")


@pytest.mark.parametrize(
    ("tokens_per_s", "reduction", "verdict"),
    [
        (150.0, 1.8, "drafting pays"),
        (80.0, 1.1, "drafting does not pay"),
        (90.0, 1.8, "drafting should pay, judging by its passes, but was not faster"),
        (110.0, 1.1, "drafting should not pay, judging by its passes, but was faster"),
    ],
)
def test_the_verdict_heeds_the_clock(tokens_per_s, reduction, verdict):
    text = speed(tokens_per_s=tokens_per_s).formula(reduction=reduction)
    assert text.endswith(f": {verdict}")


@pytest.mark.parametrize(
    ("drafted_pass_ms", "found"),
    [
        (2.4, "All states of a pass together cost about as much as one"),
        (5.0, "All states of a pass together cost more than one, but less than each"),
        (9.0, "The cost grows with the number of states: here, a pass is bound by arithmetic."),
    ],
)
def test_the_explanation_follows_the_cost_of_a_pass(drafted_pass_ms, found):
    for platform in ("cpu", "gpu"):
        text = explain([(speed(drafted_pass_ms=drafted_pass_ms, platform=platform), 1.8)])
        assert found in text
        assert ("bound by arithmetic" in text) == (drafted_pass_ms == 9.0)
        pays = int(drafted_pass_ms / 2.0 < 1.8)
        assert f"drafting pays in {pays} of 1 rows" in text


def test_nothing_to_explain():
    with pytest.raises(ValueError, match="no decoder with drafts was timed"):
        explain([])
