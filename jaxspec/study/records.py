"""What is known of a unit on disk: its settings, its starts, and whether it is done.

A unit's record is written before it starts. It holds the settings that the unit is made with; with
other settings it is refused, so that one table never holds rows of two declarations.

>>> record_file(Path("runs/study"), "drafters/embedded/full-seed0").as_posix()
'runs/study/units/drafters/embedded/full-seed0.json'
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxspec.config import RunConfig
from jaxspec.evals.report import read_json
from jaxspec.evals.results import PROMPTS, WEIGHTS
from jaxspec.interruption import STOPPED_AND_SAVED
from jaxspec.json_files import read_object, shortened
from jaxspec.provenance import jsonable, write_json
from jaxspec.study.units import Unit
from jaxspec.training.segments import Difference, differences, own_terms
from jaxspec.training.tasks.settings import MAY_CHANGE

State = Literal["done", "interrupted", "failed", "missing"]

_INTERRUPTED = (None, STOPPED_AND_SAVED, 130)
"""Statuses of a unit that was stopped: killed with the study, SIGTERM, Ctrl-C."""
_OF_PROVENANCE = (
    *("command", "commit", "dirty", "versions", "devices", "host", "seed", "time"),
    *("fingerprints", WEIGHTS, PROMPTS),
)
"""What is kept of a unit's provenance; its settings are kept with them."""
_LAST_LINES = 4
_LONGEST_LOG = 4000
_MOST_NAMED = 12
_ABOUT_TRAINING = ("target", "drafter", "denoiser", "loss", "data", "optimizer", "training")
_ABOUT_DECODING = ("evaluation", "diffusion")
_ABOUT_THE_EXPORT = (
    *("training.epochs", "training.export_dtype", "training.export_best"),
    *("training.validate_every", "training.validation_batches"),
)
"""A run may continue with other values of these, but a finished one is measured as it was left."""
_OWN_TERMS = "own_terms"


@dataclasses.dataclass
class Attempt:
    """One start of a unit."""

    started: str
    """In UTC."""
    seconds: float | None = None
    """None: the process that started it was killed."""
    status: int | None = None
    """Exit status; negative: the number of the signal that ended it."""


@dataclasses.dataclass
class UnitRecord:
    """What is kept of a unit."""

    settings: dict[str, Any]
    attempts: list[Attempt] = dataclasses.field(default_factory=list)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of what it left, once it is done: the record may be copied without a drafter's weights."""

    @property
    def seconds(self) -> float | None:
        """What it took in all; None if that is not known."""
        times = [attempt.seconds for attempt in self.attempts]
        known = [seconds for seconds in times if seconds is not None]
        return sum(known) if known and len(known) == len(times) else None


def record_file(folder: Path, name: str) -> Path:
    """Where a unit's record is kept."""
    return folder / "units" / f"{name}.json"


def log_file(folder: Path, name: str) -> Path:
    """Where a unit's output goes."""
    return folder / "logs" / f"{name}.log"


def read_record(folder: Path, unit: Unit) -> UnitRecord | None:
    """The record of a unit; None: it has never been started.

    Raises:
      ValueError: a damaged record.
    """
    file = record_file(folder, unit.name)
    if not file.is_file():
        return None
    found = read_object(file)
    try:
        attempts = [Attempt(**attempt) for attempt in found["attempts"]]
        return UnitRecord(dict(found["settings"]), attempts, dict(found.get("provenance", {})))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not the record of a unit of a study ({error!r}). Delete it and what the "
            f"unit has left ({unit.output}) to run the unit again."
        ) from error


def write_record(folder: Path, unit: Unit, record: UnitRecord) -> None:
    """Writes the record of a unit."""
    write_json(
        record_file(folder, unit.name),
        {"unit": unit.name, "command": ["jaxspec", *unit.command], **jsonable(record)},
    )


def begun(unit: Unit, record: UnitRecord | None) -> UnitRecord:
    """The record of a unit that starts now."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    earlier = record.attempts if record else []
    return UnitRecord(settings_of(unit), [*earlier, Attempt(now)])


def made_by(unit: Unit) -> dict[str, Any]:
    """The provenance of what a finished unit left."""
    if unit.kind == "answers":
        return {}
    if unit.kind == "evaluation":
        own, _ = read_json(unit.output)
    else:
        own = read_object(unit.output / "provenance.json")
    return {key: own[key] for key in _OF_PROVENANCE if key in own}


def settings_of(unit: Unit) -> dict[str, Any]:
    """The settings that a unit's result depends on."""
    groups = _ABOUT_DECODING if unit.kind == "evaluation" else _ABOUT_TRAINING
    config = jsonable(unit.config)
    found = {group: config[group] for group in groups}
    if unit.kind in ("evaluation", "answers"):
        target = {name: config["target"][name] for name in ("path", "dtype", "enable_thinking")}
        found = {**(found if unit.kind == "evaluation" else {}), "target": target}
    if unit.kind == "answers":
        found["data"] = {"embedded_examples": config["data"]["embedded_examples"]}
    if unit.kind in ("target", "drafter") and (terms := own_terms(unit.config)):
        found[_OWN_TERMS] = terms
    return {**found, **({"options": jsonable(unit.options)} if unit.options else {})}


