"""Writes the conversations of files as a folder of examples, whole or not at all.

>>> found = locate("chats.jsonl", split="train")                               # doctest: +SKIP
>>> imported = import_files(                                                   # doctest: +SKIP
...     [found], Path("data/chats"), use="training", manifest={}, echo=print
... )
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxspec.data.example_files import MANIFEST, is_example_folder, read_manifest, write_examples
from jaxspec.data.examples import Example
from jaxspec.data.imports.locate import DataFiles
from jaxspec.data.imports.reading import Tally, read_conversations
from jaxspec.data.imports.use import RECORD, SPLITS, VALIDATION, Use
from jaxspec.data.validation import is_validation
from jaxspec.files import replaced_folder

SHARD_EXAMPLES = 8192
_SHARD_CHARACTERS = 1 << 26
_PROGRESS_SECONDS = 5.0
_OWN_FILE = re.compile(r"examples-\d+\.array_record")


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import wrote."""

    tally: Tally
    training: int
    validation: int
    seconds: float


def import_files(
    sources: Sequence[DataFiles],
    output: Path,
    *,
    use: Use,
    skip_bad: bool = False,
    validation: float = 0.0,
    manifest: Mapping[str, Any],
    echo: Callable[[str], None],
    keep_existing: bool = False,
) -> Imported:
    """Reads all sources and writes one folder of examples.

    Args:
      sources: their files.
      output: the folder. An earlier import there is replaced.
      use: what the conversations are for.
      skip_bad: leave bad rows out and count them.
      validation: the share of prompts that goes to the folder's validation split.
      manifest: further facts for the manifest.
      echo: where lines of text go.
      keep_existing: if another process has written the folder in the meantime, leave it.

    Raises:
      StoppedAtBadRow: the first bad row, unless they are skipped.
      ValueError: a file that cannot be read; nothing is left of any source; or the folder holds
        something else.
        In each case nothing is written.
    """
    check_importable(output)
    started = time.monotonic()
    total, progress = Tally(), _Progress(echo)

    def conversations() -> Iterator[Example]:
        seen: set[bytes] = set()
        for found in sources:
            tally = Tally()
            yield from read_conversations(
                found,
                use=use,
                tally=tally,
                seen=seen,
                skip_bad=skip_bad,
                progress=functools.partial(progress, total),
            )
            total.add(tally)
            if len(sources) > 1 or tally.kept:
                for line in tally.lines(found.source):
                    echo(line)
        total.check_left(", ".join(found.source for found in sources))

    with replaced_folder(
        output, is_own=is_own, key=MANIFEST, keep_existing=keep_existing
    ) as folder:
        training = _Shards(folder, split=SPLITS[use])
        kept_out = _Shards(folder / VALIDATION, split=VALIDATION)
        for example in conversations():
            (kept_out if validation and is_validation(example, validation) else training).add(
                example
            )
        record = {
            "use": use,
            "sources": [_facts(found) for found in sources],
            "rows": total.rows,
            "formats": dict(total.forms),
            "conversations": total.kept,
            "turns": total.turns,
            "duplicates": total.duplicates,
            "benchmark_prompts": total.held_out,
            "bad_rows": dict(total.bad),
            "empty_files": total.empty,
            "validation_fraction": validation,
            "validation": kept_out.count,
        }
        facts = {**manifest, RECORD: record}
        training.finish(facts)
        if validation:
            kept_out.finish(facts)
    return Imported(total, training.count, kept_out.count, time.monotonic() - started)


def is_own(name: str) -> bool:
    """Whether an import writes a file or folder of this name."""
    return name in (MANIFEST, VALIDATION) or _OWN_FILE.fullmatch(name) is not None


def check_importable(output: Path) -> None:
    """Refuses a folder of examples that no import wrote: they would be lost.

    Raises:
      ValueError: it holds such examples.
    """
    if is_example_folder(output) and RECORD not in read_manifest(output):
        raise ValueError(
            f"{output} holds examples that `jaxspec import-data` did not write, and they would be "
            "lost: name another --output."
        )


class _Shards:
    """The examples of one folder, written shard by shard."""

    def __init__(self, folder: Path, *, split: str) -> None:
        self._folder, self._split = folder, split
        self._waiting: list[Example] = []
        self._characters = 0
        self.count = 0

    def add(self, example: Example) -> None:
        self._waiting.append(example)
        self._characters += sum(len(text) for _, text in example.turns)
        self.count += 1
        if len(self._waiting) >= SHARD_EXAMPLES or self._characters >= _SHARD_CHARACTERS:
            self._write({})

    def finish(self, manifest: Mapping[str, Any]) -> None:
        self._write(manifest)

    def _write(self, manifest: Mapping[str, Any]) -> None:
        write_examples(self._folder, self._waiting, manifest={"split": self._split, **manifest})
        self._waiting, self._characters = [], 0


class _Progress:
    """A line now and then."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo = echo
        self._started = self._last = time.monotonic()

    def __call__(self, before: Tally, tally: Tally) -> None:
        """Says how far it is, if it is time: what was read before, and of the present source."""
        if tally.rows % 256:
            return
        now = time.monotonic()
        if now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            rows, bad = before.rows + tally.rows, before.bad.total() + tally.bad.total()
            rate = rows / (now - self._started)
            self._echo(f"{rows:,} rows  {rate:,.0f} rows/s{f'  {bad:,} bad' if bad else ''}")


def _facts(found: DataFiles) -> dict[str, Any]:
    files = [
        {"file": name, "bytes": path.stat().st_size, "sha256": digest_of(path)}
        for path, name in zip(found.files, found.names, strict=True)
    ]
    return {"source": found.source, **found.facts, "files": files}


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
