"""Reads JSON objects from files that others wrote, and shows values from them in messages.

>>> parse_object(b'{"rms_norm_eps": NaN}', name="config.json")
Traceback (most recent call last):
    ...
ValueError: config.json: rms_norm_eps is nan, expected a finite number.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxspec.interruption import is_outage

LARGEST_FILE = 64 << 20
"""Bytes. The largest tokenizer.json of a published model has about half as many."""
LARGEST_OF_RESULTS = 4 << 30
"""Bytes of a file that grows with what jaxspec has measured, such as a study's rows."""
_POINTER = b"version https://git-lfs.github.com"
_LONGEST = 300
"""Characters of a value in a message."""

MEND = "Correct it, or replace it with a good copy."
"""What to do about a damaged file."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = _LONGEST
_short.maxlist = _short.maxdict = 50


def read_bytes(path: Path, *, largest: int | None = None) -> bytes:
    """The content of a file that exists.

    Args:
      path: the file.
      largest: the most bytes it may have; None: `LARGEST_FILE`.

    Raises:
      ValueError: it is a folder, is larger than that, or cannot be read.
      OSError: a disk, network share or bucket does not answer now.
    """
    largest = LARGEST_FILE if largest is None else largest
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: expected a file.")
        size = path.stat().st_size
        if size > largest:
            raise ValueError(f"{path} has {size:,} bytes: expected at most {largest:,}.")
        return path.read_bytes()
    except OSError as error:
        if is_outage(error):
            raise
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_object(path: Path, *, largest: int | None = None) -> dict[str, Any]:
    """The JSON object in a file that exists: `parse_object` of `read_bytes`."""
    return parse_object(read_bytes(path, largest=largest), name=path)


def parse_object(content: bytes, *, name: object) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
      content: the bytes of the file.
      name: what messages call the file.

    Raises:
      ValueError: it is not JSON (UTF-8, no byte order mark), is not an object, has a key twice in
        one object, or has a number that is not finite, which JSON does not allow.
    """
    refuse_pointer(content, name=name)
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError(f"{name} is not JSON: it is nested too deeply. {MEND}") from error
    except ValueError as error:
        reason = error if content.strip() else "it is empty"
        raise ValueError(f"{name} is not JSON: {reason}. {MEND}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds a {type(found).__name__}: expected a JSON object.")
    for place, number in _not_finite(found):
        raise ValueError(f"{name}: {shortened(place)} is {number}, expected a finite number.")
    return found


def refuse_pointer(content: bytes, *, name: object) -> None:
    """Refuses what Git LFS leaves in the place of a file that has not been fetched.

    Args:
      content: the file's content, or its beginning.
      name: what messages call the file.

    Raises:
      ValueError: it is such a pointer.
    """
    if content.startswith(_POINTER):
        raise ValueError(
            f"{name} is a pointer of Git LFS, not the file itself: get it with git lfs pull, or "
            "download it again."
        )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} occurs twice in one object")
        found[key] = value
    return found


def _not_finite(found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Places and values of the numbers that are NaN or infinite; 1e999 is read as infinity."""
    waiting: list[tuple[str, Any]] = [("", found)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            yield place, value
        elif isinstance(value, dict):
            waiting += [(f"{place}.{key}" if place else key, each) for key, each in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{place}[{index}]", each) for index, each in enumerate(value)]


def shown(value: Any) -> str:
    """A value as Python writes it, cut to a length that fits into a message.

    >>> shown("gelu"), len(shown([0.5] * 1_000_000)) <= 300
    ("'gelu'", True)
    """
    return shortened(_short.repr(value))


def shortened(text: str, *, longest: int = _LONGEST) -> str:
    """A text on one line, without control characters, cut to a length that fits into a message.

    >>> len(shortened(300 * "ab"))
    300
    """
    cut = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)
