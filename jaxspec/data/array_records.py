"""Checks whether array_record files are complete."""

from __future__ import annotations

from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader


def count_records(file: Path) -> int:
    """Reads a whole file and returns how many records it holds.

    A file that was cut may open as an empty one: compare the count with the expected one.

    Raises:
      ValueError: the file is damaged or cannot be read.
    """
    try:
        reader = ArrayRecordReader(str(file))
        try:
            return len(reader.read_all())
        finally:
            reader.close()
    except RuntimeError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
