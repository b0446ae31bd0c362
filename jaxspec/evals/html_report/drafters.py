"""The sections of a page about drafters: accepted length, speed, positions, lengths, exactness."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxspec.evals.html_report.content import (
    Cell,
    Fact,
    Figure,
    Heading,
    Key,
    Section,
    Table,
    figure_cell,
)
from jaxspec.evals.html_report.measured import (
    benchmarks_of,
    mean_tau_interval,
    on_all_benchmarks,
    series_of,
)
from jaxspec.evals.html_report.panels import Estimate, Line, Point, interval_panel, line_panel
from jaxspec.evals.html_report.speed import speed_fact, speed_section
from jaxspec.evals.intervals import FEWEST_ROUNDS, share_interval
from jaxspec.evals.lengths import by_prompt_length
from jaxspec.evals.results import BASELINE, Row, reached_rounds
from jaxspec.evals.tables import ABSENT, formatted

NAMES = (Heading("benchmark", is_figure=False), Heading("drafter", is_figure=False))
"""The first columns of most tables; "drafter" is the name of a series."""


def facts(rows: Sequence[Row]) -> list[Fact]:
    """The figures at the top: the largest accepted length, its gain, the speed, exactness."""
    groups = on_all_benchmarks(rows) or {
        row["series"]: [row] for row in rows if row["benchmark"] == rows[0]["benchmark"]
    }
    best = max(groups, key=lambda name: _mean(row["tau_micro"] for row in groups[name]))
    group = groups[best]
    tau = _mean(row["tau_micro"] for row in group)
    interval = mean_tau_interval(group) if len(group) > 1 else group[0]["tau_ci95"]
    where = group[0]["benchmark"] if len(group) == 1 else f"mean of {len(group)} benchmarks"
    note = f"{best}, {where}"
    if interval is not None:
        note += f", 95% interval {formatted(list(interval), '.2f')}"
    found = [Fact("tokens per round (tau)", f"{tau:.2f}", note)]
    gains = [row["gain"] for row in group if row["gain"] is not None]
    if gains:
        found.append(Fact("gain in tau", f"{_mean(gains):+.1f}%", f"{best} over {BASELINE}"))
    found.append(speed_fact(rows))
    compared = [row for row in rows if row["mismatched_prompts"] is not None]
    if compared:
        differ = sum(row["mismatched_prompts"] for row in compared)
        outputs = sum(map(responses_of, compared))
        found.append(
            Fact("outputs that differ", f"{differ:,}", f"of {outputs:,}, from the target's own")
        )
    return found


def sections(rows: Sequence[Row]) -> list[Section]:
    """The sections, in order.

    Args:
      rows: of one or more files, with `series` and `gain`.
    """
    return [
        _accepted_length(rows),
        speed_section(rows),
        _positions(rows),
        _context_lengths(rows),
        _prompt_lengths(rows),
        _exactness(rows),
    ]


def responses_of(row: Row) -> int:
    """How many responses a row rests on: several to a prompt with several turns."""
    return int(row.get("turns", row["prompts"]))


def keys_of(styles: Mapping[str, int]) -> list[Key]:
    """The legend of the plots."""
    return [Key(name, style) for name, style in styles.items()]


def _accepted_length(rows: Sequence[Row]) -> Section:
    styles, end = series_of(rows), 1.05 * _largest(rows, "tau_micro", "tau_ci95")
    figures = []
    for benchmark, members in benchmarks_of(rows).items():
        estimates = [
            Estimate(
                row["series"],
                styles[row["series"]],
                row["tau_micro"],
                row["tau_ci95"],
                note=f"{row['series']}: {_with_interval(row['tau_micro'], row['tau_ci95'])}, "
                f"{row['rounds']:,} rounds",
            )
            for row in members
        ]
        title = f"{benchmark}, {_prompts(members)}"
        picture = interval_panel(f"tau on {benchmark}", estimates, end=end, reference=1.0)
        figures.append(Figure(title, picture))
    if means := on_all_benchmarks(rows):
        estimates = []
        for name, group in means.items():
            tau, interval = _mean(row["tau_micro"] for row in group), mean_tau_interval(group)
            note = f"{name}: {_with_interval(tau, interval)}"
            estimates.append(Estimate(name, styles[name], tau, interval, note=note))
        picture = interval_panel("Mean tau", estimates, end=end, reference=1.0)
        figures.append(Figure("mean of the benchmarks", picture))
    return Section(
        "tau",
        "Accepted length",
        [
            "tau is the number of tokens that a round of drafting and verifying adds, the target's "
            "own token included. Without drafting it is 1 (dashed). Whiskers are 95% intervals "
            "over prompts."
        ],
        keys=keys_of(styles),
        figures=figures,
    )


def _positions(rows: Sequence[Row]) -> Section:
    styles, slots = series_of(rows), max(len(row["accept_at"]) for row in rows)
    every = max(1, math.ceil(slots / 12))
    figures = []
    for benchmark, members in benchmarks_of(rows).items():
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
        lines_of_table.append([*_names(row), *cells])
    headings = [*NAMES, *(Heading(str(slot)) for slot in range(1, slots + 1))]
    return Section(
        "positions",
        "Acceptance by position",
        [
            "The share of rounds that accept a slot of the draft, of those that accepted all slots "
            "before it. Slot 1 follows the last token of the text. Slots that fewer than "
            f"{FEWEST_ROUNDS} rounds reached are in the table only."
        ],
        keys=keys_of(styles),
        figures=figures,
        tables=[
            Table("Share accepted, and the rounds that reached the slot", headings, lines_of_table)
        ],
    )


def _slot_points(row: Row) -> Any:
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


def _context_lengths(rows: Sequence[Row]) -> Section:
    return _lengths(
        rows,
        lambda row: row.get("by_context", []),
        id="context",
        title="By context length",
        what="The context is everything that a round has read when it begins: the prompt and the "
        "answer so far.",
        missing="how long the text was in each round",
    )


def _prompt_lengths(rows: Sequence[Row]) -> Section:
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
    styles = series_of(rows)
    shown = {
        number: [each for each in bins if each["rounds"] >= FEWEST_ROUNDS]
        for number, (_, bins) in enumerate(records)
    }
    known = [each for bins in shown.values() for each in bins]
    figures = []
    if known:
        top = 1.05 * max(max(_tau(each), *(each["tau_ci95"] or [0.0])) for each in known)
        edges = sorted({each["tokens_from"] for each in known})
        for benchmark in benchmarks_of(rows):
            lines = [
                Line(row["series"], styles[row["series"]], [_bin_point(row, b) for b in shown[n]])
                for n, (row, _) in enumerate(records)
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
            *_names(row),
            Cell(_range_of(each), float(each["tokens_from"])),
            Cell(f"{each['responses']:,}", each["responses"]),
            Cell(f"{each['rounds']:,}", each["rounds"]),
            figure_cell(_tau(each), ".2f", interval=each["tau_ci95"]),
        ]
        for row, bins in records
        for each in bins
    ]
    headings = [*NAMES, *map(Heading, ("tokens", "responses", "rounds", "tau (95%)"))]
    return Section(
        id,
        title,
        [
            f"{what} A mark stands for all lengths from its own to the next; lengths with fewer "
            f"than {FEWEST_ROUNDS} rounds are in the table only."
        ],
        keys=keys_of(styles),
        figures=figures,
        tables=[Table(f"tau {title.lower()}", headings, lines_of_table)],
    )


def _tau(record: Mapping[str, Any]) -> float:
    return float(record["tokens"] / record["rounds"])


def _bin_point(row: Row, record: Mapping[str, Any]) -> Point:
    note = (
        f"{row['series']}, {_range_of(record)} tokens: "
        f"{_with_interval(_tau(record), record['tau_ci95'])}, {record['rounds']:,} rounds, "
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


def _exactness(rows: Sequence[Row]) -> Section:
    compared = [row for row in rows if row["mismatched_prompts"] is not None]
    lines = []
    for row in compared:
        differ, responses = row["mismatched_prompts"], responses_of(row)
        share = differ / responses if responses else None
        outcomes = [1] * min(differ, responses) + [0] * max(0, responses - differ)
        interval = share_interval(outcomes, [1] * responses) if responses else None
        lines.append(
            [
                *_names(row),
                Cell(f"{responses:,}", responses),
                Cell(f"{differ:,}", differ),
                figure_cell(share, ".1%", interval=interval),
                figure_cell(row.get("mismatch_gap"), ".2g"),
            ]
        )
    paragraphs = []
    if compared:
        paragraphs.append(
            "Greedy outputs have to be the target's own, token by token. Where rounding in a short "
            "number format turns a tie around, they may differ; the gap is how far the emitted "
            "token's logit is below the target's best where they first differ, at most."
        )
    if len(compared) < len(rows):
        paragraphs.append(
            f"{len(rows) - len(compared)} of {len(rows)} rows are sampled: their outputs differ by "
            "nature and are not compared."
        )
    names = ("responses", "differ", "share (95%)", "gap")
    headings = [*NAMES, *map(Heading, names)]
    tables = [Table("Outputs that differ from the target's own", headings, lines)]
    return Section("exactness", "Exactness", paragraphs, tables=tables if lines else [])


def _names(row: Row) -> list[Cell]:
    return [Cell(row["benchmark"]), Cell(row["series"])]


def _prompts(rows: Sequence[Row]) -> str:
    fewest, most = min(row["prompts"] for row in rows), max(row["prompts"] for row in rows)
    return f"{most:,} prompts" if fewest == most else f"{fewest:,} to {most:,} prompts"


def _with_interval(value: float, interval: Sequence[float] | None) -> str:
    return figure_cell(value, ".2f", interval=interval).text


def _largest(rows: Sequence[Row], field: str, interval: str) -> float:
    return max(max(row[field], *(row.get(interval) or [0.0])) for row in rows)


def _mean(values: Any) -> float:
    found = list(values)
    return math.fsum(found) / len(found)
