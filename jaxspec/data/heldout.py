"""Prompts of the test sets, as hashes, so that no training split holds one of them.

The table `held_out_prompts.npy` is shipped with the package: training data can be checked on a
machine that has none of the benchmarks. Remade, when a test set is added, by
``python -m jaxspec.data.heldout`` with JAXSPEC_RAW_DATA set.

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
"""Behind it stand a programming task's tests; the task itself stands before."""

_FENCED = re.compile(r"```[a-z]*\n(.{80,}?)```", re.DOTALL)


def text_hash(text: str) -> int:
    """64 bits of a text.

    Case, white space and Unicode variants make no difference. (Punctuation does: "x + 2" and
    "x - 2" are different problems.)
    """
    normal = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "little")


def keys(prompt: str) -> list[int]:
    """Hashes of a prompt: of all of it, of the task before its tests, of quoted code."""
    texts = {prompt, prompt.split(TESTS_FOLLOW)[0], *_FENCED.findall(prompt)}
    return sorted({text_hash(text) for text in texts})


@dataclasses.dataclass(frozen=True)
class HeldOutPrompts:
    """A set of prompts to keep out of training."""

    hashes: frozenset[int]
    digest: str
    """Changes with the table."""

    @staticmethod
    @functools.cache
    def load() -> HeldOutPrompts:
        """The table shipped with the package."""
        return HeldOutPrompts.from_table(np.load(TABLE, allow_pickle=False))

    @classmethod
    def from_table(cls, table: NDArray[np.uint64]) -> HeldOutPrompts:
        """From an array of hashes."""
        return cls(
            hashes=frozenset(int(value) for value in table),
            digest=hashlib.sha256(table.tobytes()).hexdigest()[:8],
        )

    def contains(self, turns: Iterable[tuple[str, str]]) -> bool:
        """Whether a user turn of a conversation is a held-out prompt."""
        return any(
            key in self.hashes for role, content in turns if role == "user" for key in keys(content)
        )


def table(prompts: Iterable[str]) -> NDArray[np.uint64]:
    """The hashes of prompts, sorted, each once."""
    return np.unique(np.array([key for prompt in prompts for key in keys(prompt)], np.uint64))


def main() -> None:
    """Writes the table from every test set."""
    # Imported here: the sources read the table.
    from jaxspec.config import DataConfig
    from jaxspec.data import sources

    if not TABLE.is_file():
        np.save(TABLE, np.zeros(0, np.uint64), allow_pickle=False)
    hashes = table(sources.held_out_prompts(DataConfig()))
    np.save(TABLE, hashes, allow_pickle=False)
    print(f"{len(hashes)} hashes in {TABLE}")


if __name__ == "__main__":
    main()
