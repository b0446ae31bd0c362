from __future__ import annotations

import pytest

from jaxspec.evals.results import (
    DIFFUSION_FIELDS,
    FIELDS,
    check_results,
    gains,
    labels,
    ordered,
)
from tests.evals.rows import diffusion_row, result_row


def test_complete_rows_pass():
    check_results([result_row(), result_row("full", extra_field={"any": [1, "thing"]})])
    check_results([])


def test_unmeasured_values_may_be_none():
    unmeasured = dict.fromkeys(
        ("tokens_per_s", "baseline_tokens_per_s", "speedup", "compile_s", "mismatched_prompts")
    )
    check_results([result_row(**unmeasured)])


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_field_is_needed(field):
    row = result_row()
    del row[field]
    with pytest.raises(ValueError, match=rf"results\[0\].*{field} is missing"):
        check_results([row])


@pytest.mark.parametrize("field", sorted(DIFFUSION_FIELDS))
def test_every_field_of_a_diffusion_row_is_needed(field):
    row = diffusion_row()
    check_results([row])
    del row[field]
    # Without its decoder a row is taken for a drafter's.
    missing = "loss" if field == "decoder" else field
    with pytest.raises(ValueError, match=rf"results\[0\].*{missing} is missing"):
        check_results([row])


def test_diffusion_rows_are_checked_alike():
    unmeasured = ("tokens_per_s", "speedup", "pass_ratio", "below_break_even", "layout")
    check_results([diffusion_row(**dict.fromkeys(unmeasured), nfe_reduction_ci95=[1.0, 2.0])])
    bad = diffusion_row(
        "spiffy", nfe=True, block_causal=1, tokens_per_pass=float("nan"), nfe_reduction_ci95=[1.0]
    )
    with pytest.raises(ValueError) as caught:
        check_results([bad])
    message = str(caught.value)
    assert "results[0] (spiffy, gsm8k): nfe must be int: got bool" in message
    assert "block_causal must be bool: got int" in message
    assert "tokens_per_pass is nan" in message
    assert "nfe_reduction_ci95 must be [low, high]: got [1.0]" in message
    with pytest.raises(ValueError, match="expected one kind in a file"):
        check_results([result_row(), diffusion_row()])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("changes", "place"),
    [
        (lambda bad: {"speedup": bad}, "speedup"),
        (lambda bad: {"tau_ci95": [1.0, bad]}, r"tau_ci95\[1\]"),
        (lambda bad: {"accept_at": [0.5, bad, None]}, r"accept_at\[1\]"),
        (lambda bad: {"timing": {"draft_s": [bad]}}, r"timing\.draft_s\[0\]"),
    ],
    ids=["number", "interval", "list", "nested"],
)
def test_non_finite_numbers_are_refused_wherever_they_are(bad, changes, place):
    with pytest.raises(ValueError, match=f"{place} is {bad}"):
        check_results([result_row(**changes(bad))])


def test_all_problems_are_told_at_once():
    rows = [result_row(prompts="40"), result_row("full", rounds=True, tau_ci95=[1.0])]
    with pytest.raises(ValueError) as caught:
        check_results(rows)
    message = str(caught.value)
    assert "results[0] (uniform, gsm8k): prompts must be int: got str" in message
    assert "results[1] (full, gsm8k): rounds must be int: got bool" in message
    assert "tau_ci95 must be [low, high]" in message


def test_definitions_may_be_missing_but_not_wrong():
    check_results([result_row(tau_definitions={"micro": 2.0, "another": 3})])
    with pytest.raises(ValueError, match="tau_definitions must be dict: got list"):
        check_results([result_row(tau_definitions=[2.0])])
    with pytest.raises(ValueError, match=r"tau_definitions\.vllm must be a number: got str"):
        check_results([result_row(tau_definitions={"vllm": "2.0"})])


