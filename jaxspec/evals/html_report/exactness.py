"""The section about exactness: how many outputs differ from the target's own."""

from __future__ import annotations

from collections.abc import Sequence

from jaxspec.evals.html_report.content import (
    Cell,
    Heading,
    Section,
    Table,
    figure_cell,
    name_cells,
    name_headings,
)
from jaxspec.evals.intervals import Interval, by_conversation, share_interval
from jaxspec.evals.results import Row, is_target_alone


def responses_of(row: Row) -> int:
    """How many responses a row rests on: several to a prompt with several turns."""
    return int(row.get("turns", row["prompts"]))


def compared_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of drafters whose outputs were compared with the target's own."""
    return [
        row for row in rows if row["mismatched_prompts"] is not None and not is_target_alone(row)
    ]


def _share_interval(row: Row) -> Interval | None:
    """Interval of the share that differs; the turns of a conversation are resampled together."""
    responses, differ = responses_of(row), row["mismatched_prompts"]
    names = [record["prompt_id"] for record in row.get("by_prompt", [])]
    ids = set(row.get("mismatched_ids", []))
    if names and len(ids) == differ:
        parts = [name in ids for name in names], [1] * len(names)
        return share_interval(*by_conversation(names, parts))
    # Older files do not name the outputs that differ.
    outcomes = [1] * min(differ, responses) + [0] * max(0, responses - differ)
    return share_interval(outcomes, [1] * responses)


def exactness_section(rows: Sequence[Row]) -> Section:
    """Counts and shares of outputs that differ, and by how much."""
    compared = compared_rows(rows)
    lines = []
    for row in compared:
        differ, responses = row["mismatched_prompts"], responses_of(row)
        share = differ / responses if responses else None
        lines.append(
            [
                *name_cells(row),
                Cell(f"{responses:,}", responses),
                Cell(f"{differ:,}", differ),
                figure_cell(share, ".1%", interval=_share_interval(row)),
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
    sampled = sum(row["mismatched_prompts"] is None for row in rows)
    if sampled:
        paragraphs.append(
            f"{sampled} of {len(rows)} rows are sampled: their outputs differ by nature and are "
            "not compared."
        )
    names = ("responses", "differ", "share (95%)", "gap")
    headings = [*name_headings("drafter"), *map(Heading, names)]
    tables = [Table("Outputs that differ from the target's own", headings, lines)]
    return Section("exactness", "Exactness", paragraphs, tables=tables if lines else [])
