"""The programs that an evaluation of drafters will call, compiled ahead (`jaxspec.evals.ahead`).

Which they are follows from the strategy and the padded lengths of the prompts: a prefill for each
length, a loop for each capacity of the caches, and the same for one row where speed is measured.

>>> with Ahead(print) as ahead:  # doctest: +SKIP
...     ProgramsAhead(ahead, settings, target).for_reference(prompts)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxspec.config import EvaluationConfig
from jaxspec.decoding import Adaptive, Autoregressive, DecodeState, Speculative
from jaxspec.decoding.generate import (
    bucket_length,
    groups,
    needed_capacity,
    pad_prompts,
    prefill_rows,
)
from jaxspec.decoding.placement import mesh_of
from jaxspec.decoding.rows import vacant
from jaxspec.decoding.state import NO_LIMIT
from jaxspec.evals.ahead import Ahead, Program, shapes_of
from jaxspec.evals.opening import TargetBundle
from jaxspec.evals.speculative.choice import Case
from jaxspec.evals.speculative.strategies import AnyStrategy, build_autoregressive, build_reference
from jaxspec.evals.speculative.timing import parts_lowered
from jaxspec.evals.speculative.turns import timed_shape


@dataclasses.dataclass
class ProgramsAhead:
    """Has the programs of an evaluation compiled before they are called.

    On a mesh nothing is compiled ahead: how arrays are spread is known when they are there.
    """

    ahead: Ahead
    settings: EvaluationConfig
    target: TargetBundle
    following: Case | None = None
    """What is measured after the first reference. Its programs are compiled side by side with those
    of the target alone, and go on being compiled while it answers, unless it needs the processors.
    None: unknown."""

    def for_reference(self, prompts: Sequence[Sequence[int]]) -> None:
        """Returns when the target alone can decode these prompts."""
        strategy = build_reference(self.settings, self.target)
        own = self._batches(strategy, self.target.params, prompts)
        following: list[Program] = []
        if self.following is not None:
            following = self._answering(self.following, prompts)
            if _leaves_processors():
                following += self._timing(self.following, prompts)
        keys = self.ahead.add([*own, *following])
        self.ahead.wait(keys[: len(own)] if _leaves_processors() else keys)

    def for_answering(self, case: Case, prompts: Sequence[Sequence[int]]) -> None:
        """Returns when a drafter's strategy can decode these prompts."""
        own = self._answering(case, prompts)
        following = self._timing(case, prompts) if _leaves_processors() else []
        keys = self.ahead.add([*own, *following])
        self.ahead.wait(keys[: len(own)])

    def for_timing(self, case: Case, prompts: Sequence[Sequence[int]]) -> float:
        """Returns when everything is compiled, so that nothing runs next to what is timed.

        Returns:
          The seconds that the strategy's prefill and loop took which are timed.
        """
        self.ahead.add(self._timing(case, prompts))
        self.ahead.wait()
        params = case.params_with(self.target)
        timed = self._timed(case.strategy, params, prompts, case.strategy)
        return self.ahead.wait(program.key for program in timed)

    def _timing(self, case: Case, prompts: Sequence[Sequence[int]]) -> list[Program]:
        """What is called to time a drafter on these prompts, and the target alone."""
        strategy, params = case.strategy, case.params_with(self.target)
        alone = build_autoregressive(self.settings, self.target)
        return [
            *self._timed(alone, self.target.params, prompts, strategy),
            *self._timed(strategy, params, prompts, strategy, with_parts=True),
        ]

    def _answering(self, case: Case, prompts: Sequence[Sequence[int]]) -> list[Program]:
        if not case.drafts:
            return []
        return self._batches(case.strategy, case.params_with(self.target), prompts)

    def _batches(
        self, strategy: AnyStrategy, params: Any, prompts: Sequence[Sequence[int]]
    ) -> list[Program]:
        if mesh_of(params) is not None:
            return []
        params, rows = shapes_of(strategy.prepare(params)), self.settings.batch_size
        return [*batch_programs(strategy, params, prompts, rows=rows)]

    def _timed(
        self,
        strategy: AnyStrategy,
        params: Any,
        prompts: Sequence[Sequence[int]],
        capacity_of: AnyStrategy,
        *,
        with_parts: bool = False,
    ) -> list[Program]:
        prompts = prompts[: self.settings.timing_prompts]
        if not prompts or mesh_of(params) is not None:
            return []
        return [
            *timing_programs(
                strategy,
                shapes_of(strategy.prepare(params)),
                prompts,
                capacity_of=capacity_of,
                with_parts=with_parts,
            )
        ]


