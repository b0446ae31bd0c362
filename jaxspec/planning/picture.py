"""A picture of a plan: the memory of a device by kind, and the time of a step by what takes it.

>>> plot_plan(plan, "plan.svg")                                                # doctest: +SKIP
PosixPath('plan.svg')
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxspec.names import for_plot
from jaxspec.planning.step import StepPlan
from jaxspec.plot_style import TEXT, picture_format, save

# Told apart with any colour vision, and by lightness in print: as in the plots of an evaluation.
_COLOURS = ("#1d4e89", "#c2410c", "#3a9188", "#8c8c8c", "#b08d1e", "#7b4b94", "#5aa9e6")


def plot_plan(plan: StepPlan, path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Memory by kind against the chip's, and the roofline's terms.

    Args:
      plan: of a chip whose figures are known, or only its memory is drawn.
      path: a PNG or SVG file.
      title: what was planned.

    Raises:
      ValueError: a file of another format.
    """
    picture_format(path)
    roofline = plan.roofline
    panels = 1 if roofline is None else 2
    figure = Figure(figsize=(7.5, 1.3 + 1.5 * panels), layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False).flatten()
    _draw_memory(axes[0], plan)
    if roofline is not None:
        _draw_times(axes[1], roofline.terms, roofline.binding)
    figure.suptitle(
        for_plot(f"{title} on {plan.name}".strip()), x=0.01, ha="left", fontsize=11, color=TEXT
    )
    return save(figure, path)


def _draw_memory(axes: Axes, plan: StepPlan) -> None:
    left = 0.0
    for (name, size), colour in zip(plan.memory.items(), _COLOURS, strict=False):
        gib = size / 2**30
        axes.barh(0, gib, left=left, height=0.6, color=colour, label=f"{name} {gib:,.1f}")
        left += gib
    if plan.available_bytes is not None:
        available = plan.available_bytes / 2**30
        axes.axvline(available, color=TEXT, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"available {available:,.0f}",
            (available, 0.42),
            xytext=(-3, 0),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=TEXT,
        )
        axes.set_xlim(0, 1.05 * max(left, available))
    axes.set_ylim(-0.5, 0.6)
    _frame(axes, "memory of a device (GiB)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55), ncols=4, frameon=False, fontsize=8)


def _draw_times(axes: Axes, terms: Mapping[str, float], binding: str) -> None:
    for row, (name, seconds) in enumerate(reversed(list(terms.items()))):
        colour = _COLOURS[1] if name == binding else _COLOURS[3]
        axes.barh(row, seconds, height=0.6, color=colour)
        axes.annotate(
            f"{name} {seconds:.3g} s",
            (seconds, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=TEXT,
        )
    axes.set_xlim(0, 1.3 * max(*terms.values(), 1e-12))
    _frame(axes, "least time of a step (s)")


def _frame(axes: Axes, label: str) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_yticks([])
    axes.set_xlabel(label, fontsize=9, color=TEXT)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT, labelsize=8)
