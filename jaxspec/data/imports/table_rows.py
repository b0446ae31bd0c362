"""Rows of Parquet and Arrow files, read batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxspec.data.imports.rows import BadRow, Row, without_nulls
from jaxspec.interruption import is_outage
from jaxspec.paths import local_copy

_BATCH_ROWS = 256


def read_parquet(path: Path, *, fields: Collection[str]) -> Iterator[Row]:
    """The rows of a Parquet file.

    Args:
      path: the file.
      fields: columns that conversations have; others are not read unless there is none of these.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        with pq.ParquetFile(local_copy(path), memory_map=True) as file:
            columns = [name for name in file.schema_arrow.names if name in fields]
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns or None)
            yield from _rows(batches, path=path)
    except (pa.ArrowException, OSError) as error:
        if is_outage(error):
            raise
        raise _damaged(path, error) from error


def read_arrow(path: Path, *, is_stream: bool) -> Iterator[Row]:
    """The rows of an Arrow file.

    Args:
      path: the file.
      is_stream: whether it has the format of streams, as files of `datasets` have.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        with pa.memory_map(str(local_copy(path))) as source:
            if is_stream:
                yield from _rows(pa.ipc.open_stream(source), path=path)
            else:
                reader = pa.ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
                yield from _rows(batches, path=path)
    except (pa.ArrowException, OSError) as error:
        if is_outage(error):
            raise
        raise _damaged(path, error) from error


def _rows(batches: Any, *, path: Path) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for value in _values(batch.slice(start, _BATCH_ROWS)):
                number += 1
                place = f"row {number} of {path}"
                if isinstance(value, BadRow):
                    yield Row(number, place, problem=value)
                else:
                    yield Row(number, place, without_nulls(value))


def _values(batch: pa.RecordBatch) -> list[Any]:
    """The rows of a batch; in the place of one that Python cannot hold, why."""
    try:
        values: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # Not UTF-8; a date after the year 9999.
        if batch.num_rows == 1:
            return [BadRow("a value that cannot be read", str(error))]
        return [value for row in range(batch.num_rows) for value in _values(batch.slice(row, 1))]
    return values


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    return ValueError(f"{path} is damaged: {reason}. Replace it with a good copy.")
