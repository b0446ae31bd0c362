"""The files of saved checkpoints: which there are, whether they are as saved, what their JSON says.

What is there and wrong is damage (`Unusable`): a file that is missing, has another size or other
content than was recorded, or JSON that cannot be used. A file that does not let itself be read, as
when a bucket does not answer, is not: it may be whole, and an OSError says so.

>>> check_files(folder / "8"), read_run(folder / "8")["progress"]              # doctest: +SKIP
(True, {"loader": {"step": 8}})
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxspec.checkpoints.file_digests import find_damage, is_there, says_absent
from jaxspec.paths import exists, is_remote

RECORD = "run/file_digests.json"
"""Sizes and digests of a step's files."""
_SIZES = "run/file_sizes.json"
"""What older checkpoints have instead: only sizes."""
JSON = "run/metadata"
"""Everything that is not an array, under the name that orbax gives it."""
_COMMITTED = "commit_success.txt"
"""In a bucket, the file by which orbax tells a complete step."""
_OUTAGES = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
"""Codes in tensorstore's errors of a bucket that does not answer."""
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What reading JSON of unknown content may raise."""


class Unusable(Exception):
    """A checkpoint that cannot be used; the message continues "Checkpoint 3 "."""


def saved_steps(folder: Path) -> list[int]:
    """All complete steps, the newest first; anything with the name of a step counts.

    Raises:
      OSError: the folder cannot be read now.
    """
    is_folder = is_there(folder) and folder.is_dir()
    names = [entry.name for entry in folder.iterdir()] if is_folder else []
    steps = [int(name) for name in names if name.isdecimal() and name == str(int(name))]
    if is_remote(folder):  # orbax saves straight to the step's name there, and this file last.
        steps = [step for step in steps if exists(folder / str(step) / _COMMITTED)]
    return sorted(steps, reverse=True)


def check_files(step: Path, *, within: str = "", share: tuple[int, int] = (0, 1)) -> bool:
    """Compares the files of a step with its record; without a record they pass.

    Args:
      step: its folder.
      within: check only files whose names start with this.
      share: (number of a part, number of parts): check only this part of them.

    Returns:
      Whether their content was compared, not only their sizes.

    Raises:
      Unusable: files are not as recorded.
      OSError: one cannot be read now.
    """
    with _reading(step):
        if not (is_there(step) and step.is_dir()):
            raise Unusable("cannot be read (it is not a folder)")
        for record in (RECORD, _SIZES):
            if is_there(step / record):
                damage = find_damage(step, record, within=within, share=share)
                if damage:
                    raise Unusable(f"cannot be read ({damage})")
                return record == RECORD
    return False


def read_run(step: Path) -> dict[str, dict[str, Any]]:
    """What a step holds besides the state: "progress" and "shapes".

    Raises:
      Unusable: it is damaged.
      OSError: it cannot be read now.
    """
    try:
        with _reading(step):
            run = json.loads((step / JSON).read_text(encoding="utf-8"))
        shapes = {path: [int(size) for size in shape] for path, shape in run["shapes"].items()}
        return {"progress": dict(run["progress"]), "shapes": shapes}
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and not says_absent(error):
            raise
        raise Unusable(f"cannot be read ({first_line(error)})") from error


@contextlib.contextmanager
def _reading(step: Path) -> Iterator[None]:
    """Raises `not_read` in place of an error that says nothing about a step's files."""
    try:
        yield
    except OSError as error:
        if says_absent(error):
            raise
        raise not_read(step, error) from error


def not_read(step: Path, error: Exception) -> OSError:
    """The error of a step that may be whole: it stays where it is, and the run ends."""
    number, name = errno.EIO, None
    if isinstance(error, OSError) and error.errno is not None and not says_absent(error):
        number, name = error.errno, error.filename
    why = (isinstance(error, OSError) and error.strerror) or first_line(error)
    text = (
        f"Checkpoint {step.name} was not read ({why}), which does not mean that it is damaged. "
        "Nothing was moved; the same command tries it again"
    )
    return OSError(number, text, os.fspath(name or step))


def says_nothing(error: Exception) -> bool:
    """Whether what orbax raises says nothing about the files."""
    if isinstance(error, OSError):
        return error.errno is not None and not says_absent(error)
    return any(word in str(error) for word in _OUTAGES)


def first_line(error: Exception) -> str:
    """The beginning of an error's text, or its kind."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
