from __future__ import annotations

import errno
import gzip
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxspec.cli.configuration import run_as_command
from jaxspec.cli.mistakes import ADVICE, message_of
from jaxspec.files import replaced_file, replaced_folder

ROOT = Path(__file__).parent.parent.parent


def raised(function: Callable[[], Any]) -> Exception:
    """What a call raises."""
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("number", sorted(ADVICE), ids=errno.errorcode.__getitem__)
def test_system_errors_name_the_place_and_say_what_to_do(number):
    error = OSError(number, os.strerror(number), "runs/a.json")
    assert message_of(error) == f"{os.strerror(number)}: runs/a.json. {ADVICE[number]}"


def test_system_errors_as_they_come(tmp_path):
    (tmp_path / "file").write_text("x")
    absent, below, long = tmp_path / "absent", tmp_path / "file" / "x", tmp_path / ("n" * 300)
    assert message_of(raised(absent.read_text)) == (
        f"No such file or directory: {absent}. Check the path."
    )
    assert message_of(raised(below.read_text)) == f"Not a directory: {below}. Check the path."
    assert message_of(raised(tmp_path.read_text)) == f"Is a directory: {tmp_path}. Check the path."
    said = message_of(raised(lambda: long.write_text("x"))) or ""
    assert said.startswith(f"File name too long: {str(long)[:100]} ... nnn")
    assert said.endswith(f"({len(str(long))} characters). Use a shorter name.")
    moved = message_of(raised(lambda: absent.rename(tmp_path / "there")))
    assert moved == f"No such file or directory: {absent} -> {tmp_path / 'there'}. Check the path."


def test_names_are_printed_without_control_characters():
    said = message_of(FileNotFoundError(errno.ENOENT, "gone", "a\x1b[2J\nb"))
    assert said == r"gone: 'a\x1b[2J\nb'. Check the path."


def test_a_write_that_fails_has_a_name_through_the_path_or_the_file():
    full = Path("/dev/full")
    assert message_of(raised(lambda: full.write_text("x" * 9))) == (
        f"No space left on device: /dev/full. {ADVICE[errno.ENOSPC]}"
    )


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_replaced_file_or_folder_is_named(tmp_path, kind):
    place = tmp_path / "out"

    def write() -> None:
        writing = replaced_file(place) if kind == "file" else replaced_folder(place, is_own=bool)
        with writing:
            raise OSError(errno.ENOSPC, "No space left on device")

    assert message_of(raised(write)) == (
        f"No space left on device: {place}. {ADVICE[errno.ENOSPC]}"
    )
    assert not list(tmp_path.iterdir())


def test_system_errors_without_a_number_or_a_name():
    assert message_of(TimeoutError("timed out")) == "TimeoutError: timed out"
    assert message_of(OSError(errno.EIO, "Input/output error")) == (
        f"Input/output error. {ADVICE[errno.EIO]}"
    )
    assert message_of(OSError(errno.EBADF, "Bad file descriptor")) == (
        "Bad file descriptor. (JAXSPEC_TRACEBACK=1 shows where)"
    )


def test_damaged_and_foreign_files(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9!")
    said = message_of(raised(lambda: latin.read_text(encoding="utf-8"))) or ""
    assert said.startswith(f"{latin} is not UTF-8 text: invalid continuation byte at byte 3. Save")
    assert "cannot be written in the encoding 'ascii'" in (
        message_of(raised(lambda: "é".encode("ascii"))) or ""
    )
    error = raised(lambda: zipfile.ZipFile(io.BytesIO(b"PK\x03\x04damaged")))
    assert (message_of(error) or "").startswith("A file is damaged: File is not a zip file.")
    shortened = gzip.compress(b"text" * 99)[:-9]
    assert "is damaged" in (message_of(raised(lambda: gzip.decompress(shortened))) or "")


def test_numbers_and_memory_that_no_machine_has():
    error = raised(lambda: jax.random.key(1 << 70))
    assert isinstance(error, OverflowError)
    assert (message_of(error) or "").startswith("A number is too large (Python int too large")
    error = raised(lambda: np.zeros(1 << 50))
    assert isinstance(error, MemoryError)
    assert "out of memory (Unable to allocate" in (said := message_of(error) or "")
    assert "data.batch_size" in said
    error = raised(lambda: jax.numpy.zeros(1 << 46, "int8"))
    assert type(error) is jax.errors.JaxRuntimeError
    assert (message_of(error) or "").startswith("A device is out of memory (RESOURCE_EXHAUSTED: ")
    assert message_of(RecursionError("maximum recursion depth exceeded")) == (
        "A file or a value is nested too deeply to be read (maximum recursion depth exceeded). "
        "(JAXSPEC_TRACEBACK=1 shows where)"
    )


def test_a_backend_that_is_not_there():
    error = raised(lambda: jax.devices("nonsense"))
    assert isinstance(error, RuntimeError)
    assert message_of(RuntimeError("Unable to initialize backend 'tpu': no")) == (
        "Unable to initialize backend 'tpu': no\n"
        "(the environment variable JAX_PLATFORMS chooses the backends)"
    )


@pytest.mark.parametrize(
    "error",
    [
        *(TypeError("x"), KeyError("x"), AssertionError(), AttributeError("x"), RuntimeError("x")),
        *(jax.errors.JaxRuntimeError("INTERNAL: x"), ZeroDivisionError(), NotImplementedError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_defects_are_not_explained(error):
    assert message_of(error) is None

    def main(argv: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        run_as_command(main, [])


def test_run_as_command_says_it(capsys, monkeypatch):
    def main(argv: Any) -> None:
        Path("/absent/file").read_text()

    monkeypatch.delenv("JAXSPEC_TRACEBACK", raising=False)
    assert run_as_command(main, []) == 2
    assert capsys.readouterr().err == (
        "error: No such file or directory: /absent/file. Check the path.\n"
    )
    monkeypatch.setenv("JAXSPEC_TRACEBACK", "1")
    assert run_as_command(main, []) == 2
    assert "FileNotFoundError" in capsys.readouterr().err


def test_a_status_of_the_commands_own_stays():
    def main(argv: Any) -> None:
        raise SystemExit(75)

    with pytest.raises(SystemExit) as caught:
        run_as_command(main, [])
    assert caught.value.code == 75


FULL = "error: Standard output cannot be written to. No space left on device. "


@pytest.mark.parametrize(
    ("arguments", "redirection", "message"),
    [
        ("--help", "> /dev/full", FULL),
        ("--help", ">&-", "error: Standard output is closed (>&-): redirect it"),
        ("--config absent.py", "> /dev/full", "error: Config file not found: 'absent.py'."),
        ("--help", "> /dev/full 2> /dev/full", ""),
        ("--config absent.py", "2>&-", ""),
    ],
)
def test_full_and_closed_streams(tmp_path, arguments, redirection, message):
    """Status 2, and the interpreter prints nothing at exit."""
    done = subprocess.run(
        ["bash", "-c", f'"$0" "$1" {arguments} {redirection}', sys.executable, ROOT / "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == bool(message)