def test_what_figures_rest_on_may_be_missing_but_not_wrong():
    good = {
        "reached_at": [100, 60, 0],
        "accept_at_intervals": [[0.5, 0.7], None, None],
        "responses_without_repetitive": 0,
        "speedup_ci95": [1.0, 2.0],
        "timed_prompts": 6,
        "by_prompt": [{"prompt_id": "a", "prompt_tokens": 9, "tokens": 0, "rounds": 0, "more": 1}],
    }
    check_results([result_row(), result_row(**good, tau_micro=2)])
    check_results([result_row(tau_ci95=None, speedup_ci95=None, timed_prompts=None)])
    check_results([diffusion_row(reached_by_block=[3, 0], nfe_reduction_ci95=None)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reached_at": [3, 1]}, "reached_at must have as many values as accept_at: got 2 and 3"),
        ({"reached_at": [3, 1, -1]}, r"reached_at must hold counts, 0 or more: got \[3, 1, -1\]"),
        ({"reached_at": [3, 1.5, 0]}, "reached_at must hold counts"),
        ({"reached_at": [3, True, 0]}, "reached_at must hold counts"),
        ({"reached_at": 3}, "reached_at must be list or tuple: got int"),
        ({"accept_at_intervals": [None]}, "accept_at_intervals must have as many values as acc"),
        (
            {"accept_at_intervals": [None, [0.5], None]},
            r"accept_at_intervals\[1\] must be \[low, high\]: got \[0.5\]",
        ),
        ({"tau_ci95": [2.0, 1.0]}, r"tau_ci95 must be \[low, high\]: got \[2.0, 1.0\]"),
        ({"tau_ci95": ["1", "2"]}, r"tau_ci95 must be \[low, high\]"),
        ({"speedup_ci95": 1.5}, "speedup_ci95 must be list or tuple or NoneType: got float"),
        ({"timed_prompts": -1}, "timed_prompts must be 0 or more: got -1"),
        ({"timed_prompts": 1.0}, "timed_prompts must be int or NoneType: got float"),
        ({"rest_ms": -0.1}, "rest_ms must be 0 or more: got -0.1"),
        ({"responses_without_repetitive": -2}, "responses_without_repetitive must be 0 or more"),
        ({"by_prompt": [{"prompt_id": "a"}]}, r"by_prompt\[0\].prompt_tokens is missing"),
        ({"by_prompt": [3]}, r"by_prompt\[0\] must be"),
    ],
)
def test_what_figures_rest_on_is_checked(changes, message):
    with pytest.raises(ValueError, match=rf"results\[0\] \(uniform, gsm8k\): {message}"):
        check_results([result_row(**changes)])


def test_names_in_messages_are_text():
    with pytest.raises(ValueError, match=r"results\[0\] \(a\\x1b\[2J, gsm8k\): rounds must be int"):
        check_results([result_row("a\x1b[2J", rounds="1")])


@pytest.mark.parametrize("reached", [[3], [3, -1], [3, None]])
def test_responses_by_block_are_checked(reached):
    with pytest.raises(ValueError, match="reached_by_block must"):
        check_results([diffusion_row(reached_by_block=reached)])


def test_gain_is_percent_of_tau_micro():
    rows = [result_row(tau_micro=2.0), result_row("full", tau_micro=2.5)]
    assert gains(rows) == [None, pytest.approx(25.0)]


def test_gain_needs_a_baseline_measured_alike():
    rows = [
        result_row(tau_micro=2.0),
        result_row("full", "mbpp"),
        result_row("full", temperature=1.0),
        result_row("full", target="other"),
        result_row("full", block_size=8),
        result_row("full", verifier="token"),
    ]
    assert gains(rows) == [None] * 6


def test_gain_compares_drafters_of_one_kind():
    rows = [
        result_row(kind="dflash"),
        result_row("full", kind="mdlm", tau_micro=3.0),
        result_row("full", kind="dflash", tau_micro=2.5),
    ]
    assert gains(rows) == [None, None, pytest.approx(25.0)]


def test_gain_compares_within_a_seed_and_averages_baselines():
    seeded = [
        result_row(tau_micro=2.0, seed=0),
        result_row(tau_micro=4.0, seed=1),
        result_row("full", tau_micro=3.0, seed=0),
        result_row("full", tau_micro=5.0, seed=1),
    ]
    assert gains(seeded) == [None, None, pytest.approx(50.0), pytest.approx(25.0)]
    unseeded = [{key: row[key] for key in row if key != "seed"} for row in seeded]
    assert gains(unseeded)[2:] == [pytest.approx(0.0), pytest.approx(66.666, abs=1e-2)]


def test_order_is_the_ladder_within_benchmarks_as_they_came():
    rows = [
        result_row(loss, benchmark)
        for benchmark in ("mbpp", "aime24")
        for loss in ("full", "tv", "decay+focal", "d_pace", "uniform", "decay")
    ]
    found = [(row["benchmark"], row["loss"]) for row in ordered(reversed(rows))]
    ladder = ["uniform", "decay", "decay+focal", "d_pace", "tv", "full"]
    assert found == [(benchmark, loss) for benchmark in ("aime24", "mbpp") for loss in ladder]


def test_labels_name_the_drafter_only_where_needed():
    assert labels([result_row(), result_row("full"), result_row("full", "mbpp")]) == [
        "uniform",
        "full",
        "full",
    ]
    assert labels([result_row("full", drafter="a"), result_row("full", drafter="b")]) == [
        "full (a)",
        "full (b)",
    ]


def test_drafters_of_other_weights_are_compared_with_each_other():
    marked = {"trained_on_other_target": True}
    rows = [
        result_row("full (other target)", tau_micro=3.0, **marked),
        result_row("full", tau_micro=3.0, trained_on_other_target=False),
        result_row("uniform (other target)", tau_micro=1.5, **marked),
        result_row("uniform", tau_micro=2.0, trained_on_other_target=None),
    ]
    assert gains(rows) == [pytest.approx(100), pytest.approx(50), None, None]
    assert [row["loss"] for row in ordered(rows)] == [
        "uniform", "uniform (other target)", "full", "full (other target)",
    ]  # fmt: skip
    assert gains(rows[:2]) == [None, None]
