"""What a page is made of: sections with paragraphs, plots and tables. The template shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from jaxspec.evals.html_report.panels import legend_mark
from jaxspec.evals.results import Row
from jaxspec.evals.tables import formatted


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    value: float | None = None
    """What a column of figures is sorted by; None comes last."""


@dataclasses.dataclass(frozen=True)
class Heading:
    """The head of a column."""

    title: str
    is_figure: bool = True
    """Whether it is aligned to the right and sorted by `Cell.value`; otherwise by its text."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that can be sorted; the lines of `foot` stay below the others."""

    caption: str
    headings: Sequence[Heading]
    lines: Sequence[Sequence[Cell]]
    _: dataclasses.KW_ONLY
    foot: Sequence[Sequence[Cell]] = ()
    legend: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot with its title."""

    title: str
    picture: Markup


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    name: str
    style: int

    @property
    def mark(self) -> Markup:
        """Its colour and shape."""
        return legend_mark(self.style)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page, with a heading that the contents lead to."""

    id: str
    title: str
    paragraphs: Sequence[str]
    _: dataclasses.KW_ONLY
    keys: Sequence[Key] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@dataclasses.dataclass(frozen=True)
class Fact:
    """A figure at the top of the page."""

    name: str
    figure: str
    note: str


def keys_of(styles: Mapping[str, int]) -> list[Key]:
    """The legend of plots.

    Args:
      styles: of each series.
    """
    return [Key(name, style) for name, style in styles.items()]


def name_headings(second: str) -> list[Heading]:
    """The first columns of most tables; the second one names the series."""
    return [Heading("benchmark", is_figure=False), Heading(second, is_figure=False)]


def name_cells(row: Row) -> list[Cell]:
    """What stands in these columns."""
    return [Cell(row["benchmark"]), Cell(row["series"])]


def figure_text(
    value: float | None, spec: str, *, interval: Sequence[float] | None = None, unit: str = ""
) -> str:
    """A number, and its interval if there is one."""
    text = formatted(value, spec, unit=unit)
    return text if interval is None else f"{text} ({formatted(list(interval), spec)})"


def figure_cell(
    value: float | None, spec: str, *, interval: Sequence[float] | None = None, unit: str = ""
) -> Cell:
    """The same as a cell."""
    text = figure_text(value, spec, interval=interval, unit=unit)
    return Cell(text, None if value is None else float(value))
