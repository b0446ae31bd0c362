"""The sections about lengths: tau by the length of the context, and of the prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxspec.evals.html_report.content import (
    Cell,
    Figure,
    Heading,
    Section,
    Table,
    figure_cell,
    figure_text,
    keys_of,
    name_cells,
    name_headings,
)
from jaxspec.evals.html_report.measured import benchmarks_of
from jaxspec.evals.html_report.panels import Line, Point, line_panel
from jaxspec.evals.html_report.series import first_seeds, seeds_note, series_of
from jaxspec.evals.intervals import FEWEST_ROUNDS
from jaxspec.evals.lengths import by_prompt_length
from jaxspec.evals.results import Row


def context_section(rows: Sequence[Row]) -> Section:
    """By the length of everything that a round has read."""
    return _lengths(
        rows,
        lambda row: row.get("by_context", []),
        id="context",
        title="By context length",
        what="The context is everything that a round has read when it begins: the prompt and the "
        "answer so far.",
        missing="how long the text was in each round",
    )


def prompts_section(rows: Sequence[Row]) -> Section:
    """By the length of the prompt."""
    return _lengths(
        rows,
        lambda row: by_prompt_length(row.get("by_prompt", []), seed=0),
        id="prompts",
        title="By prompt length",
        what="The same figures by the number of tokens in the prompt.",
        missing="the length of each prompt",
    )


def _lengths(
    rows: Sequence[Row],
    records_of: Callable[[Row], Sequence[Mapping[str, Any]]],
    *,
    id: str,
    title: str,
    what: str,
    missing: str,
) -> Section:
    """Tau by a length, of which a row has records in bins (`jaxspec.evals.lengths`)."""
    records = [(row, list(records_of(row))) for row in rows]
    if not any(bins for _, bins in records):
        text = f"The file does not say {missing}: measure again with this version of jaxspec."
        return Section(id, title, [text])
    drawn = first_seeds(rows)
    styles = series_of(drawn)
    shown = [
        (row, [each for each in bins if each["rounds"] >= FEWEST_ROUNDS])
        for row, bins in records
        if row["series"] in styles
    ]
    known = [each for _, bins in shown for each in bins]
    figures = []
    if known:
        top = 1.05 * max(max(_tau(each), *(each["tau_ci95"] or [0.0])) for each in known)
        edges = sorted({each["tokens_from"] for each in known})
        for benchmark in benchmarks_of(drawn):
            lines = [
                Line(row["series"], styles[row["series"]], [_bin_point(row, b) for b in bins])
                for row, bins in shown
                if row["benchmark"] == benchmark
            ]
            picture = line_panel(
                f"tau {title.lower()} on {benchmark}",
                lines,
                x=(_place(edges[0]), max(_place(edges[-1]), _place(edges[0]) + 1.0)),
                y=(0.0, top),
                x_ticks=_length_ticks(edges),
                x_title="tokens",
                reference=1.0,
            )
            figures.append(Figure(benchmark, picture))
    lines_of_table = [
        [
            *name_cells(row),
            Cell(_range_of(each), float(each["tokens_from"])),
            Cell(f"{each['responses']:,}", each["responses"]),
            Cell(f"{each['rounds']:,}", each["rounds"]),
            figure_cell(_tau(each), ".2f", interval=each["tau_ci95"]),
        ]
        for row, bins in records
        for each in bins
    ]
    names = ("tokens", "responses", "rounds", "tau (95%)")
    headings = [*name_headings("drafter"), *map(Heading, names)]
    return Section(
        id,
        title,
        [
            f"{what} A mark stands for all lengths from its own to the next; lengths with fewer "
            f"than {FEWEST_ROUNDS} rounds are in the table only.",
            *seeds_note(rows),
        ],
        keys=keys_of(styles),
        figures=figures,
        tables=[Table(f"tau {title.lower()}", headings, lines_of_table)],
    )


def _tau(record: Mapping[str, Any]) -> float:
    return float(record["tokens"] / record["rounds"])


def _bin_point(row: Row, record: Mapping[str, Any]) -> Point:
    tau = figure_text(_tau(record), ".2f", interval=record["tau_ci95"])
    note = (
        f"{row['series']}, {_range_of(record)} tokens: {tau}, {record['rounds']:,} rounds, "
        f"{record['responses']:,} responses"
    )
    return Point(_place(record["tokens_from"]), _tau(record), record["tau_ci95"], note)


def _range_of(record: Mapping[str, Any]) -> str:
    return f"{record['tokens_from']:,} to {record['tokens_below'] - 1:,}"


def _place(tokens: int) -> float:
    return math.log2(max(8, tokens))


def _length_ticks(edges: Sequence[int]) -> list[tuple[float, str]]:
    """At most seven lengths, evenly picked."""
    every = max(1, math.ceil(len(edges) / 7))
    return [(_place(edge), f"{edge:,}") for edge in edges[::every]]
