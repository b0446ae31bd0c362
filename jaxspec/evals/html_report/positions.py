"""The section about positions: how often each slot of the draft is accepted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from jaxspec.evals.html_report.content import (
    Cell,
    Figure,
    Heading,
    Section,
    Table,
    keys_of,
    name_cells,
    name_headings,
)
from jaxspec.evals.html_report.measured import benchmarks_of
from jaxspec.evals.html_report.panels import Line, Point, line_panel
from jaxspec.evals.html_report.series import first_seeds, seeds_note, series_of
from jaxspec.evals.intervals import FEWEST_ROUNDS
from jaxspec.evals.results import Row, reached_rounds
from jaxspec.evals.tables import ABSENT


def positions_section(rows: Sequence[Row]) -> Section:
    """A panel for each benchmark, and a table of the shares with their counts."""
    drawn = first_seeds(rows)
    styles, slots = series_of(drawn), max(len(row["accept_at"]) for row in rows)
    every = max(1, math.ceil(slots / 12))
    figures = []
    for benchmark, members in benchmarks_of(drawn).items():
        lines = [
            Line(row["series"], styles[row["series"]], list(_slot_points(row))) for row in members
        ]
        picture = line_panel(
            f"Acceptance by position on {benchmark}",
            lines,
            x=(1.0, float(slots)),
            y=(0.0, 1.0),
            x_ticks=[(float(slot), str(slot)) for slot in range(1, slots + 1, every)],
            x_title="slot of the draft",
            percent=True,
        )
        figures.append(Figure(benchmark, picture))
    lines_of_table = []
    for row in rows:
        cells = [
            _share_cell(share, rounds)
            for share, rounds in zip(row["accept_at"], reached_rounds(row), strict=True)
        ]
        cells += [Cell(ABSENT)] * (slots - len(cells))
        lines_of_table.append([*name_cells(row), *cells])
    headings = [*name_headings("drafter"), *(Heading(str(slot)) for slot in range(1, slots + 1))]
    return Section(
        "positions",
        "Acceptance by position",
        [
            "The share of rounds that accept a slot of the draft, of those that accepted all slots "
            "before it. Slot 1 follows the last token of the text. Slots that fewer than "
            f"{FEWEST_ROUNDS} rounds reached are in the table only.",
            *seeds_note(rows),
        ],
        keys=keys_of(styles),
        figures=figures,
        tables=[
            Table("Share accepted, and the rounds that reached the slot", headings, lines_of_table)
        ],
    )


def _slot_points(row: Row) -> Iterator[Point]:
    intervals = row.get("accept_at_intervals") or [None] * len(row["accept_at"])
    figures = zip(row["accept_at"], reached_rounds(row), intervals, strict=True)
    for slot, (share, rounds, interval) in enumerate(figures, 1):
        if share is not None and rounds >= FEWEST_ROUNDS:
            note = f"{row['series']}, slot {slot}: {share:.0%}"
            if interval is not None:
                note += f" ({interval[0]:.0%} to {interval[1]:.0%})"
            yield Point(float(slot), share, interval, f"{note} of {rounds:,} rounds")


def _share_cell(share: float | None, rounds: int) -> Cell:
    return Cell(ABSENT) if share is None else Cell(f"{share:.0%} of {rounds:,}", share)
