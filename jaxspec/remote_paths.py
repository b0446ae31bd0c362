"""Paths in buckets, with the methods of `pathlib.Path`: gs://, s3://, az://, hf://.

They are etils' paths, which orbax, TFDS and jax take as they are, with what these lack: listings
that are never stale (tensorstore writes objects behind fsspec's back), errors that name the path
and say what to run, and the methods and arguments of pathlib that jaxspec uses.

A bucket has objects, not folders. A folder is there as long as an object has its name before a
slash, so `mkdir` does nothing. An object is replaced as a whole, or not at all; it cannot be
appended to, and renaming copies. There are no locks and no links.

`jaxspec.files.user_path` makes these paths; nothing else needs to.

>>> RemotePath("gs://bucket/runs/full").parent / "other"                       # doctest: +SKIP
RemotePath('gs://bucket/runs/other')
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fnmatch
import functools
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import fsspec
from etils import epath
from etils.epath import gpath, stat_utils

PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}
"""Scheme -> the package that reads and writes there."""
_LOGINS = {
    "gs": (
        "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, or give "
        "the service account of this machine access to the bucket"
    ),
    "s3": "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "run `hf auth login`, or set HF_TOKEN",
}
_REFUSED = (
    *("credential", "forbidden", "denied", "unauthorized", "anonymous", "invalid authentication"),
    *("401", "403", "login", "permission"),
)
"""Words in the errors of these packages that mean: no access."""
_EXPECTED = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
}
"""Errors that say what is there, with their numbers, which packages leave out."""
_LONGEST = 200
"""Characters that are quoted of another package's error."""


def remote_path(path: str) -> Path:
    """The path of a URL, as a `pathlib.Path` for readers and type checkers.

    Raises:
      ValueError: a scheme that is not known, a URL without a bucket, or a package that is missing.
    """
    scheme, _, rest = path.partition("://")
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise ValueError(f"{path!r} begins with {scheme}://: expected a local path, or {known}.")
    if not rest.strip("/"):
        raise ValueError(f"{path!r} names no bucket: expected {scheme}://BUCKET/FOLDER.")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = PACKAGES[scheme]
        raise ValueError(
            f"{path} cannot be read or written: {scheme}:// needs the package {package}, which is "
            f"not installed here. Install it: pip install {package}."
        ) from error
    return cast(Path, RemotePath(path))


class RemoteStat(stat_utils.StatResult):
    """What is known of an object, by etils' names and by those of `os.stat_result`."""

    @property
    def st_size(self) -> int:
        """Bytes."""
        return self.length

    @property
    def st_mtime(self) -> int:
        """Seconds since 1970; 0 where the bucket does not say."""
        return self.mtime


