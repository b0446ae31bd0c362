"""The results folder of a study: JSON, tables as Markdown, CSV and LaTeX, and plots.

results.json holds every row of every evaluation. summary.json leaves these out and holds what the
tables show, so it is small enough to be kept beside a text that quotes it.

Everything is written again after every finished evaluation.

>>> write_results(study, units, folder=Path("runs/study"), provenance=record)  # doctest: +SKIP
[PosixPath('runs/study/results.json'), PosixPath('runs/study/results.md'), ...]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxspec.evals.report import read_json
from jaxspec.evals.results import OTHER_TARGET, check_results, own_loss
from jaxspec.files import user_path, write_text
from jaxspec.json_files import LARGEST_OF_RESULTS, read_object
from jaxspec.provenance import jsonable, write_json
from jaxspec.study.curves import Curve, curve_of, plot_curves
from jaxspec.study.declaration import StudyConfig
from jaxspec.study.evaluated import (
    Evaluated,
    read_evaluations,
    refuse_mixtures,
    refuse_other_data,
)
from jaxspec.study.origin import commits_of, origin_text
from jaxspec.study.plots import plot_gains, plot_positions
from jaxspec.study.records import (
    UnitRecord,
    made_by,
    read_record,
    state_of,
    write_record,
)
from jaxspec.study.summary import Entry, summary
from jaxspec.study.tables import (
    CSV_BEGINNING,
    LATEX_BEGINNING,
    csv_text,
    latex_text,
    markdown_heading,
    markdown_text,
)
from jaxspec.study.units import Unit

RESULTS, SUMMARY = "results.json", "summary.json"
MOST_LINES = 8
"""The most lines in a plot that can be told apart."""


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """What a results file holds."""

    provenance: dict[str, Any]
    """Of the process that wrote the file last; under "units", of every unit that was finished."""
    rows: list[dict[str, Any]]
    """Rows of all evaluations (`jaxspec.evals.results`), each with its unit and decoding."""
    summary: list[Entry]
    study: dict[str, Any]
    """The declaration."""


def write_results(
    study: StudyConfig,
    units: Sequence[Unit],
    *,
    folder: Path,
    provenance: Mapping[str, Any],
) -> list[Path]:
    """Writes what the finished units have measured.

    Args:
      study: the declaration.
      units: all units of the study.
      folder: the study's folder.
      provenance: of this process.

    Returns:
      The files, results.json first; none before the first evaluation is done.

    Raises:
      ValueError: a damaged evaluation, or evaluations or drafters that one table may not hold.
    """
    records = {unit.name: read_record(folder, unit) for unit in units}
    done = [unit for unit in units if state_of(folder, unit, records[unit.name]) == "done"]
    measured = [unit for unit in done if unit.kind == "evaluation"]
    evaluations = read_evaluations(measured)
    refuse_mixtures(evaluations)
    rows = rows_of(evaluations, study)
    if not rows:
        return []
    check_results(rows)
    untrained = [loss.name for loss in study.losses if loss.untrained]
    found = summary(rows, base=study.base_loss, untrained=untrained)
    for unit in done:
        _keep_provenance(unit, records[unit.name], folder)
    refuse_other_data(_drafters(units, done, records))
    made = {
        unit.name: {**record.provenance, "settings": record.settings, "seconds": record.seconds}
        for unit in units
        # A finished drafter keeps its record even if its weights were not copied.
        if (record := records[unit.name]) and (record.provenance or unit in done)
    }
    devices = _devices([made[unit.name] for unit in measured])
    whole = {**provenance, "devices": devices, "units": made}
    names = (RESULTS, SUMMARY, "results.md", "results.csv", "results.tex")
    files = [folder / name for name in names]
    short = {"provenance": whole, "summary": found, "study": jsonable(study)}
    write_json(files[0], {**short, "results": rows})
    write_json(files[1], short)
    origin, state = origin_text(study.name, made), _progress(units, done)
    write_text(files[2], markdown_text(found, study=jsonable(study), units=state, origin=origin))
    write_text(files[3], csv_text(found, commits=lambda entry: commits_of(entry, made)))
    write_text(files[4], latex_text(found, base=study.base_loss, origin=origin))
    return files + _plots(study, done, rows, found, folder=folder / "plots", origin=origin)


def refuse_unusable(study: StudyConfig, units: Sequence[Unit], *, folder: Path) -> None:
    """Refuses, before any unit runs, what `write_results` could not use or would overwrite.

    Args:
      study: the declaration.
      units: all units of the study.
      folder: the study's folder.

    Raises:
      ValueError: a file that this study did not write, a finished unit whose files are damaged, or
        evaluations or drafters that one table may not hold.
    """
    _refuse_foreign(study, folder)
    records = {unit.name: read_record(folder, unit) for unit in units}
    done = [unit for unit in units if state_of(folder, unit, records[unit.name]) == "done"]
    refuse_mixtures(read_evaluations([unit for unit in done if unit.kind == "evaluation"]))
    for unit in done:
        record = records[unit.name]
        if record is not None and not record.provenance:
            try:
                record.provenance = made_by(unit)
            except ValueError as error:
                raise ValueError(
                    f"{unit.name} is done, but what it left cannot be read: {error}\n"
                    f"Delete {unit.output}, and the unit is run again."
                ) from error
    refuse_other_data(_drafters(units, done, records))


def _drafters(
    units: Sequence[Unit], done: Sequence[Unit], records: Mapping[str, UnitRecord | None]
) -> list[tuple[Unit, UnitRecord]]:
    """The drafters that are there, or that a finished evaluation has measured."""
    kept = {unit.name for unit in done} | {need for unit in done for need in unit.needs}
    return [
        (unit, record)
        for unit in units
        if unit.kind == "drafter" and unit.name in kept and (record := records[unit.name])
    ]


def _refuse_foreign(study: StudyConfig, folder: Path) -> None:
    """Refuses a folder with results of something else under the names of the study's own."""
    for name in (RESULTS, SUMMARY):
        file = folder / name
        if not file.is_file():
            continue
        try:
            declared = read_object(file, largest=LARGEST_OF_RESULTS).get("study")
        except ValueError:
            declared = None
        whose = declared.get("name") if isinstance(declared, dict) else None
        if whose != study.name:
            what = f"holds results of the study {whose!r}" if whose else "is no result of a study"
            raise ValueError(_overwritten(file, what))
    for name, beginning in (
        ("results.md", markdown_heading(study.name)),
        ("results.csv", CSV_BEGINNING),
        ("results.tex", LATEX_BEGINNING),
    ):
        file = folder / name
        if file.is_file():
            with file.open("rb") as opened:
                start = opened.read(len(beginning.encode()))
            if start not in (b"", beginning.encode()):
                raise ValueError(_overwritten(file, "was not written by this study"))


