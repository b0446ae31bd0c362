"""Result rows as tables: in Markdown, and on a terminal. `columns` defines the columns.

>>> print(markdown_table(rows))                                                # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import statistics
import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxspec.evals.columns import DIFFUSION, SPECULATIVE, Column
from jaxspec.evals.results import FULL, Row, gains, is_diffusion, labels, ordered, varies
from jaxspec.names import for_markdown, for_terminal

ABSENT = "–"
_LEGEND_WIDTH = 100
_OVER: dict[str, Callable[[Sequence[Any]], Any]] = {
    "sum": sum,
    "max": max,
    "mean": statistics.fmean,
}


@dataclasses.dataclass(frozen=True)
class Tabulated:
    """Cells of a table, and the columns that they belong to."""

    columns: tuple[Column[Any], ...]
    lines: list[list[str]]


def tabulate(results: Sequence[Row]) -> Tabulated:
    """One line per row; of drafters also the mean over benchmarks of each loss.

    Settings that all rows share are left out, and so are figures that no row has.
    """
    diffusion = any(map(is_diffusion, results))
    rows = list(results) if diffusion else _compared(results)
    columns = _shown(DIFFUSION if diffusion else SPECULATIVE, rows)
    lines = [[_cell(column, [row]) for column in columns] for row in rows]
    return Tabulated(columns, lines if diffusion else lines + _means(columns, rows))


def settings_columns(results: Sequence[Row]) -> list[Column[Any]]:
    """Settings in which rows of drafters differ."""
    return [
        column for column in SPECULATIVE if column.shown == "varies" and _differ(column, results)
    ]


def series_labels(rows: Sequence[Row]) -> list[str]:
    """Name of each row in a plot: `labels`, with the settings that rows of this name differ in."""
    groups: dict[str, list[Row]] = {}
    named = labels(rows)
    for row, label in zip(rows, named, strict=True):
        groups.setdefault(label, []).append(row)
    settings = {label: settings_columns(members) for label, members in groups.items()}
    return [
        ", ".join([label, *(f"{c.title} {formatted(row[c.field])}" for c in settings[label])])
        for row, label in zip(rows, named, strict=True)
    ]


def markdown_table(results: Sequence[Row]) -> str:
    """The table as Markdown, with the meaning of its columns under it."""
    found = tabulate(results)
    header = [column.title for column in found.columns]
    # Diffusion rows have always been aligned to the left.
    names = len(header) if any(map(is_diffusion, results)) else 2
    legend = " ".join(column.legend for column in found.columns if column.legend)
    wrapped = textwrap.fill(legend, _LEGEND_WIDTH, break_long_words=False, break_on_hyphens=False)
    return f"{markdown(header, found.lines, names=names)}\n\n{wrapped}\n"


def console_table(results: Sequence[Row]) -> Table:
    """The same table for a terminal; a benchmark is named once."""
    found = tabulate(results)
    places = [place for place, column in enumerate(found.columns) if column.on_terminal]
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for place in places:
        column = found.columns[place]
        table.add_column(
            column.short or column.title,
            justify="right" if column.is_figure else "left",
            no_wrap=column.is_figure,
            overflow="ellipsis" if column.is_figure else "fold",
        )
    previous = ""
    are_groups = len({line[0] for line in found.lines}) < len(found.lines)
    for line in found.lines:
        benchmark, name, *_ = line
        if previous and benchmark != previous and are_groups:
            table.add_row()
        shown = ["" if place == 0 and benchmark == previous else line[place] for place in places]
        is_full = name == FULL or name.startswith(f"{FULL} (")
        # As Text, so that brackets in names are not markup.
        table.add_row(
            *(Text(for_terminal(cell)) for cell in shown), style="bold" if is_full else None
        )
        previous = benchmark
    return table


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], *, names: int = 2) -> str:
    """A table in Markdown, whose first `names` columns are aligned to the left.

    The header is Markdown; the cells of the lines are plain text.
    """
    rule = ["---"] * names + ["---:"] * (len(header) - names)
    cells = [list(map(for_markdown, line)) for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *cells))


def formatted(value: Any, spec: str = "", *, unit: str = "") -> str:
    """A value as the text of a cell: a number by its format, [low, high] as an interval."""
    if value is None:
        return ABSENT
    if isinstance(value, list | tuple):
        return "–".join(f"{bound:{spec}}" for bound in value) + unit
    if not spec:
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"{value:{spec}}{unit}"


def range_text(values: Collection[float], spec: str, *, unit: str = "") -> str:
    """The mean of several figures, such as those of the seeds, with the lowest and the highest.

    >>> range_text([1.0, 2.0, 6.0], ".1f")
    '3.0 (1.0 to 6.0)'
    """
    if not values:
        return ABSENT
    mean = statistics.fmean(values)
    return f"{mean:{spec}}{unit} ({min(values):{spec}} to {max(values):{spec}}{unit})"


def _compared(results: Sequence[Row]) -> list[Row]:
    """Rows of drafters in order, with what depends on the other rows."""
    rows = ordered(results)
    compared = zip(rows, labels(rows), gains(rows), strict=True)
    return [{**row, "label": label, "gain": gain} for row, label, gain in compared]


def _shown(columns: Sequence[Column[Any]], rows: Sequence[Row]) -> tuple[Column[Any], ...]:
    return tuple(
        column
        for column in columns
        if column.shown == "always"
        or (column.shown == "varies" and _differ(column, rows))
        or (column.shown == "known" and any(row.get(column.field) is not None for row in rows))
    )


def _differ(column: Column[Any], rows: Sequence[Row]) -> bool:
    return varies(rows, column.field)


def _means(columns: Sequence[Column[Any]], rows: Sequence[Row]) -> list[list[str]]:
    """The mean over benchmarks of what is called the same and was measured alike."""
    alike = [column for column in columns if column.is_name or column.shown == "varies"][1:]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_cell(column, [row]) for column in alike), []).append(row)
    benchmarks = {row["benchmark"] for row in rows}
    # A mean over other benchmarks than its neighbours' would mislead.
    if len(benchmarks) < 2:
        return []
    return [
        ["mean", *(_cell(column, group) for column in columns[1:])]
        for group in groups.values()
        if {row["benchmark"] for row in group} == benchmarks
    ]


def _cell(column: Column[Any], rows: Sequence[Row]) -> str:
    """The figure of one row, or of several, combined as the column says."""
    known = [row[column.field] for row in rows if row.get(column.field) is not None]
    if not known:
        return ABSENT
    value = known[0]
    if len(rows) > 1 and column.spec:  # Text is the same in all of them.
        if isinstance(value, list | tuple):
            return ABSENT  # An interval cannot be averaged.
        value = _OVER[column.over](known)
    text = formatted(value, column.spec, unit=column.unit)
    if column.interval and len(rows) == 1 and rows[0].get(column.interval) is not None:
        text += f" ({formatted(rows[0][column.interval], column.spec)})"
    return text
