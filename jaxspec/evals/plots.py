"""Plots of an evaluation: accepted length by benchmark and loss, acceptance by position; graphs.

>>> plot_accepted_length(results, "runs/results_accepted_length.png")          # doctest: +SKIP
PosixPath('runs/results_accepted_length.png')
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from jaxspec.decoding.diffusion.draft_graph import DraftGraph, Node
from jaxspec.evals.intervals import FEWEST_PROMPTS, FEWEST_ROUNDS
from jaxspec.evals.results import (
    BASELINE,
    FULL,
    Row,
    gains,
    ordered,
    reached_rounds,
)
from jaxspec.evals.tables import series_labels
from jaxspec.names import for_plot
from jaxspec.plot_style import (
    BASELINE_COLOUR,
    COLOURS,
    FULL_COLOUR,
    TEXT,
    Style,
    frame,
    legend_columns,
    save,
    styles_of,
)

_PANELS_ACROSS = 3


def plot_accepted_length(results: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Bars of tau_micro with their 95% intervals, grouped by benchmark, one colour per loss.

    Bars of rows without an interval have no whiskers.

    Args:
      results: measured rows. Where rows of one name differ in a setting, it is added to the name.
      path: the PNG file.
    """
    rows = ordered(results)
    _check_any(rows)
    row_labels, row_gains = series_labels(rows), gains(rows)
    series = list(dict.fromkeys(row_labels))
    benchmarks = list(dict.fromkeys(row["benchmark"] for row in rows))
    styles = _styles(rows)
    width = 0.8 / len(series)
    bars = len(benchmarks) * len(series)
    figure = Figure(figsize=(min(16.0, max(5.5, 2.0 + 0.55 * bars)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, label in enumerate(series):
        members = [
            (row, gain)
            for row, name, gain in zip(rows, row_labels, row_gains, strict=True)
            if name == label
        ]
        places = [
            benchmarks.index(row["benchmark"]) + (number - (len(series) - 1) / 2) * width
            for row, _ in members
        ]
        taus = np.array([row["tau_micro"] for row, _ in members])
        # nan if there is no interval: it draws no whiskers.
        bounds = np.array([row["tau_ci95"] or (math.nan, math.nan) for row, _ in members])
        lows = np.maximum(0.0, taus - bounds[:, 0])
        highs = np.maximum(0.0, bounds[:, 1] - taus)
        axes.bar(
            places,
            taus,
            width * 0.92,
            label=for_plot(label),
            color=styles[label].colour,
            hatch=styles[label].hatch,
            edgecolor="white",
            linewidth=0.0,
            yerr=(lows, highs),
            error_kw={"elinewidth": 1.1, "capsize": 2.5, "ecolor": TEXT},
        )
        for place, tau, high, (_, gain) in zip(places, taus, highs, members, strict=True):
            text = f"{tau:.2f}" if gain is None else f"{tau:.2f}\n{gain:+.0f}%"
            axes.annotate(
                text,
                (place, tau if np.isnan(high) else tau + high),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8 if bars <= 16 else 6,
                color=TEXT,
            )
    axes.axhline(1.0, color=TEXT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    names = [f"{for_plot(name)}\n{_prompts(rows, name)}" for name in benchmarks]
    axes.set_xticks(range(len(benchmarks)), names)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("accepted length tau (tokens per round)")
    axes.margins(x=0.02, y=0.14)
    axes.set_ylim(bottom=0.0)
    frame(axes)
    axes.set_title("Accepted length by benchmark and loss", loc="left", fontsize=11, color=TEXT)
    figure.legend(
        loc="outside lower center",
        ncols=legend_columns(series, figure),
        frameon=False,
        title=f"whiskers: 95% interval over prompts (at least {FEWEST_PROMPTS})\n"
        f"percent: gain over {BASELINE}; dashed: no speculation",
        title_fontsize=8,
        fontsize=9,
    )
    return save(figure, path)


def plot_conditional_acceptance(
    results: Sequence[Row], path: str | os.PathLike[str], *, origin: str = ""
) -> Path:
    """P(slot accepted | slots before it accepted): a panel per benchmark, a line per loss.

    Slots that rest on fewer rounds than `FEWEST_ROUNDS` are left out. Whiskers are the rows' 95%
    intervals (`jaxspec.evals.intervals.share_interval`); older rows have none.

    Args:
      results: measured rows. Where rows of one name differ in a setting, it is added to the name.
      path: the PNG file.
      origin: where the figures come from, as `jaxspec.plot_style.save` takes it.
    """
    rows = ordered(results)
    _check_any(rows)
    row_labels = series_labels(rows)
    series = list(dict.fromkeys(row_labels))
    benchmarks = list(dict.fromkeys(row["benchmark"] for row in rows))
    styles = _styles(rows)
    across = min(_PANELS_ACROSS, len(benchmarks))
    down = math.ceil(len(benchmarks) / across)
    figure = Figure(figsize=(max(5.5, 3.7 * across), 0.9 + 2.9 * down), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, benchmark in zip(panels, benchmarks, strict=False):
        members = [
            (label, row)
            for row, label in zip(rows, row_labels, strict=True)
            if row["benchmark"] == benchmark
        ]
        for label, row in members:
            style = styles[label]
            # A slot that is left out is nan: a gap in the line.
            heights = _resting(row)
            # Shifted, so that the whiskers of several lines do not cover each other.
            shift = min(0.08, 0.6 / len(series)) * (series.index(label) - (len(series) - 1) / 2)
            places = [slot + shift for slot in range(1, len(heights) + 1)]
            panel.plot(
                places,
                heights,
                color=style.colour,
                marker=style.marker,
                linestyle=style.line,
                markersize=3.5,
                linewidth=1.6,
                label=for_plot(label),
            )
            intervals = row.get("accept_at_intervals") or [None] * len(heights)
            whiskers = [
                (place, *interval)
                for place, height, interval in zip(places, heights, intervals, strict=True)
                if interval is not None and not math.isnan(height)
            ]
            if whiskers:
                panel.vlines(*zip(*whiskers, strict=True), color=style.colour, linewidth=0.9)
        if all(math.isnan(height) for _, row in members for height in _resting(row)):
            panel.text(
                *(0.5, 0.5, f"no slot was reached\nby at least {FEWEST_ROUNDS} rounds"),
                transform=panel.transAxes,
                ha="center",
                va="center",
                fontsize=9,
                color=TEXT,
            )
        panel.set_title(for_plot(benchmark), loc="left", fontsize=10, color=TEXT)
        panel.set_ylim(0.0, 1.03)
        panel.set_xlim(0.5, max(len(row["accept_at"]) for row in rows) + 0.5)
        panel.xaxis.get_major_locator().set_params(integer=True)
        frame(panel)
    for panel in panels[len(benchmarks) :]:
        panel.set_visible(False)
    figure.supxlabel(
        "drafted slot (1 follows the anchor); whiskers: 95% interval over prompts\n"
        f"slots reached by fewer than {FEWEST_ROUNDS} rounds are left out",
        fontsize=9,
        color=TEXT,
    )
    figure.supylabel("accepted, given all before", fontsize=10, color=TEXT)
    handles = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [handles[for_plot(label)] for label in series],
        list(map(for_plot, series)),
        loc="outside upper center",
        ncols=legend_columns(series, figure),
        frameon=False,
        fontsize=9,
    )
    return save(figure, path, origin=origin)


def plot_draft_graph(graph: DraftGraph, path: str | os.PathLike[str]) -> Path:
    """A draft graph: steps ahead from left to right, an edge from each parent to its children.

    Args:
      graph: at least one node.
      path: the PNG file.

    Raises:
      ValueError: nothing to draw.
    """
    if not graph.size:
        raise ValueError("There is nothing to draw: the draft graph has no nodes.")
    columns: dict[int, list[int]] = {}
    for number, depth in enumerate(graph.depths):
        columns.setdefault(depth, []).append(number)
    tallest = max(map(len, columns.values()))
    places = {
        number: (float(depth), (len(members) - 1) / 2 - row)
        for depth, members in columns.items()
        for row, number in enumerate(members)
    }
    size = (2.0 + 2.2 * len(columns), 1.2 + 0.6 * tallest)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for number, node in enumerate(graph.nodes):
        to_x, to_y = places[number]
        for parent in node.parents:
            from_x, from_y = places.get(parent, (0.0, 0.0))
            axes.plot((from_x, to_x), (from_y, to_y), color="#bbbbbb", linewidth=1.2, zorder=1)
    texts = {(0.0, 0.0): "now"} | {places[n]: _formula(node) for n, node in enumerate(graph.nodes)}
    for (x, y), text in texts.items():
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": COLOURS[0]}
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=TEXT, bbox=box)
    axes.set_xlim(-0.5, max(columns) + 0.5)
    axes.set_ylim(-tallest / 2, tallest / 2)
    axes.set_xticks(range(max(columns) + 1))
    axes.set_yticks([])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=TEXT, labelsize=9)
    axes.set_xlabel("steps ahead; in a node: rank of a position, rank of its token")
    title = f"Draft graph of {graph.size} nodes"
    axes.set_title(title, loc="left", fontsize=11, color=TEXT)
    return save(figure, path)


def _formula(node: Node) -> str:
    """The pairs of a node, three per line."""
    pairs = [f"{i},{j}" for i, j in node.pairs]
    return "\n".join("  ".join(pairs[first : first + 3]) for first in range(0, len(pairs), 3))


def _resting(row: Row) -> list[float]:
    """`accept_at` of the slots that rest on enough rounds, nan for the others."""
    return [
        share if share is not None and rounds >= FEWEST_ROUNDS else math.nan
        for share, rounds in zip(row["accept_at"], reached_rounds(row), strict=True)
    ]


def _prompts(rows: Sequence[Row], benchmark: str) -> str:
    """How many prompts the bars of a benchmark rest on."""
    counts = {row["prompts"] for row in rows if row["benchmark"] == benchmark}
    fewest, most = min(counts), max(counts)
    return f"{most} prompts" if fewest == most else f"{fewest} to {most} prompts"


def _check_any(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("There is nothing to plot: got no result rows.")


def _styles(rows: Sequence[Row]) -> dict[str, Style]:
    """The style of each label.

    A loss has one colour (grey for the baseline, the warm one for the full recipe); several
    drafters of a loss are shades of it.
    """
    losses = list(dict.fromkeys(row["loss"] for row in rows))
    of_losses = styles_of(losses, own={BASELINE: BASELINE_COLOUR, FULL: FULL_COLOUR})
    members: dict[str, list[str]] = {loss: [] for loss in losses}
    for row, label in zip(rows, series_labels(rows), strict=True):
        if label not in members[row["loss"]]:
            members[row["loss"]].append(label)
    styles: dict[str, Style] = {}
    for loss, names in members.items():
        red, green, blue = to_rgb(of_losses[loss].colour)
        for number, name in enumerate(names):
            pale = 0.55 * number / max(1, len(names) - 1)
            shade = (red + (1 - red) * pale, green + (1 - green) * pale, blue + (1 - blue) * pale)
            styles[name] = of_losses[loss]._replace(colour=to_hex(shade))
    return styles
