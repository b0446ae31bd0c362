"""The main table of each result file, with the columns of `jaxspec.evals.columns`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxspec.evals.html_report.content import Cell, Heading, Section, Table
from jaxspec.evals.html_report.measured import Measured, mean_tau_interval
from jaxspec.evals.report import SEEDS_HEADER, seeds_lines
from jaxspec.evals.tables import Tabulated, formatted, tabulate

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")


def results_section(files: Sequence[Measured]) -> list[Section]:
    """A table for each file of one kind: gains and means belong to one evaluation."""
    tables = []
    for file in files:
        tables.append(_table(file, caption=file.name))
        tables += _over_seeds(file)
    return [Section("results", "Results", [], tables=tables)]


def _table(file: Measured, *, caption: str) -> Table:
    found = tabulate(file.rows)
    cells = [
        [
            _cell(text, is_figure=column.is_figure)
            for column, text in zip(found.columns, line, strict=True)
        ]
        for line in found.lines
    ]
    rows = len(file.rows)
    for number, line in enumerate(found.lines[rows:], rows):
        _add_interval(cells[number], line, found, file)
    return Table(
        caption,
        [Heading(column.title, is_figure=column.is_figure) for column in found.columns],
        cells[:rows],
        foot=cells[rows:],
        legend=" ".join(column.legend for column in found.columns if column.legend),
    )


def _over_seeds(file: Measured) -> list[Table]:
    lines = seeds_lines(file.rows)
    if not lines:
        return []
    names = len(SEEDS_HEADER) - 3  # The benchmark and the loss.
    headings = [
        Heading(title, is_figure=place >= names) for place, title in enumerate(SEEDS_HEADER)
    ]
    cells = [
        [_cell(text, is_figure=place >= names) for place, text in enumerate(line)] for line in lines
    ]
    caption = f"{file.name}: over seeds, mean (lowest to highest)"
    return [Table(caption, headings, cells)]


def _cell(text: str, *, is_figure: bool) -> Cell:
    number = _NUMBER.match(text) if is_figure else None
    return Cell(text, float(number.group()) if number else None)


def _add_interval(cells: list[Cell], line: list[str], found: Tabulated, file: Measured) -> None:
    """Adds the interval of tau to a line of means."""
    alike = [
        place
        for place, column in enumerate(found.columns)
        if place and (column.is_name or column.shown == "varies")
    ]
    members = [
        row
        for row, its_line in zip(file.rows, found.lines, strict=False)
        if all(its_line[place] == line[place] for place in alike)
    ]
    interval = mean_tau_interval(members)
    for place, column in enumerate(found.columns):
        if column.field == "tau_micro" and interval is not None:
            text = f"{cells[place].text} ({formatted(list(interval), column.spec)})"
            cells[place] = Cell(text, cells[place].value)
