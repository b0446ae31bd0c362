"""Work that is shared out by process: which part is this one's, and what the others found.

Each process decodes on its own devices. What they exchange is little, and is not on the devices'
critical path: JSON values, at the start and at the end.

>>> share = this_share()
>>> share.of(["a", "b", "c"]), share.gather({"found": 3})
(['a', 'b', 'c'], [{'found': 3}])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from jaxspec.parallel.processes import check_said, gather

_ADVICE = "Start all of them with the same command, and copy the same files to all hosts."
ItemT = TypeVar("ItemT")


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of one process."""

    index: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = gather
    """See `jaxspec.parallel.processes.gather`."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all, and writes what they share."""
        return self.index == 0

    def of(self, items: Sequence[ItemT]) -> Sequence[ItemT]:
        """This process's items: every `count`-th."""
        return items[self.index :: self.count]

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Checks that all processes have the same work; every process has to call it.

        Args:
          facts: what decides its result, by name: anything that JSON holds.

        Raises:
          ValueError: on every process, with what differs.
        """
        check_said(self.gather(dict(facts)), advice=_ADVICE)


def this_share() -> Share:
    """The part of this process."""
    return Share(jax.process_index(), jax.process_count())
