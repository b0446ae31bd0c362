"""The rows of an unfinished evaluation, on disk as soon as they are measured.

Until the result file ``results.json`` is written, ``results.partial.jsonl`` is next to it. Its
first line says what is measured, and on which machine. Then come the target's own answers to each
benchmark and the finished rows, one per line. If the same evaluation is started again, it reads
them and continues; another evaluation is refused.

>>> with held_output("r.json") as output, unfinished(                          # doctest: +SKIP
...     output, identity=identity, started=now, total=6, answered=Response, speed=Speed, echo=print
... ) as file:
...     rows = [each.row for each in file.measured(
...         benchmarks, cases, reference=evaluation.reference, measure=evaluation.measure)]
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from jaxspec.config import RunConfig
from jaxspec.data.examples import Example
from jaxspec.evals.benchmarks import Reference
from jaxspec.evals.conversations import AnsweredT
from jaxspec.evals.opening import OpenedTarget
from jaxspec.evals.progress import Echo
from jaxspec.evals.results import PROMPTS, WEIGHTS, check_results
from jaxspec.files import held_file, refusing, replaced_file, user_path
from jaxspec.growing_file import GrowingFile
from jaxspec.provenance import check_output, jsonable
from jaxspec.tokenizer_files import READ_FILES

ENDING = ".partial.jsonl"
"""Replaces the result file's ".json"."""
_KINDS = _START, _REFERENCE, _ROW = "start", "reference", "row"
CONDITIONS = ("commit", "dirty", "code", "versions", "devices", "host")
"""What of a provenance must be equal for figures to belong together."""

CaseT = TypeVar("CaseT")
SpeedT = TypeVar("SpeedT")
RecordT = TypeVar("RecordT")


@dataclasses.dataclass(frozen=True)
class MeasuredRow(Generic[CaseT, SpeedT]):
    """A finished row of the result file."""

    benchmark: str
    case: CaseT
    row: dict[str, Any]
    speed: SpeedT | None
    """None: it was not timed."""
    is_new: bool
    """False: an earlier process measured it."""


