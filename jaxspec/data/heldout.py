"""Hashes of the test sets' prompts, used to keep these prompts out of every training split.

Of a test set of running text, the whole passage counts as a prompt.

The table `held_out_prompts.npy` is shipped with the package, so training data can be checked on a
machine that has none of the benchmarks. When a test set is added, remake the table with
``python -m jaxspec.data.heldout`` and JAXSPEC_RAW_DATA set.

>>> HeldOutPrompts.load().contains([("user", "What is 2 + 2?")])
False
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TABLE = Path(__file__).parent / "held_out_prompts.npy"

TESTS_FOLLOW = "\n\nYour code should pass these tests:"
"""Separates a programming task from the tests that follow it."""

_RULE = b"2"
"""To be counted up when a text is searched for more than before."""
_FENCED = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_SHORTEST_CODE = 80
"""Characters of a quoted code block; a shorter one may be in many prompts."""
# White space around them makes no difference to a hash. A pattern that matched it would be slow on
# a text with much of it.
_TESTS = re.compile(r"\sYour code should pass these tests:")
_MBPP_INTRODUCTION = re.compile(
    r"You are an expert Python programmer, and here is your task:", re.IGNORECASE
)
"""How the paper of MBPP (arXiv 2108.07732) asks its questions."""


_SENTENCE_ENDS = re.compile(r"(?<=[.?!:$])\s|\n|\s(?=(?:please|let'?s)\b)", re.IGNORECASE)
_MOST_AROUND = 4
"""Sentences or lines of an instruction around a prompt."""
_SHORTEST_INSIDE = 20
"""Characters of a prompt that is looked for inside a longer one; a shorter one says little."""


def text_hash(text: str) -> int:
    """A 64-bit hash of a text.

    Case, white space and Unicode variants make no difference. (Punctuation does: "x + 2" and
    "x - 2" are different problems.)
    """
    return _hash_of(_normal(text))


def _normal(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hash_of(normal: str) -> int:
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "little")


def keys(prompt: str) -> list[int]:
    """Hashes of the whole prompt, of the task without its tests, and of each quoted code block."""
    task = _TESTS.split(prompt)[0]
    texts = {prompt, task, _MBPP_INTRODUCTION.sub("", task, count=1)}
    texts |= {code for code in _FENCED.findall(prompt) if len(code) >= _SHORTEST_CODE}
    return sorted({text_hash(text) for text in texts})


def keys_inside(text: str) -> list[int]:
    """Hashes of what remains of a text without up to four sentences or lines at its ends.

    Such an instruction stands around many problems: "Let's think step by step."
    """
    pieces = [piece for piece in map(_normal, _SENTENCE_ENDS.split(text)) if piece]
    found = []
    for before in range(_MOST_AROUND + 1):
        for after in range(_MOST_AROUND + 1 - before):
            inside = "".join(pieces[before : len(pieces) - after])
            if (before or after) and len(inside) >= _SHORTEST_INSIDE:
                found.append(_hash_of(inside))
    return found


@dataclasses.dataclass(frozen=True)
class HeldOutPrompts:
    """A set of prompts to keep out of training."""

    hashes: frozenset[int]
    digest: str
    """Changes whenever the table does, or what is looked for in a text."""

    @staticmethod
    @functools.cache
    def load() -> HeldOutPrompts:
        """The table shipped with the package."""
        return HeldOutPrompts.from_table(np.load(TABLE, allow_pickle=False))

    @classmethod
    def from_table(cls, table: NDArray[np.uint64]) -> HeldOutPrompts:
        """Made from an array of hashes."""
        return cls(
            hashes=frozenset(int(value) for value in table),
            digest=hashlib.sha256(table.tobytes() + _RULE).hexdigest()[:8],
        )

    def contains(self, turns: Iterable[tuple[str, str]]) -> bool:
        """Whether a user turn is a held-out prompt, or one with an instruction around it.

        Of running text, any turn counts.
        """
        turns = [*turns]
        asked = [content for role, content in turns if role == "user"]
        texts = asked or [content for _, content in turns]
        return any(
            key in self.hashes for text in texts for key in (*keys(text), *keys_inside(text))
        )


def table(prompts: Iterable[str]) -> NDArray[np.uint64]:
    """The hashes of prompts, sorted and without duplicates."""
    return np.unique(np.array([key for prompt in prompts for key in keys(prompt)], np.uint64))


def main() -> None:
    """Writes the table from every test set."""
    # Imported here because the sources read the table.
    from jaxspec.config import DataConfig
    from jaxspec.data import sources

    if not TABLE.is_file():
        np.save(TABLE, np.zeros(0, np.uint64), allow_pickle=False)
    hashes = table(sources.held_out_prompts(DataConfig()))
    np.save(TABLE, hashes, allow_pickle=False)
    print(f"{len(hashes)} hashes in {TABLE}")


if __name__ == "__main__":
    main()