def _overwritten(file: Path, what: str) -> str:
    return (
        f"{file} {what}, and this study would overwrite it: name another --output, or move that "
        "file away."
    )


def _devices(evaluations: Sequence[Mapping[str, Any]]) -> Any:
    """The devices of all evaluations; None if they differ.

    The study's own process only uses a CPU.

    Args:
      evaluations: their provenance.
    """
    first, *others = (made.get("devices") for made in evaluations)
    return first if all(other == first for other in others) else None


def read_results(path: str | Path) -> StudyResults:
    """Reads the results of a study.

    Args:
      path: its folder, its results.json, or its summary.json, which has no rows. In a folder
        without results.json, summary.json is read.

    Raises:
      ValueError: no such file, or not that of a study.
    """
    file = user_path(path)
    if file.is_dir():
        kept = next((name for name in (RESULTS, SUMMARY) if (file / name).is_file()), RESULTS)
        file = file / kept
    if not file.is_file():
        raise ValueError(
            f"No results of a study at {path}: expected the --output of jaxspec study, with "
            f"{RESULTS} or {SUMMARY} in it. They are written when the first evaluation is done."
        )
    document = read_object(file, largest=LARGEST_OF_RESULTS)
    if not isinstance(document.get("summary"), list) or not isinstance(document.get("study"), dict):
        raise ValueError(
            f"{file} is not the result file of a study: expected an object with provenance, "
            "results, summary and study. (jaxspec runs diff compares trainings.)"
        )
    if "results" not in document:
        return StudyResults(document["provenance"], [], document["summary"], document["study"])
    provenance, rows = read_json(file)
    return StudyResults(provenance, rows, document["summary"], document["study"])


