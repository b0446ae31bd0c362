"""An evaluation that is killed and started again gives the same file as an undisturbed one."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import eval as eval_script
from jaxspec.cli.configuration import run_as_command
from jaxspec.config import RunConfig, TargetConfig
from jaxspec.evals.diffusion.runner import evaluate_diffusion
from jaxspec.evals.speculative.runner import evaluate
from jaxspec.evals.unfinished import ENDING, Unfinished
from jaxspec.files import InUse
from tests.evals import diffusion_folders
from tests.evals.drafter_folders import SETTINGS, write_folders
from tests.trust.outcomes import ROOT, Ended, Outcomes, run

BENCHMARKS = ("embedded/math", "embedded/chat")
UNTIMED = {"timing_prompts": 0, "prompts": 2, "benchmarks": BENCHMARKS}


class Killed(BaseException):
    """The end of a process, simulated in this one."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of evaluation, and the command that does the same."""

    name: str
    config: RunConfig
    start: Callable[..., dict[str, Any]]
    """(config, output=, echo=) -> what the file holds."""
    options: tuple[str, ...]
    num_rows: int
    first: str
    """What decodes before the rows of a benchmark."""
    module: str
    """Where it is started."""
    decode: str
    """What decodes there."""

    def run(self, output: Path, *, echo: Callable[[str], None] = lambda line: None) -> Any:
        """Evaluates in this process."""
        return self.start(self.config, output=output, echo=echo)

    def command(self, output: Path, config: Path) -> list[str]:
        """Arguments of eval.py."""
        return ["--config", str(config), "--output", str(output), *self.options]


@pytest.fixture(scope="module")
def drafters(tmp_path_factory) -> Kind:
    """Two drafters of one shape, prompt look-up, no drafter."""
    target, runs = write_folders(tmp_path_factory.mktemp("drafters"))
    settings = dataclasses.replace(SETTINGS, **UNTIMED)
    config = RunConfig(target=TargetConfig(path=str(target)), evaluation=settings)
    kinds = ["dflash", "ngram", "none"]

    def start(config: RunConfig, **options: Any) -> dict[str, Any]:
        return evaluate(config, workdirs=runs, kinds=kinds, **options)

    options = ("--workdir", *map(str, runs), "--drafters", ",".join(kinds))
    return Kind(
        "drafters", config, start, options, num_rows=8,
        first="target alone", module=evaluate.__module__, decode="generate",
    )  # fmt: skip


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory) -> Kind:
    """The base decoder and two draft graphs of a diffusion language model."""
    folder = diffusion_folders.write_model(tmp_path_factory.mktemp("diffusion") / "export")
    config = diffusion_folders.run_config(
        folder,
        evaluation=dataclasses.replace(diffusion_folders.EVALUATION, **UNTIMED),
        diffusion=dataclasses.replace(diffusion_folders.DIFFUSION, drafts=("ssd", "star")),
    )
    return Kind(
        "diffusion", config, evaluate_diffusion, (), num_rows=6,
        first="plain", module=evaluate_diffusion.__module__, decode="generate_diffusion",
    )  # fmt: skip


@pytest.fixture(scope="module", params=["drafters", "diffusion"])
def kind(request) -> Kind:
    """Both kinds of evaluation."""
    found: Kind = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def undisturbed(kind, tmp_path_factory) -> Path:
    """The folder of an evaluation that nobody killed."""
    folder = tmp_path_factory.mktemp(f"undisturbed_{kind.name}")
    kind.run(folder / "results.json")
    return folder


@pytest.fixture(scope="module")
def partial(kind, tmp_path_factory) -> Path:
    """The file of an evaluation that was killed once, and again after its last row."""
    output = tmp_path_factory.mktemp(f"partial_{kind.name}") / "results.json"
    for rows in (2, kind.num_rows - 2):
        with pytest.raises(Killed):
            kind.run(output, echo=killed_after(rows))
    return output.with_suffix(ENDING)


def is_row(line: str) -> bool:
    """Whether this line of eval.py says that a row is finished."""
    return ": tau " in line or " passes per response" in line


def killed_after(rows: int, *, said: list[str] | None = None) -> Callable[[str], None]:
    """A function that takes lines of text and raises `Killed` when this many rows are finished.

    Args:
      rows: measured by this process.
      said: gets the lines.
    """
    left, lines = rows, [] if said is None else said

    def echo(line: str) -> None:
        nonlocal left
        lines.append(line)
        left -= is_row(line)
        if not left:
            raise Killed

    return echo


def timeless(output: Path) -> Any:
    """A result file without the times of its starts; no speed is measured here."""
    document = json.loads(output.read_text(encoding="utf-8"))
    for name in ("time", "continued", "command"):
        document["provenance"].pop(name, None)
    return document


