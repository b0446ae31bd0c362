"""Runs the units of a study that are not done, several at a time, each in a process of its own.

A process of its own gives a unit all memory back at the end, cores of its own, and the death that
it would have by itself: one that fails, or that the system kills, does not take the others with it.

>>> Cores.of(jobs=2, cores=(0, 1, 2, 3)).shares
((0, 1), (2, 3))
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from jaxspec.study.progress import Progress
from jaxspec.study.records import (
    State,
    begun,
    last_lines,
    log_file,
    read_record,
    state_of,
    write_record,
)
from jaxspec.study.units import Unit

_LOOKS_EVERY_S = 0.2


class Process(Protocol):
    """A unit that runs."""

    def poll(self) -> int | None:
        """Its exit status; None: it still runs."""

    def terminate(self) -> None:
        """Asks it to save what it has and to end."""

    def wait(self) -> int:
        """Waits for its end and returns its exit status."""

    def kill(self) -> None:
        """Ends it at once."""


Start = Callable[[Unit, Path, tuple[int, ...]], Process]
"""(unit, log, cores) -> the started process; cores (): any."""


@dataclasses.dataclass(frozen=True)
class Cores:
    """The cores that each of several units gets."""

    shares: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, *, jobs: int, cores: Sequence[int] | None = None) -> Cores:
        """Equal shares of this process's cores; one unit at a time may use all of them.

        Args:
          jobs: units that run at a time.
          cores: by number; None: those that this process may use.
        """
        if cores is None:
            # Not every system can pin a process.
            cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ()
        if jobs == 1 or not cores:
            return cls(((),) * jobs)
        each = max(1, len(cores) // jobs)
        starts = [job * each % len(cores) for job in range(jobs)]
        return cls(tuple(tuple(cores[start : start + each]) for start in starts))


@dataclasses.dataclass
class _Running:
    unit: Unit
    process: Process
    share: int
    started: float


def states_of(folder: Path, units: Sequence[Unit]) -> dict[str, State]:
    """How far each unit is, by name."""
    return {unit.name: state_of(folder, unit, read_record(folder, unit)) for unit in units}


def still_needed(units: Sequence[Unit], states: Mapping[str, State]) -> list[Unit]:
    """Units without those that only others need that are done.

    So a study whose evaluations were copied from another machine does not train their drafters
    again, nor one whose drafters were deleted for their space.

    Args:
      units: the wanted ones; a unit comes after those that it needs.
      states: how far each of them is, by name.
    """
    by_need = {need for unit in units for need in unit.needs}
    wanted = {unit.name for unit in units if unit.name not in by_need}
    for unit in reversed(units):
        if unit.name in wanted and states[unit.name] != "done":
            wanted.update(unit.needs)
    return [unit for unit in units if unit.name in wanted or states[unit.name] == "done"]


def run_units(
    units: Sequence[Unit],
    *,
    folder: Path,
    start: Start,
    jobs: int,
    progress: Progress,
    after: Callable[[Unit], object],
) -> list[Unit]:
    """Runs every unit that is not done, as soon as those that it needs are done (see `_next`).

    Args:
      units: all units of the study that are wanted.
      folder: the study's folder.
      start: starts a unit's process.
      jobs: how many run at a time.
      progress: shows how far the study is.
      after: is called after each unit that has become done.

    Returns:
      Those that failed. What needs them was not run.

    Raises:
      KeyboardInterrupt: Ctrl-C or SIGTERM; the units that ran have saved what they had.
    """
    states = states_of(folder, units)
    waiting = [unit for unit in units if states[unit.name] != "done"]
    done = {name for name, state in states.items() if state == "done"}
    failed: list[Unit] = []
    running: list[_Running] = []
    shares = Cores.of(jobs=jobs).shares
    try:
        while waiting or running:
            lost = {unit.name for unit in failed}
            waiting = _without_lost(waiting, lost)
            for share in sorted(set(range(jobs)) - {each.share for each in running}):
                ready = _next(waiting, done, running, jobs=jobs)
                if ready is None:
                    break
                waiting.remove(ready)
                cores = () if ready.measures_speed else shares[share]
                running.append(_begin(ready, folder, start, share, cores))
                progress.started(ready)
            assert running or not waiting, "a unit waits for one that is not there"
            ended = [each for each in running if each.process.poll() is not None]
            for each in ended:
                running.remove(each)
                if _end(each, folder):
                    done.add(each.unit.name)
                    progress.finished(each.unit, time.monotonic() - each.started)
                    after(each.unit)
                else:
                    failed.append(each.unit)
                    progress.failed(each.unit, last_lines(folder, each.unit))
            if running and not ended:
                progress.show([each.unit for each in running])
                time.sleep(_LOOKS_EVERY_S)
    except BaseException:
        _stop(running, folder, progress)
        raise
    return failed


def _next(
    waiting: Sequence[Unit], done: set[str], running: Sequence[_Running], *, jobs: int
) -> Unit | None:
    """The first unit whose needs are done; of several at a time, those that measure speed are last.

    Such a unit runs alone: others would slow it down.
    """
    ready = [unit for unit in waiting if done.issuperset(unit.needs)]
    if jobs == 1:
        return ready[0] if ready else None
    if any(each.unit.measures_speed for each in running):
        return None
    undisturbed = [unit for unit in ready if not unit.measures_speed]
    if undisturbed:
        return undisturbed[0]
    return ready[0] if ready and not running else None


def _without_lost(waiting: Sequence[Unit], lost: set[str]) -> list[Unit]:
    """Units that need none that has failed, directly or through others."""
    kept: list[Unit] = []
    for unit in waiting:
        if lost.isdisjoint(unit.needs):
            kept.append(unit)
        else:
            lost.add(unit.name)
    return kept


def _begin(unit: Unit, folder: Path, start: Start, share: int, cores: tuple[int, ...]) -> _Running:
    record = begun(unit, read_record(folder, unit))
    write_record(folder, unit, record)
    log = log_file(folder, unit.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    return _Running(unit, start(unit, log, cores), share, started)


def _end(each: _Running, folder: Path) -> bool:
    """Writes down how a unit has ended; returns whether it is done."""
    record = read_record(folder, each.unit)
    assert record is not None, "it was written when the unit was started"
    record.attempts[-1].seconds = time.monotonic() - each.started
    record.attempts[-1].status = each.process.poll()
    write_record(folder, each.unit, record)
    return state_of(folder, each.unit, record) == "done"


def _stop(running: Sequence[_Running], folder: Path, progress: Progress) -> None:
    """Ends what runs; each unit saves what it has. A second Ctrl-C ends them at once."""
    if not running:
        return
    try:
        for each in running:
            each.process.terminate()
        with contextlib.suppress(OSError):  # A closed terminal cannot be written to.
            progress.say(
                "Stopping: the units that run save what they have. The same command continues "
                "from there."
            )
        for each in running:
            each.process.wait()
            _end(each, folder)
    except KeyboardInterrupt:
        for each in running:
            each.process.kill()
        raise


def chosen(units: Sequence[Unit], only: Sequence[str]) -> list[Unit]:
    """The units whose names contain one of some texts, and those that they need.

    Args:
      units: all units of the study.
      only: texts such as "full-seed0" or "evaluations/"; (): all units.

    Raises:
      ValueError: a text that no unit's name contains.
    """
    if not only:
        return list(units)
    by_name: Mapping[str, Unit] = {unit.name: unit for unit in units}
    wanted: set[str] = set()
    for text in only:
        found = [name for name in by_name if text in name]
        if not found:
            raise ValueError(
                f"--only {text!r}: no unit's name contains it. --list shows all names."
            )
        wanted.update(found)
    for unit in reversed(units):  # What a unit needs comes before it.
        if unit.name in wanted:
            wanted.update(unit.needs)
    return [unit for unit in units if unit.name in wanted]
