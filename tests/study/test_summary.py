from __future__ import annotations

import numpy as np
import pytest

from jaxspec.evals.intervals import FEWEST_PROMPTS
from jaxspec.study.summary import summary
from tests.evals.rows import result_row


def row(loss: str, seed: int, rounds: list[int], *, benchmark: str = "gsm8k", **changes):
    """A row whose prompts have 12 tokens each, in as many rounds as given."""
    prompts = [
        {"prompt_id": f"p{number}", "prompt_tokens": 5, "tokens": 12, "rounds": count}
        for number, count in enumerate(rounds)
    ]
    return result_row(
        loss,
        benchmark,
        **{
            "seed": seed,
            "decoding": "block",
            "prompts": len(rounds),
            "tau_micro": 12 * len(rounds) / sum(rounds),
            "by_prompt": prompts,
            **changes,
        },
    )


def only(entries, loss: str, benchmark: str = "gsm8k"):
    (entry,) = [e for e in entries if (e["loss"], e["benchmark"]) == (loss, benchmark)]
    return entry


def test_figures_by_hand():
    rows = [
        row("uniform", 0, [6, 6]),  # tau 2
        row("uniform", 1, [4, 8]),  # tau 2
        row("full", 0, [4, 4]),  # tau 3: +50%
        row("full", 1, [4, 6]),  # tau 2.4: +20%
        row("full", 2, [1, 1]),  # without a base of its seed: no gain
    ]
    found = summary(rows, base="uniform")
    base, full = only(found, "uniform"), only(found, "full")
    assert base["tau"] == {"mean": 2.0, "lowest": 2.0, "highest": 2.0}
    assert base["gain"] is None and base["gain_ci95"] is None
    assert full["seeds"] == [0, 1, 2]
    assert full["tau"] == pytest.approx({"mean": (3 + 2.4 + 12) / 3, "lowest": 2.4, "highest": 12})
    assert full["gain"] == pytest.approx({"mean": 35.0, "lowest": 20.0, "highest": 50.0})
    assert full["gain_ci95"] is None, "two prompts are too few"
    assert full["prompts"] == 2


def test_a_base_without_training_stands_for_every_seed():
    rows = [
        row("ngram", 0, [6, 6], benchmark=benchmark)  # tau 2
        for benchmark in ("a", "b")
    ] + [
        row("full", seed, rounds, benchmark=benchmark)
        for benchmark in ("a", "b")
        for seed, rounds in ((0, [4, 4]), (1, [4, 6]))  # tau 3 and 2.4: +50% and +20%
    ]
    found = summary(rows, base="ngram", untrained=["ngram"])
    for benchmark in ("a", "b", "mean"):
        full = only(found, "full", benchmark)
        assert full["gain"] == pytest.approx({"mean": 35.0, "lowest": 20.0, "highest": 50.0})
        assert full["gain_seeds"] == full["seeds"] == [0, 1]
        assert only(found, "ngram", benchmark)["gain"] is None


def test_the_seeds_of_a_gain_are_those_that_the_base_has_too():
    rows = [row("uniform", 0, [6]), *(row("full", seed, [4]) for seed in (0, 1))]
    base, full = summary(rows, base="uniform")
    assert (full["seeds"], full["gain_seeds"]) == ([0, 1], [0])
    assert base["gain_seeds"] == []


def test_drafters_of_another_target_are_compared_with_each_other():
    rows = [
        row("uniform", 0, [6]),
        row("full", 0, [4]),
        row("uniform (other target)", 1, [12]),
        row("full (other target)", 1, [6]),
    ]
    gains = {e["loss"]: e["gain"] and e["gain"]["mean"] for e in summary(rows, base="uniform")}
    assert gains == pytest.approx(
        {"uniform": None, "full": 50.0, "uniform (other target)": None, "full (other target)": 100}
    )
    (_, other) = summary([rows[0], rows[3]], base="uniform")
    assert other["gain"] is None, "its neighbour is no base for it"


