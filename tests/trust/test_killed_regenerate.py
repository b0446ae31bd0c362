"""`jaxspec regenerate`, killed at every write and started again; two at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxspec.cli import main as console
from jaxspec.cli import regenerate as command
from jaxspec.cli.configuration import run_as_command
from jaxspec.config import RunConfig, TargetConfig
from jaxspec.data.answer_journal import AnswerJournal
from jaxspec.data.example_files import read_examples
from jaxspec.interruption import STOPPED_AND_SAVED
from tests.training import runs
from tests.trust.mortal import watched
from tests.trust.outcomes import ROOT, Outcomes, run

FAST_STEP = 5
SLOW_KILLS = (2, 6, 9, 14, 17, 21, 25, 30)
SETTINGS: dict[str, Any] = {
    "source": "embedded/chat",
    "temperature": 1.0,
    "max_new_tokens": 6,
    "batch_size": 2,
    "shard_prompts": 2,
    "limit": 5,
    "unfinished": "keep",
}


class Killed(BaseException):
    """Simulates a kill in this process."""


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return runs.write_target(tmp_path_factory.mktemp("killed") / "target")


def regenerate(target: Path, output: Path) -> None:
    config = RunConfig(target=TargetConfig(path=str(target)))
    command.regenerate(
        command.RegenerateCommand(output=str(output), run=config, **SETTINGS),
        echo=lambda line: None,
    )


def arguments(target: Path, output: Path) -> list[str]:
    settings = [part for name, value in SETTINGS.items() for part in (f"--{name}", str(value))]
    return ["regenerate", "--target.path", str(target), "--output", str(output), *settings]


@pytest.fixture(scope="module")
def whole(target, tmp_path_factory):
    """The folder of an undisturbed run, its number of writes, and that of its kept answers."""
    folder = tmp_path_factory.mktemp("whole") / "answers"
    writes = 0

    def count() -> None:
        nonlocal writes
        writes += 1

    kept = _count_answers(pytest.MonkeyPatch())
    with watched(count):
        regenerate(target, folder)
    return folder, writes, len(kept)


def _count_answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the answers that a journal keeps from now on, in this process."""
    kept: list[str] = []
    add = AnswerJournal.add

    def counted(journal: AnswerJournal, name: str, *arguments: Any, **options: Any) -> None:
        add(journal, name, *arguments, **options)
        kept.append(name)

    monkeypatch.setattr(AnswerJournal, "add", counted)
    return kept


def difference(folder: Path, whole: Path) -> str:
    """What differs from the folder of the undisturbed run; "" if nothing."""
    names = [sorted(file.name for file in each.iterdir()) for each in (folder, whole)]
    if names[0] != names[1]:
        return f"files {names[0]}"
    examples, expected = (read_examples(each) for each in (folder, whole))
    ids = [example.id for example in examples]
    if len(set(ids)) != len(ids):
        return f"questions twice: {ids}"
    if list(examples) != list(expected):
        return f"other answers: {ids}"
    counts = [
        {key: each.manifest[key] for key in ("shards", "questions_done", "dropped")}
        for each in (examples, expected)
    ]
    return "" if counts[0] == counts[1] else f"manifest {counts[0]}"


def test_killed_at_every_write(is_slow, target, whole, tmp_path, monkeypatch):
    """In this process: after the kill there are no more writes, not even in a `finally`."""
    outcomes = Outcomes("regenerate, killed at a write")
    folder, writes, answers = whole
    assert writes > 20
    kept = _count_answers(monkeypatch)
    for last in range(1, writes + 1, 1 if is_slow else FAST_STEP):
        output = tmp_path / f"{last}"
        count = 0

        def before() -> None:
            nonlocal count
            count += 1
            if count >= last:  # noqa: B023
                raise Killed

        kept.clear()
        with watched(before), pytest.raises(Killed):
            regenerate(target, output)
        before_kill = len(kept)
        outcomes.attempt(f"write {last}", lambda: regenerate(target, output))  # noqa: B023
        wrong = difference(output, folder)
        outcomes.add("silent" if wrong else "clean", f"write {last}: {wrong}")
        # Every answer that was kept before the kill is used: none is asked twice.
        outcomes.add("clean" if len(kept) == answers else "lost", f"{last}: {before_kill}, {kept}")
    outcomes.check()


def test_killed_by_sigkill(is_slow, target, whole, tmp_path):
    outcomes = Outcomes("regenerate, SIGKILL")
    for last in SLOW_KILLS if is_slow else SLOW_KILLS[1:2]:
        output = tmp_path / f"{last}"
        ended = run(["-m", "tests.trust.mortal", "SIGKILL", str(last), *arguments(target, output)])
        assert ended.status == -signal.SIGKILL, ended
        outcomes.attempt(f"write {last}", lambda: regenerate(target, output))  # noqa: B023
        wrong = difference(output, whole[0])
        outcomes.add("silent" if wrong else "clean", f"write {last}: {wrong}")
    outcomes.check()


def test_stopped_by_sigterm(is_slow, target, whole, tmp_path):
    if not is_slow:
        pytest.skip("tests/cli/test_regenerate.py ends a run by SIGTERM in this process")
    outcomes = Outcomes("regenerate, SIGTERM")
    for last in SLOW_KILLS[1:]:
        output = tmp_path / f"{last}"
        ended = run(["-m", "tests.trust.mortal", "SIGTERM", str(last), *arguments(target, output)])
        said = (
            ended.status == STOPPED_AND_SAVED
            and "The same command continues from there." in ended.out
        )
        outcomes.add("clean" if said else "traceback", f"write {last}: {ended}")
        outcomes.attempt(f"write {last}", lambda: regenerate(target, output))  # noqa: B023
        wrong = difference(output, whole[0])
        outcomes.add("silent" if wrong else "clean", f"write {last}: {wrong}")
    outcomes.check()


def test_two_at_once(is_slow, target, whole, tmp_path, capsys):
    """The second starts while the first, which has taken the lock, is halted at a write."""
    outcomes = Outcomes("regenerate, two at once")
    for last in SLOW_KILLS[1:] if is_slow else SLOW_KILLS[1:2]:
        output = tmp_path / f"{last}"
        first = _halted(["SIGSTOP", str(last), *arguments(target, output)])
        capsys.readouterr()
        status = run_as_command(console.dispatch, arguments(target, output))
        err = capsys.readouterr().err
        refused = status == 2 and len(err.splitlines()) == 1 and "is in use by process" in err
        outcomes.add("clean" if refused else "silent", f"write {last}: {status} {err}")
        first.send_signal(signal.SIGCONT)
        out, err = first.communicate()
        outcomes.add("clean" if first.returncode == 0 else "lost", f"write {last}: {out} {err}")
        wrong = difference(output, whole[0])
        outcomes.add("silent" if wrong else "clean", f"write {last}: {wrong}")
    outcomes.check()


def _halted(argv: Sequence[str]) -> subprocess.Popen[str]:
    """A process that has stopped itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.trust.mortal", *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it ended with {status}"
    return process
