"""Rows of JSON files, of which only a little is in memory at a time.

A file may hold one object per line (JSONL), a list of objects, an object with one such list, or
objects one after the other.

>>> import io
>>> content = b'{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}'
>>> [row.value["text"] for row in read_json(io.BytesIO(content), name="a.json", fields={"text"})]
['a', 'b']
"""

from __future__ import annotations

import codecs
import io
import json
import pathlib
import re
from collections.abc import Generator, Iterator, Set
from typing import Any, BinaryIO

from jaxspec.data.builders import records
from jaxspec.data.imports.rows import BadRow, Row, start_of

PROBE_BYTES = 1 << 20
"""How much of a file is looked at to find out how it is laid out."""
_CHUNK = 1 << 16
# An error this close to the end of what has been read may only mean that a value is cut off there,
# in the middle of an escape or of "true".
_MARGIN = 16
LINES = (".jsonl", ".ndjson")
"""Endings of files with a JSON value on each line."""
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def read_json(file: BinaryIO, *, name: str, fields: Set[str]) -> Iterator[Row]:
    """The rows of a JSON file in any of the layouts.

    Args:
      file: open for reading, at its start.
      name: what messages call the file.
      fields: fields that conversations have: an object with one of them is a row itself.

    Raises:
      ValueError: an object with two lists of rows, or none.
    """
    # The file may be compressed: it is not read a second time.
    head = file.read(PROBE_BYTES)
    whole: BinaryIO = io.BufferedReader(_Rejoined(head, file))
    one_row = _is_named_lines(name) and (_is_one_line(head) or _is_one_row(head, fields=fields))
    if one_row or _is_lines(head, fields=fields):
        yield from read_lines(whole, name=name)
        return
    text = _JsonText(whole)
    if text.take("["):
        is_whole = yield from _list_rows(text, name=name)
        if is_whole and text.peek():
            problem = BadRow("text after the list", f"got {text.shown()}")
            yield Row(0, f"the end of {name}", problem=problem)
    elif _has_field(head, fields=fields):
        yield from _value_rows(text, name=name)
    else:
        yield from _rows_within(text, name=name)


def read_lines(file: BinaryIO, *, name: str) -> Iterator[Row]:
    """The rows of a file with a JSON value on each line; empty lines are skipped."""
    for number, raw in records.numbered_lines(file):
        place = f"line {number} of {name}"
        try:
            text = decoded_line(raw)
            if text.strip():
                yield Row(number, place, _parsed(text))
        except BadRow as problem:
            yield Row(number, place, problem=problem)


def decoded_line(raw: bytes) -> str:
    """The text of a line (see `records.numbered_lines`), without a byte order mark.

    Raises:
      BadRow: it is too long, or not UTF-8.
    """
    if len(raw) > records.LONGEST_LINE:
        raise BadRow("too long", f"expected at most {records.LONGEST_LINE:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(error.object[error.start : error.start + 1]) from error


def holds_rows(head: bytes) -> bool:
    """Whether at least half of the lines at the beginning of a file are JSON objects."""
    are_rows = [isinstance(value, dict) for value in _whole_lines(head)]
    return any(are_rows) and 2 * sum(are_rows) >= len(are_rows)


def _is_lines(head: bytes, *, fields: Set[str]) -> bool:
    """Whether the beginning of a file shows that it has one row per line."""
    lines = [line for line in head.removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip()]
    if not lines or lines[0].lstrip().startswith(b"["):
        return False
    values = list(_whole_lines(head))
    if len(lines) > 1 and isinstance(values[0], dict):
        return True
    # The rows of an object's list may have a line each: commas follow all but the last.
    is_row = [isinstance(value, dict) and not fields.isdisjoint(value) for value in values[1:]]
    if any(is_row) and holds_rows(head):
        return True
    return not lines[0].lstrip().startswith(b"{")


def _is_one_line(head: bytes) -> bool:
    """Whether a file begins with an object on a line that is longer than what is looked at."""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return len(head) == PROBE_BYTES and b"\n" not in start and start.startswith(b"{")


def _is_one_row(head: bytes, *, fields: Set[str]) -> bool:
    """Whether a file is a single line with an object that holds no list of rows."""
    values = list(_whole_lines(head))
    if len(values) != 1 or not isinstance(values[0], dict):
        return False
    lists = [value for value in values[0].values() if isinstance(value, list)]
    holds_rows = any(isinstance(item, dict) for items in lists for item in items[:1])
    return not holds_rows or not fields.isdisjoint(values[0])


def _is_named_lines(name: str) -> bool:
    return pathlib.PurePath(name.removesuffix(".gz")).suffix in LINES


def _whole_lines(head: bytes) -> Iterator[Any]:
    """The values on the lines at the beginning of a file; None where a line is not JSON."""
    for line in head.split(b"\n"):
        if line.strip():
            try:
                yield json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                yield None


def _has_field(head: bytes, *, fields: Set[str]) -> bool:
    """Whether the object that a file begins with is a row: one of its fields says so."""
    text = _JsonText(io.BytesIO(head))
    try:
        return any(key in fields for key in text.members())
    except BadRow:  # The beginning ends within a value.
        return False


def _list_rows(text: _JsonText, *, name: str) -> Generator[Row, None, bool]:
    """The rows of a list whose bracket has been read; returns whether the list is whole."""
    number, follows = 1, not text.take("]")
    while follows:
        place = f"record {number} of {name}"
        try:
            yield Row(number, place, text.value(), text.problem)
            follows = text.take(",")
            if not follows and not text.take("]"):
                raise BadRow("broken JSON", f"after it, got {text.shown()}, expected a comma")
        except BadRow as problem:
            yield Row(number, place, problem=_last(problem))
            return False
        number += 1
    return True


def _value_rows(text: _JsonText, *, name: str) -> Iterator[Row]:
    """Objects one after the other."""
    number = 0
    try:
        while text.peek():
            number += 1
            yield Row(number, f"record {number} of {name}", text.value(), text.problem)
    except BadRow as problem:
        yield Row(number, f"record {number} of {name}", problem=_last(problem))


def _rows_within(text: _JsonText, *, name: str) -> Iterator[Row]:
    """The rows of the only list of objects in an object."""
    found = ""
    try:
        for key in text.members():
            if text.take("["):
                if text.peek() == "{":
                    if found:
                        raise ValueError(
                            f"{name} holds several lists, {found!r} and {key!r}: expected one. "
                            "Write each of them to a file of its own."
                        )
                    found = key
                    is_whole = yield from _list_rows(text, name=name)
                    if not is_whole:
                        return
                else:
                    text.rest_of_list()
    except BadRow as problem:
        yield Row(0, f"the end of {name}" if found else name, problem=_last(problem))
        return
    if found and text.peek():
        more = BadRow("text after the object", f"got {text.shown()}")
        yield Row(0, f"the end of {name}", problem=more)
    if not found:
        raise ValueError(
            f"{name} is a JSON object without a list of conversations: expected a list, an object "
            "with a list, or one conversation per line."
        )


def _last(problem: BadRow) -> BadRow:
    return BadRow(problem.reason, f"{problem.detail}; nothing after it can be read")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise BadRow("not JSON", "it is nested too deeply") from error
    except ValueError as error:
        raise BadRow("not JSON", f"got {start_of(text.strip())} ({error})") from error


def _encoding_problem(text: str) -> BadRow | None:
    """What is wrong with a text that was decoded without checks."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return _not_utf8(text[error.start].encode(errors="surrogateescape"))
    return None


def _not_utf8(byte: bytes) -> BadRow:
    return BadRow("not UTF-8", f"got the byte {byte!r}")


class _Rejoined(io.RawIOBase):
    """A file whose beginning has been read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(part) :]
        buffer[: len(part)] = part
        return len(part)


