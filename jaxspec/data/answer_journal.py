"""The answers of an unfinished shard, on disk as soon as they exist.

A folder of examples grows by whole shards (`example_files`). A target may take an hour for one, so
each answer is also added to a journal, one per line: after a kill, only the others are asked again.

>>> journal = AnswerJournal(folder / "answers.jsonl")                          # doctest: +SKIP
>>> journal.add("gsm8k/train/0", [5, 6], tokens=[7, 8], stopped=True)          # doctest: +SKIP
>>> journal.find("gsm8k/train/0", [5, 6])                                      # doctest: +SKIP
((7, 8), True)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from jaxspec.files import write_text
from jaxspec.growing_file import UPLOAD_S, GrowingFile
from jaxspec.paths import user_path

Answer = tuple[tuple[int, ...], bool]
"""Token ids, and whether a stop token ended them."""


class AnswerJournal:
    """The answers in a file, which only one process may have open.

    Lines that were cut or changed are dropped, and their questions are asked again.

    Args:
      path: the file; it is made with the first answer.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self._answers, lines, is_whole = _read(self.path)
        if not is_whole:
            write_text(self.path, "".join(lines))
        self._file = GrowingFile(self.path, every_s=UPLOAD_S)

    def take(self, path: str | os.PathLike[str]) -> None:
        """Also finds the answers in another file, which is left as it is. It need not exist."""
        self._answers |= _read(user_path(path))[0]

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, name: str, prompt: Sequence[int]) -> Answer | None:
        """The answer to the prompt of this name; None if there is none yet."""
        return self._answers.get(_key(name, prompt))

    def add(
        self, name: str, prompt: Sequence[int], *, tokens: Sequence[int], stopped: bool
    ) -> None:
        """Saves an answer. It survives a kill of the process, but not a power failure.

        In a bucket, a kill loses the answers of the last half minute.
        """
        key = _key(name, prompt)
        self._answers[key] = (tuple(tokens), stopped)
        content = json.dumps([key, list(tokens), stopped])
        self._file.write(f"{_digest(content)} {content}\n".encode())

    def clear(self) -> None:
        """Forgets every answer: the shard is finished."""
        self._answers.clear()
        self.path.unlink(missing_ok=True)
        self._file = GrowingFile(self.path, every_s=UPLOAD_S)

    def close(self) -> None:
        """Waits until every answer is saved."""
        self._file.close()


def _read(path: Path) -> tuple[dict[str, Answer], list[str], bool]:
    """The answers in a file, its undamaged lines, and whether these are all there is."""
    answers: dict[str, Answer] = {}
    lines: list[str] = []
    text = path.read_text("utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        check, _, content = line.partition(" ")
        if check == _digest(content):
            key, tokens, stopped = json.loads(content)
            answers[key] = (tuple(tokens), stopped)
            lines.append(f"{line}\n")
    return answers, lines, text == "".join(lines)


def _key(name: str, prompt: Sequence[int]) -> str:
    return _digest(json.dumps([name, list(prompt)]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
