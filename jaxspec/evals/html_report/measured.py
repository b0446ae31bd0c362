"""The result files of a page, and their rows in groups.

>>> files = read_files(["runs/results.json"])                                  # doctest: +SKIP
>>> [row["series"] for row in files[0].rows]                                   # doctest: +SKIP
['uniform', 'full', 'uniform', 'full']
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from jaxspec.evals.html_report.series import name_series
from jaxspec.evals.intervals import by_conversation, mean_interval
from jaxspec.evals.report import read_json
from jaxspec.evals.results import Row, is_diffusion, ordered
from jaxspec.files import user_path


@dataclasses.dataclass(frozen=True)
class Measured:
    """The rows of a result file; of a study's, those of one decoding setting.

    They have fields more: see `name_series`.
    """

    file: str
    """Its name."""
    decoding: str
    """The name of the setting in a study; "" elsewhere."""
    provenance: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.file}, {self.decoding}" if self.decoding else self.file

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
    found: list[Measured] = []
    for path, file in zip(paths, files, strict=True):
        name = file.name if names.count(file.name) == 1 else str(file)
        provenance, results = read_json(path)
        if not results:
            raise ValueError(f"{os.fspath(path)!r} holds no rows: there is nothing to report.")
        by_decoding: dict[str, list[dict[str, Any]]] = {}
        for row in results if is_diffusion(results[0]) else ordered(results):
            by_decoding.setdefault(row.get("decoding", ""), []).append(dict(row))
        found += [
            Measured(name, decoding, provenance, rows) for decoding, rows in by_decoding.items()
        ]
    for each in found:
        alike = [other for other in found if other.is_diffusion == each.is_diffusion]
        parts = [each.decoding] if each.decoding else []
        parts += [each.file] if len({other.file for other in alike}) > 1 else []
        name_series(each.rows, suffix=parts)
    return found


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
        name: members
        for name, members in found.items()
        if len(benchmarks) > 1
        and len(members) == len(benchmarks)
        and {row["benchmark"] for row in members} == benchmarks
    }


def mean_tau_interval(rows: Sequence[Row]) -> tuple[float, float] | None:
    """95% interval of the mean of tau over benchmarks; None where rows lack `by_prompt`."""
    if not all(row.get("by_prompt") for row in rows):
        return None
    groups = []
    for row in rows:
        records = [record for record in row["by_prompt"] if record["rounds"]]
        counts = [[record[field] for record in records] for field in ("tokens", "rounds")]
        tokens, rounds = by_conversation([record["prompt_id"] for record in records], counts)
        groups.append((tokens, rounds))
    return mean_interval(groups)
