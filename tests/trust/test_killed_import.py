"""`jaxspec import-data`: killed at every write and started again; without room for its output."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxspec.data.example_files import read_examples
from jaxspec.data.imports import writing
from tests.training import runs
from tests.trust.bad_files import messages
from tests.trust.mortal import watched
from tests.trust.outcomes import Outcomes, run
from tests.trust.test_cli_values import count, here
from tests.trust.test_disks import IMPOSSIBLE, full_after

CONVERSATIONS, MANY = 9, 20_000
"""The latter fill several shards without changing their size."""


class Killed(BaseException):
    """Simulates a kill in this process."""


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(writing, "SHARD_EXAMPLES", 2)
    yield


def write_file(path: Path, rows: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(messages(number)) for number in range(rows)))
    return path


def arguments(file: Path, output: Path) -> list[str]:
    return ["import-data", str(file), "--output", str(output), "--validation", "0.3"]


def is_right(output: Path, *, rows: int) -> bool:
    """Whether every conversation is there once, and nothing of another start is beside them."""
    both = [*read_examples(output), *read_examples(output / "validation")]
    found = sorted(example.id for example in both)
    expected = sorted(f"chats.jsonl/{number}" for number in range(1, rows + 1))
    return found == expected and [entry.name for entry in output.parent.iterdir()] == [output.name]


def test_killed_at_every_write(tmp_path: Path, small_shards: None) -> None:
    """In this process: after the kill there are no more writes, not even in a `finally`."""
    outcomes = Outcomes("import-data, killed at a write")
    file = write_file(tmp_path / "chats.jsonl", CONVERSATIONS)
    writes = 0

    def note() -> None:
        nonlocal writes
        writes += 1

    with watched(note):
        assert here(arguments(file, tmp_path / "whole" / "data")).status == 0
    assert writes > 10
    for last in range(1, writes + 1):
        output = tmp_path / f"{last}" / "data"
        number = 0

        def before() -> None:
            nonlocal number
            number += 1
            if number >= last:  # noqa: B023
                raise Killed

        with watched(before), pytest.raises(Killed):
            here(arguments(file, output))
        count(outcomes, here(arguments(file, output)), ("write", str(last)), expected=0)
        is_whole = is_right(output, rows=CONVERSATIONS)
        outcomes.add("clean" if is_whole else "silent", f"write {last}")
    outcomes.check()


def test_killed_by_sigkill(is_slow: bool, tmp_path: Path) -> None:
    if not is_slow:
        pytest.skip("each kill needs a separate process: --slow")
    outcomes = Outcomes("import-data, SIGKILL")
    file = write_file(tmp_path / "chats.jsonl", MANY)
    for last in (2, 5, 8, 11):
        output = tmp_path / f"{last}" / "data"
        ended = run(["-m", "tests.trust.mortal", "SIGKILL", str(last), *arguments(file, output)])
        assert ended.status == -signal.SIGKILL, ended
        assert not output.exists()
        count(outcomes, here(arguments(file, output)), ("write", str(last)), expected=0)
        outcomes.add("clean" if is_right(output, rows=MANY) else "silent", f"write {last}")
    outcomes.check()


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    outcomes = Outcomes("import-data, no place for the output")
    file = write_file(tmp_path / "chats.jsonl", 2)
    for where in IMPOSSIBLE:
        output = where.format(file=file, long=tmp_path / ("n" * 300))
        ended = here(arguments(file, Path(output)))
        named = output[:60] in ended.err and "--output" in ended.err
        count(outcomes, ended, ("import-data", output), expected=2 if named else -1)
    outcomes.add("clean" if [*tmp_path.iterdir()] == [file] else "lost", "something is left")
    outcomes.check()


def test_a_disk_that_fills_up(
    tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxspec.files._TRIAL_BYTES", 1)  # Not noticed at the start.
    outcomes = Outcomes("import-data, a disk that fills up")
    file = write_file(tmp_path / "chats.jsonl", CONVERSATIONS)
    output = tmp_path / "data"
    count(outcomes, here(arguments(file, output)), ("with", "room"), expected=0)
    before = runs.contents(tmp_path)
    with full_after(500):
        ended = here(arguments(file, output))
    named = f"{output} cannot be written to: " in ended.err
    count(outcomes, ended, ("no", "room"), expected=2 if named else -1)
    outcomes.add("clean" if runs.contents(tmp_path) == before else "lost", "the earlier import")
    outcomes.check()
