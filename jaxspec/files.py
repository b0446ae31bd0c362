"""Writes files and folders whole or not at all, tries places before the work, and locks them.

Files and folders are written under a temporary name next to their place and then renamed. What a
killed process left there is removed by the next one that writes the same file.

Paths may be in a bucket (`jaxspec.remote_paths`). There, renaming is copying: what is written is
kept on this machine until it is complete, and then uploaded. Nothing is locked there.

>>> with held("runs/full", option="--workdir"), replaced_file("runs/full/notes.txt") as temporary:
...     _ = temporary.write_text("whole")                                      # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxspec.interruption import is_outage, progressed
from jaxspec.paths import TEMPORARY, copy_file, is_remote
from jaxspec.paths import user_path as user_path

LOCK = ".lock"
"""The lock file in a folder; the lock file of a single file is ".NAME.lock" next to it."""
_TRIAL_BYTES = 1 << 16
_SHOWN = 5
"""Names of files in a message."""
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.(?P<kind>writing|replaced)-(?P<host>[^/]*)-(?P<process>\d+)"
)


class InUse(ValueError):
    """Another process writes to the folder or file."""


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file that becomes `path` when the block ends without an error.

    Readers find the old file or the new one, whole. Missing parent folders are made. The file gets
    the permissions that the user's umask allows. For a file in a bucket, the temporary file is on
    this machine; an upload replaces an object as a whole, so nothing has to be renamed.

    Args:
      path: the file; an existing one is replaced.
    """
    target = user_path(path)
    if is_remote(target):
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
            temporary = Path(folder) / target.name
            with naming(path, temporary=temporary):
                yield temporary
            copy_file(temporary, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    temporary = _beside(target, "writing")
    try:
        with naming(path, temporary=temporary):
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(
    path: str | os.PathLike[str], *, temporary: str | os.PathLike[str] = ""
) -> Iterator[None]:
    """Adds the name of what was being written to an error that lacks it.

    Libraries that write files themselves raise errors of their own, which quote the system's: "(os
    error 28)", "[OS error 28: No space left on device]", "write() failed: No space left on device".

    Args:
      path: what is written.
      temporary: where it is written first; that name means nothing to a user.

    Raises:
      OSError: with a name, in place of an error without one or a library's own.
    """
    try:
        yield
    except OSError as error:
        named = str(error.filename or "")
        if not named or (temporary and named.startswith(os.fspath(temporary))):
            error.filename = os.fspath(path)
        raise
    except Exception as error:
        number = _quoted_error(str(error))
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def _quoted_error(message: str) -> int | None:
    """The system error that a library's message quotes, by its number or in its words."""
    numbered = re.search(r"\bos error (\d+)", message, re.IGNORECASE)
    if numbered:
        return int(numbered[1])
    return next((number for number in _OF_DISKS if os.strerror(number) in message), None)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file, whole or not at all."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced_folder(
    folder: str | os.PathLike[str],
    *,
    is_own: Callable[[str], bool],
    key: str = "config.json",
    keep_existing: bool = False,
) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends without an error.

    A reader of `folder` finds the old content or the new one, never half of one.

    A bucket cannot rename folders. There, the temporary folder is on this machine, the old objects
    are removed, and the new ones are uploaded; `key` is the last one. Readers that look for it
    first never take half a folder for a whole one, but a kill in the middle leaves neither the old
    content nor the new one.

    Args:
      folder: may exist if it holds nothing but what an earlier call wrote.
      is_own: file name -> whether an earlier call wrote it.
      key: name of the file that readers look for.
      keep_existing: leave the folder as it is if another process has made it in the meantime.
        All of them must write the same: in a bucket, they may do so at the same time.

    Raises:
      ValueError: the folder holds other files, which would be lost, or is a file.
    """
    target = user_path(folder)
    if is_remote(target):
        check_replaceable(target, is_own=is_own)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as made:
            yield Path(made)
            if not keep_existing:
                (target / key).unlink(missing_ok=True)
            elif (target / key).exists():
                return
            _upload_folder(Path(made), target, key=key)
        return
    target = Path(os.path.abspath(target))
    remove_leftovers(target)
    check_replaceable(target, is_own=is_own)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, previous = _beside(target, "writing"), _beside(target, "replaced")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(folder, temporary=temporary):
            yield temporary
            if keep_existing:
                with _ignoring(errno.ENOTEMPTY, errno.EEXIST):
                    temporary.rename(target)
                return
            if target.exists():
                target.rename(previous)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if previous.exists() and target.exists():
            shutil.rmtree(previous)


def _upload_folder(folder: Path, target: Path, *, key: str) -> None:
    """Makes a folder in a bucket equal one of this machine; see `replaced_folder`."""
    names = sorted(
        (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()),
        # That of the folder comes after those of its subfolders.
        key=lambda name: (name.split("/")[-1] == key, -name.count("/"), name),
    )
    # Objects of these names are replaced, and never missing: another process may be reading them.
    for old in [entry for entry in target.rglob("*") if entry.is_file()]:
        if old.relative_to(target).as_posix() not in names:
            old.unlink(missing_ok=True)
    for name in names:
        copy_file(folder / name, target / name)
        progressed()


@contextlib.contextmanager
def _ignoring(*numbers: int) -> Iterator[None]:
    """Ignores system errors with these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def check_replaceable(folder: Path, *, is_own: Callable[[str], bool]) -> None:
    """Finds out, before hours of work, whether `replaced_folder` may replace a folder.

    Raises:
      ValueError: see `replaced_folder`.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder to write to.")
    if not is_remote(folder) and folder.resolve() in (here := Path.cwd(), *here.parents):
        raise ValueError(
            f"{folder} cannot be replaced as a whole, because it holds the current folder: name a "
            "new folder."
        )
    foreign = sorted(entry.name for entry in folder.glob("*") if not is_own(entry.name))
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise ValueError(
            f"{folder} holds other files, which would be lost: {foreign[:_SHOWN]}{more}. Move them "
            "away, or name a new folder."
        )


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes of this machine left next to a file or folder.

    A folder that was moved away to be replaced is moved back if nothing has taken its place.
    """
    if is_remote(path):
        return
    for entry in sorted(path.parent.glob(f".{_escaped(path.name)}.*")):
        found = _LEFTOVER.fullmatch(entry.name)
        if (
            found is None
            or found["name"] != path.name
            or found["host"] != _host()
            or _is_alive(int(found["process"]))
        ):
            continue
        if found["kind"] == "replaced" and not path.exists():
            entry.rename(path)
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def try_file(path: str | os.PathLike[str], *, option: str) -> None:
    """Finds out, before hours of work, whether a file can be written; makes its folder.

    Args:
      path: the file; it is not touched.
      option: what messages call it: "--output".

    Raises:
      ValueError: it is a folder, or its place cannot be written to: no permission, a full disk, a
        file where a folder is needed.
    """
    file = user_path(path)
    with refusing(path, option=option):
        if file.is_dir():
            raise ValueError(f"{option} {path} is a folder: name a file in it.")
    with refusing(path, option=option), _made(file.parent):
        _try_to_write(file.parent)


