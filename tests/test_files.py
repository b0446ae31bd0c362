"""Whole or not at all, tried before the work, held by one process at a time."""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jaxspec.files import (
    LOCK,
    InUse,
    check_replaceable,
    held,
    held_file,
    naming,
    replaced_file,
    replaced_folder,
    try_file,
    user_path,
    write_text,
)

HOLD = (
    "import sys, time; from jaxspec.files import held\n"
    "with held(sys.argv[1], option='--workdir'):\n"
    "    print('held', flush=True); time.sleep(600)\n"
)


def dead_process() -> int:
    """A process id that is no longer in use."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_file_is_old_or_new_and_nothing_is_left(tmp_path):
    file = tmp_path / "a" / "notes.txt"
    write_text(file, "old")
    with pytest.raises(RuntimeError), replaced_file(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert [entry.name for entry in file.parent.iterdir()] == ["notes.txt"]


def test_a_home_folder_is_found_or_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs/a") == tmp_path / "runs" / "a"
    assert str(user_path("runs/~a")) == "runs/~a"
    with pytest.raises(ValueError, match="'~nobody-at-all/a' begins with the home folder"):
        user_path("~nobody-at-all/a")


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "notes.txt", "for all")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "notes.txt").stat().st_mode) == 0o644


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    host, dead = platform.node(), dead_process()
    gone = [f".notes.txt.writing-{host}-{dead}"]
    kept = [
        f".notes.txt.writing-{host}-{os.getppid()}",
        f".notes.txt.writing-elsewhere-{dead}",
        f".other.txt.writing-{host}-{dead}",
    ]
    for name in (*gone, *kept):
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "notes.txt", "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["notes.txt", *kept])


def test_a_folder_that_was_being_replaced_comes_back(tmp_path):
    suffix = f"{platform.node()}-{dead_process()}"
    (tmp_path / f".export.replaced-{suffix}").mkdir()
    (tmp_path / f".export.replaced-{suffix}" / "weights").write_text("old")
    (tmp_path / f".export.writing-{suffix}").mkdir()
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "export", is_own=bool):
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]
    assert (tmp_path / "export" / "weights").read_text() == "old"


@pytest.mark.parametrize("place", ["/proc/x.json", "/dev/full/x.json", "{tmp}/file/x", "{tmp}"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output"):
        try_file(place.format(tmp=tmp_path), option="--output")


def test_trying_leaves_nothing_behind(tmp_path):
    try_file(tmp_path / "a" / "b" / "x.json", option="--output")
    assert not list(tmp_path.iterdir())


def test_one_process_holds_a_folder(tmp_path):
    folder = tmp_path / "run"
    with held(folder, option="--workdir"):
        done = subprocess.run(
            [sys.executable, "-c", HOLD, str(folder)], capture_output=True, text=True, check=False
        )
        assert f"is in use by process {os.getpid()} on " in done.stderr
        (folder / "metrics.jsonl").write_text("")
    assert [entry.name for entry in folder.iterdir()] == ["metrics.jsonl"]
    with held(folder, option="--workdir"):
        pass


def test_the_lock_ends_with_a_killed_process(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InUse, match="in use by process"), held(folder, option="--workdir"):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert (folder / LOCK).exists()
    with held(folder, option="--workdir"):
        pass
    assert not folder.exists() or not list(folder.iterdir())


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(RuntimeError), held(tmp_path / "a" / "run", option="--workdir"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_one_process_holds_a_file(tmp_path):
    """Its neighbours may be written by others."""
    file = tmp_path / "a" / "results.json"
    with held_file(file, option="--output") as place:
        assert place == file and not file.exists()
        with (
            pytest.raises(InUse, match=r"^--output .*results\.json is in use by process"),
            held_file(file, option="--output"),
        ):
            pass
        with held_file(file.with_name("other.json"), option="--output"):
            pass
        file.write_text("{}")
    assert [entry.name for entry in file.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Error writing [OS error 28: No space left on device]"),
        RuntimeError("Error while serializing: No space left on device (os error 28)"),
        RuntimeError("write() failed: No space left on device; writing /x; at byte 500"),
    ],
)
def test_a_failed_write_gets_a_name(error: Exception) -> None:
    with pytest.raises(OSError) as caught, naming("runs/a.json"):
        raise error
    assert str(caught.value) == "[Errno 28] No space left on device: 'runs/a.json'"


def test_other_errors_stay_as_they_are() -> None:
    for error in (ValueError("bad"), FileNotFoundError(2, "gone", "other")):
        with pytest.raises(type(error)) as caught, naming("runs/a.json"):
            raise error
        assert caught.value is error
        assert getattr(error, "filename", "other") == "other"


def test_a_temporary_file_is_called_by_its_final_name(tmp_path):
    place = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError) as caught, replaced_file(place) as temporary:
        (temporary / "below").read_text()
    assert caught.value.filename == str(place)
    with pytest.raises(FileNotFoundError) as caught, replaced_file(place):
        (tmp_path / "other").read_text()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_folder_that_another_process_made_is_kept(tmp_path):
    folder = tmp_path / "made"
    options = {"is_own": {"a.txt"}.__contains__, "keep_existing": True}
    with replaced_folder(folder, **options) as temporary:
        (temporary / "a.txt").write_text("second")
        folder.mkdir()
        (folder / "a.txt").write_text("first")
    assert (folder / "a.txt").read_text() == "first"
    assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize("name", [".", "..", "../.."])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, name):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    refused = pytest.raises(ValueError, match=r"\.? cannot be replaced as a whole, because it hol")
    with held_file(name, option="--output"), refused, replaced_folder(name, is_own=bool):
        pass
    assert Path.cwd().is_dir()


def test_few_of_many_files_are_named(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(ValueError, match=r"lost: \['0.txt', .*'4.txt'\] and 2 more\. Move"):
        check_replaceable(tmp_path, is_own=lambda name: False)
