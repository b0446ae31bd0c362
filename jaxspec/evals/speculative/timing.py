"""Wall-clock speed at batch 1, and what it is made of.

The target alone and the strategy take turns prompt by prompt (`jaxspec.evals.clock`). Compilation
and prefill are measured by themselves and are in neither speed.

>>> speed = measure_speed(  # doctest: +SKIP
...     baseline, speculative, prompts, target_params=target_params, params=params, ids=names,
...     repeats=3, seed=0)
>>> print(speed.formula())  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.decoding import Adaptive, Autoregressive, DecodeState, Prompts, Speculative
from jaxspec.decoding.generate import Strategy
from jaxspec.decoding.layout import stack_layers
from jaxspec.decoding.speculative import Choice, Plan
from jaxspec.evals.clock import seconds_by_turn, speedup_interval
from jaxspec.evals.costs import explain_costs
from jaxspec.evals.intervals import Interval, bracketed
from jaxspec.evals.speculative.turns import batches_of, take_turns_on
from jaxspec.models.transformer import TransformerOutput
from jaxspec.ops.precision import exact_program

_BEYOND_NOISE = 0.8
"""Share of the turns in which a round must take longer than its parts. If there were no rest, 12 of
15 turns would still show one once in 50 times."""
_CLOSE_TO_TAU = 0.9
"""A speed-up of at least this share of tau is called close to it."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """Speeds of one drafter on one benchmark. Times in milliseconds unless named otherwise."""

    tokens_per_s: float
    baseline_tokens_per_s: float
    speedup: float
    speedup_ci95: Interval | None
    """None for too few timed prompts (`jaxspec.evals.intervals`)."""
    timed_prompts: int
    compile_s: float
    """Tracing and compiling the speculative programs, once for all drafters of one shape."""
    prefill_ms: float
    baseline_prefill_ms: float
    round_ms: float
    """One draft-verify round of the real loop."""
    draft_ms: float
    """The drafter's part: its pass, the head over its slots, and taking in new context."""
    verify_ms: float
    """The target's pass over the drafted rows, its head, and the cache."""
    rule_ms: float
    """From logits to the tokens that are emitted."""
    looped_round_ms: float
    """A round that was timed together with its parts: the whole that they are parts of."""
    rest_ms: float | None
    """The time of such a round besides its three parts: bookkeeping. None if that is lost in the
    noise, or if the parts timed alone take longer than the whole."""
    autoregressive_step_ms: float
    tau: float
    """Tokens emitted per round on the timed prompts."""
    verified_rows: int
    platform: str
    round_ms_by_prompt: tuple[float, ...] = ()
    """`round_ms` of each timed prompt that had a round."""

    @property
    def row_ratio(self) -> float:
        """Cost of verifying a block, in autoregressive steps."""
        return self.verify_ms / self.autoregressive_step_ms

    @property
    def known_ms(self) -> float:
        """What the parts add up to, bookkeeping included."""
        return self.draft_ms + self.verify_ms + self.rule_ms + (self.rest_ms or 0.0)

    def formula(self) -> str:
        """The speed-up as the parts that make it."""
        predicted = self.tau * self.autoregressive_step_ms / self.round_ms
        interval = bracketed(self.speedup_ci95, of="timed prompts")
        return (
            f"{self.speedup:.2f}x {interval} measured; tau {self.tau:.2f} x step "
            f"{self.autoregressive_step_ms:.2f} ms / round {self.round_ms:.2f} ms = "
            f"{predicted:.2f}x ({self._parts()})"
        )

    def _parts(self) -> str:
        """The parts of a round as they were measured; the rest is never negative."""
        if self.verified_rows == 1:
            return "nothing is drafted: a round is one step"
        whole = self.looped_round_ms
        parts = (
            f"timed alone: draft {self.draft_ms:.2f} + verification of "
            f"{self.verified_rows} rows {self.verify_ms:.2f} + rule {self.rule_ms:.2f}"
        )
        if self.rest_ms is not None:
            return f"{parts} + rest {self.rest_ms:.2f}, of a round of {whole:.2f} ms"
        together = self.draft_ms + self.verify_ms + self.rule_ms
        if together > whole:
            return (
                f"{parts}; these add up to {together:.2f} ms, more than the {whole:.2f} ms of the "
                "round: they overlap inside the compiled loop"
            )
        return f"{parts}, of a round of {whole:.2f} ms; the rest does not exceed the noise"


