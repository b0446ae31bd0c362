"""Which kind of file one is, by its content, and its rows.

>>> [row.place for row in open_rows(Path("chats.jsonl"))]                      # doctest: +SKIP
['line 1 of chats.jsonl', 'line 2 of chats.jsonl']
"""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxspec.data.imports.conversations import FIELDS, TELLING_FIELDS
from jaxspec.data.imports.json_rows import LINES, PROBE_BYTES, holds_rows, read_json, read_lines
from jaxspec.data.imports.rows import EmptyFile, Row
from jaxspec.data.imports.text_rows import read_prompt_lines, read_text_file
from jaxspec.interruption import is_outage
from jaxspec.json_files import refuse_pointer

DATA_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".txt", ".gz")
"""Files of a folder that are read."""
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin")
_PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_GZIP = b"\x1f\x8b"
_ARROW_STREAM = b"\xff\xff\xff\xff"
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ": "compressed with xz",
    b"BZh": "compressed with bzip2",
}
_OTHERS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF-": "a PDF document",
    b"SQLite format 3": "an SQLite database",
}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BLANK = b" \t\r\n\xef\xbb\xbf"
_JSON_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\[\s*\{|\{\s*\")")
_TABLES = (".csv", ".tsv", ".xls", ".xlsx")
_READ = "JSONL, JSON, Parquet, Arrow and plain text, and JSON and text compressed with gzip"


def open_rows(path: Path, *, lines_ask: bool = False) -> Iterator[Row]:
    """The rows of a file, read while they are asked for.

    Args:
      path: the file.
      lines_ask: whether each line of a plain text is a prompt; otherwise it is running text.

    Raises:
      EmptyFile: it holds nothing.
      ValueError: not a kind of file that is read, or a damaged one.
    """
    with _opened(path) as (file, head):
        _refuse(path, head)
        if head.startswith((b"PAR1", b"ARROW1", _ARROW_STREAM)):
            # pyarrow takes a second to import.
            from jaxspec.data.imports.table_rows import read_arrow, read_parquet

            if head.startswith(b"PAR1"):
                yield from read_parquet(path, fields=FIELDS)
            else:
                yield from read_arrow(path, is_stream=head.startswith(_ARROW_STREAM))
        elif _is_json(path, head):
            yield from read_json(file, name=str(path), fields=TELLING_FIELDS)
        elif path.suffix in LINES:
            yield from read_lines(file, name=str(path))
        elif path.suffix in (".json", ".parquet", ".arrow"):
            start = head[:40].decode("utf-8", "replace")
            raise ValueError(
                f"{path} is not a {path.suffix} file: it begins with {start!a}. {_expected()}"
            )
        else:
            read = read_prompt_lines if lines_ask else read_text_file
            yield from read(file, name=str(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bytes]]:
    """A file at its start, decompressed, and its first bytes."""
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == _GZIP
            raw.seek(0)
            file: BinaryIO = gzip.GzipFile(fileobj=raw) if is_gzip else raw  # type: ignore[assignment]
            head = file.read(PROBE_BYTES)
            file.seek(0)
            yield file, head
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: {error}. Replace it with a good copy.") from error
    except OSError as error:
        if is_outage(error):
            raise
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error


def _refuse(path: Path, head: bytes) -> None:
    """Says of a file that is not read what it is, and what to do."""
    if not head.strip(_BLANK):
        raise EmptyFile(f"{path} is empty: expected conversations or text.")
    if path.suffix in _PICKLES or head.startswith(_PICKLE_STARTS):
        raise ValueError(
            f"{path} is a pickle, or may be one: opening it could run any program. Write the "
            "conversations as JSON lines instead."
        )
    for start, kind in _ARCHIVES.items():
        if head.startswith(start):
            raise ValueError(f"{path} is {kind}: unpack it first. {_expected()}")
    for start, kind in _OTHERS.items():
        if head.startswith(start):
            raise ValueError(f"{path} is {kind}. {_expected()}")
    refuse_pointer(head, name=path)
    if head.startswith(_UTF16):
        raise ValueError(f"{path} is UTF-16 text: save it as UTF-8.")
    if path.suffix in _TABLES:
        raise ValueError(f"{path} is a spreadsheet, or a table as text (CSV, TSV). {_expected()}")
    is_table = head.startswith((b"PAR1", b"ARROW1", _ARROW_STREAM))
    if b"\0" in head and not is_table:
        raise ValueError(f"{path} is not text: it has null bytes. {_expected()}")


def _is_json(path: Path, head: bytes) -> bool:
    """Whether a file is JSON in any layout; a text may begin with a bracket, too."""
    return (
        _JSON_START.match(head) is not None
        or holds_rows(head)
        or (path.suffix == ".json" and head.lstrip(_BLANK).startswith((b"{", b"[")))
    )


def _expected() -> str:
    return f"These are read: {_READ}."
