"""Small plots as inline SVG; the page's style gives them their colours, in light and in dark.

A series is told by its colour and by the shape of its marks. Whiskers are 95% intervals.

>>> picture = interval_panel("gsm8k", [Estimate("full", 0, 2.1, (1.9, 2.3))], end=2.5)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from jaxspec.evals.html_report.svg import element, ticks
from jaxspec.names import for_terminal

WIDTH = 340.0
"""Pixels; a panel is drawn smaller where there is less room."""
_LONGEST_NAME = 40
_LEFT, _RIGHT, _TOP, _BOTTOM = 36.0, 10.0, 8.0, 40.0
_LINE_HEIGHT = 30.0
_HEIGHT = 230.0
_RADIUS = 4.0
_SPREAD = 15.0
"""The most room between the marks that several lines have at one place."""

Interval = Sequence[float]
"""[low, high]."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its interval, in a panel of one line per series."""

    name: str
    style: int
    """Which colour and shape."""
    value: float
    interval: Interval | None = None
    text: str = ""
    """How the figure is written; "": with two decimals."""
    note: str = ""
    """Is shown when the pointer rests on it."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a line."""

    x: float
    y: float
    interval: Interval | None = None
    note: str = ""
    """Is shown when the pointer rests on it."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A series of points."""

    name: str
    style: int
    points: Sequence[Point]


def interval_panel(
    title: str,
    estimates: Sequence[Estimate],
    *,
    end: float,
    reference: float | None = None,
    unit: str = "",
) -> Markup:
    """One line for each series: its name and figure, and below them a mark with its whiskers.

    Args:
      title: what readers of the screen are told.
      estimates: from top to bottom.
      end: where the scale ends; it begins with 0.
      reference: where a dashed line is drawn.
      unit: of the scale.
    """
    height = _TOP + _LINE_HEIGHT * len(estimates) + 26.0
    bottom = height - 22.0
    across = _scale((0.0, end), (8.0, WIDTH - 14.0))
    parts = [
        element("line", x1=across(tick), x2=across(tick), y1=_TOP, y2=bottom, class_="grid")
        for tick in ticks(0.0, end)
    ]
    parts += [
        element("text", f"{tick:g}{unit}", x=across(tick), y=height - 8.0, text_anchor="middle")
        for tick in ticks(0.0, end)
    ]
    if reference is not None and reference <= end:
        place = across(reference)
        parts.append(element("line", x1=place, x2=place, y1=_TOP, y2=bottom, class_="reference"))
    for number, each in enumerate(estimates):
        top = _TOP + _LINE_HEIGHT * number
        name = for_terminal(each.name, longest=_LONGEST_NAME)
        parts += [
            element("text", name, x=8.0, y=top + 11.0, class_="name"),
            element(
                "text",
                each.text or f"{each.value:.2f}",
                x=WIDTH - 14.0,
                y=top + 11.0,
                text_anchor="end",
                class_="figure",
            ),
            _mark(across, each, top + 20.0),
        ]
    return _picture(title, height, parts)


