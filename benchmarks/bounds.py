"""The bound that a timing is compared with: what this device, or a chip by its data sheet, allows.

The speed of this device is measured: bytes per second of the fastest of several programs that read
a large array, and operations per second of a large product. It is measured before each benchmark
again, and the best counts, since other load on the machine slows some of the measurements. A bound
is the larger of the time that the bytes take and the time that the operations take
(`jaxspec.planning.passes`, `jaxspec.planning.roofline`), so no program can be faster, but for
caches: weights that fit into a CPU's cache are not read from memory in every pass.

>>> device = Device("float32", stream_mb=256, width=1024)                      # doctest: +SKIP
>>> bound_of([(1, work)], device.chip())                                       # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.evals.clock import timed
from jaxspec.parallel.chips import Chip
from jaxspec.planning.passes import Work

_REPEATS = 5
_SECTIONS = 64
"""Parts of the large array, so that all cores have some."""

Passes = Sequence[tuple[float, Work]]
"""(how often, work of one pass)."""


class Device:
    """What this process's device reaches.

    Args:
      dtype: of the product.
      stream_mb: megabytes of the array that is read: more than the caches hold.
      width: of the square matrices that are multiplied.
    """

    def __init__(self, dtype: str, *, stream_mb: int, width: int) -> None:
        count = stream_mb * 2**20 // 4 // _SECTIONS
        large = jax.jit(lambda: jnp.ones((_SECTIONS, count), jnp.float32))()
        vector = jnp.ones(count, jnp.float32)
        square = jax.jit(lambda: jnp.ones((width, width), dtype))()
        self._readers = [
            _call(lambda x: jnp.sum(x, axis=1), large),
            _call(lambda x: jnp.max(x, axis=1), large),
            _call(lambda x, y: x @ y, large, vector),
        ]
        self._product = _call(lambda x: x @ x, square)
        self._bytes, self._operations = _SECTIONS * count * 4, 2.0 * width**3
        self._read_s = self._product_s = math.inf
        for call in (*self._readers, self._product):
            jax.block_until_ready(call())  # Compiles.
        self.measure()

    def measure(self) -> None:
        """Measures again; the best of all measurements counts."""
        for _ in range(_REPEATS):
            self._read_s = min(self._read_s, *(timed(call)[0] for call in self._readers))
            self._product_s = min(self._product_s, timed(self._product)[0])

    @property
    def bandwidth(self) -> float:
        """Bytes per second that are read from memory."""
        return self._bytes / self._read_s

    @property
    def operations(self) -> float:
        """Operations per second of a large product."""
        return self._operations / self._product_s

    def chip(self) -> Chip:
        """This device in the terms of `jaxspec.planning.roofline`."""
        return Chip(
            name="this device",
            kinds=(),
            peak_operations=self.operations,
            memory_bytes=math.inf,
            memory_bandwidth=self.bandwidth,
            link_bandwidth=math.inf,
        )


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least time of several passes, one after the other."""

    seconds: float
    binding: str
    """"memory" or "arithmetic": what takes the most of that time."""


def bound_of(passes: Passes, chip: Chip) -> Bound:
    """The least time that these passes take on one device of `chip`."""
    by_term: dict[str, float] = {}
    for count, work in passes:
        roofline = work.roofline(chip)
        by_term[roofline.binding] = by_term.get(roofline.binding, 0.0) + count * roofline.seconds
    return Bound(sum(by_term.values()), max(by_term, key=lambda term: by_term[term]))


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    compiled = jax.jit(function)
    return lambda: compiled(*arguments)
