"""The file of a benchmark: where its figures come from, and a row for each, with every repeat.

The file is written anew after every measurement, so a run that is interrupted keeps what is done,
and the same command continues after it.

>>> records = Records("runs/speed.json", provenance=record, conditions={"dtype": "float32"})
...                                                                            # doctest: +SKIP
>>> records.add({"name": "step", "batch": 1, "seconds": [0.004, 0.005]})       # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec.files import user_path
from jaxspec.json_files import read_object
from jaxspec.provenance import check_output, jsonable, write_json

KEY = ("shape", "dtype", "part", "name", "batch")
"""What tells rows apart."""

Row = dict[str, Any]


class Records:
    """Rows that are on disk as soon as they are measured.

    Args:
      path: the JSON file; "": none.
      provenance: see `jaxspec.provenance.provenance`.
      conditions: what must be equal for rows to belong in one file.

    Raises:
      ValueError: the file is something else, or holds rows of other conditions or another device.
    """

    def __init__(
        self, path: str, *, provenance: Mapping[str, Any], conditions: Mapping[str, Any]
    ) -> None:
        self._path = path
        self._document: dict[str, Any] = {
            "provenance": dict(provenance),
            "conditions": jsonable(conditions),
            "rows": [],
        }
        if not path:
            return
        check_output(path, holding="rows")
        if user_path(path).exists():
            kept = read_records(path)
            for name in ("conditions", "provenance"):
                ours, theirs = self._document[name], kept[name]
                names = ("commit", "devices") if name == "provenance" else sorted({*ours, *theirs})
                for each in names:
                    if ours.get(each) != theirs.get(each):
                        raise ValueError(
                            f"--output {path} holds rows that were measured with another {each}: "
                            f"got {ours.get(each)!r}, recorded {theirs.get(each)!r}. Name another "
                            "file, or delete this one."
                        )
            self._document["rows"] = kept["rows"]

    @property
    def rows(self) -> list[Row]:
        """All rows so far."""
        rows: list[Row] = self._document["rows"]
        return rows

    def find(self, row: Mapping[str, Any]) -> Row | None:
        """The row of this name, if it is there."""
        return next((other for other in self.rows if key_of(other) == key_of(row)), None)

    def add(self, *rows: Row) -> list[Row]:
        """Appends rows that were measured together; returns them as they were written."""
        written = [jsonable(row) for row in rows]
        self.rows.extend(written)
        self.write()
        return written

    def write(self) -> None:
        """Writes the file as the rows now are."""
        if self._path:
            write_json(self._path, self._document)


def read_records(path: str) -> dict[str, Any]:
    """The document of a file that `Records` wrote.

    Raises:
      ValueError: no such file, or another kind of file.
    """
    if not (file := user_path(path)).is_file():
        raise ValueError(f"There is no file {path!r}.")
    document = read_object(file)
    if not {"provenance", "conditions", "rows"} <= document.keys():
        raise ValueError(
            f"{path!r} is not a file of this benchmark: expected an object with provenance, "
            "conditions and rows, as `python -m benchmarks.speed --output` writes it."
        )
    return document


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row apart from others."""
    return tuple(row.get(name) for name in KEY)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; all but the first are to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(titles), line(rule), *map(line, rows)])


def shown_ms(seconds: float) -> str:
    """Milliseconds with three significant figures.

    >>> shown_ms(0.0123456), shown_ms(1.5), shown_ms(0.0000521)
    ('12.3', '1,500', '0.0521')
    """
    ms = 1e3 * seconds
    digits = 0 if ms <= 0 else max(0, 2 - math.floor(math.log10(ms)))
    return f"{ms:,.{digits}f}"
