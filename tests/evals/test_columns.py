"""One entry per figure: it computes the value, and names, formats and explains the column."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from jaxspec.decoding import DiffusionResponse
from jaxspec.evals import columns, tables
from jaxspec.evals.columns import Column, MeasuredDecoder, MeasuredDrafter, computed
from jaxspec.evals.intervals import bootstrap_ratio
from jaxspec.evals.tables import console_table, markdown_table
from jaxspec.evals.tau import Rounds
from tests.evals.rows import diffusion_row, result_row

ALL_ACCEPTED = Column(
    "all_accepted_share",
    title="all accepted",
    short="all",
    spec=".0%",
    legend="all accepted: share of rounds in which every draft was accepted.",
    value=lambda measured: (
        sum(count == measured.num_slots for r in measured.rounds for count in r.verified_counts)
        / sum(len(r.emitted) for r in measured.rounds)
    ),
)
NUMBERS = itertools.count()
MEASURED = MeasuredDrafter([Rounds((3, 1)), Rounds((2, 3))], num_slots=2, speed=None, seed=0)


def response(passes, filled):
    return DiffusionResponse(f"p{next(NUMBERS)}", (1,), False, passes, passes, filled)


def shown(results):
    stream = io.StringIO()
    Console(file=stream, width=80).print(console_table(results))
    return stream.getvalue()


def test_a_new_figure_is_one_entry(monkeypatch):
    monkeypatch.setattr(tables, "SPECULATIVE", (*columns.SPECULATIVE, ALL_ACCEPTED))
    fields = computed((ALL_ACCEPTED,), MEASURED)
    assert fields == {"all_accepted_share": 0.5}
    rows = [result_row(**fields), result_row("full")]
    text = markdown_table(rows)
    assert "| differ | all accepted |" in text
    assert [line.split(" | ")[-1] for line in text.splitlines()[2:4]] == ["50% |", "– |"]
    assert "all accepted: share of rounds" in " ".join(text.split())
    assert " all" in shown(rows) and "50%" in shown(rows)
    assert "all accepted" not in markdown_table([result_row()]), "files without the field"


def test_figures_are_combined_over_benchmarks(monkeypatch):
    entries = (
        Column("rounds", title="rounds", spec="d", over="sum"),
        Column("macro_ci95", title="macro (95%)", spec=".1f"),
        Column("speedup", title="ratio", spec=".2f", unit=" times"),
    )
    monkeypatch.setattr(tables, "SPECULATIVE", (*columns.SPECULATIVE[:2], *entries))
    rows = [result_row(benchmark=name, macro_ci95=[1.0, 2.0]) for name in ("gsm8k", "mbpp")]
    assert markdown_table(rows).splitlines()[2:5] == [
        "| gsm8k | uniform | 100 | 1.0–2.0 | 1.50 times |",
        "| mbpp | uniform | 100 | 1.0–2.0 | 1.50 times |",
        "| mean | uniform | 200 | – | 1.50 times |",
    ]


def test_intervals_of_diffusion_rows():
    ours = [response(*counts) for counts in [((2, 2), 8), ((3,), 4), ((1, 1), 8)] * 2]
    base = [response((4, 4), 8), response((4,), 4), response((4, 4), 8)] * 2
    found = computed(columns.DIFFUSION, MeasuredDecoder(ours, base=base, speed=None, seed=7))
    low, high = found["nfe_reduction_ci95"]
    assert (low, high) == bootstrap_ratio([8, 4, 8] * 2, [4, 3, 2] * 2, seed=7)
    assert 4 / 3 <= low < 20 / 9 < high <= 4
    low, high = found["tokens_per_pass_ci95"]
    assert 4 / 3 <= low < 20 / 9 < high <= 4


@pytest.mark.parametrize("count", [1, 5])
def test_few_responses_have_no_interval(count):
    one = [response((2, 2), 8)] * count
    found = computed(columns.DIFFUSION, MeasuredDecoder(one, base=one, speed=None, seed=0))
    assert set(found.values()) == {None}
    row = diffusion_row(**found)
    assert "(95%)" not in markdown_table([row])


def test_speed_ratios_with_their_intervals_and_what_they_rest_on():
    rows = [
        result_row(speedup_ci95=[1.2, 1.8], timed_prompts=6),
        result_row("full", speedup_ci95=None, timed_prompts=3),
    ]
    lines = markdown_table(rows).splitlines()
    assert "| speedup | speedup (95%) | timed | differ |" in lines[0]
    assert lines[2].endswith("| 1.50x | 1.20–1.80x | 6 | 0 |")
    assert lines[3].endswith("| 1.50x | – | 3 | 0 |")
    assert "over them and needs at least 6." in " ".join(lines)
    text = markdown_table([diffusion_row(speedup_ci95=[1.1, 1.3], timed_prompts=6)])
    assert "| speed | speed (95%) | timed | pass costs |" in text
    assert "| 1.23 | 1.10–1.30 | 6 | 1.25 |" in text
    assert "1.20" not in shown(rows), "a terminal has no room"


def test_names_have_a_second_line_on_a_terminal():
    rows = [result_row(target=name) for name in ("models/Qwen3-4B-Base", "models/Qwen3-12B-Base")]
    lines = shown(rows).splitlines()
    assert "…" not in "".join(lines)
    assert lines[0].split()[:3] == ["benchmark", "loss", "target"]
    assert lines[1].split()[:2] == ["gsm8k", "uniform"]
    assert lines[1].split()[2] + lines[2].split()[0] == "models/Qwen3-4B-Base"


def test_diffusion_rows_in_markdown_and_on_a_terminal():
    rows = [
        diffusion_row(benchmark="embedded/math", nfe_reduction_ci95=[1.1, 1.4]),
        diffusion_row("spiffy", benchmark="embedded/math", drafts_per_pass=10),
    ]
    text = markdown_table(rows)
    assert text.splitlines()[0].endswith("| identical | fewer (95%) |")
    assert text.splitlines()[2].endswith("| 1.10–1.40 |")
    assert "bootstrap" not in markdown_table([diffusion_row()])
    lines = shown(rows).splitlines()
    assert "…" not in "".join(lines) and "95%" not in lines[0]
    assert lines[1].split()[:2] == ["embedded/math", "plain"]
    assert lines[2].split()[:2] == ["spiffy", "10"], "a benchmark is named once"


@pytest.mark.parametrize("table", [columns.SPECULATIVE, columns.DIFFUSION])
def test_entries_are_told_apart(table):
    for key in ("field", "title"):
        names = [getattr(column, key) for column in table]
        assert len(set(names)) == len(names)
    assert all(not column.legend or column.legend.endswith(".") for column in table)
