"""A record of the files in a folder, so that damage is noticed before anything is used.

The record holds the size and the CRC-32 of every file. CRC-32 detects every flipped bit, every
changed byte and all damage that spans at most 32 bits; of longer damage it misses one case in
4 billion. It guards against accidents, not against forgery. A gigabyte takes 0.3 s on one core
(SHA-256: 0.7 s, BLAKE2b: 1.2 s), and several files are read at once.

>>> write_record(folder, "digests.json")  # doctest: +SKIP
>>> find_damage(folder, "digests.json")  # doctest: +SKIP
'weights.bin has changed: its CRC-32 is 1f0b3a52, expected 9ac80d11'
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from jaxspec.interruption import progressed
from jaxspec.paths import explained
from jaxspec.provenance import write_json

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_MOST_THREADS = 4
_CHUNK_BYTES = 1 << 20


def write_record(folder: Path, record: str) -> None:
    """Records every file in a folder.

    Args:
      folder: may have subfolders of any depth. Nothing may write to it meanwhile.
      record: path of the record within `folder`.
    """
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*")}
    names = sorted(name for name, file in files.items() if file.is_file() and name != record)
    with _threads() as threads:
        digests = threads.map(lambda name: _crc32(files[name]), names)
        entries = {
            name: {"bytes": files[name].stat().st_size, "crc32": digest}
            for name, digest in zip(names, digests, strict=True)
        }
    write_json(folder / record, entries)


def says_absent(error: OSError) -> bool:
    """Whether an error says that no such file is there. Others say nothing about the file."""
    return error.errno in _ABSENT


def is_there(path: Path) -> bool:
    """Whether something is there.

    Raises:
      OSError: it cannot be known now, as when a network share does not answer.
    """
    try:
        path.stat()
    except OSError as error:
        if not says_absent(error):
            raise
        return False
    return True


def find_damage(
    folder: Path, record: str, *, within: str = "", share: tuple[int, int] = (0, 1)
) -> str:
    """What is wrong with the files of a folder, in a few words; "" if all are as recorded.

    Files that are not in the record are ignored.

    Args:
      folder: the folder.
      record: path of the record within `folder`. A value that is a plain number is a size without
        a digest.
      within: check only files whose names start with this.
      share: (number of a part, number of parts): check only this part of them.

    Raises:
      OSError: a file cannot be read now (a disk, network share or bucket that fails, a missing
        permission). Nothing is known about it then: it may be whole.
    """
    try:
        entries = _read(folder / record)
    except OSError as error:
        if not says_absent(error):
            raise
        return f"{record} cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return f"{record} is damaged"
    part, parts = share
    names = sorted(name for name in entries if name.startswith(within))[part::parts]
    with _threads() as threads:
        found = threads.map(lambda name: _damage(folder, name, *entries[name]), names)
        return next(filter(None, found), "")


def _read(record: Path) -> dict[str, tuple[int, str | None]]:
    """Name -> size and digest.

    Raises:
      ValueError: the file is not a record.
    """
    content = json.loads(record.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not content:
        raise ValueError("expected an object with an entry for each file")
    return {_inside(name): _entry(value) for name, value in content.items()}


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"{name!r} is outside the folder")
    return name


def _entry(value: Any) -> tuple[int, str | None]:
    if type(value) is int:
        return value, None
    if not isinstance(value, dict) or set(value) != {"bytes", "crc32"}:
        raise ValueError(f"expected bytes and crc32: got {value!r}")
    return value["bytes"], value["crc32"]


def _damage(folder: Path, name: str, size: int, digest: str | None) -> str:
    """What is wrong with one file; "" if nothing. A damaged `size` or `digest` never matches."""
    file = folder / name
    try:
        found = file.stat().st_size
        if not file.is_file():
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes, expected {size}"
        got = None if digest is None else _crc32(file)
    except OSError as error:
        if not says_absent(error):
            raise
        return f"{name} is missing"
    return "" if got == digest else f"{name} has changed: its CRC-32 is {got}, expected {digest}"


def _crc32(file: Path) -> str:
    """CRC-32 of a file, as 8 hexadecimal digits. zlib lets other threads run in the meantime."""
    value, chunk = 0, memoryview(bytearray(_CHUNK_BYTES))
    with explained(file), file.open("rb", buffering=0) as opened:
        while count := opened.readinto(chunk):
            value = zlib.crc32(chunk[:count], value)
            progressed()
    return f"{value:08x}"


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
