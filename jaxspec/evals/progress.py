"""Progress of long work: how far it is, how fast, and how much longer.

>>> with progress_of("gsm8k: target alone", 40, print) as advance:             # doctest: +SKIP
...     advance(1)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxspec.durations import duration
from jaxspec.names import visible

Echo = Callable[[str], None]
"""Where lines of text go."""
_SECONDS_BETWEEN_LINES = 60.0


def render(table: Any) -> str:
    """A table as lines of text."""
    console = Console()
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@contextmanager
def progress_of(
    title: str, total: int, echo: Echo, *, announced: bool = True
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line a minute, and, if `announced`, one at the start.

    Yields:
      What to call with the number of prompts done since the last call.
    """
    console = Console()
    if not console.is_terminal:
        if announced:
            echo(f"{visible(title)}: {total} prompts")
        yield _line_a_minute(visible(title), total, echo)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(visible(title), total=total)
        yield lambda done: progress.update(task, advance=done)


def _line_a_minute(title: str, total: int, echo: Echo) -> Callable[[int], None]:
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES and done < total:
            left = (now - started) / done * (total - done)
            echo(f"{title}: {done} of {total} prompts, about {duration(left)} left")
            last = now

    return advance


class Pace:
    """Work in parts, over minutes or hours: a line now and then, and one after every part.

    Args:
      total: how much there is.
      first: how much an earlier run has done.
      unit: what is counted.
      echo: where the lines go.
      every: seconds between lines within a part.
    """

    def __init__(
        self, total: int, *, first: int = 0, unit: str, echo: Echo, every: float = 5.0
    ) -> None:
        self._total, self._first, self._unit = total, first, unit
        self._echo, self._every = echo, every
        self._done, self._asked, self._tokens = first, 0, 0
        self._started = self._last = time.monotonic()

    def prompts(self, count: int) -> None:
        """Counts prompts within a part."""
        self._asked += count
        if time.monotonic() - self._last >= self._every:
            self._line(f"{self._done}/{self._total} {self._unit} (+{self._asked} asked)")

    def tokens(self, count: int) -> None:
        """Counts tokens of finished batches."""
        self._tokens += count

    def finished(self, count: int) -> None:
        """Counts what a finished part held."""
        self._done += count
        self._asked = 0
        self._line(f"{self._done}/{self._total} {self._unit}")

    def _line(self, text: str) -> None:
        now = time.monotonic()
        seconds, parts = max(now - self._started, 1e-9), [text]
        if self._tokens:  # None before the first part is done.
            parts.append(f"{self._tokens / seconds:,.0f} tokens/s")
        left = seconds / max(1, self._done + self._asked - self._first)
        left *= max(0, self._total - self._done - self._asked)
        parts.append(f"{left / 60:.0f} min left" if left >= 120 else f"{left:.0f} s left")
        self._echo("  ".join(parts))
        self._last = now