def rows_of(evaluations: Sequence[Evaluated], study: StudyConfig) -> list[dict[str, Any]]:
    """Rows of finished evaluations, in the order of the declaration, named as in the study.

    Drafters that were trained on other weights than the target's keep their mark (`OTHER_TARGET`).
    """
    losses = [loss.name for loss in study.losses]
    decodings = [decoding.name for decoding in study.decodings]
    targets = [target.name for target in study.targets]

    def place(evaluation: Evaluated) -> tuple[int, int, int, int]:
        unit = evaluation.unit
        assert unit.seed is not None, "an evaluation is of a drafter with a seed"
        return (
            targets.index(unit.target),
            decodings.index(unit.decoding),
            losses.index(unit.loss),
            unit.seed,
        )

    return [
        {
            **row,
            "target": each.unit.target,
            "decoding": each.unit.decoding,
            "loss": each.unit.loss
            + (f" {OTHER_TARGET}" if row.get("trained_on_other_target") else ""),
            "trained_loss": row["loss"],
            "seed": each.unit.seed,
            "unit": each.unit.name,
        }
        for each in sorted(evaluations, key=place)
        for row in each.rows
    ]


def lines_shown(study: StudyConfig) -> list[str]:
    """The losses that plots with a line per loss show: of many, the main ones, with most seeds."""
    losses = list(study.losses)
    if len(losses) > MOST_LINES:
        most = max(len(study.seeds_of(loss)) for loss in losses)
        losses = [loss for loss in losses if len(study.seeds_of(loss)) == most][:MOST_LINES]
    return [loss.name for loss in losses]


def _keep_provenance(unit: Unit, record: UnitRecord | None, folder: Path) -> None:
    """Adds to the record of a finished unit where what it left comes from."""
    assert record is not None, "a finished unit has a record"
    if not record.provenance and (found := made_by(unit)):
        record.provenance = found
        write_record(folder, unit, record)


def _progress(units: Sequence[Unit], done: Sequence[Unit]) -> str:
    if len(done) == len(units):
        return f"All {len(units)} units are done."
    return f"{len(done)} of {len(units)} units are done; the tables hold what they measured."


def _plots(
    study: StudyConfig,
    done: Sequence[Unit],
    rows: Sequence[dict[str, Any]],
    found: Sequence[Entry],
    *,
    folder: Path,
    origin: str,
) -> list[Path]:
    """Writes the plots: of each target and decoding, and the training curves of each target."""
    files: list[Path] = []
    shown = lines_shown(study)
    for target, decoding in dict.fromkeys((row["target"], row["decoding"]) for row in rows):
        own = [row for row in rows if (row["target"], row["decoding"]) == (target, decoding)]
        lines = [e for e in found if (e["target"], e["decoding"]) == (target, decoding)]
        name = f"{target}-{decoding}"
        if any(entry["gain"] for entry in lines):
            file = folder / f"gains-{name}.png"
            base = study.base_loss
            files.append(plot_gains(lines, file, base=base, title=name, origin=origin))
        if own := [row for row in own if own_loss(row) in shown]:
            file = folder / f"acceptance_by_position-{name}.png"
            files.append(plot_positions(own, file, origin=origin))
    for target_row in study.targets:
        curves: list[Curve] = [
            curve_of(unit.output, label=unit.loss)
            for unit in done
            if unit.kind == "drafter" and unit.target == target_row.name and unit.loss in shown
        ]
        if curves := [curve for curve in curves if curve.steps]:
            file = folder / f"training-{target_row.name}.png"
            files.append(plot_curves(curves, file, origin=origin))
    return files
