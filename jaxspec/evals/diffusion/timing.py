"""Wall clock of decoding with a diffusion language model, and when drafting pays.

A pass over a block and D drafted states of it reads (1 + D) times the rows of a pass over the block
alone. Drafting pays while that costs less than the passes it saves: while the ratio of the two
passes' times is below the reduction of forward passes.

>>> speed = time_decoders(  # doctest: +SKIP
...     base, decoder, params, prompts, ids=names, repeats=3, seed=0)
>>> speed.pass_ratio, speed.speedup  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.decoding import BlockContext, BlockDiffusion, DiffusionState, Prompts, Spiffy
from jaxspec.decoding.diffusion.generate import read_diffusion
from jaxspec.decoding.generate import bucket_length, pad_prompts
from jaxspec.decoding.layout import cut_layers, stack_layers
from jaxspec.evals.clock import Clock, median_seconds, speedup_interval, take_turns
from jaxspec.evals.costs import explain_costs
from jaxspec.evals.intervals import Interval, bracketed
from jaxspec.ops.precision import exact_program


@dataclasses.dataclass(frozen=True)
class DiffusionSpeed:
    """Speed at batch 1 by the wall clock; compiling is measured by itself."""

    tokens_per_s: float
    baseline_tokens_per_s: float
    """Of the base decoder, timed in turns with the other one."""
    compile_s: float
    block_pass_ms: float
    """A pass over the block alone."""
    drafted_pass_ms: float
    """A pass over the block and its drafts."""
    states: int
    """States that a pass with drafts reads: the block and its drafts."""
    speedup_ci95: Interval | None
    """None for too few timed prompts (`jaxspec.evals.intervals`), and for the base decoder."""
    timed_prompts: int
    platform: str

    @property
    def speedup(self) -> float:
        """Over the base decoder."""
        return self.tokens_per_s / self.baseline_tokens_per_s

    @property
    def pass_ratio(self) -> float:
        """What a pass with drafts costs, in passes without."""
        return self.drafted_pass_ms / self.block_pass_ms

    def formula(self, *, reduction: float) -> str:
        """Whether drafting pays: the cost of a pass with drafts against the passes it saves."""
        pays, faster = self.pass_ratio < reduction, self.speedup > 1.0
        verdict = "drafting pays" if pays else "drafting does not pay"
        if pays and not faster:
            verdict = "drafting should pay, judging by its passes, but was not faster"
        elif faster and not pays:
            verdict = "drafting should not pay, judging by its passes, but was faster"
        return (
            f"{self.speedup:.2f}x {bracketed(self.speedup_ci95, of='timed prompts')} measured; "
            f"{reduction:.2f} times fewer passes / a pass with drafts costs "
            f"{self.pass_ratio:.2f} = {reduction / self.pass_ratio:.2f}x (block alone "
            f"{self.block_pass_ms:.2f} ms, with drafts {self.drafted_pass_ms:.2f} ms): {verdict}"
        )


def explain(speeds: Sequence[tuple[DiffusionSpeed, float]]) -> str:
    """Why speed-ups are what they are on this machine, in a few sentences.

    Args:
      speeds: of decoders with drafts, each with its reduction of forward passes.

    Raises:
      ValueError: no speeds.
    """
    if not speeds:
        raise ValueError("There are no speeds to explain: no decoder with drafts was timed.")
    ratio = statistics.median(speed.pass_ratio for speed, _ in speeds)
    fewer = statistics.median(reduction for _, reduction in speeds)
    paying = sum(speed.pass_ratio < reduction for speed, reduction in speeds)
    passes = [(speed.pass_ratio, speed.states) for speed, _ in speeds]
    return (
        "Speed-up = reduction of forward passes / cost of a pass with drafts, in passes over the "
        f"block alone. Here the medians are {fewer:.2f} and {ratio:.2f}, and drafting pays in "
        f"{paying} of {len(speeds)} rows. "
        + explain_costs(passes, platform=speeds[0][0].platform, rows_are="states")
    )


def time_decoders(
    base: BlockDiffusion,
    decoder: BlockDiffusion,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[str],
    repeats: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> DiffusionSpeed:
    """Times both decoders on every prompt, in turns; medians over repeats.

    Args:
      base: the base decoder.
      decoder: another one of the same model and rules.
      params: the model's parameters.
      prompts: at least one.
      ids: their names.
      repeats: how often each is timed.
      seed: of the random streams.
      progress: called with the number of prompts done since the last call.
    """
    first = _clock(base, params)
    second = first if decoder is base else _clock(decoder, params)
    batches = [
        pad_prompts([prompt], ids=[name], length=bucket_length(len(prompt)), rows=1, seed=seed)
        for name, prompt in zip(ids, prompts, strict=True)
    ]
    clocks = [first] if decoder is base else [first, second]
    take_turns(clocks, batches, ids=ids, repeats=repeats, progress=progress)
    drafts = decoder.num_drafts if isinstance(decoder, Spiffy) else 0
    state = base.start(batches[0])
    layout = decoder.layout if isinstance(decoder, Spiffy) else "mask"
    # Cut once, as before the loops: otherwise each pass would copy the weights.
    pieces = cut_layers(params, unrolled=base.model.config.unroll_layers, now=True)
    context = _open(base, pieces, state)
    passes = {
        name: functools.partial(_state_pass, base, number, layout, pieces, state, context)
        for name, number in (("block", 1), ("drafted", 1 + drafts))
    }
    seconds = median_seconds(passes, repeats=max(repeats, 5))
    return DiffusionSpeed(
        tokens_per_s=sum(second.tokens) / sum(second.whole_s),
        baseline_tokens_per_s=sum(first.tokens) / sum(first.whole_s),
        compile_s=second.compile_s,
        block_pass_ms=1e3 * seconds["block"],
        drafted_pass_ms=1e3 * seconds["drafted"],
        states=1 + drafts,
        speedup_ci95=(
            None if second is first else speedup_interval(second, first, of="whole_s", seed=seed)
        ),
        timed_prompts=len(batches),
        platform=jax.default_backend(),
    )


def _clock(decoder: BlockDiffusion, params: Any) -> Clock:
    """A decoder; laying out the canvas and the prefill are part of its time (`whole_s`)."""

    def count(state: DiffusionState, name: str) -> tuple[int, int]:
        host = jax.device_get(dataclasses.replace(state, cache=None))
        response = read_diffusion(host, 0, name=name, decoder=decoder)
        return response.num_passes, response.filled

    pieces = decoder.prepare(params)

    def start(prompts: Prompts) -> DiffusionState:
        state = decoder.start(prompts)
        return decoder.prefill(pieces, state) if decoder.has_prefill else state

    # As `generate_diffusion` calls them, so that the two share their programs.
    return Clock(
        start=start,
        run=lambda state: decoder.run(pieces, state, leave_on_end=False),
        count=count,
    )


@exact_program()
def _open(decoder: BlockDiffusion, pieces: Any, state: DiffusionState) -> BlockContext:
    """The first block's context, with its cache."""
    return decoder.block_model.open(stack_layers(pieces), decoder.context(state))[1]


@exact_program(static_argnames=("number", "layout"))
def _state_pass(
    decoder: BlockDiffusion,
    number: int,
    layout: Any,
    pieces: Any,
    state: DiffusionState,
    context: BlockContext,
) -> jax.Array:
    """A pass over this many states of the first block."""
    reach, _ = next(decoder.stages())
    states_BYP = jnp.repeat(decoder.block_tokens(state)[:, None], number, axis=1)
    return decoder.block_model.state_logits(
        stack_layers(pieces), states_BYP, context, reach=reach, layout=layout
    )