def explain(speeds: Sequence[Speed]) -> str:
    """Why speed-ups are what they are on this machine, in a few sentences, from medians.

    Raises:
      ValueError: no speeds.
    """
    if not speeds:
        raise ValueError("There are no speeds to explain: nothing was timed.")

    def middle(figure: Callable[[Speed], float]) -> float:
        return statistics.median(map(figure, speeds))

    def steps(milliseconds: Callable[[Speed], float]) -> float:
        return middle(lambda speed: milliseconds(speed) / speed.autoregressive_step_ms)

    draft, rows = steps(lambda speed: speed.draft_ms), max(s.verified_rows for s in speeds)
    ratio = steps(lambda speed: speed.verify_ms)
    passes = [(speed.row_ratio, speed.verified_rows) for speed in speeds]
    return (
        f"Speed-up = tau x autoregressive step / round. Here a draft costs {draft:.1f} "
        f"autoregressive steps and verifying {rows} rows costs {ratio:.1f}. "
        f"{explain_costs(passes, platform=speeds[0].platform)} "
        + _explain_gap(
            {
                "the draft": draft,
                "verification beyond the cost of one step": ratio - 1.0,
                "the rejection rule": steps(lambda speed: speed.rule_ms),
                "bookkeeping": steps(lambda speed: speed.rest_ms or 0.0),
                "time that the parts, timed alone, do not show": steps(
                    lambda speed: speed.round_ms - speed.known_ms
                ),
            },
            tau=middle(lambda speed: speed.tau),
            speedup=middle(lambda speed: speed.speedup),
        )
    )


def _explain_gap(costs: Mapping[str, float], *, tau: float, speedup: float) -> str:
    """One sentence: which cost, in autoregressive steps, keeps the speed-up below tau."""
    if speedup >= _CLOSE_TO_TAU * tau:
        return f"The speed-up ({speedup:.2f}) is close to tau ({tau:.2f}): a round costs one step."
    speeds = f"the speed-up ({speedup:.2f}) below tau ({tau:.2f})"
    name, cost = max(costs.items(), key=lambda item: item[1])
    if cost <= 0.0:
        return f"None of the parts timed alone keeps {speeds}."
    return f"What keeps {speeds} is mainly {name}: it costs {cost:.1f} steps per round."


