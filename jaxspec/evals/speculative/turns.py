"""Decoding strategies that answer the same prompts one at a time, in turns, and are timed.

>>> plain, fast = take_turns_on(  # doctest: +SKIP
...     [(baseline, target_params), (speculative, params)], prompts, ids=names, repeats=3, seed=0)
>>> sum(fast.tokens) / sum(fast.run_s)  # doctest: +SKIP
412.0
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jaxspec.decoding import Adaptive, Prompts
from jaxspec.decoding.generate import (
    Strategy,
    bucket_length,
    check_prompts,
    needed_capacity,
    pad_prompts,
)
from jaxspec.decoding.state import NO_LIMIT
from jaxspec.evals.clock import Clock, take_turns


def take_turns_on(
    cases: Sequence[tuple[Strategy, Any]],
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[str],
    repeats: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Clock]:
    """Clocks of several strategies on the same prompts, one prompt at a time.

    Args:
      cases: (strategy, its parameters).
      prompts: token ids.
      ids: the prompts' names.
      repeats: how often each is timed.
      seed: of the random streams.
      progress: called with the number of prompts done since the last call.

    Raises:
      ValueError: prompts that cannot be decoded, or fewer than one repeat.
    """
    batches, capacity = batches_of([case for case, _ in cases], prompts, ids=ids, seed=seed)
    clocks = [_clock(strategy, strategy.prepare(params), capacity) for strategy, params in cases]
    take_turns(clocks, batches, ids=ids, repeats=repeats, progress=progress)
    return clocks


def batches_of(
    strategies: Sequence[Strategy],
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[str],
    seed: int,
) -> tuple[list[Prompts], int]:
    """Batches of one prompt in one bucket, and the slots of caches that fit every strategy."""
    largest = max(strategies, key=lambda strategy: strategy.round_tokens)
    check_prompts(prompts, ids=ids, strategy=largest)
    length, capacity = timed_shape(largest, prompts)
    batches = [
        pad_prompts([prompt], ids=[name], length=length, rows=1, seed=seed)
        for name, prompt in zip(ids, prompts, strict=True)
    ]
    return batches, capacity


def timed_shape(strategy: Strategy, prompts: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The padded length of the prompts that are timed, and the capacity of the caches."""
    length = bucket_length(max(map(len, prompts)))
    slots = needed_capacity(length, rules=strategy.rules, round_tokens=strategy.round_tokens)
    return length, slots


def _clock(strategy: Strategy, params: Any, capacity: int) -> Clock:
    """A strategy, its prefill and its loop."""
    clock = Clock(
        start=lambda prompts: strategy.start(params, prompts, capacity=capacity),
        # As `generate` and `measure_round_parts` call it, so that they share one program.
        run=lambda state: strategy.run(params, state, leave_on_end=False, max_rounds=NO_LIMIT),
        # The first token is the prefill's.
        count=lambda state, _: (int(state.step), int(state.count_B[0]) - 1),
    )
    if isinstance(strategy, Adaptive):
        clock.remember = strategy.remember
        # Costs may be measured in any repeat, if a batch ended too soon before.
        clock.aside_s = functools.partial(getattr, strategy, "measuring_s")
    return clock