class _JsonText:
    """JSON values from a file; only the one that is being read is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # A byte that is not UTF-8 spoils one value, not all that are read with it.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.problem: BadRow | None = None
        """What is wrong with the last value, if there is one."""
        self._text, self._at, self._dropped, self._has_ended = "", 0, 0, False

    def peek(self) -> str:
        """The next character that is not white space; "": the file has ended."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def shown(self) -> str:
        """What comes next, for messages."""
        return start_of(self._text[self._at : self._at + 61]) if self.peek() else "the end"

    def take(self, character: str) -> bool:
        """Goes past a character if it is the next one."""
        if self.peek() != character:
            return False
        self._at += 1
        return True

    def value(self) -> Any:
        """The next value, whole.

        Raises:
          BadRow: it is broken, cut off, or too long.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise BadRow("not JSON", "it is nested too deeply") from error
            except ValueError as error:
                if not (self._may_be_cut(error) and self._more()):
                    raise BadRow("broken JSON", f"got {self.shown()} ({error})") from error
                continue
            # A number at the very end of what has been read may go on.
            if end < len(self._text) or not self._more():
                self.problem = _encoding_problem(self._text[self._at : end])
                self._at = end
                return value

    def members(self) -> Iterator[str]:
        """The keys of an object; the value of each is skipped if it has not been read.

        Raises:
          BadRow: see `value`.
        """
        follows = self.take("{") and not self.take("}")
        while follows:
            key = self.value()
            if not isinstance(key, str) or not self.take(":"):
                raise BadRow("broken JSON", f"got {self.shown()}, expected a key and a colon")
            self.peek()
            before = self._passed
            yield key
            if self._passed == before:
                self.value()
            follows = self.take(",")
            if not follows and not self.take("}"):
                raise BadRow("broken JSON", f"got {self.shown()}, expected a comma")

    def rest_of_list(self) -> None:
        """Goes past a list whose bracket has been read."""
        follows = not self.take("]")
        while follows:
            self.value()
            follows = self.take(",")
            if not follows and not self.take("]"):
                raise BadRow("broken JSON", f"got {self.shown()}, expected a comma")

    def _may_be_cut(self, error: ValueError) -> bool:
        if not isinstance(error, json.JSONDecodeError):  # A number of thousands of digits.
            return False
        is_string = error.msg.startswith("Unterminated string")
        return is_string or error.pos >= len(self._text) - _MARGIN

    @property
    def _passed(self) -> int:
        """Characters from the beginning of the file."""
        return self._dropped + self._at

    def _more(self) -> bool:
        """Reads on; False: the file has ended."""
        if self._has_ended:
            return False
        kept = len(self._text) - self._at
        if kept > records.LONGEST_LINE:
            raise BadRow("too long", f"expected at most {records.LONGEST_LINE:,} characters")
        # As much again as there is: a long value is looked at only a few times.
        raw = self._file.read(max(_CHUNK, kept))
        self._has_ended = not raw
        more = self._decoder.decode(raw, final=self._has_ended)
        self._dropped += self._at
        self._text, self._at = self._text[self._at :] + more, 0
        return True
