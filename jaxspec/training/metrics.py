"""Metrics on their way from the devices to metrics.jsonl, and from there to other programs.

They travel as (sum, count) and are divided when a line is written. metrics.jsonl holds one object
per logged step. A run that continues from a checkpoint first drops the lines after it, so that the
file reads as if the run had never stopped. Lines that are not metrics are moved to
metrics.foreign.jsonl.

>>> means(add([{"loss": (12.0, 4.0)}, {"loss": (8.0, 4.0)}]))
{'loss': 2.5}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.files import replaced_file
from jaxspec.growing_file import UPLOAD_S, GrowingFile
from jaxspec.training.boards import Board

Sums = dict[str, tuple[Any, Any]]

_START = b'{"step": '
"""How `MetricsLog.write` begins a line."""


def add(windows: Iterable[Sums]) -> Sums:
    """The metrics of several steps, added up (in float64: counts of a long window stay exact)."""
    total: dict[str, tuple[Any, Any]] = {}
    for sums in windows:
        for name, (value, count) in sums.items():
            old_value, old_count = total.get(name, (0.0, 0.0))
            total[name] = (
                old_value + np.asarray(value, np.float64),
                old_count + np.asarray(count, np.float64),
            )
    return total


def means(sums: Sums) -> dict[str, Any]:
    """Sums divided by counts: a number for each metric, a list for those by slot.

    None where nothing was counted or the result is not finite: JSON has no infinity.
    """
    result: dict[str, Any] = {}
    for name, (value, count) in sums.items():
        value, count = np.asarray(value, np.float64), np.asarray(count, np.float64)
        ratio = np.divide(value, count, out=np.full(value.shape, np.nan), where=count > 0)
        plain = [float(r) if np.isfinite(r) else None for r in ratio.reshape(-1)]
        result[name] = plain if ratio.ndim else plain[0]
    return result


class MetricsLog:
    """Writes metrics.jsonl of one run, and shows each line on its boards.

    Args:
      workdir: the run's folder.
      first_step: steps already taken; lines of later steps are dropped from the file. Lines that
        are not metrics are moved to metrics.foreign.jsonl, and a message says so.
      boards: see `jaxspec.training.boards.open_boards`. They are closed with the log.
    """

    def __init__(self, workdir: Path, *, first_step: int, boards: Sequence[Board] = ()) -> None:
        self.path = workdir / "metrics.jsonl"
        self.last_row: dict[str, Any] = {}
        """The newest line."""
        lines = _lines(self.path)
        kept, foreign = [], []
        for line in lines:
            row = _row(line)
            if row is None:
                foreign.append(line)
            elif row["step"] <= first_step:
                kept.append(line)
                self.last_row = row
        if foreign:
            aside = workdir / "metrics.foreign.jsonl"
            GrowingFile(aside).write(_joined(foreign))
            print(
                f"{len(foreign)} of {len(lines)} lines in {self.path} are not metrics (JSON "
                f"objects with a step). They were moved to {aside}.",
                flush=True,
            )
        with replaced_file(self.path) as temporary:
            temporary.write_bytes(_joined(kept))
        self._file = GrowingFile(self.path, every_s=UPLOAD_S)
        self._boards = boards

    def write(self, step: int, sums: Sums, *, extra: dict[str, Any]) -> dict[str, Any]:
        """Appends one line and returns it."""
        row = {"step": step, **means(sums), **extra}
        self.last_row = row
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        for board in self._boards:
            board.show(step, _scalars(row))
        return row

    def flush(self) -> None:
        """Waits until every line is on the disk or in the bucket."""
        self._file.flush()

    def close(self) -> None:
        """Flushes everything."""
        self._file.close()
        for board in self._boards:
            board.close()


def _scalars(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line by name; those of a list are "NAME/01", "NAME/02" and so on."""
    numbers: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, list):
            each = {f"{name}/{slot:02d}": at for slot, at in enumerate(value, start=1)}
            numbers |= {slot: at for slot, at in each.items() if at is not None}
        elif value is not None and name != "step":
            numbers[name] = value
    return numbers


def last_row(workdir: Path) -> dict[str, Any]:
    """The newest row of metrics.jsonl; {} if there is none."""
    rows = map(_row, reversed(_lines(workdir / "metrics.jsonl")))
    return next(filter(None, rows), {})


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """All rows of metrics.jsonl, the oldest first; lines that are not metrics are left out."""
    return [row for row in map(_row, _lines(workdir / "metrics.jsonl")) if row]


def _lines(path: Path) -> list[bytes]:
    """The lines of a file, without empty ones and without a last one that a kill cut short."""
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    is_cut = last[: len(_START)] == _START[: len(last)] and _row(last) is None
    return [line for line in (lines if is_cut else [*lines, last]) if line.strip()]


def _row(line: bytes) -> dict[str, Any] | None:
    """The row in a line; None: the line is not a row of metrics."""
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON does not allow {constant}")


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)