def measure_speed(
    baseline: Autoregressive,
    speculative: Strategy,
    prompts: Sequence[Sequence[int]],
    *,
    target_params: Any,
    params: Any,
    ids: Sequence[str],
    repeats: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Speed | None:
    """Times both strategies on every prompt.

    `target_params` are the baseline's, `params` those of the strategy; of an `Adaptive` one the
    parts of a round are those of its largest size. `progress` is called with the number of prompts
    done since the last call.

    All prompts are padded to the longest one's bucket, so that each strategy is compiled once and
    both have caches of one size.

    Returns:
      None when no response is longer than its first token: there is nothing to time.

    Raises:
      ValueError: prompts that cannot be decoded, or fewer than one repeat.
    """
    params = speculative.prepare(params)
    plain, fast = take_turns_on(
        [(baseline, target_params), (speculative, params)],
        prompts,
        ids=ids,
        repeats=repeats,
        seed=seed,
        progress=progress,
    )
    steps, plain_steps = sum(fast.steps), sum(plain.steps)
    if not plain_steps or not steps:
        return None
    largest = speculative.strategies[-1] if isinstance(speculative, Adaptive) else speculative
    step_ms = 1e3 * sum(plain.run_s) / plain_steps
    parts, rows = RoundParts(step_ms, 0.0, step_ms, 0.0, 0.0, None), 1
    if isinstance(largest, Speculative):
        rows = largest.verified_rows
        batches, capacity = batches_of([speculative], prompts, ids=ids, seed=seed)
        longest = max(range(len(batches)), key=fast.steps.__getitem__)
        parts = measure_round_parts(largest, params, batches[longest], capacity=capacity)
    rate, baseline_rate = (sum(clock.tokens) / sum(clock.run_s) for clock in (fast, plain))
    by_prompt = zip(fast.run_s, fast.steps, strict=True)
    return Speed(
        tokens_per_s=rate,
        baseline_tokens_per_s=baseline_rate,
        speedup=rate / baseline_rate,
        speedup_ci95=speedup_interval(fast, plain, of="run_s", seed=seed),
        timed_prompts=len(prompts),
        compile_s=fast.compile_s,
        prefill_ms=1e3 * statistics.median(fast.start_s),
        baseline_prefill_ms=1e3 * statistics.median(plain.start_s),
        round_ms=1e3 * sum(fast.run_s) / steps,
        draft_ms=parts.draft_ms,
        verify_ms=parts.target_ms,
        rule_ms=parts.rule_ms,
        looped_round_ms=parts.round_ms,
        rest_ms=parts.rest_ms,
        autoregressive_step_ms=step_ms,
        tau=sum(fast.tokens) / steps,
        verified_rows=rows,
        platform=jax.default_backend(),
        round_ms_by_prompt=tuple(1e3 * seconds / rounds for seconds, rounds in by_prompt if rounds),
    )


TURNS = 10
"""Rounds, or parts of rounds, in a loop that is timed."""


def parts_lowered(
    strategy: Speculative, params: Any, state_of_one: Callable[[], DecodeState]
) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """The programs of `measure_round_parts` besides the real loop, by what they time.

    Args:
      strategy: whose rounds are timed.
      params: of the strategy, as `prepare` gives them; shapes are enough.
      state_of_one: gives the state of one prompt; shapes are enough.
    """

    @functools.cache
    def state() -> DecodeState:
        return state_of_one()

    @functools.cache
    def read() -> Any:
        return jax.eval_shape(functools.partial(_read_once, strategy), params, state())

    def bare() -> Plan:
        plan: Plan = dataclasses.replace(read()[0], drafter=None)
        return plan

    return {
        "a round": lambda: _read_once.lower(strategy, params, state()),
        "drafts": lambda: _draft_loop.lower(strategy, params, state(), TURNS),
        "verification": lambda: _target_loop.lower(strategy, params, state(), read()[0], TURNS),
        "the rule": lambda: _rule_loop.lower(strategy, state().keys_B, bare(), read()[2], TURNS),
        "bookkeeping": lambda: _finish_loop.lower(
            strategy, params, state(), bare(), read()[1], read()[3], TURNS
        ),
    }


class RoundParts(NamedTuple):
    """Milliseconds of a round and of its parts, each part in a loop of its own."""

    round_ms: float
    """A whole round of the real loop, for one prompt."""
    draft_ms: float
    """The drafter's pass, what is made of it, and taking in new context."""
    target_ms: float
    """The target's pass over the drafted rows, its head, and the cache."""
    rule_ms: float
    """From the target's logits to the tokens that are emitted."""
    finish_ms: float
    """Bookkeeping: what is appended, recorded and kept of both caches. The writes are in the parts
    before as well, and so is the drafter's taking in of context."""
    rest_ms: float | None
    """Time of a round beyond draft, target and rule; None unless it exceeds the noise."""


def measure_round_parts(
    strategy: Speculative,
    params: Any,
    prompts: Prompts,
    *,
    capacity: int,
    repeats: int = 15,
    turns: int = TURNS,
    at_most_s: float | None = 20.0,
) -> RoundParts:
    """A round and its parts: medians of what `time_round_parts` times.

    A large model's rounds take long and vary little: `at_most_s` ends them early.

    Raises:
      ValueError: the response has no rounds.
    """
    each = time_round_parts(
        strategy,
        params,
        prompts,
        capacity=capacity,
        repeats=repeats,
        turns=turns,
        at_most_s=at_most_s,
    )
    rests = [
        whole_ms - sum(parts_ms)
        for whole_ms, *parts_ms in zip(
            each["round"], each["draft"], each["target"], each["rule"], strict=True
        )
    ]
    return RoundParts(
        **{f"{name}_ms": statistics.median(found) for name, found in each.items()},
        rest_ms=beyond_noise(rests),
    )


def time_round_parts(
    strategy: Speculative,
    params: Any,
    prompts: Prompts,
    *,
    capacity: int,
    repeats: int,
    turns: int,
    at_most_s: float | None = None,
) -> dict[str, list[float]]:
    """Times a round and its parts, taking turns: `repeats` loops of `turns`.

    After `at_most_s` seconds there are fewer loops, but at least 3.

    In a loop inside one program, because calling a program costs as much as a tiny model's pass.
    The real loop ends with its response, so its rounds are counted.

    Returns:
      Milliseconds of one "round", "draft", "target", "rule" and "finish" (`RoundParts`), one entry
      for each loop.

    Raises:
      ValueError: the response has no rounds.
    """
    params = strategy.prepare(params)
    state = strategy.start(params, prompts, capacity=capacity)
    plan, output, logits_BYV, choice = _read_once(strategy, params, state)
    # A rule looks at no cache; carried along in its loop it would be copied.
    bare = dataclasses.replace(plan, drafter=None)

    def whole() -> Callable[[], Any]:
        copy = jax.block_until_ready(jax.tree.map(jnp.copy, state))  # `run` takes it over.
        return lambda: strategy.run(params, copy, leave_on_end=False, max_rounds=turns)

    rounds = int(whole()().step) - int(state.step)
    if not rounds:
        raise ValueError("There is no round to time: the response has only one token.")
    seconds = seconds_by_turn(
        {
            "round": whole,
            "draft": lambda: lambda: _draft_loop(strategy, params, state, turns),
            "target": lambda: lambda: _target_loop(strategy, params, state, plan, turns),
            "rule": lambda: lambda: _rule_loop(strategy, state.keys_B, bare, logits_BYV, turns),
            "finish": lambda: (
                lambda: _finish_loop(strategy, params, state, bare, output, choice, turns)
            ),
        },
        repeats=repeats,
        at_most_s=at_most_s,
    )
    return {
        name: [1e3 * found / (rounds if name == "round" else turns) for found in turn_s]
        for name, turn_s in seconds.items()
    }


def beyond_noise(rests_ms: Sequence[float]) -> float | None:
    """The median of the rests of all turns; None unless most of them are positive."""
    positive = sum(rest > 0.0 for rest in rests_ms)
    return statistics.median(rests_ms) if positive >= _BEYOND_NOISE * len(rests_ms) else None


# Every turn of the loops depends on the one before (through the anchor and the written cache), and
# barriers keep what a turn makes whole: the compiler can neither move work out of a loop nor leave
# out what a real round has to do.


@exact_program()
def _draft_loop(strategy: Speculative, params: Any, state: DecodeState, turns: int) -> Any:
    proposer, config = strategy.proposer, strategy.model.config
    pieces = strategy.cut(params)
    width = len(proposer.capture) * config.hidden_size
    block_shape = (*state.anchor_B.shape, proposer.block_size)

    def body(_: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        drafter, anchor_B = carry
        params = stack_layers(pieces)
        turn = dataclasses.replace(state, drafter=drafter, anchor_B=anchor_B)
        plan = strategy.draft(params, turn, state.keys_B)
        rows_BY, _ = jax.lax.optimization_barrier((plan.rows_BY, plan.detail))
        block_BK = jnp.broadcast_to(rows_BY[:, -1:], block_shape)
        features_BKE = jnp.broadcast_to(
            block_BK[..., None].astype(config.dtype) / config.vocab_size, (*block_shape, width)
        )
        none_B = jnp.zeros_like(anchor_B)
        drafter = proposer.commit(params, plan.drafter, block_BK, features_BKE, none_B)
        return drafter, jnp.maximum(rows_BY[:, -1], 0)

    return jax.lax.fori_loop(0, turns, body, (state.drafter, state.anchor_B))


@exact_program()
def _read_once(
    strategy: Speculative, params: Any, state: DecodeState
) -> tuple[Plan, TransformerOutput, jax.Array, Choice]:
    params = stack_layers(params)
    plan = strategy.draft(params, state, state.keys_B)
    output, logits_BYV = strategy.target_pass(params, plan, state.cache)
    return plan, output, logits_BYV, strategy.verify(state.keys_B, plan, logits_BYV)


@exact_program()
def _target_loop(
    strategy: Speculative, params: Any, state: DecodeState, plan: Plan, turns: int
) -> Any:
    pieces = strategy.cut(params)

    def body(_: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        cache, anchor_B = carry
        turn = dataclasses.replace(plan, rows_BY=plan.rows_BY.at[:, 0].set(anchor_B))
        output, logits_BYV = strategy.target_pass(stack_layers(pieces), turn, cache)
        output, logits_BYV = jax.lax.optimization_barrier((output, logits_BYV))
        failed_B = jnp.isnan(logits_BYV[:, 0, 0])
        cache = cache.write_after(output.keys_LBRSC, output.values_LBRSC, failed_B=failed_B)
        return cache, (anchor_B + 1 + failed_B) % strategy.model.config.vocab_size

    return jax.lax.fori_loop(0, turns, body, (state.cache, state.anchor_B))


@exact_program()
def _rule_loop(
    strategy: Speculative, keys_B: jax.Array, plan: Plan, logits_BYV: jax.Array, turns: int
) -> Any:
    def body(turn: jax.Array, choice: Choice) -> Choice:
        # Tied to the turn before, or all of it could be done once before the loop.
        plan_, logits_, _ = jax.lax.optimization_barrier((plan, logits_BYV, choice))
        turn_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, turn))(keys_B)
        return strategy.verify(turn_keys_B, plan_, logits_)

    shapes = jax.eval_shape(strategy.verify, keys_B, plan, logits_BYV)
    none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.fori_loop(0, turns, body, none)


@exact_program()
def _finish_loop(
    strategy: Speculative,
    params: Any,
    state: DecodeState,
    plan: Plan,
    output: TransformerOutput,
    choice: Choice,
    turns: int,
) -> DecodeState:
    pieces = strategy.cut(params)

    def body(_: jax.Array, state: DecodeState) -> DecodeState:
        turn = dataclasses.replace(plan, drafter=state.drafter)
        return strategy.finish(stack_layers(pieces), state, turn, output, choice)

    return jax.lax.fori_loop(0, turns, body, state)
