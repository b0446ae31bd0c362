"""One row of a file, and what may be wrong with it."""

from __future__ import annotations

import dataclasses
from typing import Any


class BadRow(ValueError):
    """A row that cannot be used.

    Args:
      reason: in a few words, the same for all rows with this fault: they are counted by it.
      detail: what is wrong in this row: what was got, and what is expected.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class StoppedAtBadRow(ValueError):
    """A bad row where none is accepted; the message begins with its place."""


class EmptyFile(ValueError):
    """A file that holds nothing."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a file: a line, a record of a list, a row of a table, or a text."""

    number: int
    """Counted from 1; of a line, its number in the file."""
    place: str
    """Where it is, for messages: "line 3 of chats.jsonl"."""
    value: Any = None
    """What it holds; of no use with a problem."""
    problem: BadRow | None = None
    """Why it could not be read."""


def start_of(value: Any) -> str:
    """The beginning of a value, for messages.

    >>> start_of("a" * 99), start_of(None)
    ("'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...", 'null')
    """
    if value is None:
        return "null"
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:40]}..."


def without_nulls(value: Any) -> Any:
    """A value without empty fields: all objects of a column have the fields that one of them has.

    >>> without_nulls({"a": None, "b": [{"c": 1, "d": None}]})
    {'b': [{'c': 1}]}
    """
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
