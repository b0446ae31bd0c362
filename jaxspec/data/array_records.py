"""Reads array_record files, and checks whether they are complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader


def read_records(file: Path, places: Sequence[int]) -> list[bytes]:
    """Some records of a file, which is closed again: of thousands of files, few are open at once.

    Args:
      file: the file.
      places: which records, from 0.

    Raises:
      ValueError: the file is damaged or cannot be read.
    """
    try:
        # Without read-ahead, which is for reading a whole file.
        reader = ArrayRecordReader(str(file), options="readahead_buffer_size:0")
        try:
            return list(reader.read(list(places)))
        finally:
            reader.close()
    except RuntimeError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error


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
