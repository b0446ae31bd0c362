"""The commands that the documents show, as a reader would type them."""

from __future__ import annotations

import dataclasses
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TUTORIALS = tuple(
    ROOT / "docs" / "tutorials" / f"{name}.md"
    for name in ("first_drafter", "own_data", "hugging_face_target", "serving")
)
"""In the order in which they are read: a later one uses what an earlier one made."""
DOCUMENTS = (
    README,
    *TUTORIALS,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
SHELL = ("", "bash", "sh")
"""Languages of the blocks that are typed into a shell; others are Python, JSON or plain text."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"^\n((?:    (?:python|bash|[A-Z_]+=).*\n(?:    .*\n)*)+)", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    place: str
    """Document and line."""
    language: str
    text: str


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a shell block."""

    place: str
    """Document and line of its block."""
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        """What is called: "jaxspec eval", "python train.py", "python -m benchmarks.speed", "cp"."""
        count = {"jaxspec": 2, "python": 3 if self.words[1:2] == ("-m",) else 2}
        return " ".join(self.words[: count.get(self.words[0], 1)])

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows the program."""
        return self.words[len(self.program.split()) :]

    def values(self, option: str) -> list[str]:
        """The values that an option is given, in all of its places."""
        found: list[str] = []
        for place, word in enumerate(self.words):
            if word.replace("-", "_") == f"--{option}".replace("-", "_"):
                for value in self.words[place + 1 :]:
                    if value.startswith("--"):
                        break
                    found.append(value)
        return found


def blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks of a document, then the indented ones that hold commands."""
    text = document.read_text(encoding="utf-8")
    name = document.relative_to(ROOT).as_posix()

    def place(found: re.Match[str]) -> str:
        return f"{name}:{text.count(chr(10), 0, found.start()) + 1}"

    for found in _FENCE.finditer(text):
        yield Block(place(found), found.group(1), found.group(2))
    for found in _INDENTED.finditer(text):
        yield Block(place(found), "", textwrap.dedent(found.group(1)))


def is_syntax(line: str) -> bool:
    """Whether a line shows how commands are formed, with [...] or |, and cannot be typed."""
    return bool(re.search(r"\[.*\]| \| ", line))


def commands(block: Block) -> Iterator[Command]:
    """The commands of a shell block; comments and lines that show a syntax are left out."""
    if block.language not in SHELL:
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        if is_syntax(line):
            continue
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
                continue
            while words and _ASSIGNMENT.fullmatch(words[0]):  # VARIABLE=value command ...
                words.pop(0)
            if words and words[0] != "export":
                yield Command(block.place, tuple(words))
            words = []


def commands_of(*documents: Path) -> list[Command]:
    """The commands of documents that are read one after the other."""
    return [
        command
        for document in documents
        for block in blocks(document)
        for command in commands(block)
    ]
