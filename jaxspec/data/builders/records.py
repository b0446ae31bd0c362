"""The records of raw files, whose fields are checked as they are read.

Every message names the file and the line or record.

>>> record = Record({"question": "Why?", "answer": None}, place="line 1 of a.jsonl")
>>> record.text("question")
'Why?'
>>> record.text("answer")
Traceback (most recent call last):
ValueError: Field 'answer' in line 1 of a.jsonl: got None, expected non-empty text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_LINE = 1 << 26
"""Bytes that a line may have: 64 MiB, more than any conversation."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a raw file."""

    fields: Mapping[str, Any]
    place: str
    """Where it is, for messages: "line 3 of gsm8k/train.jsonl"."""

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """The text in a field.

        Raises:
          ValueError: there is no such field, or it holds something else.
        """
        value = self._value(name)
        if not isinstance(value, str) or not (may_be_empty or value.strip()):
            raise self._wrong(name, "text" if may_be_empty else "non-empty text")
        return self._whole(name, value)

    def texts(self, name: str) -> list[str]:
        """The list of texts in a field; it has at least one.

        Raises:
          ValueError: see `text`.
        """
        value = self._value(name)
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(text, str) and text.strip() for text in value)
        ):
            raise self._wrong(name, "a list of non-empty texts")
        return [self._whole(name, text) for text in value]

    def number(self, name: str) -> int:
        """The whole number in a field.

        Raises:
          ValueError: see `text`.
        """
        value = self._value(name)
        if type(value) is not int:
            raise self._wrong(name, "a whole number")
        return value

    def _value(self, name: str) -> Any:
        if name not in self.fields:
            raise ValueError(
                f"No field {name!r} in {self.place}: the fields are {sorted(self.fields)}."
            )
        return self.fields[name]

    def _whole(self, name: str, text: str) -> str:
        """Refuses half of a surrogate pair, which JSON can contain but text cannot."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self._wrong(name, "text without half of a surrogate pair") from None
        return text

    def _wrong(self, name: str, expected: str) -> ValueError:
        got = ascii(self.fields[name])
        got = got if len(got) <= 60 else f"{got[:60]}..."
        return ValueError(f"Field {name!r} in {self.place}: got {got}, expected {expected}.")


def read_records(path: Path) -> Iterator[Record]:
    """Objects of a .jsonl file (one per line) or of a .json file (one list).

    Raises:
      ValueError: the content does not fit the ending; for .jsonl, the message gives the line.
    """
    if path.suffix == ".json":
        whole = _parse(read_text(path), place=str(path))
        if not isinstance(whole, list):
            raise ValueError(f"Expected a JSON list in {path}: got {_start(whole)}.")
        for number, value in enumerate(whole, start=1):
            yield _record(value, place=f"record {number} of {path}")
        return
    with path.open("rb") as file:
        for line, raw in numbered_lines(file):
            place = f"line {line} of {path}"
            if len(raw) > LONGEST_LINE:
                raise ValueError(f"Expected at most {LONGEST_LINE:,} bytes in {place}: got more.")
            text = _decoded(raw, path=path, first_line=line)
            if text.strip():
                yield _record(_parse(text, place=place), place=place)


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from 1.

    Of a line of more than `LONGEST_LINE` bytes, one byte more than that is given.
    """
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        rest = line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
        yield number, line


def read_text(path: Path, *, up_to: str = "") -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
      path: the file.
      up_to: leave out the last of these marks and what follows it; "": read all. A file without a
        mark gives "".

    Raises:
      ValueError: the file is not UTF-8; the message gives the line.
    """
    raw = path.read_bytes()
    if up_to:
        raw = raw.rpartition(up_to.encode())[0]
    return _decoded(raw, path=path, first_line=1)


def _decoded(raw: bytes, *, path: Path, first_line: int) -> str:
    try:
        return raw.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        raise ValueError(
            f"Expected UTF-8 in line {line} of {path}: got {raw[error.start : error.end]!r}."
        ) from error


def _parse(text: str, *, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected JSON in {place}: got {text[:60]!r} ({error}).") from error


def _record(value: Any, *, place: str) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"Expected a JSON object in {place}: got {_start(value)}.")
    return Record(value, place=place)


def _start(value: Any) -> str:
    return ascii(value)[:60]
