"""Curves of training runs, from their metrics.jsonl, in one plot.

>>> plot_curves([curve_of(Path("runs/full"), label="full")], "curves.svg")     # doctest: +SKIP
PosixPath('curves.svg')
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jaxspec.evals.results import BASELINE, FULL
from jaxspec.names import for_plot
from jaxspec.plot_style import (
    BASELINE_COLOUR,
    FULL_COLOUR,
    TEXT,
    frame,
    legend_columns,
    save,
    styles_of,
)
from jaxspec.training.metrics import rows_of

MEASURES = {
    "accepted": "simulated accepted drafts per block",
    "loss": "loss",
}
"""Metrics that are drawn -> how they are called; the first that all runs have."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """What a run measured while it trained."""

    label: str
    steps: tuple[int, ...]
    values: dict[str, tuple[float | None, ...]]
    """By name of the metric, as many as there are steps."""


def curve_of(workdir: Path, *, label: str) -> Curve:
    """The curve of a run."""
    rows = rows_of(workdir)
    return Curve(
        label,
        tuple(row["step"] for row in rows),
        {name: tuple(row.get(name) for row in rows) for name in MEASURES},
    )


def shared_measure(curves: Sequence[Curve]) -> str:
    """The first of `MEASURES` that all runs have values of; the last if there is none."""
    for measure in MEASURES:
        if all(any(value is not None for value in curve.values[measure]) for curve in curves):
            break
    return measure


def plot_curves(curves: Sequence[Curve], path: str | os.PathLike[str], *, origin: str = "") -> Path:
    """One line per run; runs of one label have one colour and one kind of line.

    Args:
      curves: at least one, each with a step.
      path: a PNG or SVG file.
      origin: where the figures come from, as `jaxspec.plot_style.save` takes it.

    Raises:
      ValueError: nothing to draw, or a file of another format.
    """
    if not curves:
        raise ValueError("There is nothing to plot: no run has written a line of metrics yet.")
    measure = shared_measure(curves)
    labels = list(dict.fromkeys(curve.label for curve in curves))
    styles = styles_of(labels, own={BASELINE: BASELINE_COLOUR, FULL: FULL_COLOUR})
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes = figure.add_subplot()
    seen: set[str] = set()
    for curve in curves:
        points = [
            (step, value)
            for step, value in zip(curve.steps, curve.values[measure], strict=True)
            if value is not None
        ]
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=styles[curve.label].colour,
            linestyle=styles[curve.label].line,
            linewidth=1.3,
            label=None if curve.label in seen else for_plot(curve.label),
        )
        seen.add(curve.label)
    axes.set_xlabel("step", fontsize=9, color=TEXT)
    axes.set_ylabel(MEASURES[measure], fontsize=9, color=TEXT)
    frame(axes)
    figure.legend(
        loc="outside lower center", ncols=legend_columns(labels, figure), frameon=False, fontsize=9
    )
    return save(figure, path, origin=origin)
