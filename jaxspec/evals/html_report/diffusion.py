"""The sections of a page about decoders of a diffusion language model: passes, depth, speed."""

from __future__ import annotations

from collections.abc import Sequence

from jaxspec.evals.html_report.content import (
    Cell,
    Fact,
    Figure,
    Heading,
    Section,
    Table,
    figure_cell,
    keys_of,
    name_cells,
    name_headings,
)
from jaxspec.evals.html_report.measured import benchmarks_of
from jaxspec.evals.html_report.panels import Estimate, Line, Point, interval_panel, line_panel
from jaxspec.evals.html_report.series import series_of
from jaxspec.evals.html_report.speed import speed_fact
from jaxspec.evals.intervals import FEWEST_ROUNDS
from jaxspec.evals.report import drafted_passes
from jaxspec.evals.results import Row
from jaxspec.evals.tables import ABSENT


def facts(rows: Sequence[Row]) -> list[Fact]:
    """The figures at the top."""
    best = max(rows, key=lambda row: float(row["nfe_reduction"]))
    where = f"{best['series']} on {best['benchmark']}"
    found = [Fact("fewer passes", f"{best['nfe_reduction']:.2f}x", where)]
    drafted = [row for row in rows if row["drafts_per_pass"]]
    found.append(speed_fact(drafted))
    # Without drafts a decoder is the base decoder, and is compared with itself.
    if drafted:
        identical, responses = (
            sum(row[field] for row in drafted) for field in ("identical", "turns")
        )
        found.append(
            Fact("identical outputs", f"{identical:,}", f"of {responses:,}, to the base decoder's")
        )
    return found


def sections(rows: Sequence[Row]) -> list[Section]:
    """The sections, in order.

    Args:
      rows: of one or more files, with `series`.
    """
    return [_passes(rows), _depths(rows), _speed(rows)]


def _passes(rows: Sequence[Row]) -> Section:
    styles = series_of(rows)
    tops = [max(row["nfe_reduction"], *(row.get("nfe_reduction_ci95") or [0.0])) for row in rows]
    figures = []
    for benchmark, members in benchmarks_of(rows).items():
        estimates = [
            Estimate(
                row["series"],
                styles[row["series"]],
                row["nfe_reduction"],
                row.get("nfe_reduction_ci95"),
                text=f"{row['nfe_reduction']:.2f}x",
                note=f"{row['series']}: {row['nfe_per_response']:.1f} passes per response",
            )
            for row in members
        ]
        picture = interval_panel(
            f"Fewer passes on {benchmark}",
            estimates,
            end=1.05 * max(1.0, *tops),
            reference=1.0,
            unit="x",
        )
        figures.append(Figure(f"{benchmark}, {members[0]['turns']:,} responses", picture))
    return Section(
        "passes",
        "Fewer passes",
        [
            "Forward passes of the base decoder, divided by those of a decoder with drafts. "
            "Whiskers are 95% intervals over prompts."
        ],
        keys=keys_of(styles),
        figures=figures,
    )


def _depths(rows: Sequence[Row]) -> Section:
    drafted = [row for row in rows if row["drafts_per_pass"]]
    title = "Accepted depth by block"
    if not drafted:
        return Section("depth", title, ["No decoder drafted anything."])
    styles = series_of(rows)
    blocks = max(len(row["accepted_depth_by_block"]) for row in drafted)
    found = [
        list(zip(row["accepted_depth_by_block"], drafted_passes(row), strict=True))
        for row in drafted
    ]
    known = [depth for pairs in found for depth, _ in pairs if depth is not None]
    top = 1.05 * max([1.0, *known])
    figures = []
    for benchmark in benchmarks_of(drafted):
        lines = [
            Line(
                row["series"],
                styles[row["series"]],
                [
                    _point(row, block, depth, passes)
                    for block, (depth, passes) in enumerate(pairs, 1)
                    if depth is not None and passes >= FEWEST_ROUNDS
                ],
            )
            for row, pairs in zip(drafted, found, strict=True)
            if row["benchmark"] == benchmark
        ]
        picture = line_panel(
            f"Accepted depth on {benchmark}",
            lines,
            x=(1.0, float(max(2, blocks))),
            y=(0.0, top),
            x_ticks=[(float(block), str(block)) for block in range(1, blocks + 1)][
                :: max(1, blocks // 8)
            ],
            x_title="block",
        )
        figures.append(Figure(benchmark, picture))
    lines_of_table = [
        [
            *name_cells(row),
            *(
                Cell(ABSENT) if depth is None else Cell(f"{depth:.2f} of {passes:,}", depth)
                for depth, passes in pairs
            ),
            *[Cell(ABSENT)] * (blocks - len(pairs)),
        ]
        for row, pairs in zip(drafted, found, strict=True)
    ]
    headings = [*name_headings("decoder"), *(Heading(str(block)) for block in range(1, blocks + 1))]
    return Section(
        "depth",
        title,
        [
            "The steps that a pass with drafts saved, on average. Blocks with fewer than "
            f"{FEWEST_ROUNDS} such passes are in the table only."
        ],
        keys=keys_of({row["series"]: styles[row["series"]] for row in drafted}),
        figures=figures,
        tables=[Table("Depth, and the passes with drafts", headings, lines_of_table)],
    )


def _point(row: Row, block: int, depth: float, passes: int) -> Point:
    return Point(float(block), depth, note=f"{row['series']}: {depth:.2f}, {passes:,} passes")


def _speed(rows: Sequence[Row]) -> Section:
    timed = [row for row in rows if row["speedup"] is not None]
    title = "Speed, and where it does not pay"
    if not timed:
        return Section("speed", title, ["Nothing was timed: --evaluation.timing-prompts was 0."])
    lines = [
        [
            *name_cells(row),
            Cell("yes" if row["speedup"] > 1.0 else "no" if row["drafts_per_pass"] else ABSENT),
            figure_cell(row["speedup"], ".2f", unit="x", interval=row.get("speedup_ci95")),
            figure_cell(row.get("timed_prompts"), "d"),
            figure_cell(row["nfe_reduction"], ".2f", unit="x"),
            figure_cell(row["pass_ratio"], ".2f", unit="x"),
            figure_cell(row["tokens_per_s"], ",.0f"),
        ]
        for row in timed
    ]
    figures = ("speed (95%)", "timed", "fewer passes", "a pass costs", "tokens/s")
    headings = [*name_headings("decoder"), Heading("pays", is_figure=False), *map(Heading, figures)]
    return Section(
        "speed",
        title,
        [
            "Wall-clock time at batch 1 against the base decoder, in the same run. Drafting pays "
            "where a pass over the block and its drafts costs less, in passes over the block "
            "alone, than the passes that it saves."
        ],
        tables=[Table("Speed at batch 1", headings, lines)],
    )