def line_panel(
    title: str,
    lines: Sequence[Line],
    *,
    x: Interval,
    y: Interval,
    x_ticks: Sequence[tuple[float, str]],
    x_title: str,
    percent: bool = False,
    reference: float | None = None,
) -> Markup:
    """Lines with marks and whiskers.

    Args:
      title: what readers of the screen are told.
      lines: of points in order.
      x: first and last place of the horizontal scale.
      y: the same of the vertical scale.
      x_ticks: places, and what is written there.
      x_title: what the horizontal scale counts.
      percent: whether the vertical scale is written in percent.
      reference: where a dashed horizontal line is drawn.
    """
    right, bottom = WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    across, up = _scale(x, (_LEFT + 8.0, right - 8.0)), _scale(y, (bottom, _TOP))
    parts: list[Markup] = []
    for tick in ticks(*y):
        place = up(tick)
        text = f"{tick:.0%}" if percent else f"{tick:g}"
        parts += [
            element("line", x1=_LEFT, x2=right, y1=place, y2=place, class_="grid"),
            element("text", text, x=_LEFT - 5.0, y=place + 4.0, text_anchor="end"),
        ]
    for where, text in x_ticks:
        parts.append(element("text", text, x=across(where), y=bottom + 16.0, text_anchor="middle"))
    parts.append(
        element("text", x_title, x=(_LEFT + right) / 2, y=bottom + 34.0, text_anchor="middle")
    )
    if reference is not None and y[0] <= reference <= y[1]:
        place = up(reference)
        parts.append(element("line", x1=_LEFT, x2=right, y1=place, y2=place, class_="reference"))
    for number, line in enumerate(lines):
        # Side by side, so that the whiskers of several lines do not cover each other.
        shift = min(3.0, _SPREAD / len(lines)) * (number - (len(lines) - 1) / 2.0)
        places = [(across(point.x) + shift, up(point.y)) for point in line.points]
        drawn: list[Markup] = []
        if len(places) > 1:
            path = "M" + "L".join(f"{left:.1f} {down:.1f}" for left, down in places)
            drawn.append(element("path", d=path, class_="line"))
        for point, (left, down) in zip(line.points, places, strict=True):
            whisker = []
            if point.interval is not None:
                low, high = map(up, point.interval)
                whisker = [element("line", x1=left, x2=left, y1=low, y2=high, class_="whisker")]
            mark = shape(line.style, left, down)
            note = element("title", point.note or f"{point.y:.2f}")
            drawn.append(element("g", note, *whisker, mark))
        parts.append(element("g", *drawn, class_=tone(line.style)))
    return _picture(title, _HEIGHT, parts)


def legend_mark(style: int) -> Markup:
    """The mark of a series, to stand beside its name."""
    mark = element("g", shape(style, 9.0, 7.0), class_=tone(style))
    return element("svg", mark, class_="key", viewBox="0 0 18 14", aria_hidden="true")


def tone(style: int) -> str:
    """The class that the page's style colours: `TONES` of them, then from the first one again."""
    return f"tone-{style % TONES}"


TONES = 8
"""Colours that page.css has; as many shapes are in `shape`."""


def shape(style: int, x: float, y: float) -> Markup:
    """The mark of a series around a point; series of one colour have different shapes."""
    r = _RADIUS
    corners: tuple[tuple[float, float], ...]
    match (style + style // TONES) % TONES:
        case 0:
            return element("circle", cx=x, cy=y, r=r, class_="mark")
        case 1:
            corners = ((-r, -r), (r, -r), (r, r), (-r, r))
        case 2:
            corners = ((0.0, -1.4 * r), (1.3 * r, r), (-1.3 * r, r))
        case 3:
            corners = ((0.0, -1.5 * r), (1.5 * r, 0.0), (0.0, 1.5 * r), (-1.5 * r, 0.0))
        case 4:
            corners = ((0.0, 1.4 * r), (1.3 * r, -r), (-1.3 * r, -r))
        case 5:
            corners = ((-1.5 * r, -0.5 * r), (1.5 * r, -0.5 * r), (1.5 * r, 0.5 * r),
                       (-1.5 * r, 0.5 * r))  # fmt: skip
        case 6:
            corners = ((-0.5 * r, -1.5 * r), (0.5 * r, -1.5 * r), (0.5 * r, 1.5 * r),
                       (-0.5 * r, 1.5 * r))  # fmt: skip
        case _:
            corners = ((-1.4 * r, 0.0), (r, -1.3 * r), (r, 1.3 * r))
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return element("polygon", points=points, class_="mark")


def _mark(across: Callable[[float], float], each: Estimate, y: float) -> Markup:
    parts = [element("title", each.note or f"{each.name}: {each.value:.2f}")]
    if each.interval is not None:
        low, high = map(across, each.interval)
        parts.append(element("line", x1=low, x2=high, y1=y, y2=y, class_="whisker"))
        parts += [
            element("line", x1=end, x2=end, y1=y - 4.0, y2=y + 4.0, class_="whisker")
            for end in (low, high)
        ]
    parts.append(shape(each.style, across(each.value), y))
    return element("g", *parts, class_=tone(each.style))


def _scale(from_: Interval, to: Interval) -> Callable[[float], float]:
    """Maps one range to another; what lies outside is drawn at its edge."""
    (low, high), (start, end) = from_, to
    span = high - low

    def place(value: float) -> float:
        share = (value - low) / span if span > 0.0 else 0.5
        return start + (end - start) * min(1.0, max(0.0, share))

    return place


def _picture(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH:g} {math.ceil(height)}",
        role="img",
        aria_label=title,
        class_="panel",
    )
