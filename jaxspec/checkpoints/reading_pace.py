"""Says how fast the weights of a large model are read.

>>> pace = ReadingPace("Qwen3-4B", 8_045_000_000, echo=print)  # doctest: +SKIP
>>> pace.finished(8_045_000_000)  # doctest: +SKIP
Read 8.0 GB of weights from Qwen3-4B in 6.1 s (1.3 GB/s).
"""

from __future__ import annotations

import time
from collections.abc import Callable

LARGE_BYTES = 1_000_000_000
"""Of smaller models nothing is said."""
_EVERY_SECONDS = 10.0


class ReadingPace:
    """A line every 10 seconds while a large model is read, and one at the end.

    Args:
      name: what to call the model.
      total: bytes that will be read, about.
      echo: where lines of text go.
      clock: seconds from any start.
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        echo: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._echo, self._clock = name, total, echo, clock
        self._started = self._said = clock()

    def so_far(self, read: int) -> None:
        """Says how many bytes have been read, unless that was said a moment ago."""
        now = self._clock()
        if self._total < LARGE_BYTES or now - self._said < _EVERY_SECONDS:
            return
        self._said = now
        self._echo(
            f"Reading weights from {self._name}: {read / 1e9:.1f} of {self._total / 1e9:.1f} GB "
            f"({self._rate(read)})."
        )

    def finished(self, read: int) -> None:
        """Says how long it took."""
        if self._total >= LARGE_BYTES:
            self._echo(
                f"Read {read / 1e9:.1f} GB of weights from {self._name} in "
                f"{self._clock() - self._started:.1f} s ({self._rate(read)})."
            )

    def _rate(self, read: int) -> str:
        return f"{read / 1e9 / max(1e-9, self._clock() - self._started):.2f} GB/s"
