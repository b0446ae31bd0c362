"""What an evaluation of a diffusion language model leaves behind: JSON, and a table in Markdown.

>>> write_diffusion_report("runs/llada.json", provenance=record, results=rows)
[PosixPath('runs/llada.json'), PosixPath('runs/llada.md')]
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxspec.provenance import write_json

Row = Mapping[str, Any]

_ABSENT = "–"
_COLUMNS: dict[str, tuple[str, str]] = {
    "benchmark": ("benchmark", ""),
    "decoder": ("decoder", ""),
    "drafts_per_pass": ("D", "d"),
    "turns": ("n", "d"),
    "nfe_per_response": ("NFE", ".1f"),
    "tokens_per_pass": ("tokens a pass", ".2f"),
    "nfe_reduction": ("fewer", ".2f"),
    "accepted_depth": ("depth", ".2f"),
    "tokens_per_s": ("tokens/s", ".1f"),
    "speedup": ("speed", ".2f"),
    "pass_ratio": ("pass costs", ".2f"),
    "identical_share": ("identical", ".0%"),
}
"""Field of a row -> (title, format)."""
_LEGEND = """\
plain: the base decoder; ssd, freedave, star: graphs without calibration; spiffy: a calibrated one.
D: drafted states that a pass reads beside the block. n: responses. NFE: forward passes of the model
for a response. tokens a pass: up to the end of the block with the stop token, filling included.
fewer: passes of the base decoder (plain) over this one's. depth: steps that a pass with
drafts saved, on average. tokens/s, speed: wall clock at batch 1, and over the base decoder in the
same run. pass costs: a pass over the block and D drafts, in passes over the block alone; drafting
pays while that is below "fewer". identical: responses equal to the base decoder's."""


def write_diffusion_report(
    output: str | os.PathLike[str], *, provenance: Mapping[str, Any], results: Sequence[Row]
) -> list[Path]:
    """Writes {"provenance", "results"}, and beside it the table.

    Raises:
      ValueError: no rows.
    """
    if not results:
        raise ValueError("There is nothing to write: got no result rows.")
    file = Path(output)
    write_json(file, {"provenance": provenance, "results": results})
    table = file.with_suffix(".md")
    table.write_text(diffusion_markdown(results), encoding="utf-8")
    return [file, table]


def diffusion_markdown(results: Sequence[Row]) -> str:
    """The table, the accepted depth by block, and what the columns mean."""
    header = [title for title, _ in _COLUMNS.values()]
    lines = [list(_cells(row)) for row in results]
    parts = [_markdown(header, lines), _LEGEND]
    drafted = [row for row in results if any(_known(row["accepted_depth_by_block"]))]
    if drafted:
        blocks = max(len(row["accepted_depth_by_block"]) for row in drafted)
        header = ["benchmark", "decoder", "D", *(str(number + 1) for number in range(blocks))]
        lines = []
        for row in drafted:
            depths = row["accepted_depth_by_block"]
            depths = [*depths, *[None] * (blocks - len(depths))]
            cells = (_format(depth, ".2f") for depth in depths)
            drafts = str(row["drafts_per_pass"])
            lines.append([row["benchmark"], row["decoder"], drafts, *cells])
        parts += ["Accepted depth by block:", _markdown(header, lines)]
    return "\n\n".join(parts) + "\n"


def diffusion_table(results: Sequence[Row]) -> Table:
    """The same table for a terminal."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for title, spec in _COLUMNS.values():
        table.add_column(title, justify="right" if spec else "left", no_wrap=not spec)
    for row in results:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> Sequence[str]:
    return [
        _format(row.get(name), spec) if spec else str(row[name])
        for name, (_, spec) in _COLUMNS.items()
    ]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _format(value: float | None, spec: str) -> str:
    return _ABSENT if value is None else f"{value:{spec}}"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))
