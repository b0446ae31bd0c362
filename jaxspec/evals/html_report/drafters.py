"""What a page says about drafters: the figures at the top, the sections, the accepted length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from jaxspec.evals.html_report.by_length import context_section, prompts_section
from jaxspec.evals.html_report.content import Fact, Figure, Section, figure_text, keys_of
from jaxspec.evals.html_report.exactness import compared_rows, exactness_section, responses_of
from jaxspec.evals.html_report.measured import (
    benchmarks_of,
    mean_tau_interval,
    on_all_benchmarks,
)
from jaxspec.evals.html_report.panels import Estimate, interval_panel
from jaxspec.evals.html_report.positions import positions_section
from jaxspec.evals.html_report.series import series_of
from jaxspec.evals.html_report.speed import speed_fact, speed_section
from jaxspec.evals.results import BASELINE, Row
from jaxspec.evals.tables import formatted


def facts(rows: Sequence[Row]) -> list[Fact]:
    """The figures at the top: the largest accepted length, its gain, the speed, exactness."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        # Only seeds are averaged: a mean of different drafters is no one's.
        groups.setdefault(row["recipe"] if row["is_seed"] else row["series"], []).append(row)
    benchmarks = max(len(benchmarks_of(members)) for members in groups.values())
    # A mean over fewer benchmarks than the others' would mislead.
    complete = {
        name: members
        for name, members in groups.items()
        if len(benchmarks_of(members)) == benchmarks
    }
    best = max(complete, key=lambda name: _mean(row["tau_micro"] for row in complete[name]))
    members = complete[best]
    tau = _mean(row["tau_micro"] for row in members)
    found = [Fact("tokens per round (tau)", f"{tau:.2f}", f"{best}, {_basis(members)}")]
    gains = [row["gain"] for row in members if row["gain"] is not None]
    if gains:
        found.append(Fact("gain in tau", f"{_mean(gains):+.1f}%", f"{best} over {BASELINE}"))
    found.append(speed_fact(rows))
    compared = compared_rows(rows)
    if compared:
        differ = sum(row["mismatched_prompts"] for row in compared)
        outputs = sum(map(responses_of, compared))
        found.append(
            Fact("outputs that differ", f"{differ:,}", f"of {outputs:,}, from the target's own")
        )
    return found


def sections(rows: Sequence[Row]) -> list[Section]:
    """The sections, in order.

    Args:
      rows: of one or more files, with `series` and `gain`.
    """
    return [
        _accepted_length(rows),
        speed_section(rows),
        positions_section(rows),
        context_section(rows),
        prompts_section(rows),
        exactness_section(rows),
    ]


def _accepted_length(rows: Sequence[Row]) -> Section:
    styles, end = series_of(rows), 1.05 * _largest(rows, "tau_micro", "tau_ci95")
    figures = []
    for benchmark, members in benchmarks_of(rows).items():
        estimates = [
            _estimate(
                row["series"],
                styles[row["series"]],
                row["tau_micro"],
                row["tau_ci95"],
                of=f", {row['rounds']:,} rounds",
            )
            for row in members
        ]
        title = f"{benchmark}, {_prompts(members)}"
        picture = interval_panel(f"tau on {benchmark}", estimates, end=end, reference=1.0)
        figures.append(Figure(title, picture))
    if means := on_all_benchmarks(rows):
        estimates = []
        for name, group in means.items():
            tau, interval = _mean(row["tau_micro"] for row in group), mean_tau_interval(group)
            estimates.append(_estimate(name, styles[name], tau, interval))
        picture = interval_panel("Mean tau", estimates, end=end, reference=1.0)
        figures.append(Figure("mean of the benchmarks", picture))
    return Section(
        "tau",
        "Accepted length",
        [
            "tau is the number of tokens that a round of drafting and verifying adds, the target's "
            "own token included. Without drafting it is 1 (dashed). Whiskers are 95% intervals "
            "over prompts."
        ],
        keys=keys_of(styles),
        figures=figures,
    )


def _basis(rows: Sequence[Row]) -> str:
    """What a mean of tau rests on, and its interval or its range over seeds."""
    by_benchmark = benchmarks_of(rows)
    several = len(by_benchmark) > 1
    where = f"mean of {len(by_benchmark)} benchmarks" if several else rows[0]["benchmark"]
    if len(rows) == len(by_benchmark):
        interval = mean_tau_interval(rows) if several else rows[0]["tau_ci95"]
        if interval is None:
            return where
        return f"{where}, 95% interval {formatted(list(interval), '.2f')}"
    by_series: dict[str, list[float]] = {}
    for row in rows:
        by_series.setdefault(row["series"], []).append(row["tau_micro"])
    taus = list(map(_mean, by_series.values()))
    return f"{where} and {len(taus)} drafters, {min(taus):.2f} to {max(taus):.2f}"


def _estimate(
    name: str, style: int, tau: float, interval: Sequence[float] | None, *, of: str = ""
) -> Estimate:
    note = f"{name}: {figure_text(tau, '.2f', interval=interval)}{of}"
    return Estimate(name, style, tau, interval, note=note)


def _prompts(rows: Sequence[Row]) -> str:
    fewest, most = min(row["prompts"] for row in rows), max(row["prompts"] for row in rows)
    return f"{most:,} prompts" if fewest == most else f"{fewest:,} to {most:,} prompts"


def _largest(rows: Sequence[Row], field: str, interval: str) -> float:
    return max(max(row[field], *(row.get(interval) or [0.0])) for row in rows)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
