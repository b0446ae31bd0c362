"""How the embedded corpus is divided, and the random draws its three generators share.

Held-out text must be unseen in structure and in values, not just in wording. Both are assigned by a
checksum of a name ("math|buy|give|share"), so the division is the same for every seed and count: a
test story can use neither a training structure nor a training pair of values.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")

SPLITS = ("train", "test")
HELD_OUT_ONE_IN = 8


def is_held_out(*key: str) -> bool:
    """Whether the thing of this name belongs to the test split (one in eight do)."""
    # crc32 and not hash(): the latter changes with PYTHONHASHSEED.
    return zlib.crc32("|".join(key).encode()) % HELD_OUT_ONE_IN == 0


def members(keys: Iterable[tuple[str, ...]], *, label: str, split: str) -> list[tuple[str, ...]]:
    """The keys of a split, in the given order."""
    return [key for key in keys if is_held_out(label, *key) == (split == "test")]


class Writer(Protocol):
    """Writes one conversation of a split; None if the drawn numbers do not work out."""

    def __call__(self, rng: random.Random, split: str) -> tuple[tuple[str, str], ...] | None:
        """Draw (role, content) turns."""


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options, earlier ones being likelier: a wording habit that a model can learn."""
    # The smaller of two uniform draws; three options get 5/9, 3/9 and 1/9.
    size = len(options)
    return options[min(int(rng.random() * size), int(rng.random() * size))]


def any_of(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.random() * len(options))]


def between(rng: random.Random, low: int, high: int) -> int:
    """A whole number from low to high, inclusive."""
    return low + int(rng.random() * (high - low + 1))