def judge(outcomes: Outcomes, case: str, output: Path, expected: Path) -> None:
    """Judges the files of a continued evaluation, and counts the outcome."""
    names = sorted(entry.name for entry in output.parent.iterdir())
    if timeless(output) != timeless(expected / "results.json"):
        outcomes.add("silent", f"{case}: other results")
    elif names != sorted(entry.name for entry in expected.iterdir()):
        outcomes.add("silent", f"{case}: {names} are there")
    else:
        outcomes.add("clean", case)


def test_killed_after_each_row(kind, undisturbed, tmp_path):
    """One evaluation whose process dies again and again: no row is measured twice."""
    outcomes = Outcomes(f"{kind.name} killed after each row")
    output = tmp_path / "results.json"
    for rows in range(1, kind.num_rows + 1):
        lines: list[str] = []
        with pytest.raises(Killed):
            kind.run(output, echo=killed_after(1, said=lines))
        said = [line for line in lines if "rows are already in" in line]
        expected = f"Continuing: {rows - 1} of {kind.num_rows} rows are already in"
        kept = output.with_suffix(ENDING).read_bytes().count(b'"kind": "row"')
        ok = kept == rows and (rows == 1 or (len(said) == 1 and said[0].startswith(expected)))
        outcomes.add("clean" if ok else "lost", f"row {rows}: {kept} rows, {said}")
        assert not output.exists()
    kind.run(output)
    judge(outcomes, "all", output, undisturbed)
    # Without times the files next to it are the same, too.
    for file in undisturbed.iterdir():
        if file.suffix != ".json":
            assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    starts = json.loads(output.read_text(encoding="utf-8"))["provenance"]["continued"]
    assert len(starts) == kind.num_rows
    outcomes.check()


def test_nothing_is_decoded_twice(kind, undisturbed, tmp_path, monkeypatch):
    """When all rows are there, the same command writes the files and decodes nothing."""
    output = tmp_path / "results.json"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(output))

    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be decoded")

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(f"{kind.module}.write_report", full)
        with pytest.raises(ValueError, match=r"^--output .* No space left on device\.$"):
            kind.run(output, echo=lines.append)
    assert f"{kind.num_rows} of {kind.num_rows} rows are saved in" in lines[-1]
    monkeypatch.setattr(f"{kind.module}.{kind.decode}", decode)
    kind.run(output)
    assert timeless(output) == timeless(undisturbed / "results.json")


def test_the_first_answers_are_kept_too(kind, undisturbed, tmp_path):
    """Killed after the target's own answers, before a row: they are not decoded again."""
    output = tmp_path / "results.json"
    title = kind.first

    def die(line: str) -> None:
        if is_row(line) or (line.endswith(" prompts") and title not in line):
            raise Killed

    with pytest.raises(Killed):
        kind.run(output, echo=die)
    lines: list[str] = []
    kind.run(output, echo=lines.append)
    assert not any(line.startswith(f"{BENCHMARKS[0]}: {title}: 2") for line in lines)
    assert any(line.startswith(f"{BENCHMARKS[1]}: {title}: 2") for line in lines)
    assert timeless(output) == timeless(undisturbed / "results.json")


