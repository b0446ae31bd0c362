"""Plots of a study: gains by benchmark with their intervals, acceptance by position.

>>> plot_gains(entries, "runs/study/plots/gains.png", base="uniform", title="a")  # doctest: +SKIP
PosixPath('runs/study/plots/gains.png')
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxspec.evals.plots import plot_conditional_acceptance
from jaxspec.evals.results import FULL, Row
from jaxspec.names import for_plot
from jaxspec.plot_style import FULL_COLOUR, TEXT, frame, legend_columns, save, styles_of
from jaxspec.study.summary import MEAN, Entry


def plot_gains(
    entries: Sequence[Entry],
    path: str | os.PathLike[str],
    *,
    base: str,
    title: str,
    origin: str = "",
) -> Path:
    """A point for each loss and benchmark, with its interval over prompts, or its seeds' range.

    Args:
      entries: of one target and decoding.
      path: the PNG file.
      base: the loss that gains are counted against.
      title: what was measured.
      origin: where the figures come from, as `jaxspec.plot_style.save` takes it.
    """
    shown = [entry for entry in entries if entry["gain"] is not None]
    benchmarks = list(dict.fromkeys(entry["benchmark"] for entry in shown))
    losses = list(dict.fromkeys(entry["loss"] for entry in shown))
    width = 0.8 / len(losses)
    figure = Figure(
        figsize=(min(18.0, max(5.5, 1.5 + 0.28 * len(benchmarks) * len(losses))), 4.4),
        layout="constrained",
    )
    axes = figure.add_subplot()
    styles = styles_of(losses, own={FULL: FULL_COLOUR})
    for number, loss in enumerate(losses):
        colour = styles[loss].colour
        own = [entry for entry in shown if entry["loss"] == loss]
        places = [
            benchmarks.index(entry["benchmark"]) + (number - (len(losses) - 1) / 2) * width
            for entry in own
        ]
        ranges = [
            entry["gain_ci95"] or (entry["gain"]["lowest"], entry["gain"]["highest"])
            for entry in own
        ]
        axes.vlines(places, *zip(*ranges, strict=True), color=colour, linewidth=1.2)
        axes.plot(
            places,
            [entry["gain"]["mean"] for entry in own],
            linestyle="none",
            marker=styles[loss].marker,
            markersize=4.5,
            color=colour,
            label=for_plot(loss),
        )
    axes.axhline(0.0, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)))
    if MEAN in benchmarks and len(benchmarks) > 1:
        axes.axvline(benchmarks.index(MEAN) - 0.5, color="#bbbbbb", linewidth=0.8)
    axes.set_xticks(range(len(benchmarks)), [for_plot(name) for name in benchmarks])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(f"gain of tau over {for_plot(base)} (%)")
    frame(axes)
    axes.set_title(for_plot(title), loc="left", fontsize=11, color=TEXT)
    figure.legend(
        loc="outside lower center",
        ncols=legend_columns(losses, figure),
        frameon=False,
        fontsize=9,
        title="mean over seeds; lines: 95% interval over prompts, paired, or else the seeds' range",
        title_fontsize=8,
    )
    return save(figure, path, origin=origin)


def plot_positions(rows: Sequence[Row], path: str | os.PathLike[str], *, origin: str = "") -> Path:
    """P(slot accepted | slots before it accepted), the rounds of all seeds taken together.

    Args:
      rows: result rows of one target and decoding.
      path: the PNG file.
      origin: where the figures come from, as `jaxspec.plot_style.save` takes it.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["benchmark"], row["loss"]), []).append(row)
    taken_together = [pooled(group) for group in groups.values()]
    return plot_conditional_acceptance(taken_together, path, origin=origin)


def pooled(rows: Sequence[Row]) -> dict[str, Any]:
    """The slots of several seeds' rows, as one row; only that of a single seed keeps intervals."""
    if len(rows) == 1:
        return {**rows[0], "drafter": rows[0]["loss"]}
    # `evaluation.strategy` "auto" may choose another size for each seed.
    counts = itertools.zip_longest(*(row["reached_at"] for row in rows), fillvalue=0)
    reached = [sum(of_slot) for of_slot in counts]
    accepted = [0.0] * len(reached)
    for row in rows:
        for slot, (share, trials) in enumerate(
            zip(row["accept_at"], row["reached_at"], strict=True)
        ):
            accepted[slot] += (share or 0.0) * trials
    return {
        **rows[0],
        "drafter": rows[0]["loss"],
        "rounds": sum(row["rounds"] for row in rows),
        "reached_at": reached,
        "accept_at": [
            hits / trials if trials else None
            for hits, trials in zip(accepted, reached, strict=True)
        ],
        "accept_at_intervals": [None] * len(reached),
    }
