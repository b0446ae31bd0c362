"""What is on disk: trainings, evaluations and studies below folders, and how trainings differ.

>>> [run.name for run in find_runs([Path("runs")])]                            # doctest: +SKIP
['runs/quickstart/full', 'runs/quickstart/results.json', 'runs/quickstart/uniform']
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxspec.evals.results import is_target_alone
from jaxspec.evals.tables import ABSENT, formatted, markdown
from jaxspec.json_files import LARGEST_OF_RESULTS, read_object, shortened
from jaxspec.names import for_markdown, for_terminal
from jaxspec.provenance import short_commit
from jaxspec.study.curves import Curve, curve_of
from jaxspec.study.results import RESULTS, SUMMARY
from jaxspec.study.summary import MEAN
from jaxspec.training.metrics import last_row
from jaxspec.training.run_record import recorded_config
from jaxspec.training.segments import differences
from jaxspec.training.tasks.settings import groups_read

_RECORD = "provenance.json"
_LONGEST_PATH = 4096
"""Paths are shown whole: people copy them."""
_LAST = ("step", "loss", "accepted", "validation_loss", "validation_tau", "learning_rate")
"""Of the last line of metrics, what is put side by side."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, an evaluation or a study on disk. "" and None: not known."""

    name: str
    """Its folder or file."""
    kind: str
    config: str = ""
    loss: str = ""
    steps: str = ""
    """Steps done of all; of results, their rows; of a study's summary, its lines."""
    last_loss: float | None = None
    accepted: float | None = None
    seed: int | None = None
    commit: str = ""
    date: str = ""


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs below folders, sorted by name.

    Raises:
      ValueError: a folder that is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}: name folders that hold runs.")
    found = {run.name: run for folder in folders for run in _below(folder)}
    return [found[name] for name in sorted(found)]


def _below(folder: Path) -> Iterator[Run]:
    for place, inner, files in os.walk(folder):
        here = Path(place)
        if _RECORD in files and ("metrics.jsonl" in files or "checkpoints" in inner):
            inner.clear()  # A training holds no other runs.
            yield _training(here)
            continue
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
            if name == SUMMARY and RESULTS in files:
                continue  # They are of one study.
            if name.endswith(".json") and (run := _results(here / name)) is not None:
                yield run


def _training(workdir: Path) -> Run:
    name = str(workdir)
    try:
        record = read_object(workdir / _RECORD)
        config = recorded_config(record["config"], where=f"{workdir}: config")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Run(name, "training (record not readable)")
    row = last_row(workdir)
    groups = groups_read(config.training.task, objective=config.denoiser.objective)
    return Run(
        name,
        f"training ({config.training.task})",
        config=config.name,
        loss=config.loss.label if "loss" in groups else "",
        steps=f"{row.get('step', 0)}/{config.training.steps}",
        last_loss=_number(row.get("loss")),
        accepted=_number(row.get("accepted")),
        **_origin(record),
    )


def _results(file: Path) -> Run | None:
    """A result file; None: it is something else."""
    try:
        found = read_object(file, largest=LARGEST_OF_RESULTS)
    except ValueError:
        return None
    rows, record, study = found.get("results"), found.get("provenance"), found.get("study")
    lines = found.get("summary")
    if rows is None and isinstance(study, dict) and isinstance(lines, list):
        rows = lines
    if not isinstance(rows, list) or not isinstance(record, dict):
        return None
    known = [row for row in rows if isinstance(row, dict) and row.get("benchmark") != MEAN]
    losses = dict.fromkeys(str(row.get("loss", row.get("decoder", ""))) for row in known)
    figures = [_number(row.get("accepted_per_round")) for row in known if not is_target_alone(row)]
    accepted = [figure for figure in figures if figure is not None]
    config = study if isinstance(study, dict) else record.get("config")
    config = config if isinstance(config, dict) else {}
    return Run(
        str(file),
        "study" if isinstance(study, dict) else "evaluation",
        config=str(config.get("name", "")),
        loss=", ".join(losses),
        steps=f"{len(rows)} {'lines' if rows is lines else 'rows'}",
        accepted=statistics.fmean(accepted) if accepted else None,
        **_origin(record),
    )


def _number(value: Any) -> float | None:
    """A figure of a file that others may have written; None: it is not one."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _origin(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": record.get("seed"),
        "commit": short_commit(record),
        "date": str(record.get("time", ""))[:16].replace("T", " "),
    }


def runs_table(runs: Sequence[Run]) -> Table:
    """The runs as a table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    for title in ("kind", "config", "loss"):
        table.add_column(title)
    for title in ("steps", "last loss", "accepted", "seed"):
        table.add_column(title, justify="right")
    for title in ("commit", "date"):
        table.add_column(title)
    for run in runs:
        cells = [
            *(run.name, run.kind, run.config, run.loss, run.steps),
            formatted(run.last_loss, ".3f"),
            formatted(run.accepted, ".2f"),
            formatted(run.seed),
            *(run.commit, run.date),
        ]
        name, *others = (for_terminal(cell, longest=_LONGEST_PATH) for cell in cells)
        table.add_row(Text(name), *(Text(for_terminal(cell)) for cell in others))
    return table


def runs_difference(workdirs: Sequence[Path]) -> str:
    """Settings in which trainings differ, and the last line of metrics of each, as Markdown.

    Args:
      workdirs: folders of trainings, at least two.

    Raises:
      ValueError: fewer than two folders, or one that holds no training.
    """
    if len(workdirs) < 2:
        raise ValueError("There is nothing to compare: name the folders of at least two trainings.")
    configs = [_recorded_settings(workdir) for workdir in workdirs]
    names = [for_markdown(str(workdir), longest=_LONGEST_PATH) for workdir in workdirs]
    settings: dict[str, list[Any]] = {}
    for place, config in enumerate(configs):
        for found in differences(config, configs[0]):
            values = settings.setdefault(found.setting, [found.recorded] * len(configs))
            values[place] = found.got
    changed = [[name, *map(_shown, values)] for name, values in settings.items()]
    rows = [last_row(workdir) for workdir in workdirs]
    measured = [
        [name, *(formatted(row.get(name), "d" if name == "step" else ".4g") for row in rows)]
        for name in _LAST
        if any(row.get(name) is not None for row in rows)
    ]
    parts = [
        markdown(["setting", *names], changed, names=len(names) + 1)
        if changed
        else "Their settings are equal.",
        markdown(["last line", *names], measured, names=1)
        if measured
        else f"No metrics have been written yet ({ABSENT}).",
    ]
    return "\n\n".join(parts) + "\n"


def curves_of(workdirs: Sequence[Path]) -> list[Curve]:
    """The curves of trainings that have written metrics.

    They are named by their folders, without what all of these begin with: of a long name, a plot
    shows the beginning and the end.
    """
    folders = [Path(os.path.abspath(workdir)) for workdir in workdirs]
    shared = os.path.commonpath([folder.parent for folder in folders])
    curves = [curve_of(each, label=str(each.relative_to(shared))) for each in folders]
    return [curve for curve in curves if curve.steps]


def _recorded_settings(workdir: Path) -> dict[str, Any]:
    file = workdir / _RECORD
    if not file.is_file():
        raise ValueError(
            f"No training in {workdir}: expected the --workdir of train.py, with {_RECORD}. "
            "(jaxspec study diff compares studies.)"
        )
    config = read_object(file).get("config")
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no settings of a training.")
    return config


def _shown(value: Any) -> str:
    return shortened(str(value), longest=60)