def test_the_mean_over_benchmarks_averages_taus_and_gains():
    rows = [
        row("uniform", 0, [6], benchmark="a"),  # tau 2
        row("uniform", 0, [12], benchmark="b"),  # tau 1
        row("full", 0, [4], benchmark="a"),  # tau 3: +50%
        row("full", 0, [10], benchmark="b"),  # tau 1.2: +20%
        row("decay", 0, [5], benchmark="a"),  # not on b: no mean
    ]
    found = summary(rows, base="uniform")
    mean = only(found, "full", "mean")
    assert mean["tau"]["mean"] == pytest.approx(2.1)
    assert mean["gain"]["mean"] == pytest.approx(35.0)
    assert [e["loss"] for e in found if e["benchmark"] == "mean"] == ["uniform", "full"]


def test_an_equal_gain_of_every_prompt_has_no_spread_whatever_the_prompts_do():
    """Pairing: the prompts differ by a factor of 8, but each is 1.5 times as fast."""
    slow = [3, 6, 12, 24, 6, 3]
    rows = [row("uniform", 0, slow), row("full", 0, [2 * count // 3 for count in slow])]
    full = only(summary(rows, base="uniform"), "full")
    assert full["gain_ci95"] == pytest.approx([50.0, 50.0])
    low, high = full["tau_ci95"]
    assert high - low > 0.5


def test_the_interval_of_a_gain_is_that_of_its_resamples():
    rng = np.random.default_rng(0)
    count = 4 * FEWEST_PROMPTS
    base, own = rng.integers(4, 12, (2, 2, count))
    rows = [row("uniform", seed, base[seed].tolist()) for seed in (0, 1)]
    rows += [row("full", seed, own[seed].tolist()) for seed in (0, 1)]
    full = only(summary(rows, base="uniform"), "full")
    picks = np.random.default_rng(5).integers(0, count, (4000, count))
    gains = [
        100 * np.mean([base[s][pick].sum() / own[s][pick].sum() - 1 for s in (0, 1)])
        for pick in picks
    ]
    # Another seed, so that only the noise of the resampling is left.
    assert full["gain_ci95"] == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=1.0)


def test_prompts_are_paired_by_name():
    """One of the rows has them in another order, and one more."""
    rounds = [3, 4, 6, 12, 4, 6]
    rows = [row("uniform", 0, rounds), row("full", 0, rounds)]
    rows[1]["by_prompt"] = [*reversed(rows[1]["by_prompt"])]
    rows[0]["by_prompt"] = [
        *rows[0]["by_prompt"],
        {"prompt_id": "more", "prompt_tokens": 1, "tokens": 99, "rounds": 1},
    ]
    assert only(summary(rows, base="uniform"), "full")["gain_ci95"] == pytest.approx([0.0, 0.0])


def test_turns_of_a_conversation_are_resampled_together():
    once, twice = ([row(loss, 0, [3, 4, 6, 12, 4, 6]) for loss in ("a", "b")] for _ in range(2))
    for each in twice:
        again = [{**p, "prompt_id": f"{p['prompt_id']}#2"} for p in each["by_prompt"]]
        each["by_prompt"] = [*each["by_prompt"], *again]
    one, two = (only(summary(rows, base="a"), "b") for rows in (once, twice))
    assert one["tau_ci95"] == pytest.approx(two["tau_ci95"])


def test_rows_of_older_files_have_no_interval():
    rows = [row("uniform", 0, [6] * 8), row("full", 0, [4] * 8)]
    del rows[0]["by_prompt"]
    full = only(summary(rows, base="uniform"), "full")
    assert full["gain"]["mean"] == pytest.approx(50.0)
    assert full["gain_ci95"] is None
    assert full["tau_ci95"] is not None


def test_targets_and_decodings_are_kept_apart():
    rows = [
        row("uniform", 0, [6]),
        row("full", 0, [4], decoding="tree"),
        row("full", 0, [4], target="other"),
    ]
    found = summary(rows, base="uniform")
    assert [(e["target"], e["decoding"], e["gain"]) for e in found] == [
        ("embedded", "block", None),
        ("embedded", "tree", None),
        ("other", "block", None),
    ]