def state_of(folder: Path, unit: Unit, record: UnitRecord | None) -> State:
    """How far a unit is.

    A unit that was done, but whose files are not here, is missing: the study's folder may have been
    copied without them.

    Args:
      folder: the study's.
      unit: the unit.
      record: its record.
    """
    if record is None:
        return "missing"
    last = record.attempts[-1].status if record.attempts else None
    if _is_complete(unit, last):
        return "done"
    if last == 0:
        return "missing"
    return "interrupted" if last in _INTERRUPTED else "failed"


def _is_complete(unit: Unit, status: int | None) -> bool:
    """Whether a unit has left what it is there for: commands write that whole, and last."""
    if unit.kind == "answers":
        return status == 0 and unit.output.is_dir()
    if unit.kind == "evaluation":
        return unit.output.is_file()
    return (unit.output / "export" / "config.json").is_file()


def changed(unit: Unit, record: UnitRecord) -> list[Difference]:
    """Settings that differ from those that a unit was started with, and matter for its result."""
    free = [n for n in MAY_CHANGE if not n.endswith(".path") and n not in _ABOUT_THE_EXPORT]
    if unit.kind == "evaluation":
        free = []
    present = settings_of(unit)
    # A setting that a record lacks is newer than it, and was then as it is by default.
    usual = settings_of(dataclasses.replace(unit, config=RunConfig(), options={}))
    # What a file of terms was is not known of a record without it.
    usual |= {_OWN_TERMS: present[_OWN_TERMS]} if _OWN_TERMS in present else {}
    return [
        difference
        for difference in differences(present, _filled(record.settings, usual))
        if not any(f"{difference.setting}.".startswith(f"{name}.") for name in free)
    ]


def _filled(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, those that are missing as they are by default."""
    return {**usual, **settings} | {
        name: _filled(settings[name], inner)
        for name, inner in usual.items()
        if isinstance(inner, dict) and isinstance(settings.get(name), dict)
    }


def _refuse_unknown_origin(
    folder: Path, unit: Unit, record: UnitRecord, records: Mapping[str, UnitRecord | None]
) -> None:
    """Without the record of its drafter, nobody knows which one a finished evaluation measured."""
    unknown = [need for need in unit.needs if records.get(need, record) is None]
    if unknown and state_of(folder, unit, record) == "done":
        raise ValueError(
            f"{unit.name} is done, but {record_file(folder, unknown[0])} is gone, so its settings "
            f"cannot be compared. Put it back, or delete {unit.output} and "
            f"{record_file(folder, unit.name)} to measure again."
        )


def refuse_changes(folder: Path, units: Sequence[Unit]) -> None:
    """Refuses a declaration with other settings than those that its units were started with.

    Raises:
      ValueError: names what differs. Also if a unit's place holds something that no unit left, or
        if there is no record of what a finished evaluation measured.
    """
    lines: list[str] = []
    records = {unit.name: read_record(folder, unit) for unit in units}
    for unit in units:
        record = records[unit.name]
        if record is not None and unit.kind == "evaluation":
            _refuse_unknown_origin(folder, unit, record, records)
        if record is None:
            if _is_complete(unit, 0):
                raise ValueError(
                    f"{unit.output} is there already, and this study did not make it: move it away."
                )
            continue
        lines += [
            f"  {unit.name}: {found.setting}: got {shortened(repr(found.got), longest=60)}, "
            f"recorded {shortened(repr(found.recorded), longest=60)}"
            for found in changed(unit, record)
        ]
    if lines:
        more = len(lines) - _MOST_NAMED
        shown = [*lines[:_MOST_NAMED], *([f"  and {more} more"] if more > 0 else [])]
        raise ValueError(
            "\n".join(
                [
                    f"The study in {folder} was started with other settings:",
                    *shown,
                    "Use the recorded settings, give the changed rows new names, or name another "
                    "--output.",
                ]
            )
        )


def last_lines(folder: Path, unit: Unit) -> list[str]:
    """The end of what a unit has printed."""
    file = log_file(folder, unit.name)
    if not file.is_file():
        return []
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - _LONGEST_LOG))
        text = log.read().decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()][-_LAST_LINES:]
