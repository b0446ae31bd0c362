"""How far a study is: units done of all, the time so far, and an estimate of the rest.

The estimate is the mean time of finished units of each kind, multiplied by those that are left.

>>> Durations({"drafter": [100.0, 140.0]}).left({"drafter": 3, "evaluation": 3}, jobs=1) is None
True
>>> Durations({"drafter": [100.0, 140.0]}).left({"drafter": 3, "evaluation": 0}, jobs=1)
360.0
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from jaxspec.durations import duration
from jaxspec.evals.progress import Echo
from jaxspec.names import for_terminal
from jaxspec.study.records import State, last_lines, read_record
from jaxspec.study.units import Unit
from jaxspec.training.progress import BarWithLines

_SHOWS_EVERY_S = 1.0


@dataclasses.dataclass
class Durations:
    """What finished units took, in seconds, by kind."""

    by_kind: dict[str, list[float]]

    @classmethod
    def of(cls, folder: Path, units: Sequence[Unit], states: Mapping[str, State]) -> Durations:
        """Those of the units that earlier starts have finished."""
        found: dict[str, list[float]] = {}
        for unit in units:
            record = read_record(folder, unit) if states[unit.name] == "done" else None
            if record is not None and record.seconds is not None:
                found.setdefault(unit.kind, []).append(record.seconds)
        return cls(found)

    def left(self, counts: Mapping[str, int], *, jobs: int) -> float | None:
        """Seconds that the units left take; None if no unit of a kind has been finished.

        Args:
          counts: how many units of each kind are left.
          jobs: how many run at a time.
        """
        total = 0.0
        for kind, count in counts.items():
            if count and kind not in self.by_kind:
                return None
            if count:
                total += count * statistics.fmean(self.by_kind[kind])
        return total / jobs


class Progress:
    """A bar on a terminal; elsewhere a line for each unit that starts or ends.

    Args:
      units: those that are wanted.
      states: how far they are at the start.
      folder: the study's.
      jobs: units that run at a time.
      title: shown before the bar.
      echo: where lines go if there is no terminal.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        states: Mapping[str, State],
        *,
        folder: Path,
        jobs: int,
        title: str,
        echo: Echo,
    ) -> None:
        self._folder, self._jobs, self._echo = folder, jobs, echo
        self._total = len(units)
        self._left: collections.Counter[str] = collections.Counter(
            unit.kind for unit in units if states[unit.name] != "done"
        )
        self._durations = Durations.of(folder, units, states)
        self._started = self._shown = time.monotonic()
        self._bar: BarWithLines | None = None
        console = Console()
        if console.is_terminal:
            self._bar = BarWithLines(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                console=console,
            )
            self._task = self._bar.add_task(
                for_terminal(title), total=self._total, completed=self._done, left=""
            )

    @property
    def _done(self) -> int:
        return self._total - self._left.total()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the bar during a block."""
        if self._bar is None:
            yield
            return
        with self._bar:
            yield

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(Text(text))
        else:
            self._echo(text)

    def started(self, unit: Unit) -> None:
        """A unit has been started."""
        if not self._bar:
            self._echo(f"[{self._done}/{self._total}] {unit.name} ...")

    def finished(self, unit: Unit, seconds: float) -> None:
        """A unit is done."""
        self._ended(unit)
        self._durations.by_kind.setdefault(unit.kind, []).append(seconds)
        so_far = duration(time.monotonic() - self._started)
        self.say(
            f"[{self._done}/{self._total}] {unit.name}: done in {duration(seconds)}. "
            f"{so_far} so far{self._rest()}."
        )
        self._update()

    def failed(self, unit: Unit, lines: Sequence[str]) -> None:
        """A unit has failed."""
        self._ended(unit)
        self._total -= 1
        self.say("\n  ".join([f"{unit.name}: failed. Its last lines:", *lines]))
        self._update()

    def show(self, running: Sequence[Unit]) -> None:
        """Shows what the units that run have said last; does so once in a while."""
        if self._bar is None or time.monotonic() - self._shown < _SHOWS_EVERY_S:
            return
        self._shown = time.monotonic()
        ends = [(unit.name, last_lines(self._folder, unit)) for unit in running]
        width = self._bar.console.width
        self._bar.lines = [
            for_terminal(f"{name}: {lines[-1]}" if lines else name, longest=max(20, width - 1))
            for name, lines in ends
        ]
        self._update()

    def _ended(self, unit: Unit) -> None:
        self._left[unit.kind] -= 1
        if self._bar:
            self._bar.lines = ()

    def _update(self) -> None:
        if self._bar:
            left = self._rest().removeprefix(", ")
            self._bar.update(self._task, completed=self._done, total=self._total, left=left)

    def _rest(self) -> str:
        left = self._durations.left(self._left, jobs=self._jobs)
        return f", about {duration(left)} left" if left else ""
