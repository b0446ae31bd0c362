"""What a run says while it trains: a bar on a terminal, plain lines elsewhere.

>>> row = {"step": 5, "epoch": 1.25, "loss": 1.5, "tokens_per_s": 100.0}
>>> with Reporter(steps=10, first_step=0, title="drafter") as reporter:        # doctest: +SKIP
...     reporter.update(row, seconds_per_step=0.5)
step 5/10  epoch 1.25  loss 1.500  100 tokens/s  0.50 s/step  1.2 GiB  3 s left
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jaxspec.durations import duration
from jaxspec.names import for_terminal
from jaxspec.parallel.memory import memory_used

_FIRST_STEPS = 5
"""Steps whose speed the estimate of the whole run is based on."""


class BarWithLines(Progress):
    """A bar with lines of text below it: together they do not fit into 80 columns."""

    lines: Sequence[str] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        """See rich."""
        yield self.make_tasks_table(self.tasks)
        yield from map(Text, self.lines)


class Reporter:
    """Shows how far a run is, and what it measures.

    Args:
      steps: length of the run.
      first_step: steps already taken.
      title: shown before the bar.
      is_silent: show nothing, as all processes but the first do.
    """

    def __init__(
        self,
        *,
        steps: int,
        first_step: int,
        title: str,
        is_silent: bool = False,
    ) -> None:
        console = Console(quiet=is_silent)
        self._is_silent = is_silent
        self._steps, self._first = steps, first_step
        self._started = time.monotonic()
        self._bar: BarWithLines | None = None
        if console.is_terminal:
            self._bar = BarWithLines(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(for_terminal(title), total=steps, completed=first_step)

    def __enter__(self) -> Reporter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(Text(text))
        elif not self._is_silent:
            print(text, flush=True)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Says so while the step is compiled; the clock of the run starts after that."""
        if self._bar:
            self._bar.lines = ("compiling the step ...",)
            self._bar.refresh()
        else:
            self.say("Compiling the step ...")
        yield
        self._started = time.monotonic()
        if self._bar:
            self._bar.lines = ()

    def update(self, row: dict[str, Any], *, seconds_per_step: float) -> None:
        """Shows one line of metrics."""
        step = row["step"]
        measured = [f"epoch {row['epoch']:.2f}"]
        measured.append(f"loss {row['loss']:.3f}" if row.get("loss") is not None else "loss nan")
        if row.get("accepted") is not None:
            measured.append(f"simulated tau {1 + row['accepted']:.2f}")
        if row.get("validation_tau") is not None:
            measured.append(f"validation tau {row['validation_tau']:.2f}")
        elif row.get("validation_loss") is not None:
            measured.append(f"validation loss {row['validation_loss']:.3f}")
        speed = [f"{row['tokens_per_s']:,.0f} tokens/s", f"{seconds_per_step:.2g} s/step"]
        if row.get("mfu") is not None:
            speed.append(f"{row['mfu']:.0%} of the peak")
        speed.append(f"{memory_used() / 2**30:.1f} GiB")
        if self._bar:
            self._bar.lines = ("  ".join(measured), "  ".join(speed))
            self._bar.update(self._task, completed=step)
            return
        done = max(1, step - self._first)
        left = (time.monotonic() - self._started) / done * (self._steps - step)
        speed.append(f"{left:.0f} s left")
        print(f"step {step}/{self._steps}  " + "  ".join([*measured, *speed]), flush=True)


class FirstSteps:
    """Says after a few steps how long the rest will take.

    Args:
      left: steps that are left.
      say: where the line goes.
    """

    def __init__(self, *, left: int, say: Callable[[str], None]) -> None:
        self._left, self._say = left, say
        self._taken, self._started = 0, 0.0

    def after(self, metrics: Any) -> None:
        """Notes a step; waits for the devices only at the first one and at the last that counts."""
        self._taken += 1
        if self._taken == 1:  # It may still compile or warm up.
            jax.block_until_ready(metrics)
            self._started = time.monotonic()
        elif self._taken == 1 + _FIRST_STEPS and self._left > 10 * _FIRST_STEPS:
            jax.block_until_ready(metrics)
            seconds = (time.monotonic() - self._started) / _FIRST_STEPS
            self._say(self._estimate(seconds, self._left - self._taken))

    def _estimate(self, seconds: float, left: int) -> str:
        devices = jax.devices()
        whole = seconds * left
        chips = ""
        if devices[0].platform != "cpu":
            hours = whole * len(devices) / 3600
            chips = f", {hours:,.2f} chip-hours on {len(devices)} x {devices[0].device_kind}"
        return (
            f"About {duration(whole)} for the other {left:,} steps at the speed of the first "
            f"{_FIRST_STEPS} ({seconds:.2g} s each){chips}; checkpoints and validation come on top."
        )