class Unfinished(Generic[AnsweredT, SpeedT]):
    """The file of an unfinished evaluation. It is made with the first reference or row.

    Args:
      path: the file.
      identity: see `identity_of`.
      started: when this process was started.
      answered: the class of responses. Its fields are plain values and tuples of them.
      speed: the class of speeds, with such fields too.

    Raises:
      ValueError: the file is damaged, or holds rows of another evaluation.
    """

    def __init__(
        self,
        path: Path,
        *,
        identity: Mapping[str, Any],
        started: str,
        answered: type[AnsweredT],
        speed: type[SpeedT],
    ) -> None:
        self.path = path
        self._answered, self._speed = answered, speed
        start = {"identity": json.loads(json.dumps(jsonable(identity))), "started": started}
        with refusing(path, option="The file"):
            lines, length = _read(path)
            # Older versions kept no digest of the code.
            ours = start["identity"]
            older = {name: value for name, value in ours.items() if name == "code"}
            if lines and {**older, **lines[0].value["identity"]} != ours:
                if rows := sum(line.kind == _ROW for line in lines):
                    raise ValueError(_other_evaluation(path, rows, start, lines[0].value))
                lines, length = [], 0
            if not length:
                path.unlink(missing_ok=True)
            elif length < path.stat().st_size:
                with replaced_file(path) as whole:
                    whole.write_bytes(path.read_bytes()[:length])
        self._last = lines[-1].digest if lines else ""
        # Written with the first line after it.
        self._unwritten: list[tuple[str, Any]] = [(_START, start)]
        values = {kind: [line.value for line in lines if line.kind == kind] for kind in _KINDS}
        self.rows = values[_ROW]
        """{"row", "speed"} of each, in the order in which they are measured."""
        self.references = {each["benchmark"]: each["reference"] for each in values[_REFERENCE]}
        """By benchmark."""
        self.starts = [*(each["started"] for each in values[_START]), started]
        """When each process that wrote to the file was started; this one is the last."""

    def measured(
        self,
        benchmarks: Mapping[str, Sequence[Example]],
        cases: Sequence[CaseT],
        *,
        reference: Callable[[str, Sequence[Example]], Reference[AnsweredT]],
        measure: Callable[[str, Reference[AnsweredT], CaseT], tuple[dict[str, Any], SpeedT | None]],
    ) -> Iterator[MeasuredRow[CaseT, SpeedT]]:
        """Every case on every benchmark, in order: first the saved rows, then new ones.

        Args:
          benchmarks: the examples of each.
          cases: what is measured.
          reference: decodes the target's own answers. It is called for benchmarks with a new row,
            unless an earlier process has already saved them.
          measure: measures a row.

        Raises:
          ValueError: a row does not belong in a result file, or cannot be written.
        """
        kept = iter(list(self.rows))
        for name, examples in benchmarks.items():
            answers: Reference[AnsweredT] | None = None
            for case in cases:
                if record := next(kept, None):
                    times = record["speed"]
                    speed = None if times is None else _restored(self._speed, times)
                    yield MeasuredRow(name, case, record["row"], speed, is_new=False)
                    continue
                answers = answers or self._kept_reference(name)
                if answers is None:
                    answers = reference(name, examples)
                    record = {"benchmark": name, "reference": jsonable(answers)}
                    self.references[name] = self._write(_REFERENCE, record)["reference"]
                row, speed = measure(name, answers, case)
                check_results([row])
                self.rows.append(self._write(_ROW, {"row": row, "speed": speed}))
                yield MeasuredRow(name, case, row, speed, is_new=True)

    def complete(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The provenance of all rows: that of this process, with the times of all starts.

        Args:
          record: see `jaxspec.provenance.provenance`.
        """
        first, *later = self.starts
        return {**record, "time": first, **({"continued": later} if later else {})}

    def _kept_reference(self, name: str) -> Reference[AnsweredT] | None:
        kept = self.references.get(name)
        return None if kept is None else reference_of(kept, answered=self._answered)

    def _write(self, kind: str, value: Any) -> Any:
        """Appends a line; returns its value as JSON represents it."""
        value, text = jsonable(value), b""
        for its_kind, its_value in (*self._unwritten, (kind, value)):
            self._last = _digest_of_line(self._last, its_kind, its_value)
            line = {"digest": self._last, "kind": its_kind, "value": its_value}
            text += json.dumps(line).encode() + b"\n"
        self._unwritten = []
        with refusing(self.path, option="The file"):
            file = GrowingFile(self.path)
            file.write(text)
            file.flush()
        return value


@contextlib.contextmanager
def held_output(output: str | os.PathLike[str]) -> Iterator[Path]:
    """Tries the result file and locks it, before hours of work.

    Raises:
      ValueError: it cannot be written to, or another process writes to it.
    """
    file = user_path(output)
    check_output(file, holding="results")
    table = file.with_suffix(".md")
    if table.is_file() and table.read_bytes()[:1] not in (b"", b"|"):
        raise ValueError(
            f"{table} exists and does not begin with a table. The table of {file.name} would "
            "overwrite it. Name another --output, or move that file away."
        )
    for ending in (".md", ENDING):
        if (neighbour := file.with_suffix(ending)).is_dir():
            raise ValueError(
                f"{neighbour} is a folder, but a file of this name has to be written next to "
                f"{file}: name another --output."
            )
    with held_file(file, option="--output"):
        yield file


@contextlib.contextmanager
def unfinished(
    output: Path,
    *,
    identity: Mapping[str, Any],
    started: str,
    total: int,
    answered: type[AnsweredT],
    speed: type[SpeedT],
    echo: Echo,
) -> Iterator[Unfinished[AnsweredT, SpeedT]]:
    """The file of rows that are already measured; it is kept if the block ends with an error.

    Args:
      output: the result file, which the block must write.
      identity: see `identity_of`.
      started: when this process was started.
      total: how many rows there will be.
      answered: see `Unfinished`.
      speed: see `Unfinished`.
      echo: where lines of text go.

    Raises:
      ValueError: see `Unfinished`.
    """
    file = Unfinished(
        output.with_suffix(ENDING),
        identity=identity,
        started=started,
        answered=answered,
        speed=speed,
    )
    if file.rows:
        echo(f"Continuing: {len(file.rows)} of {total} rows are already in {file.path}.")
    try:
        yield file
    except BaseException as error:
        if file.rows or file.references:
            # A mistake has to be corrected first; a disk that is full is none.
            is_mistake = isinstance(error, ValueError) and not isinstance(error.__cause__, OSError)
            how = "Only the same settings continue" if is_mistake else "The same command continues"
            with contextlib.suppress(OSError):  # The reader may be gone.
                echo(
                    f"{len(file.rows)} of {total} rows are saved in {file.path}. {how} from there."
                )
        raise
    file.path.unlink(missing_ok=True)


def identity_of(
    config: RunConfig,
    *,
    record: Mapping[str, Any],
    target: OpenedTarget,
    measured: Sequence[str],
    benchmarks: Mapping[str, Sequence[Example]],
    groups: Sequence[str],
) -> dict[str, Any]:
    """Everything that must be equal for rows to belong in one file.

    Args:
      config: the evaluation's settings.
      record: see `jaxspec.provenance.provenance`.
      target: what answers.
      measured: the drafters or decoders, each with what distinguishes it from others.
      benchmarks: the examples of each.
      groups: the groups of settings that are read.
    """
    settings = jsonable(config)
    tokenizer = hashlib.sha256()
    for name in (*READ_FILES, "generation_config.json"):
        file = target.tokenizer.folder / name
        tokenizer.update(file.read_bytes() if file.is_file() else b"")
    return {
        "target": {
            "name": target.name,  # Its folder may be moved.
            **{name: settings["target"][name] for name in ("dtype", "enable_thinking")},
            "weights": target.fingerprint,
            "tokenizer": tokenizer.hexdigest()[:16],
        },
        "measured": list(measured),
        "prompts": {name: digest(jsonable(examples)) for name, examples in benchmarks.items()},
        **{group: settings[group] for group in groups},
        **{name: record[name] for name in CONDITIONS},
    }


def measured_with(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a provenance keeps of `identity_of`, so that results can be compared later."""
    return {WEIGHTS: identity["target"]["weights"], PROMPTS: dict(identity["prompts"])}


def reference_of(record: Mapping[str, Any], *, answered: type[AnsweredT]) -> Reference[AnsweredT]:
    """A reference from what JSON holds of it: the inverse of `jsonable`.

    Args:
      record: its fields.
      answered: the class of responses. Its fields are plain values and tuples of them.
    """
    responses = tuple(_restored(answered, each) for each in record["responses"])
    return _restored(Reference, {**record, "responses": responses})


def digest(value: Any) -> str:
    """A short hash of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


class _Line(NamedTuple):
    kind: str
    value: Any
    digest: str


def _digest_of_line(before: str, kind: str, value: Any) -> str:
    """A digest that detects a changed line, and one whose predecessor is missing.

    Args:
      before: the digest of the previous line; "" for the first.
      kind: one of `_KINDS`.
      value: in types that JSON has.
    """
    return digest([before, kind, value])


def _read(path: Path) -> tuple[list[_Line], int]:
    """The lines of a file and their size in bytes. A last line that was cut is left out.

    Raises:
      ValueError: a line is damaged.
    """
    if not path.exists():
        return [], 0
    with path.open("rb") as file:
        texts = file.readlines()
    lines: list[_Line] = []
    length, last = 0, ""
    for number, text in enumerate(texts, 1):
        if not text.endswith(b"\n"):
            break
        try:
            line = _Line(**json.loads(text))
            is_whole = line.digest == _digest_of_line(last, line.kind, line.value)
        except (ValueError, TypeError, RecursionError):
            is_whole = False
        if not is_whole:
            raise ValueError(
                f"{path} is damaged in line {number}: restore the file, or delete it to measure "
                "its rows again."
            )
        lines.append(line)
        length, last = length + len(text), line.digest
    return lines, length


def _restored(kind: type[RecordT], record: Mapping[str, Any]) -> RecordT:
    """The inverse of `jsonable` for a dataclass of plain values and tuples."""
    return kind(**{name: _with_tuples(value) for name, value in record.items()})


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _other_evaluation(
    path: Path, rows: int, start: Mapping[str, Any], recorded: Mapping[str, Any]
) -> str:
    """The message for a file with rows of another evaluation."""
    ours, theirs = (dict(_named_values(each["identity"])) for each in (start, recorded))
    lines = [
        f"  {name}: got {ours.get(name)!r}, recorded {theirs.get(name)!r}"
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]
    return "\n".join(
        [
            f"{path} holds rows of another evaluation ({rows} finished):",
            *lines,
            "To finish that evaluation, use its settings. To start over, delete the file. To keep "
            "both, name another --output.",
        ]
    )


def _named_values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested objects: ("evaluation.prompts", 40) and so on."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _named_values(inner, f"{name}.{key}" if name else key)
