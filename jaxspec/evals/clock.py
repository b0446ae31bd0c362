"""The clock: how anything here is timed.

What is compared runs in one process and takes turns, so that other load on the machine affects all
of it equally. Figures are medians over repeats. Compilation is timed separately, as the extra time
of a first run over a second, and is part of no other figure.

>>> seconds = median_seconds({"ours": ours, "theirs": theirs}, repeats=5)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax

from jaxspec.decoding import Prompts
from jaxspec.evals.intervals import Interval, bootstrap, by_conversation

ResultT = TypeVar("ResultT")
Call = Callable[[], Any]
"""Starts work on the device; what it returns is waited for."""
_FEWEST_TURNS = 3


def timed(call: Callable[[], ResultT]) -> tuple[float, ResultT]:
    """Seconds of a call, until its result is there."""
    started = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - started, result


def median_seconds(calls: Mapping[str, Call], *, repeats: int) -> dict[str, float]:
    """Median seconds of each call, all of them taking turns; the first turn compiles.

    Args:
      calls: by name.
      repeats: timed turns.
    """
    turns = seconds_by_turn({name: _always(call) for name, call in calls.items()}, repeats=repeats)
    return {name: statistics.median(values) for name, values in turns.items()}


def seconds_by_turn(
    makers: Mapping[str, Callable[[], Call]], *, repeats: int, at_most_s: float | None = None
) -> dict[str, list[float]]:
    """Seconds of each call in each turn; calls are prepared for every turn, which is not timed.

    Args:
      makers: by name, what prepares a call.
      repeats: timed turns.
      at_most_s: once this many seconds have passed and 3 turns are timed, no other one begins.
    """
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    started = time.perf_counter()
    for turn in range(repeats + 1):
        is_late = at_most_s is not None and time.perf_counter() - started >= at_most_s
        if is_late and turn > _FEWEST_TURNS:
            break
        for name, make in makers.items():
            found, _ = timed(make())
            if turn:
                seconds[name].append(found)
    return seconds


def _always(call: Call) -> Callable[[], Call]:
    return lambda: call


@dataclasses.dataclass(eq=False)
class Clock:
    """Times of one way of decoding, prompt by prompt. `take_turns` runs it."""

    start: Callable[[Prompts], Any]
    """From a batch to the state that `run` takes."""
    run: Callable[[Any], Any]
    """The loop, to its end."""
    count: Callable[[Any, str], tuple[int, int]]
    """(final state, the prompt's name) -> its steps and tokens."""
    remember: Callable[[], Callable[[], None]] = lambda: lambda: None
    """Keeps what the decoder has learned so far; the result puts it back to that."""
    aside_s: Callable[[], float] = lambda: 0.0
    """Seconds so far that `run` spent on something else than decoding; they count as compiling."""
    start_s: list[float] = dataclasses.field(default_factory=list)
    """Of every repeat of every prompt."""
    run_s: list[float] = dataclasses.field(default_factory=list)
    """Median over the repeats, one entry per prompt."""
    fastest_s: list[float] = dataclasses.field(default_factory=list)
    """Of `run`, the fastest repeat: what other load on the machine adds the least to."""
    whole_s: list[float] = dataclasses.field(default_factory=list)
    """The same of `start` and `run` together."""
    steps: list[int] = dataclasses.field(default_factory=list)
    """One entry per prompt."""
    tokens: list[int] = dataclasses.field(default_factory=list)
    """One entry per prompt."""
    names: list[str] = dataclasses.field(default_factory=list)
    """One entry per prompt; turns of a conversation are told by it (`by_conversation`)."""
    compile_s: float = 0.0
    """Tracing and compiling, for every shape of a batch."""
    _warm: set[tuple[int, ...]] = dataclasses.field(default_factory=set)

    def lap(self, batch: Prompts) -> tuple[float, float, Any]:
        """Seconds of `start` and of `run`, and the final state."""
        start_s, state = timed(lambda: self.start(batch))
        before = self.aside_s()
        run_s, state = timed(lambda: self.run(state))
        return start_s, run_s - (self.aside_s() - before), state

    def warm_up(self, batch: Prompts) -> float | None:
        """Compiles for batches of this shape in a first lap: its seconds; None if that is done."""
        if batch.tokens_BS.shape in self._warm:
            return None
        self._warm.add(batch.tokens_BS.shape)
        before = self.aside_s()
        return sum(self.lap(batch)[:2]) + self.aside_s() - before


def take_turns(
    clocks: Sequence[Clock],
    batches: Sequence[Prompts],
    *,
    ids: Sequence[str],
    repeats: int,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Runs all clocks on every batch, in turns; who begins changes with every repeat.

    A decoder that learns from what it decodes begins each repeat with what earlier prompts taught
    it, as if it decoded every prompt once.

    Args:
      clocks: what is compared.
      batches: of one prompt each.
      ids: the prompts' names.
      repeats: how often each is timed.
      progress: called with the number of prompts done since the last call.

    Raises:
      ValueError: fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"evaluation.timing_repeats must be at least 1: got {repeats}.")
    for name, batch in zip(ids, batches, strict=True):
        laps: list[list[tuple[float, float]]] = [[] for _ in clocks]
        returns = [clock.remember() for clock in clocks]
        firsts = [clock.warm_up(batch) for clock in clocks]
        for repeat in range(repeats):
            turns = list(zip(clocks, laps, returns, strict=True))
            for clock, found, put_back in turns if repeat % 2 == 0 else turns[::-1]:
                put_back()
                start_s, run_s, state = clock.lap(batch)
                steps, tokens = clock.count(state, name)
                if repeat == 0:
                    clock.steps.append(steps)
                    clock.tokens.append(tokens)
                    clock.names.append(name)
                elif tokens and clock.tokens[-1]:
                    # Where adaptive sizes measure their costs again, they may sample another
                    # answer: what counts is the time that as many tokens as in the first would
                    # have taken.
                    run_s *= clock.tokens[-1] / tokens
                found.append((start_s, run_s))
        for clock, first, found in zip(clocks, firsts, laps, strict=True):
            if first is not None:
                clock.compile_s += max(0.0, first - sum(found[0]))
            clock.start_s += [start_s for start_s, _ in found]
            clock.run_s.append(statistics.median(run_s for _, run_s in found))
            clock.fastest_s.append(min(run_s for _, run_s in found))
            clock.whole_s.append(statistics.median(map(sum, found)))
        progress(1)


def speedup_interval(
    fast: Clock, plain: Clock, *, of: Literal["run_s", "fastest_s", "whole_s"], seed: int
) -> Interval | None:
    """95% interval of the tokens per second of `fast` divided by those of `plain`.

    Prompts are resampled, each with the times of both clocks; those without tokens are left out.
    All turns of a conversation count as one prompt.

    Args:
      fast: one clock, after `take_turns` with the other.
      plain: the clock that it is compared with.
      of: the seconds that are compared.
      seed: seed of the resampling.

    Returns:
      None for too few prompts (`jaxspec.evals.intervals`).
    """
    times = zip(
        fast.names, fast.tokens, getattr(fast, of), plain.tokens, getattr(plain, of), strict=True
    )
    rows = [row for row in times if row[1] and row[3]]
    if not rows:
        return None
    names, *parts = zip(*rows, strict=True)
    return bootstrap(
        by_conversation(names, parts),
        lambda tokens, seconds, plain_tokens, plain_seconds: (
            (tokens / seconds) / (plain_tokens / plain_seconds)
        ),
        seed=seed,
    )
