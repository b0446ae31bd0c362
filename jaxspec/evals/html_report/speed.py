"""The section about wall-clock speed: what drafting gains, and where it does not pay."""

from __future__ import annotations

from collections.abc import Sequence

from jaxspec.evals.html_report.content import (
    Cell,
    Fact,
    Figure,
    Heading,
    Section,
    Table,
    figure_cell,
    keys_of,
    name_cells,
    name_headings,
)
from jaxspec.evals.html_report.measured import benchmarks_of
from jaxspec.evals.html_report.panels import Estimate, interval_panel
from jaxspec.evals.html_report.series import series_of
from jaxspec.evals.results import Row, is_target_alone


def speed_fact(rows: Sequence[Row]) -> Fact:
    """The highest speed-up, and in how many rows drafting pays."""
    timed = _timed(rows)
    if not timed:
        return Fact("speed-up", "not timed", "")
    best = max(timed, key=lambda row: float(row["speedup"]))
    pays = sum(row["speedup"] > 1.0 for row in timed)
    ends = [f"{each(row['speedup'] for row in timed):.2f}x" for each in (min, max)]
    note = (
        f"above 1 in {pays} of {len(timed)} rows; the highest: {best['series']} on "
        f"{best['benchmark']}"
    )
    return Fact("speed-up", " to ".join(dict.fromkeys(ends)), note)


def speed_section(rows: Sequence[Row]) -> Section:
    """Speed-ups, what they follow from, and where they are below 1."""
    timed = _timed(rows)
    title = "Speed, and where it does not pay"
    if not timed:
        return Section("speed", title, ["Nothing was timed: --evaluation.timing-prompts was 0."])
    drawn = {row["series"] for row in timed}
    styles = {name: style for name, style in series_of(rows).items() if name in drawn}
    end = 1.05 * max(
        1.0, *(max(row["speedup"], *(row.get("speedup_ci95") or [0.0])) for row in timed)
    )
    figures = []
    for benchmark, members in benchmarks_of(timed).items():
        estimates = [
            Estimate(
                row["series"],
                styles[row["series"]],
                row["speedup"],
                row.get("speedup_ci95"),
                text=f"{row['speedup']:.2f}x",
            )
            for row in members
        ]
        picture = interval_panel(
            f"Speed-up on {benchmark}", estimates, end=end, reference=1.0, unit="x"
        )
        figures.append(Figure(benchmark, picture))
    lines = [
        [
            *name_cells(row),
            Cell(_verdict(row)),
            figure_cell(row["speedup"], ".2f", unit="x", interval=row.get("speedup_ci95")),
            figure_cell(row.get("timed_prompts"), "d"),
            figure_cell(row.get("tau_micro"), ".2f"),
            figure_cell(_round_steps(row), ".2f"),
            figure_cell(row.get("draft_ms"), ".2f"),
            figure_cell(row.get("verify_ms"), ".2f"),
            figure_cell(row.get("autoregressive_step_ms"), ".2f"),
            figure_cell(row["tokens_per_s"], ",.0f"),
        ]
        for row in timed
    ]
    names = (
        *("speed-up (95%)", "timed", "tau", "tau needed", "draft ms", "verify ms", "step ms"),
        *("tokens/s",),
    )
    headings = [*name_headings("drafter"), Heading("pays", is_figure=False), *map(Heading, names)]
    slower = [row for row in timed if row["speedup"] <= 1.0]
    return Section(
        "speed",
        title,
        [
            "Wall-clock time at batch 1 against the target alone, in the same run. 1 (dashed) is "
            "the target's own speed: to the left of it, drafting costs more than it saves.",
            _where(timed, slower),
        ],
        keys=keys_of(styles),
        figures=figures,
        tables=[
            Table(
                "Speed at batch 1",
                headings,
                lines,
                legend="pays: whether the speed-up is above 1, and its interval as well. timed: "
                "prompts that were timed; an interval needs at least 6. tau needed: the time of a "
                "round in steps of the target alone. Where tau is higher, drafting pays.",
            )
        ],
    )


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["speedup"] is not None and not is_target_alone(row)]


def _where(timed: Sequence[Row], slower: Sequence[Row]) -> str:
    if not slower:
        return f"Drafting is faster in all {len(timed)} rows."
    if len(slower) == len(timed):
        return f"On this machine, drafting is faster in none of the {len(timed)} rows."
    names = [f"{row['series']} on {row['benchmark']} ({row['speedup']:.2f}x)" for row in slower]
    listed = "; ".join(names[:12]) + ("; and others" if len(names) > 12 else "")
    return f"Drafting does not pay in {len(slower)} of {len(timed)} rows: {listed}."


def _verdict(row: Row) -> str:
    interval = row.get("speedup_ci95")
    word = "yes" if row["speedup"] > 1.0 else "no"
    if interval is None:
        return f"{word} (no interval)"
    low, high = interval
    return word if low > 1.0 or high < 1.0 else f"{word} (not certain)"


def _round_steps(row: Row) -> float | None:
    """The time of a round in autoregressive steps: the tau from which drafting pays."""
    round_ms, step_ms = row.get("round_ms"), row.get("autoregressive_step_ms")
    return round_ms / step_ms if round_ms is not None and step_ms else None
