"""Metrics on their way from the devices to metrics.jsonl, TensorBoard and the screen.

They travel as (sum, count) and are divided when a line is written. metrics.jsonl holds one object
per logged step. A run that continues from a checkpoint first drops the lines after it, so that the
file reads as if the run had never stopped. Lines that are not metrics are moved to
metrics.foreign.jsonl.

>>> means(add([{"loss": (12.0, 4.0)}, {"loss": (8.0, 4.0)}]))
{'loss': 2.5}
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorboardX
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxspec.files import naming, replaced_file
from jaxspec.names import for_terminal

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
    """Writes metrics.jsonl and TensorBoard event files of one run.

    Args:
      workdir: the run's folder.
      first_step: steps already taken; lines of later steps are dropped from the file. Lines that
        are not metrics are moved to metrics.foreign.jsonl, and a message says so.
    """

    def __init__(self, workdir: Path, *, first_step: int) -> None:
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
            with aside.open("ab") as file:
                file.write(_joined(foreign))
            print(
                f"{len(foreign)} of {len(lines)} lines in {self.path} are not metrics (JSON "
                f"objects with a step). They were moved to {aside}.",
                flush=True,
            )
        with replaced_file(self.path) as temporary:
            temporary.write_bytes(_joined(kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first_step + 1, write_to_disk=True
        )

    def write(self, step: int, sums: Sums, *, extra: dict[str, float]) -> dict[str, Any]:
        """Appends one line and returns it."""
        row = {"step": step, **means(sums), **extra}
        self.last_row = row
        with naming(self.path):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        for name, value in row.items():
            if isinstance(value, list):
                for slot, each in enumerate(value, start=1):
                    if each is not None:
                        self._board.add_scalar(f"{name}/{slot:02d}", each, step)
            elif value is not None and name != "step":
                self._board.add_scalar(name, value, step)
        return row

    def close(self) -> None:
        """Flushes everything."""
        with naming(self.path):
            self._file.close()
        self._board.close()


def last_row(workdir: Path) -> dict[str, Any]:
    """The newest row of metrics.jsonl; {} if there is none."""
    rows = map(_row, reversed(_lines(workdir / "metrics.jsonl")))
    return next(filter(None, rows), {})


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


class Reporter:
    """Shows progress: a bar on a terminal, plain lines elsewhere.

    Args:
      steps: length of the run.
      first_step: steps already taken.
      title: shown before the bar.
    """

    def __init__(self, *, steps: int, first_step: int, title: str) -> None:
        self._console = Console()
        self._steps = steps
        self._started = time.monotonic()
        self._first = first_step
        self._progress: Progress | None = None
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task(
                for_terminal(title), total=steps, completed=first_step, numbers=""
            )

    def __enter__(self) -> Reporter:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress:
            self._progress.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Shows one line of metrics."""
        step = row["step"]
        numbers = [f"loss {row['loss']:.3f}" if row.get("loss") is not None else "loss nan"]
        if row.get("accepted") is not None:
            numbers.append(f"accepted {row['accepted']:.2f}")
        numbers.append(f"{row['tokens_per_s']:,.0f} tokens/s")
        if self._progress:
            self._progress.update(self._task, completed=step, numbers="  ".join(numbers))
            return
        done = max(1, step - self._first)
        left = (time.monotonic() - self._started) / done * (self._steps - step)
        numbers.append(f"{left:.0f} s left")
        print(f"step {step}/{self._steps}  " + "  ".join(numbers), flush=True)
