"""Traces some steps of a run with jax's profiler, for TensorBoard and Perfetto.

>>> with Profile(None, steps=0, first_step=0, last_step=10) as profile:
...     profile.before(0)
...     profile.after(1, metrics={})
False
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxspec.paths import copy_file, is_remote

_WARM_UP = 2
"""Steps that are left out: the first ones wait for the compiler and for memory."""


class Profile:
    """A trace of some steps after the first ones. Use it as a context manager.

    Args:
      folder: where the trace goes; None: nothing is traced, as on all processes but the first.
      steps: how many; 0: nothing is traced.
      first_step: steps that were taken before.
      last_step: of the run. A run that is too short for a warm-up is traced from its first step.
    """

    def __init__(self, folder: Path | None, *, steps: int, first_step: int, last_step: int) -> None:
        self._folder = folder
        has_room = last_step - first_step >= steps + _WARM_UP
        self._begin = first_step + (_WARM_UP if has_room else 0)
        self._end = min(self._begin + steps, last_step) if folder else self._begin
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def before(self, step: int) -> None:
        """Begins the trace if it is time to; `step` counts those that were taken."""
        if self._folder and step == self._begin < self._end:
            self._stack.enter_context(_trace(self._folder))

    def after(self, step: int, metrics: Any) -> bool:
        """Ends the trace if it is time to, when the devices have done the step.

        Returns:
          Whether it has ended.
        """
        is_last = step == self._end > self._begin
        if is_last:
            jax.block_until_ready(metrics)
            self._stack.close()
        return is_last


@contextlib.contextmanager
def _trace(folder: Path) -> Iterator[None]:
    """Traces into a folder; the profiler itself writes to local ones only."""
    if not is_remote(folder):
        with jax.profiler.trace(str(folder)):
            yield
        return
    with tempfile.TemporaryDirectory() as local:
        with jax.profiler.trace(local):
            yield
        for file in sorted(Path(local).rglob("*")):
            if file.is_file():
                copy_file(file, folder / file.relative_to(local))