def try_folder(path: str | os.PathLike[str], *, option: str) -> None:
    """The same for files in a folder, which need not be there.

    Args:
      path: the folder.
      option: what messages call it: "--references".

    Raises:
      ValueError: it is a file, or its place cannot be written to.
    """
    folder = user_path(path)
    with refusing(path, option=option), _made(folder):
        _try_to_write(folder)


@contextlib.contextmanager
def refusing(path: str | os.PathLike[str], *, option: str) -> Iterator[None]:
    """Says in one line why something cannot be written.

    Args:
      path: what is written in the block.
      option: what messages call it: "--output".

    Raises:
      ValueError: instead of an OSError.
      OSError: a disk, network share or bucket does not answer now, or it is about something in a
        bucket that was read in the block.
    """
    try:
        yield
    except OSError as error:
        place = str(error.filename or "")
        was_read = is_remote(place) and not place.startswith(os.fspath(path))
        if was_read or is_outage(error):
            raise
        where = f" ({place})" if place and place != os.fspath(path) else ""
        reason = error.strerror or str(error)
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "a file is there, where a folder was expected"
        raise ValueError(f"{option} {path} cannot be written to: {reason}{where}.") from error


@contextlib.contextmanager
def held(folder: str | os.PathLike[str], *, option: str) -> Iterator[Path]:
    """Locks a folder: until the block ends, no other process can lock the same one.

    The folder is made and tried (see `try_file`). If it is empty at the end, it is removed again.
    The lock ends with the process, however the process ends. A folder in a bucket is tried, but
    not locked.

    Args:
      folder: may exist.
      option: what messages call it: "--workdir".

    Yields:
      The folder.

    Raises:
      InUse: another process holds it.
      ValueError: it cannot be made or written to.
    """
    place = user_path(folder)
    with _locked(place / LOCK, place, option=option):
        yield place


