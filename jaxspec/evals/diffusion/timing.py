"""Wall clock of decoding with a diffusion language model, and when drafting pays.

A pass over a block and D drafted states of it reads (1 + D) times the rows of a pass over the block
alone. Drafting pays while that costs less than the passes it saves: while the ratio of the two
passes' times is below the reduction of forward passes.

>>> speed = time_decoders(base, decoder, params, prompts, ids=names, repeats=3, seed=0)
>>> speed.pass_ratio, speed.speedup
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.decoding import BlockContext, BlockDiffusion, DiffusionState, Prompts, Spiffy
from jaxspec.decoding.diffusion.generate import read_diffusion
from jaxspec.decoding.generate import bucket_length, pad_prompts
from jaxspec.decoding.layout import cut_layers, stack_layers
from jaxspec.evals.speculative.timing import median_seconds


@dataclasses.dataclass(frozen=True)
class DiffusionSpeed:
    """At batch 1, by the wall clock; compiling is by itself."""

    tokens_per_s: float
    baseline_tokens_per_s: float
    """Of the base decoder, which took turns with the other one."""
    compile_s: float
    block_pass_ms: float
    """A pass over the block alone."""
    drafted_pass_ms: float
    """A pass over the block and its drafts."""

    @property
    def speedup(self) -> float:
        """Over the base decoder."""
        return self.tokens_per_s / self.baseline_tokens_per_s

    @property
    def pass_ratio(self) -> float:
        """What a pass with drafts costs, in passes without."""
        return self.drafted_pass_ms / self.block_pass_ms


def time_decoders(
    base: BlockDiffusion,
    decoder: BlockDiffusion,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[str],
    repeats: int,
    seed: int,
) -> DiffusionSpeed:
    """Both decoders on every prompt, in turns; medians over repeats.

    Args:
      base: the base decoder.
      decoder: another one of the same model and rules.
      params: the model's parameters.
      prompts: at least one.
      ids: their names.
      repeats: how often each is timed.
      seed: of the random streams.
    """
    first = _Clock(base, params)
    second = first if decoder is base else _Clock(decoder, params)
    clocks = (first,) if decoder is base else (first, second)
    for prompt, name in zip(prompts, ids, strict=True):
        length = bucket_length(len(prompt))
        batch = pad_prompts([prompt], ids=[name], length=length, rows=1, seed=seed)
        for clock in clocks:
            clock.warm_up(batch, length)
        for _ in range(repeats):
            for clock in clocks:
                clock.run(batch)
        for clock in clocks:
            clock.close(name)
    drafts = decoder.num_drafts if isinstance(decoder, Spiffy) else 0
    length = bucket_length(len(prompts[0]))
    state = base.start(pad_prompts([prompts[0]], ids=[ids[0]], length=length, rows=1, seed=seed))
    layout = decoder.layout if isinstance(decoder, Spiffy) else "mask"
    # Cut once, as in front of the loops: otherwise each pass would copy the weights.
    pieces = cut_layers(params, unrolled=base.model.config.unroll_layers, now=True)
    context = _open(base, pieces, state)
    passes = {
        name: functools.partial(_state_pass, base, number, layout, pieces, state, context)
        for name, number in (("block", 1), ("drafted", 1 + drafts))
    }
    seconds = median_seconds(passes, repeats=max(repeats, 5))
    return DiffusionSpeed(
        tokens_per_s=second.tokens / second.seconds,
        baseline_tokens_per_s=first.tokens / first.seconds,
        compile_s=second.compile_s,
        block_pass_ms=1e3 * seconds["block"],
        drafted_pass_ms=1e3 * seconds["drafted"],
    )


class _Clock:
    """Times of one decoder, prompt by prompt."""

    def __init__(self, decoder: BlockDiffusion, params: Any) -> None:
        self._decoder, self._params = decoder, params
        self._warm: set[int] = set()
        self._times: list[float] = []
        self._state: DiffusionState | None = None
        self.seconds = self.compile_s = 0.0
        self.tokens = 0

    def warm_up(self, prompts: Prompts, length: int) -> None:
        """Compiles for prompts of this length: the excess of the first run over the second one."""
        if length not in self._warm:
            self._warm.add(length)
            first, second = self.run(prompts), self.run(prompts)
            self.compile_s += max(0.0, first - second)
        self._times.clear()

    def run(self, prompts: Prompts) -> float:
        """Seconds of one response."""
        started = time.perf_counter()
        state = self._decoder.run(self._params, self._decoder.start(prompts))
        self._state = jax.block_until_ready(state)
        self._times.append(time.perf_counter() - started)
        return self._times[-1]

    def close(self, name: str) -> None:
        """Takes the prompt's median, and the tokens that were revealed for it."""
        response = read_diffusion(jax.device_get(self._state), 0, name=name, decoder=self._decoder)
        self.seconds += statistics.median(self._times)
        self.tokens += response.filled
        self._times.clear()


@functools.partial(jax.jit, static_argnums=0)
def _open(decoder: BlockDiffusion, pieces: Any, state: DiffusionState) -> BlockContext:
    """The first block's context, with its cache."""
    return decoder.block_model.open(stack_layers(pieces), decoder.context(state))[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _state_pass(
    decoder: BlockDiffusion,
    number: int,
    layout: Any,
    pieces: Any,
    state: DiffusionState,
    context: BlockContext,
) -> jax.Array:
    """A pass over so many states of the first block."""
    reach, _ = next(decoder.stages())
    states_BYP = jnp.repeat(decoder.block_tokens(state)[:, None], number, axis=1)
    return decoder.block_model.state_logits(
        stack_layers(pieces), states_BYP, context, reach=reach, layout=layout
    )
