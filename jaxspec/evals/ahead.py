"""Programs compiled ahead, side by side in threads, before they are called.

jax compiles a program when it is first called, one after the other. An evaluation knows which
programs it will call: as many as there are processors are compiled at the same time, and the first
ones are used while the others are still being compiled. A program is named by what it depends on,
such as the padded length of a prompt, so benchmarks with prompts of similar length share it.

>>> with Ahead(print) as ahead:  # doctest: +SKIP
...     ahead.add([Program("prefill of 128 tokens", key, lower=lambda: f.lower(shapes))])
...     ahead.wait()
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import jax

from jaxspec.evals.progress import Echo

TreeT = TypeVar("TreeT")

MOST_THREADS = 8
"""The compiler uses several threads itself."""
MEMORY_OF_A_COMPILATION = 2 * 2**30
"""Bytes of the host that compiling a large program may take."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that will be called."""

    name: str
    """What the line on the terminal calls it."""
    key: Hashable
    """Equal for the same program: what is compiled, and the shapes of its arguments."""
    lower: Callable[[], jax.stages.Lowered]
    """Traces it with the shapes that it will be called with."""


class Ahead:
    """Compiles programs in threads; a context manager, which drops what has not been begun.

    Args:
      echo: where lines of text go.
      threads: programs compiled at a time; None: as many as processors and memory allow.
    """

    def __init__(self, echo: Echo, *, threads: int | None = None) -> None:
        self._echo = echo
        self.threads = threads or threads_at_hand()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="compile")
        self._seconds: dict[Hashable, Future[float]] = {}
        self._announced: list[tuple[list[Hashable], float]] = []

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def add(self, programs: Iterable[Program]) -> list[Hashable]:
        """Has programs compiled, except for those that are known already.

        Returns:
          The keys of all of them.
        """
        keys, new = [], []
        for program in programs:
            keys.append(program.key)
            if program.key not in self._seconds:
                self._seconds[program.key] = self._pool.submit(_compile, program)
                new.append(program)
        if new:
            together = f", {self.threads} at a time" if self.threads > 1 and len(new) > 1 else ""
            names = "; ".join(dict.fromkeys(program.name for program in new))
            self._echo(f"Compiling {_counted(len(new))}{together}: {names}.")
            self._announced.append(([program.key for program in new], time.perf_counter()))
        return keys

    def wait(self, keys: Iterable[Hashable] | None = None) -> float:
        """Waits until programs are compiled.

        Args:
          keys: which ones; None: all that have been added.

        Returns:
          The seconds that each of these took, added up.
        """
        seconds = sum(
            self._seconds[key].result() for key in (self._seconds if keys is None else keys)
        )
        for line in list(self._announced):
            its_keys, started = line
            if all(self._seconds[key].done() for key in its_keys):
                self._announced.remove(line)
                took = time.perf_counter() - started
                self._echo(f"Compiled {_counted(len(its_keys))} within {took:.1f} s.")
        return seconds


def threads_at_hand() -> int:
    """Programs that may be compiled at a time: one for each processor, as far as memory lasts."""
    with contextlib.suppress(AttributeError):  # Linux only.
        processors = len(os.sched_getaffinity(0))
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return max(1, min(processors, MOST_THREADS, free // MEMORY_OF_A_COMPILATION))
    return max(1, min(os.cpu_count() or 1, MOST_THREADS) // 2)


def shapes_of(tree: TreeT) -> TreeT:
    """Arrays as shapes that a program is lowered with, so that the call finds the same program."""

    def shape(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        sharding = leaf.sharding if leaf.committed else None
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type
        )

    shapes: TreeT = jax.tree.map(shape, tree)
    return shapes


def _compile(program: Program) -> float:
    """Seconds of tracing and compiling; jax keeps what was compiled for the call."""
    started = time.perf_counter()
    program.lower().compile()
    return time.perf_counter() - started


def _counted(number: int) -> str:
    return f"{number} program{'' if number == 1 else 's'}"
