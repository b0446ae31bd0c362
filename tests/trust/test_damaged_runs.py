"""A damaged run folder: the run ends as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import train as program
from jaxspec.cli.configuration import run_as_command
from jaxspec.files import LOCK
from tests.training import runs
from tests.trust.outcomes import Outcomes, is_one_message

NEWEST = "checkpoints/20"
DEAD_PROCESS = 2**22 + 1  # Linux gives no process such a number.


def biggest(workdir: Path) -> Path:
    """The file that holds most of the newest checkpoint."""
    files = [file for file in (workdir / NEWEST).rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def described(workdir: Path) -> Path:
    """What the newest checkpoint says about its run."""
    return workdir / NEWEST / "run" / "metadata"


def recorded(workdir: Path) -> Path:
    """The record of its files."""
    return workdir / NEWEST / "run" / "file_digests.json"


def cut(file: Path) -> None:
    """Keeps the first half."""
    os.truncate(file, file.stat().st_size // 2)


def becomes_a_folder(file: Path) -> None:
    """A folder in the place of a file."""
    file.unlink()
    file.mkdir()


def becomes_a_file(folder: Path) -> None:
    """A file in the place of a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("no folder")


def appears(file: Path, content: bytes = b"x") -> None:
    """An unexpected file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "state cut": lambda w: cut(biggest(w)),
    "state empty": lambda w: biggest(w).write_bytes(b""),
    "state zeros": lambda w: biggest(w).write_bytes(bytes(biggest(w).stat().st_size)),
    "state missing": lambda w: biggest(w).unlink(),
    "all of the state missing": lambda w: shutil.rmtree(w / NEWEST / "state"),
    "step empty": lambda w: (shutil.rmtree(w / NEWEST), (w / NEWEST).mkdir()),
    "step a file": lambda w: becomes_a_file(w / NEWEST),
    "description cut": lambda w: cut(described(w)),
    "description another object": lambda w: described(w).write_text("{}"),
    "description missing": lambda w: described(w).unlink(),
    "record cut": lambda w: cut(recorded(w)),
    "record another object": lambda w: recorded(w).write_text('{"a": 1}'),
    "record missing": lambda w: recorded(w).unlink(),
    "both steps damaged": lambda w: (cut(biggest(w)), cut(w / "checkpoints/16/run/metadata")),
    "a stray file among the steps": lambda w: appears(w / "checkpoints" / "notes.txt"),
    "a stray folder among the steps": lambda w: appears(w / "checkpoints" / "20 (copy)" / "x"),
    "half of a save": lambda w: appears(w / "checkpoints" / "24.orbax-checkpoint-tmp" / "x"),
    "metrics missing": lambda w: (w / "metrics.jsonl").unlink(),
    "metrics cut": lambda w: cut(w / "metrics.jsonl"),
    "metrics not UTF-8": lambda w: appears(w / "metrics.jsonl", b"\xff\xfe{}\n"),
    "metrics a folder": lambda w: becomes_a_folder(w / "metrics.jsonl"),
    "provenance missing": lambda w: (w / "provenance.json").unlink(),
    "provenance cut": lambda w: cut(w / "provenance.json"),
    "provenance a folder": lambda w: becomes_a_folder(w / "provenance.json"),
    "export without its config": lambda w: (w / "export" / "config.json").unlink(),
    "export of another step": lambda w: appears(w / "export" / "provenance.json", b'{"step": 4}'),
    "export with its record cut": lambda w: cut(w / "export" / "provenance.json"),
    "export with a file of the user's": lambda w: appears(w / "export" / "notes.txt"),
    "half of an export": lambda w: appears(
        w / f".export.writing-{platform.node()}-{DEAD_PROCESS}" / "x"
    ),
    "tensorboard a file": lambda w: becomes_a_file(w / "tensorboard"),
    "unreadable a file": lambda w: (becomes_a_file(w / "unreadable"), cut(biggest(w))),
    "a lock that no process holds": lambda w: appears(w / LOCK, b"process 1 on a machine of old"),
}
METRICS_GONE = ("metrics missing", "metrics cut", "metrics not UTF-8")
"""Lines that are gone do not come back; those of the steps that are left are written."""
FAST = ("state zeros", "description cut", "metrics not UTF-8", "export with its record cut")


def test_26_damages_of_a_run(is_slow, finished_run, copy_of_run, config_file, capsys):
    outcomes = Outcomes("damaged runs")
    whole = (finished_run / "export" / "model.safetensors").read_bytes()
    for case, damage in DAMAGES.items():
        if not is_slow and case not in FAST:
            continue
        workdir = copy_of_run()
        damage(workdir)
        before = runs.contents(workdir)
        capsys.readouterr()
        try:
            status = run_as_command(
                program.main, ["--config", str(config_file), "--workdir", str(workdir)]
            )
        except Exception as error:
            outcomes.add("traceback", f"{case}: {error!r}")
            continue
        out, err = capsys.readouterr()
        print(f"{case}: status {status} {err.strip().splitlines()[:1]}")
        if status == 2:
            is_kept = before.items() <= runs.contents(workdir).items() or "were moved to" in err
            outcomes.add("clean" if is_one_message(err) and is_kept else "lost", f"{case}: {err}")
            continue
        weights = workdir / "export" / "model.safetensors"
        is_same = status == 0 and weights.read_bytes() == whole
        if case not in METRICS_GONE:
            is_same = is_same and runs.rows(workdir) == runs.rows(finished_run)
        outcomes.add("clean" if is_same else "silent", f"{case}: status {status}\n{out}\n{err}")
    outcomes.check()
