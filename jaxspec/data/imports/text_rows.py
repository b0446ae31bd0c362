r"""Texts of a plain text file, or its lines, where prompts are wanted.

A file is one text, or several with a line ``<|endoftext|>`` between them. A text of more than
`LONGEST_TEXT` characters is cut at the end of a line, so that no file is held whole.

>>> import io
>>> file = io.BytesIO(b"One.\n<|endoftext|>\nTwo.\n")
>>> [row.value["text"] for row in read_text_file(file, name="a.txt")]
['One.', 'Two.']
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from jaxspec.data.builders.records import numbered_lines
from jaxspec.data.imports.json_rows import decoded_line
from jaxspec.data.imports.rows import BadRow, Row

SEPARATOR = "<|endoftext|>"
LONGEST_TEXT = 1 << 20


def read_prompt_lines(file: BinaryIO, *, name: str) -> Iterator[Row]:
    """The lines of a file that are not empty, as rows with a "prompt" field.

    Args:
      file: open for reading.
      name: what messages call the file.
    """
    for number, raw in numbered_lines(file):
        place = f"line {number} of {name}"
        try:
            line = decoded_line(raw).strip()
        except BadRow as problem:
            yield Row(number, place, problem=problem)
            continue
        if line:
            yield Row(number, place, {"prompt": line})


def read_text_file(file: BinaryIO, *, name: str) -> Iterator[Row]:
    """The texts of a file, as rows with a "text" field.

    Args:
      file: open for reading.
      name: what messages call the file.
    """
    number, size, lines = 1, 0, list[str]()

    def finished() -> Iterator[Row]:
        text = "".join(lines).strip()
        if text:
            yield Row(number, f"text {number} of {name}", {"text": text})

    for line_number, raw in numbered_lines(file):
        try:
            line = decoded_line(raw).replace("\r\n", "\n")
        except BadRow as problem:
            yield Row(line_number, f"line {line_number} of {name}", problem=problem)
            continue
        before, separator, after = line.partition(SEPARATOR)
        while separator:
            lines.append(before)
            yield from finished()
            number, size, lines = number + 1, 0, []
            before, separator, after = after.partition(SEPARATOR)
        lines.append(before)
        size += len(before)
        if size >= LONGEST_TEXT:
            yield from finished()
            number, size, lines = number + 1, 0, []
    yield from finished()
