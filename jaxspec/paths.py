"""Paths as users type them, on this machine or in a bucket, and what differs between the two.

>>> user_path("runs/full").name
'full'
>>> is_remote("gs://bucket/runs/full")
True
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, cast

from jaxspec.interruption import is_outage

TEMPORARY = "jaxspec-"
"""How the names of temporary folders begin."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket: "gs://bucket/folder"."""
    return _URL.match(os.fspath(path)) is not None


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user types it, on this machine or in a bucket.

    A leading "~" or "~name" is replaced by that home folder. A path in a bucket has the methods of
    `pathlib.Path` (`jaxspec.remote_paths.RemotePath`), but is none: never give it to `Path`,
    `open`, `os` or `shutil`.

    Raises:
      ValueError: nobody has that name; or a URL of a kind that is not known, or whose package is
        missing.
    """
    if is_remote(path):
        # fsspec and etils take half a second to import.
        from jaxspec.remote_paths import remote_path

        return remote_path(os.fspath(path))
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{os.fspath(path)!r} begins with the home folder of nobody on this machine: write "
            "the folder out."
        ) from error


def exists(path: Path) -> bool:
    """Whether something is there; on this machine, also False where a permission is missing.

    Raises:
      OSError: a disk, network share or bucket does not answer now.
    """
    return path.exists() if is_remote(path) else _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether a file is there; on this machine, also False where a permission is missing.

    Raises:
      OSError: a disk, network share or bucket does not answer now.
    """
    return path.is_file() if is_remote(path) else stat.S_ISREG(_mode(path) or 0)


def _mode(path: Path) -> int | None:
    """What is at a path on this machine; None: nothing that could be looked at."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: of a name that no file can have.
        if is_outage(error):
            raise
        return None


def explained(path: Path) -> contextlib.AbstractContextManager[None]:
    """In the block, what the package of a bucket raises while it reads an open file is an OSError.

    On this machine, it is one anyway.
    """
    if not is_remote(path):
        return contextlib.nullcontext()
    from jaxspec.remote_paths import explained as explained_there

    return explained_there(path)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file on this machine, to a bucket or from one."""
    if is_remote(target):
        cast(Any, target).upload(local_copy(source))
    elif is_remote(source):
        cast(Any, source).download(target)
    else:
        shutil.copyfile(source, target)


def local_copy(path: Path) -> Path:
    """The file itself; of one in a bucket, a copy on this machine, until the process ends.

    Libraries that open files themselves need it.
    """
    if not is_remote(path):
        return path
    place = Path(_copies().name) / cast(Any, path).version() / path.name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        whole = place.with_name(f".{place.name}")
        copy_file(path, whole)
        whole.replace(place)
    return place


@functools.cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    """The folder of copies; it is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix=TEMPORARY)


def remove_folder(folder: Path) -> None:
    """Removes a folder with everything in it, as far as that is possible; it need not exist."""
    if is_remote(folder):
        cast(Any, folder).rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def read_range(path: Path, start: int, length: int) -> bytes:
    """A part of a file; shorter where the file ends."""
    if is_remote(path):
        return cast(bytes, cast(Any, path).read_range(start, length))
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)
