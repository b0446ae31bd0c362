"""The result files of a page, and the names and styles of what was measured in them.

>>> files = read_files(["runs/results.json"])                                  # doctest: +SKIP
>>> [row["series"] for row in files[0].rows]                                   # doctest: +SKIP
['uniform', 'full', 'uniform', 'full']
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from jaxspec.evals.intervals import mean_interval
from jaxspec.evals.report import read_json
from jaxspec.evals.results import BASELINE, FULL, Row, gains, is_diffusion, labels, ordered
from jaxspec.evals.tables import formatted, settings_columns
from jaxspec.files import user_path


@dataclasses.dataclass(frozen=True)
class Measured:
    """A result file. Its rows have two fields more: `series` and, of drafters, `gain`."""

    name: str
    provenance: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def is_diffusion(self) -> bool:
        """Whether its rows are of decoders of a diffusion language model."""
        return is_diffusion(self.rows[0])


def read_files(paths: Sequence[str | os.PathLike[str]]) -> list[Measured]:
    """Reads result files.

    Raises:
      ValueError: no such file, not a result file, one without rows, or the same file twice.
    """
    files = [user_path(path) for path in paths]
    resolved = [file.resolve() for file in files]
    for place, file in enumerate(files):
        if resolved[place] in resolved[:place]:
            raise ValueError(f"{file} is named twice: name each result file once.")
    names = [file.name for file in files]
    own = [
        name if names.count(name) == 1 else str(file)
        for name, file in zip(names, files, strict=True)
    ]
    found = []
    for path, name in zip(paths, own, strict=True):
        provenance, results = read_json(path)
        if not results:
            raise ValueError(f"{os.fspath(path)!r} holds no rows: there is nothing to report.")
        rows = results if is_diffusion(results[0]) else ordered(results)
        found.append(Measured(name, provenance, [dict(row) for row in rows]))
    for kind in (True, False):
        _name_series([each for each in found if each.is_diffusion is kind])
    return found


def _name_series(files: Sequence[Measured]) -> None:
    """Adds `series` and `gain` to rows of one kind."""
    for file in files:
        settings = [] if file.is_diffusion else settings_columns(file.rows)
        if file.is_diffusion:
            names = [
                f"{row['decoder']}, D {row['drafts_per_pass']}"
                if row["drafts_per_pass"]
                else row["decoder"]
                for row in file.rows
            ]
        else:
            names = labels(file.rows)
            for row, gain in zip(file.rows, gains(file.rows), strict=True):
                row["gain"] = gain
        for row, name in zip(file.rows, names, strict=True):
            parts = [name]
            parts += [f"{column.title} {formatted(row[column.field])}" for column in settings]
            parts += [file.name] if len(files) > 1 else []
            row["series"] = ", ".join(parts)


def series_of(rows: Sequence[Row]) -> dict[str, int]:
    """Every series in order, and its style: the baseline and the full recipe have the first two."""
    names = list(dict.fromkeys(row["series"] for row in rows))
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.get("loss", row.get("decoder")), row["series"])
    fixed = {first.get(BASELINE, first.get("plain")): 0, first.get(FULL): 1}
    styles: dict[str, int] = {}
    following = 2
    for name in names:
        if name in fixed:
            styles[name] = fixed[name]
        else:
            styles[name] = following
            following += 1
    return styles


def benchmarks_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each benchmark."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["benchmark"], []).append(row)
    return found


def on_all_benchmarks(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each series that was measured once on every benchmark, of several."""
    benchmarks = {row["benchmark"] for row in rows}
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["series"], []).append(row)
    return {
        name: group
        for name, group in found.items()
        if len(benchmarks) > 1
        and len(group) == len(benchmarks)
        and {row["benchmark"] for row in group} == benchmarks
    }


def mean_tau_interval(rows: Sequence[Row]) -> tuple[float, float] | None:
    """95% interval of the mean of tau over benchmarks; None where rows lack `by_prompt`."""
    if not all(row.get("by_prompt") for row in rows):
        return None
    groups = [[record for record in row["by_prompt"] if record["rounds"]] for row in rows]
    return mean_interval(
        [
            (
                [record["tokens"] for record in group],
                [record["rounds"] for record in group],
            )
            for group in groups
        ]
    )
