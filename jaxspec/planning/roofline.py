"""The least time of a step: what the slowest of arithmetic, memory and interconnect allows.

Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model". The three
are assumed to overlap fully, at the published speeds of the chip. A real step takes longer; how
much longer, its measured time tells.

>>> from jaxspec.parallel.chips import CHIPS
>>> line = Roofline.of(
...     CHIPS["v5e"], operations=197e12, memory_bytes=0.0, wire_bytes={(0, 1): 4e11})
>>> line.seconds, line.binding
(2.0, 'interconnect')
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxspec.parallel.chips import Chip


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each resource takes for a step."""

    terms: Mapping[str, float]
    """"arithmetic", "memory" (if it is known) and "interconnect"."""

    @classmethod
    def of(
        cls,
        chip: Chip,
        *,
        operations: float,
        memory_bytes: float | None,
        wire_bytes: Mapping[tuple[int, ...], float],
    ) -> Roofline:
        """From what each device does in a step.

        Args:
          chip: what a device is, or a part of.
          operations: of matrix products.
          memory_bytes: read from and written to its memory; None: not known, and left out.
          wire_bytes: sent to the others, by the places of the devices that exchange it with each
            other.
        """
        share = 1 / chip.cores
        sending = sum(
            sent / chip.bandwidth_among({device // chip.cores for device in group})
            for group, sent in wire_bytes.items()
        )
        terms = {"arithmetic": operations / (share * chip.peak_operations)}
        if memory_bytes is not None:
            terms["memory"] = memory_bytes / (share * chip.memory_bandwidth)
        return cls({**terms, "interconnect": sending / share})

    @property
    def seconds(self) -> float:
        """The time of a step."""
        return max(self.terms.values())

    @property
    def binding(self) -> str:
        """The term that decides."""
        return max(self.terms, key=lambda name: self.terms[name])
