"""How plots look, and how they are written: colours, frames, legends, files.

>>> picture_format("runs/curves.svg")
'svg'
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxspec.files import replaced_file
from jaxspec.paths import user_path

FORMATS = ("png", "svg")
BASELINE_COLOUR = "#8c8c8c"
FULL_COLOUR = "#c2410c"
# Told apart with any colour vision, and by lightness in print.
COLOURS = ("#1d4e89", "#3a9188", "#b08d1e", "#7b4b94", "#5aa9e6", "#3d3d3d", "#d87ca6", "#6b8e23")
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
HATCHES = ("", "///", "...", "xxx")
TEXT = "#333333"


def picture_format(path: str | os.PathLike[str]) -> str:
    """The format that a file's name asks for.

    Raises:
      ValueError: neither PNG nor SVG.
    """
    kind = Path(path).suffix[1:].casefold()
    if kind not in FORMATS:
        raise ValueError(f"A picture is a file that ends in .png or .svg: got {os.fspath(path)!r}.")
    return kind


class Style(NamedTuple):
    """How a series is drawn."""

    colour: str
    marker: str
    line: str
    hatch: str


def styles_of(names: Sequence[str], *, own: Mapping[str, str]) -> dict[str, Style]:
    """The style of each series. Those that share a colour differ in the rest.

    Args:
      names: of the series, each once.
      own: series with a colour of their own, and the colour.
    """
    others = [name for name in names if name not in own]
    styles = {}
    for place, name in enumerate(names):
        number = 0 if name in own else others.index(name)
        turn = number // len(COLOURS)
        styles[name] = Style(
            own.get(name, COLOURS[number % len(COLOURS)]),
            MARKERS[(place + turn) % len(MARKERS)],
            LINES[turn % len(LINES)],
            HATCHES[turn % len(HATCHES)],
        )
    return styles


def legend_columns(series: Sequence[str], figure: Figure) -> int:
    """As many legend entries side by side as the figure is wide."""
    entry_inches = 0.6 + 0.085 * max(map(len, series))
    return max(1, min(len(series), int(figure.get_figwidth() / entry_inches)))


def frame(axes: Axes) -> None:
    """Two sides of a frame, and lines across."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT, labelsize=9)


def save(figure: Figure, path: str | os.PathLike[str], *, origin: str = "") -> Path:
    """Writes a PNG or SVG file. Equal figures of one origin give equal files.

    Args:
      figure: what is drawn.
      path: the file.
      origin: where the figures come from; the file carries it as its description.
    """
    kind = picture_format(path)
    # Without dates, versions and drawn ids.
    left_out = ("Software",) if kind == "png" else ("Date", "Creator")
    metadata: dict[str, str | None] = dict.fromkeys(left_out)
    if origin:
        metadata["Description"] = origin
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "jaxspec"}):
        figure.savefig(content, dpi=150, format=kind, metadata=metadata)
    with replaced_file(path) as temporary:
        temporary.write_bytes(content.getvalue())
    return user_path(path)