@contextlib.contextmanager
def held_file(path: str | os.PathLike[str], *, option: str) -> Iterator[Path]:
    """Locks a file, as `held` locks a folder; the lock file is next to it.

    Args:
      path: may exist; it is not touched.
      option: what messages call it: "--output".

    Yields:
      The file.

    Raises:
      InUse: another process holds it.
      ValueError: its folder cannot be made or written to.
    """
    place = user_path(path)
    beside = place if is_remote(place) else Path(os.path.abspath(place))  # "." has no name.
    with _locked(beside.with_name(f".{beside.name}{LOCK}"), place, option=option):
        yield place


@contextlib.contextmanager
def _locked(file: Path, place: Path, *, option: str) -> Iterator[None]:
    """Holds the lock of a place until the block ends."""
    with contextlib.ExitStack() as stack:
        with refusing(place, option=option):
            stack.enter_context(_made(file.parent))
            _try_to_write(file.parent)
            if not is_remote(place):
                lock = _opened(file)
                while not _take(lock, file, place, option=option):
                    os.close(lock)
                    lock = _opened(file)
                stack.callback(os.close, lock)
                # Removed while it is locked: a process that has it open and locks it later sees it
                # is gone.
                stack.callback(file.unlink, missing_ok=True)
        yield


def _opened(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT, 0o666)


def _take(lock: int, file: Path, place: Path, *, option: str) -> bool:
    """Locks an open lock file; False: it has been removed or replaced in the meantime."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 4096, 0).decode("utf-8", "replace").strip()
        os.close(lock)
        raise InUse(
            f"{option} {place} is in use by {holder or 'another process'}. Wait until it has "
            f"ended, or name another {option}."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"{place} is on a file system without locks: do not start a second process with it.",
            flush=True,
        )
        return True
    try:
        if os.fstat(lock).st_ino != os.stat(file).st_ino:
            return False
    except FileNotFoundError:
        return False
    since = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    program = os.path.basename(sys.argv[0]) or "python"
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {_host()} ({program}, since {since})".encode(), 0)
    return True


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and its parents; at the end, removes the new ones that are still empty."""
    if is_remote(folder):
        yield
        return
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # It is not empty.
                made.rmdir()


def _try_to_write(folder: Path) -> None:
    """Writes a little and removes it again."""
    remove_leftovers(folder / "trial")
    temporary = _beside(folder / "trial", "writing")
    if is_remote(folder):
        with naming(folder, temporary=temporary):
            temporary.write_bytes(b"")
            temporary.unlink()
        return
    try:
        with naming(folder, temporary=temporary), temporary.open("wb") as file:
            file.write(b"\0" * _TRIAL_BYTES)
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{_host()}-{os.getpid()}")


def _host() -> str:
    return platform.node() or "localhost"


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
