"""Ends a run whose step, restore or export does not end, and shows where every process is.

A collective waits for all hosts, without end: one that hangs holds up the others silently.

>>> with StallWatch(limit_s=1800.0) as watch:
...     watch.moved()
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import jax

from jaxspec.interruption import STALLED
from jaxspec.parallel.links import dump_stacks
from jaxspec.parallel.processes import end_all, hearing_progress_of_all


class StallWatch:
    """Ends the program if `moved` is not called for too long. Use it as a context manager.

    Args:
      limit_s: seconds; 0: it never ends the program.
      what: what the message says after "Stalled: ", before the seconds.
    """

    def __init__(self, *, limit_s: float, what: str = "no step has ended for") -> None:
        self._limit_s, self._what = limit_s, what
        self._moved = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="stall watch")

    def __enter__(self) -> StallWatch:
        self.moved()
        if self._limit_s:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        if self._limit_s:
            self._thread.join()  # or it could end a run that is no longer watched

    def moved(self) -> None:
        """Notes that the run has got on."""
        self._moved = time.monotonic()

    def _watch(self) -> None:
        left = self._limit_s
        while not self._is_over.wait(left):
            left = self._moved + self._limit_s - time.monotonic()
            if left <= 0:
                self._end()
                return

    def _end(self) -> None:
        dump_stacks(jax.process_index())
        text = (
            f"{self._what} {self._limit_s:g} seconds (training.stall_timeout). The same "
            "command continues from the last checkpoint."
        )
        os.write(2, f"error: Stalled: {text}\n".encode())
        end_all(STALLED, text)
        os._exit(STALLED)


@contextlib.contextmanager
def waiting_for_others(what: str, *, limit_s: float) -> Iterator[None]:
    """Watches what several processes do together: one that has failed alone holds up the others.

    As long as one of them gets on (`jaxspec.interruption.progressed`), none is stalled. A single
    process waits for nobody, and may take as long as its disk needs.

    Args:
      what: see `StallWatch`.
      limit_s: seconds; 0: it never ends the program.
    """
    limit_s = limit_s if jax.process_count() > 1 else 0.0
    with StallWatch(limit_s=limit_s, what=what) as watch, hearing_progress_of_all(watch.moved):
        yield
