"""One prompt, round by round: what was drafted, what was accepted, and what the target added.

The compiled loop of a strategy is the same one that decodes whole batches; here it returns to the
host after every round. So the tokens are those of `generate`, bit for bit.

>>> for each in stream(strategy, params, prompt, name="chat/0"):  # doctest: +SKIP
...     print(each.accepted, each.bonus, each.rejected)
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxspec.decoding.generate import (
    Strategy,
    bucket_length,
    check_prompts,
    needed_capacity,
    pad_prompts,
    read_response,
)
from jaxspec.decoding.placement import on_mesh_of
from jaxspec.decoding.state import Prompts
from jaxspec.ops.sampling import INVALID


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round did to the response."""

    drafted: tuple[int, ...]
    """Ids that were drafted, accepted or not. () for the first token, which comes from the prefill,
    and in autoregressive decoding."""
    verified: int
    """Drafts that verification accepted; the response may have ended before the last of them."""
    emitted: tuple[int, ...]
    """Ids that were added to the response: accepted drafts, then the target's own token."""
    seconds: float
    """Wall-clock time of the prefill or of the round."""

    @property
    def accepted(self) -> tuple[int, ...]:
        """Drafts that are in the response."""
        return self.emitted[: self.verified]

    @property
    def bonus(self) -> tuple[int, ...]:
        """The target's own token after them; () if the response ended before it."""
        return self.emitted[self.verified :]

    @property
    def rejected(self) -> tuple[int, ...]:
        """Drafts that were not accepted: the first was judged, and the others were built on it."""
        return self.drafted[self.verified :]


@dataclasses.dataclass
class _Clock:
    """Seconds since it was last asked."""

    since: float = dataclasses.field(default_factory=time.perf_counter)

    def lap(self) -> float:
        before, self.since = self.since, time.perf_counter()
        return self.since - before


def warm_up(strategy: Strategy, params: Any, prompt: Sequence[int]) -> float:
    """Compiles what `stream` runs on a prompt of this length.

    Args:
      strategy: as in `stream`.
      params: as in `stream`.
      prompt: ids; any of the same bucket will do.

    Returns:
      Seconds.
    """
    clock = _Clock()
    with on_mesh_of(params):
        params = strategy.prepare(params)
        batch, capacity = _batch(strategy, prompt, name="", seed=0)
        state = strategy.start(params, batch, capacity=capacity)
        jax.block_until_ready(strategy.run(params, state, leave_on_end=False, max_rounds=1))
    return clock.lap()


def stream(
    strategy: Strategy, params: Any, prompt: Sequence[int], *, name: str, seed: int = 0
) -> Iterator[Round]:
    """Decodes one prompt; yields the first token and then every round, as soon as it is there.

    Args:
      strategy: `Autoregressive` or `Speculative`.
      params: its parameters.
      prompt: token ids.
      name: what errors call the prompt; its random stream depends on it, as in `generate`.
      seed: of the random stream.

    Raises:
      ValueError: see `check_prompts`; also a prompt on which the model gave NaN.
    """
    check_prompts([prompt], ids=[name], strategy=strategy)
    # Not around the whole: between two rounds the caller may use another mesh.
    with on_mesh_of(params):
        params = strategy.prepare(params)
        batch, capacity = _batch(strategy, prompt, name=name, seed=seed)
        clock = _Clock()
        state = jax.block_until_ready(strategy.start(params, batch, capacity=capacity))
    seconds, done = clock.lap(), 0
    while True:
        active_B, failed_B, count_B, rounds_B, tokens_BT, drafted_BX, verified_BO = jax.device_get(
            (
                *(state.active_B, state.failed_B, state.count_B, state.rounds_B),
                *(state.tokens_BT, state.drafted_BX, state.verified_BO),
            )
        )
        if failed_B[0]:
            read_response(state, 0, name=name, rules=strategy.rules)
        drafted: tuple[int, ...] = ()
        verified = 0
        if rounds_B[0] and drafted_BX is not None:
            drafted = tuple(token for token in drafted_BX[0].tolist() if token != INVALID)
            verified = int(verified_BO[0, rounds_B[0] - 1])
        count = int(count_B[0])
        yield Round(drafted, verified, tuple(tokens_BT[0, done:count].tolist()), seconds)
        if not active_B[0]:
            return
        done = count
        with on_mesh_of(params):
            clock.lap()
            state = strategy.run(params, state, leave_on_end=False, max_rounds=1)
            jax.block_until_ready(state)
            seconds = clock.lap()


def _batch(
    strategy: Strategy, prompt: Sequence[int], *, name: str, seed: int
) -> tuple[Prompts, int]:
    """The prompt as a batch of one row, and the slots of its cache."""
    length = bucket_length(len(prompt))
    batch = pad_prompts([prompt], ids=[name], length=length, rows=1, seed=seed)
    slots = needed_capacity(length, rules=strategy.rules, round_tokens=strategy.round_tokens)
    return batch, slots
