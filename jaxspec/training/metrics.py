"""Metrics on their way from the devices to metrics.jsonl, TensorBoard and the screen.

They travel as (sum, count) and are divided when a line is written. metrics.jsonl holds one object
per logged step. A run that continues from a checkpoint first drops the lines after it, so that the
file reads as if the run had never stopped.

>>> means(add([{"loss": (12.0, 4.0)}, {"loss": (8.0, 4.0)}]))
{'loss': 2.5}
"""

from __future__ import annotations

import json
import os
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

from jaxspec.names import for_terminal

Sums = dict[str, tuple[Any, Any]]


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
      first_step: steps already taken; lines of later steps are dropped from the file.
    """

    def __init__(self, workdir: Path, *, first_step: int) -> None:
        self.path = workdir / "metrics.jsonl"
        self.last_row: dict[str, Any] = {}
        """The newest line."""
        kept = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    break  # A line cut short when the process was killed.
                if row["step"] <= first_step:
                    kept.append(line)
                    self.last_row = row
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, self.path)
        self._file = self.path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first_step + 1, write_to_disk=True
        )

    def write(self, step: int, sums: Sums, *, extra: dict[str, float]) -> dict[str, Any]:
        """Appends one line and returns it."""
        row = {"step": step, **means(sums), **extra}
        self.last_row = row
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
        self._file.close()
        self._board.close()


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
