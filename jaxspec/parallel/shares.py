"""Work that is shared out by process: which part is this one's, and what the others found.

Each process decodes on its own devices. What they exchange is little, and is not on the devices'
critical path: JSON values, at the start and at the end.

>>> share = this_share()
>>> share.of(["a", "b", "c"]), share.gather({"found": 3})
(['a', 'b', 'c'], [{'found': 3}])
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

ItemT = TypeVar("ItemT")


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; each waits here until all have come.

    Args:
      value: anything that JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([text.size])).reshape(-1)
    texts = multihost_utils.process_allgather(np.pad(text, (0, sizes.max() - text.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of one process."""

    index: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = gather
    """See the function."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all, and writes what they share."""
        return self.index == 0

    def of(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """This process's items: every `count`-th."""
        return items[self.index :: self.count]


def this_share() -> Share:
    """The part of this process."""
    return Share(jax.process_index(), jax.process_count())