def _leaves_processors() -> bool:
    """Whether decoding leaves the processors to the compiler: not where it runs on them itself."""
    return jax.default_backend() != "cpu"


def batch_programs(
    strategy: AnyStrategy, params: Any, prompts: Sequence[Sequence[int]], *, rows: int
) -> Iterator[Program]:
    """What `generate` calls on these prompts.

    Args:
      strategy: the target alone or with a drafter.
      params: as `strategy.prepare` gives them; shapes are enough.
      prompts: ids.
      rows: of a batch.
    """
    for group in groups(prompts, rows):
        lengths = sorted({bucket_length(len(prompts[index])) for index in group})
        capacity = needed_capacity(
            lengths[-1], rules=strategy.rules, round_tokens=strategy.round_tokens
        )
        for length in lengths:
            together = prefill_rows(length, rows=rows)
            prefill = _Prefill(strategy, params, min(length, capacity), capacity, rows=together)
            yield prefill.program()
        yield from prefill.loops(rows=rows)


def timing_programs(
    strategy: AnyStrategy,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    capacity_of: AnyStrategy,
    with_parts: bool,
) -> Iterator[Program]:
    """What `measure_speed` calls on these prompts, for one of the two strategies.

    Args:
      strategy: one of them.
      params: as `strategy.prepare` gives them; shapes are enough.
      prompts: those that are timed.
      capacity_of: the strategy with the drafter; both have caches of its size.
      with_parts: whether the parts of a round are timed too.
    """
    prefill = _Prefill(strategy, params, *timed_shape(capacity_of, prompts))
    yield prefill.program()
    yield from prefill.loops(rows=1)
    largest = _sizes(strategy)[-1]
    if with_parts and isinstance(largest, Speculative):
        lowered = parts_lowered(largest, params, prefill.state)
        for part, lower in lowered.items():
            yield Program(f"timing of {part}", (part, *prefill.key), lower)


def _sizes(strategy: AnyStrategy) -> Sequence[Autoregressive | Speculative]:
    return strategy.strategies if isinstance(strategy, Adaptive) else [strategy]


class _Prefill:
    """The prefill of a few prompts, and the loops that take over its state."""

    def __init__(
        self, strategy: AnyStrategy, params: Any, length: int, capacity: int, *, rows: int = 1
    ) -> None:
        self._strategy, self._params = strategy, params
        self._capacity = capacity
        self._prompts = pad_prompts([[0]], ids=[""], length=length, rows=rows, seed=0)
        self._name = f"prefill of {length} tokens" if rows == 1 else f"prefill of {rows} x {length}"
        self.key = (strategy, length, capacity, rows)

    def program(self) -> Program:
        largest = _sizes(self._strategy)[-1]
        return Program(
            f"{self._name}{_whose(largest)}",
            ("start", *self.key),
            lambda: type(largest).start.lower(
                largest, self._params, self._prompts, capacity=self._capacity
            ),
        )

    def state(self, *, rows: int = 0) -> DecodeState:
        """Shapes of the state after the prefill; in a batch of `rows`, or by itself (0)."""
        largest = _sizes(self._strategy)[-1]
        single: DecodeState = jax.eval_shape(
            lambda params, prompts: largest.start(params, prompts, capacity=self._capacity),
            self._params,
            self._prompts,
        )
        if not rows:
            return single
        batch: DecodeState = jax.eval_shape(lambda state: vacant(state, rows=rows), single)
        return batch

    def loops(self, *, rows: int) -> Iterator[Program]:
        """A loop for each size of the strategy."""
        for size in _sizes(self._strategy):
            yield Program(
                f"loop of {rows} row{'' if rows == 1 else 's'}{_whose(size)}",
                ("run", size, self._capacity, rows),
                functools.partial(self._lowered_loop, size, rows),
            )

    def _lowered_loop(self, size: Autoregressive | Speculative, rows: int) -> jax.stages.Lowered:
        # With the arguments that `generate` and the clock give.
        lowered: jax.stages.Lowered = type(size).run.lower(
            size, self._params, self.state(rows=rows), leave_on_end=False, max_rounds=NO_LIMIT
        )
        return lowered


def _whose(strategy: Autoregressive | Speculative) -> str:
    if isinstance(strategy, Speculative):
        return f" with drafts of {strategy.verified_rows - 1}"
    return "" if strategy.pass_rows == 1 else f" in passes of {strategy.pass_rows} tokens"