def test_a_full_disk_loses_no_finished_row(kind, undisturbed, tmp_path, monkeypatch):
    outcomes = Outcomes(f"{kind.name} on a full disk")
    output = tmp_path / "results.json"
    sync = os.fsync

    def fill(descriptor: int) -> None:
        """The disk is full when half of the last line is written."""
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if place.name.endswith(ENDING) and b'"kind": "row"' in place.read_bytes().split(b"\n")[-2]:
            os.truncate(place, place.stat().st_size - 100)
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    for rows in range(3):
        if rows:
            with pytest.raises(Killed):
                kind.run(output, echo=killed_after(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fill)
            outcomes.attempt(f"after {rows} rows", lambda: kind.run(output))
        kept = output.with_suffix(ENDING).read_bytes().count(b"\n")
        assert not output.exists() and kept >= rows
    kind.run(output)
    judge(outcomes, "continued", output, undisturbed)
    outcomes.check()


def test_a_second_process_is_refused(kind, undisturbed, tmp_path):
    outcomes = Outcomes(f"{kind.name} started twice")
    output = tmp_path / "results.json"

    def start_again(line: str) -> None:
        if is_row(line):
            with pytest.raises(InUse, match=r"^--output .*results\.json is in use by process \d+"):
                kind.run(output)
            outcomes.add("clean", line)

    kind.run(output, echo=start_again)
    judge(outcomes, "the first one", output, undisturbed)
    assert outcomes.clean == kind.num_rows + 1
    outcomes.check()


def test_processes_are_killed_after_each_line(kind, undisturbed, tmp_path, is_slow):
    """By SIGKILL, at each line that they print; the same command then continues each of them."""
    if not is_slow and kind.name != "drafters":
        pytest.skip("starts another program: run with --slow")
    outcomes = Outcomes(f"{kind.name}: SIGKILL after each line")
    config = tmp_path / "config.py"
    text = f"from jaxspec.config import *\n\n\ndef get_config():\n    return {kind.config!r}\n"
    config.write_text(text, encoding="utf-8")
    for number in itertools.count(1) if is_slow else [6]:
        output = tmp_path / str(number) / "results.json"
        arguments = ["eval.py", *kind.command(output, config)]
        printed = killed_at_line(number, arguments)
        if len(printed) < number:  # It came to its end before.
            break
        kept = output.with_suffix(ENDING)
        rows = kept.read_bytes().count(b'"kind": "row"') if kept.exists() else 0
        was_complete = output.exists() and not kept.exists()
        ended = run(arguments) if is_slow else run_here(arguments)
        case = f"line {number}"
        if ended.status != 0:
            outcomes.add("lost" if ended.outcome == "clean" else ended.outcome, case + ended.err)
        elif rows < sum(map(is_row, printed)) and not was_complete:
            outcomes.add("lost", f"{case}: {rows} rows are kept")
        elif bool(rows) != (f"{rows} of {kind.num_rows} rows are already in" in ended.out):
            outcomes.add("silent", f"{case}: nothing is said")
        else:
            judge(outcomes, case, output, undisturbed)
    outcomes.check()


def run_here(arguments: list[str]) -> Ended:
    """Runs `eval.py` in this process, which has its programs."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        status = run_as_command(eval_script.main, arguments[1:])
    return Ended(status, out.getvalue(), err.getvalue())


def killed_at_line(number: int, arguments: list[str]) -> list[str]:
    """Starts a command, kills it when it has printed this many lines, and returns them."""
    with subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        printed = list(itertools.islice(process.stdout, number))
        process.send_signal(signal.SIGKILL)
    return printed


@dataclasses.dataclass(frozen=True)
class Value:
    """Stands for a response or a speed."""

    value: Any = None


def opened(path: Path, identity: Any) -> Unfinished[Any, Value]:
    """The file as the same evaluation opens it."""
    return Unfinished(path, identity=identity, started="now", answered=Value, speed=Value)


def test_damaged_files(kind, partial, tmp_path, is_slow):
    """A row that was cut is measured again; other damage is refused and not changed."""
    outcomes = Outcomes(f"{kind.name}: damaged rows")
    whole = partial.read_bytes()
    lines = whole.splitlines(keepends=True)
    identity = json.loads(lines[0])["value"]["identity"]
    file = tmp_path / "results.partial.jsonl"
    file.write_bytes(whole)
    true = opened(file, identity)
    assert len(true.rows) == kind.num_rows and len(true.starts) == 3
    for case, content in damages(lines, every=1 if is_slow else 97):
        file.write_bytes(content)
        found = outcomes.attempt(case, lambda: opened(file, identity))
        if found is None:
            if file.read_bytes() != content:
                outcomes.add("lost", f"{case}: the damaged file was changed")
        elif found.rows != true.rows[: len(found.rows)] or any(
            true.references[name] != kept for name, kept in found.references.items()
        ):
            outcomes.add("silent", case)
        elif len(found.rows) < content.count(b'"kind": "row"') - 1:
            outcomes.add("lost", case)
        else:
            outcomes.add("clean", case)
    outcomes.check()


def damages(lines: list[bytes], *, every: int) -> Iterator[tuple[str, bytes]]:
    """Ways to damage a file of lines: cuts, flipped bytes, missing and foreign lines."""
    whole = b"".join(lines)
    for length in range(0, len(whole), every):
        yield f"cut at {length}", whole[:length]
        flipped = bytes([whole[length] ^ 1])
        yield f"byte {length} flipped", whole[:length] + flipped + whole[length + 1 :]
    for number, line in enumerate(lines):
        before, after = lines[:number], lines[number + 1 :]
        yield f"line {number} missing", b"".join([*before, *after])
        yield f"line {number} twice", b"".join([*before, line, line, *after])
        for name, foreign in (
            ("empty", b"\n"), ("null", b"null\n"), ("binary", b"\xff\xfe\x00\n"),
            ("deep", b"[" * 100_000 + b"\n"), ("foreign", b'{"step": 1}\n'),
        ):  # fmt: skip
            yield f"line {number} {name}", b"".join([*before, foreign, *after])
    yield "lines in another order", b"".join([lines[0], *lines[:0:-1]])


def test_damage_is_refused_in_one_message(kind, partial, tmp_path):
    """The whole evaluation, not only its file."""
    output = tmp_path / "results.json"
    file = output.with_suffix(ENDING)
    lines = partial.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], lines[1][:-9] + lines[1][-8:], *lines[2:]]))
    with pytest.raises(ValueError, match=r"results\.partial\.jsonl is damaged in line 2: restore"):
        kind.run(output)
    assert not output.exists()