@epath.register_path_cls(tuple(f"{scheme}://" for scheme in PACKAGES))
class RemotePath(gpath.PosixGPath):
    """A path in a bucket."""

    @property
    def _files(self) -> Any:
        """Fsspec's file system of the bucket."""
        return _file_system(str(self).partition("://")[0])

    def _asked(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Calls a method of the file system with this path.

        Raises:
          OSError: with a number, an explanation and the path, whatever the package raises.
        """
        with explained(self):
            return getattr(self._files, method)(str(self), *arguments, **named)

    def _info(self) -> dict[str, Any] | None:
        """What is known of this path; None: nothing is there."""
        try:
            return cast("dict[str, Any]", self._asked("info"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self) -> bool:
        """See pathlib. Without access, it raises: fsspec's own says that nothing is there."""
        return self._info() is not None

    def is_dir(self) -> bool:
        """See pathlib."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_file(self) -> bool:
        """See pathlib."""
        info = self._info()
        return info is not None and info["type"] != "directory"

    def is_symlink(self) -> bool:
        """See pathlib."""
        return False

    def stat(self) -> RemoteStat:
        """See pathlib."""
        info = self._asked("info")
        changed = info.get("mtime") or info.get("updated") or info.get("LastModified") or 0
        if isinstance(changed, str):
            changed = datetime.datetime.fromisoformat(changed)
        if isinstance(changed, datetime.datetime):
            changed = changed.timestamp()
        return RemoteStat(
            is_directory=info["type"] == "directory", length=info["size"] or 0, mtime=int(changed)
        )

    def absolute(self) -> RemotePath:
        """See pathlib."""
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        """See pathlib."""
        del strict
        return self

    def expanduser(self) -> RemotePath:
        """See pathlib."""
        return self

    def iterdir(self) -> Iterator[RemotePath]:
        """See pathlib; a folder that is not there is an empty one."""
        try:
            names = [entry["name"] for entry in self._asked("ls", detail=True)]
        except FileNotFoundError:
            return
        own = self._stripped()
        for name in names:
            # Some buckets hold an empty object with the folder's own name.
            if (stripped := name.rstrip("/")) != own:
                yield self / stripped.rsplit("/", 1)[-1]

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """See pathlib; "**" has no meaning."""
        first, _, rest = pattern.partition("/")
        if rest:
            for entry in self.glob(first):
                yield from entry.glob(rest)
        elif self.is_dir():
            yield from (entry for entry in self.iterdir() if fnmatch.fnmatch(entry.name, pattern))

    def walk(
        self, *, top_down: bool = True, on_error: Any = None
    ) -> Iterator[tuple[RemotePath, list[str], list[str]]]:
        """See pathlib."""
        del on_error
        entries = [(entry.name, entry.is_dir()) for entry in self.iterdir()]
        folders = [name for name, is_dir in entries if is_dir]
        here = (self, folders, [name for name, is_dir in entries if not is_dir])
        if top_down:
            yield here
        for name in folders:
            yield from (self / name).walk(top_down=top_down)
        if not top_down:
            yield here

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """See pathlib; without folders."""
        skipped = len(self._stripped()) + 1
        for name in sorted(self._asked("find")):
            found = self / name[skipped:]
            if fnmatch.fnmatch(found.name, pattern):
                yield found

    def _stripped(self) -> str:
        """The path as fsspec's listings have it: without the scheme."""
        return str(self._files._strip_protocol(str(self))).rstrip("/")

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        **options: Any,
    ) -> Any:
        """See pathlib; `buffering` has no meaning here.

        Raises:
          io.UnsupportedOperation: anything but reading an object or writing a new one.
        """
        del buffering, options
        kind = mode.replace("b", "").replace("t", "")
        if kind not in ("r", "w"):
            raise io.UnsupportedOperation(f"{self}: an object cannot be opened with {mode!r}")
        file = self._asked("open", kind + "b")
        if "b" in mode:
            return file
        return io.TextIOWrapper(file, encoding=encoding or "utf-8", errors=errors, newline=newline)

    def read_bytes(self) -> bytes:
        """See pathlib."""
        return bytes(self._asked("cat_file"))

    def read_range(self, start: int, length: int) -> bytes:
        """A part of the object; several threads may read at a time."""
        return bytes(self._asked("cat_file", start=start, end=start + length))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """See pathlib."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:
        """See pathlib. Readers find the old object or the new one."""
        self._asked("pipe_file", bytes(data))
        return len(data)

    def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """See pathlib."""
        del newline
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """See pathlib."""
        del mode
        if not self.exists():
            self.write_bytes(b"")
        elif not exist_ok:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))

    def version(self) -> str:
        """A name that changes with the object."""
        return str(self._asked("ukey"))

    def upload(self, file: Path) -> None:
        """Replaces the object by the content of a local file: as a whole, or not at all."""
        with explained(self):
            self._files.put_file(str(file), str(self))

    def download(self, file: Path) -> None:
        """Copies the object to a local file."""
        self._asked("get_file", str(file))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a bucket has no folders."""
        del mode, parents, exist_ok

    def rmdir(self) -> None:
        """Nothing: a bucket has no empty folders."""

    def rmtree(self, missing_ok: bool = False) -> None:
        """Removes all objects in this folder."""
        if not self.is_dir():
            if not missing_ok:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
            return
        self._asked("rm", recursive=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """See pathlib."""
        try:
            self._asked("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: Any) -> RemotePath:
        """Copies the object or folder within the bucket, and then removes it here."""
        new = self._new(target)
        if self.is_dir():
            for file in list(self.rglob("*")):
                file.copy(new / str(file)[len(str(self)) + 1 :])
            self.rmtree()
        else:
            self.copy(new)
            self.unlink()
        return new

    def replace(self, target: Any) -> RemotePath:
        """See `rename`."""
        return self.rename(target)

    def copy(self, dst: Any, overwrite: bool = False) -> RemotePath:
        """Copies the object within the bucket."""
        del overwrite
        new = self._new(dst)
        self._asked("cp_file", str(new))
        return new


@functools.cache
def _file_system(scheme: str) -> Any:
    """The file system of a scheme, without a cache of listings: others write to the bucket, too."""
    files = fsspec.filesystem(scheme, use_listings_cache=False)
    # What it logs, with tracebacks, is raised as well: see `explained`.
    logging.getLogger(PACKAGES[scheme]).setLevel(logging.CRITICAL)
    return files


@contextlib.contextmanager
def explained(path: os.PathLike[str]) -> Iterator[None]:
    """Turns whatever a package raises about a bucket into one kind of error.

    Raises:
      OSError: with a number, an explanation with what to run, and the path.
    """
    scheme = os.fspath(path).partition("://")[0]
    try:
        yield
    except tuple(_EXPECTED) as error:
        if error.errno is None:
            error.errno = next(_EXPECTED[kind] for kind in _EXPECTED if isinstance(error, kind))
            error.strerror = os.strerror(error.errno)
        error.filename = error.filename or os.fspath(path)
        raise
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:_LONGEST]
        said = f"{type(error).__name__}: {text}".lower()
        if any(word in said for word in _REFUSED):
            why = f"no access ({text or type(error).__name__}), so {_LOGINS[scheme]}"
            raise PermissionError(errno.EACCES, why, os.fspath(path)) from error
        why = f"{scheme}:// does not answer ({type(error).__name__}: {text})"
        raise OSError(errno.EIO, why, os.fspath(path)) from error
