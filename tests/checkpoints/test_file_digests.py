from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from jaxspec.checkpoints import file_digests
from jaxspec.checkpoints.file_digests import find_damage, is_there, write_record
from jaxspec.interruption import hearing_progress

RECORD = "about/digests.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files, recorded."""
    for name, content in {"a.bin": b"123456789", "deep/er/b.bin": b"b" * 3_000_000}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").touch()
    write_record(tmp_path, RECORD)
    return tmp_path


def test_nothing_is_wrong(folder):
    assert find_damage(folder, RECORD) == ""
    recorded = json.loads((folder / RECORD).read_text())
    assert set(recorded) == {"a.bin", "deep/er/b.bin", "empty"}
    # The check value in the definition of this CRC.
    assert recorded["a.bin"] == {"bytes": 9, "crc32": "cbf43926"}
    assert recorded["empty"] == {"bytes": 0, "crc32": "00000000"}


def test_what_is_wrong_is_named(folder):
    (folder / "a.bin").write_bytes(b"123456780")
    assert find_damage(folder, RECORD).startswith("a.bin has changed: its CRC-32 is ")
    (folder / "a.bin").write_bytes(b"12345678")
    assert find_damage(folder, RECORD) == "a.bin has 8 bytes, expected 9"
    (folder / "a.bin").unlink()
    assert find_damage(folder, RECORD) == "a.bin is missing"
    assert find_damage(folder, RECORD, within="deep/") == ""


def test_the_last_byte_of_a_long_file_counts(folder):
    (folder / "deep/er/b.bin").write_bytes(b"b" * 2_999_999 + b"c")
    assert find_damage(folder, RECORD).startswith("deep/er/b.bin has changed")


def test_shares_are_all_files_and_each_of_them_once(folder, monkeypatch):
    read = []
    digest = file_digests._crc32
    monkeypatch.setattr(file_digests, "_crc32", lambda file: read.append(file.name) or digest(file))
    for part in range(2):
        assert find_damage(folder, RECORD, share=(part, 2)) == ""
    assert sorted(read) == ["a.bin", "b.bin", "empty"]
    (folder / "empty").unlink()
    found = [find_damage(folder, RECORD, share=(part, 4)) for part in range(4)]
    assert sorted(found) == ["", "", "", "empty is missing"]


def test_a_long_file_gets_on_while_it_is_read(folder):
    heard = []
    with hearing_progress(lambda: heard.append(1)):
        find_damage(folder, RECORD)
    assert len(heard) == 4, "3 MB are read in pieces of a MiB, and 9 bytes at once"


def test_a_file_that_nobody_recorded_is_not_looked_at(folder):
    (folder / "notes.txt").write_text("mine")
    assert find_damage(folder, RECORD) == ""


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES])
def test_a_file_that_cannot_be_read_now_may_be_whole(folder, monkeypatch, number):
    def refuse(file: Path) -> str:
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(file_digests, "_crc32", refuse)
    with pytest.raises(OSError) as caught:
        find_damage(folder, RECORD)
    assert caught.value.errno == number


def test_a_folder_that_does_not_answer_is_not_missing(folder, monkeypatch):
    def refuse(path: Path, **options: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    assert is_there(folder / "a.bin") and not is_there(folder / "none")
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(OSError, match="Stale"):
        is_there(folder / "a.bin")
    with pytest.raises(OSError, match="Stale"):
        find_damage(folder, RECORD)


def test_a_record_does_not_lead_outside(folder):
    (folder.parent / "secret").write_text("123")
    (folder / RECORD).write_text('{"../secret": 3}')
    assert find_damage(folder, RECORD) == f"{RECORD} is damaged"
