"""Reads conversations from files: checked, without duplicates, and counted.

>>> tally = Tally()
>>> found = locate("chats.jsonl", split="train")                               # doctest: +SKIP
>>> examples = list(                                                           # doctest: +SKIP
...     read_conversations(found, use="training", tally=tally, seen=set())
... )
>>> print(tally.line(found.source))                                            # doctest: +SKIP
chats.jsonl: 43 conversations in OpenAI's `messages` format
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxspec.data.examples import Example
from jaxspec.data.heldout import HeldOutPrompts
from jaxspec.data.imports.conversations import TEXTS, content_of, question_of, to_example
from jaxspec.data.imports.locate import DataFiles
from jaxspec.data.imports.open_rows import open_rows
from jaxspec.data.imports.rows import BadRow, EmptyFile, Row, StoppedAtBadRow
from jaxspec.data.imports.use import Use

MOST_PLACES = 3
"""Bad rows of one kind that are named at the end."""


@dataclasses.dataclass
class Tally:
    """What was read, and what became of it."""

    rows: int = 0
    turns: int = 0
    duplicates: int = 0
    """Rows left out because the same turns came before; of prompts, the same questions."""
    held_out: int = 0
    """Rows left out because they contain a prompt of a benchmark."""
    forms: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Conversations by what their format is called, duplicates and the like included."""
    bad: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Bad rows by reason."""
    places: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Reason -> the first bad rows."""
    empty: list[str] = dataclasses.field(default_factory=list)
    """Names of files that hold nothing."""

    @property
    def kept(self) -> int:
        """Conversations that are neither duplicates nor held out."""
        return self.forms.total() - self.duplicates - self.held_out

    def add(self, other: Tally) -> None:
        """Counts what was read of another source as well."""
        self.rows += other.rows
        self.turns += other.turns
        self.duplicates += other.duplicates
        self.held_out += other.held_out
        self.forms.update(other.forms)
        self.bad.update(other.bad)
        self.empty += other.empty
        for reason, places in other.places.items():
            self.places[reason] = [*self.places.get(reason, ()), *places][:MOST_PLACES]

    def add_bad(self, row: Row, problem: BadRow) -> None:
        """Counts a row that is left out."""
        self.bad[problem.reason] += 1
        places = self.places.setdefault(problem.reason, [])
        if len(places) < MOST_PLACES:
            places.append(f"{row.place}: {problem.detail}" if problem.detail else row.place)

    @property
    def left_out(self) -> str:
        """How many were left out for each cause, in words; "": none."""
        causes = {
            "duplicates": self.duplicates,
            "with a benchmark's prompt": self.held_out,
            "bad rows": self.bad.total(),
        }
        return ", ".join(f"{count:,} {cause}" for cause, count in causes.items() if count)

    def lines(self, source: str) -> list[str]:
        """What a source holds, and which of its files hold nothing, on a line each."""
        if not self.rows:
            return [f"{source} is empty."]
        nothing = f"Nothing is left of {source}: {self.left_out}."
        line = self.line(source) if self.kept else nothing
        return [line, *(f"{source}: an empty file: {name}" for name in self.empty)]

    def line(self, source: str) -> str:
        """What a source holds, on one line."""
        what, total = "text" if {*self.forms} == {TEXTS} else "conversation", self.forms.total()
        what = what if total == 1 else f"{what}s"
        if len(self.forms) == 1:
            (form,) = self.forms
            return f"{source}: {total:,} {what}{'' if form == TEXTS else f' in {form}'}"
        kinds = ", ".join(f"{count:,} in {form}" for form, count in self.forms.most_common())
        return f"{source}: {total:,} {what} ({kinds})"

    def bad_rows(self) -> list[str]:
        """The reasons with their counts and the first places, one per line."""
        return [
            line
            for reason, count in self.bad.most_common()
            for line in (f"{count:,} {reason}", *(f"  {place}" for place in self.places[reason]))
        ]

    def check_left(self, source: str) -> None:
        """Refuses a source, or several, of which nothing is left.

        Raises:
          ValueError: there are no conversations; the message says what became of the rows.
        """
        if not self.rows:
            raise ValueError(f"{source} is empty: expected conversations or text.")
        if not self.kept:
            nothing = f"Nothing is left of {source}: {self.left_out}."
            raise ValueError("\n  ".join([nothing, *self.bad_rows()]))


def read_conversations(
    found: DataFiles,
    *,
    use: Use,
    tally: Tally,
    seen: set[bytes],
    skip_bad: bool = False,
    keep_duplicates: bool = False,
    progress: Callable[[Tally], None] | None = None,
) -> Iterator[Example]:
    """The conversations of a source, one after the other.

    Args:
      found: the files.
      use: what they are for.
      tally: is counted up.
      seen: 128-bit hashes of the conversations so far; those of this source are added. They take
        about 100 MB of memory per million conversations.
      skip_bad: leave bad rows out and count them.
      keep_duplicates: leave none out, such as of questions whose answers belong to their rows.
      progress: is called after every row.

    Raises:
      StoppedAtBadRow: the first bad row.
      ValueError: a file that cannot be read. Where nothing is left, see `Tally.check_left`.
    """
    held_out = None if use == "benchmark" else HeldOutPrompts.load()
    for path, name in zip(found.files, found.names, strict=True):
        for row in _rows(path, name=name, use=use, tally=tally):
            try:
                if row.problem is not None:
                    raise row.problem
                example, form = to_example(
                    row.value,
                    id=f"{name}/{row.number}",
                    source=name,
                    needs_answer=use == "training",
                )
            except BadRow as problem:
                if not skip_bad:
                    raise StoppedAtBadRow(f"{row.place}: {problem}.") from problem
                tally.add_bad(row, problem)
            else:
                tally.forms[form] += 1
                told = question_of(example) if use == "prompts" else content_of(example)
                content = hashlib.blake2b(told, digest_size=16).digest()
                if content in seen and not keep_duplicates:
                    tally.duplicates += 1
                elif held_out is not None and held_out.contains(example.turns):
                    tally.held_out += 1
                else:
                    seen.add(content)
                    tally.turns += len(example.turns)
                    yield example
            if progress is not None:
                progress(tally)


def _rows(path: Path, *, name: str, use: Use, tally: Tally) -> Iterator[Row]:
    """The rows of a file, counted; a file without any is noted."""
    before = tally.rows
    with contextlib.suppress(EmptyFile):
        # Running text asks nothing.
        for row in open_rows(path, lines_ask=use == "prompts"):
            tally.rows += 1
            yield row
    if tally.rows == before:
        tally.empty.append(name)
