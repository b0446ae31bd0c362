"""Drafts whose size follows what is accepted and what a round costs.

A longer draft pays as long as the tokens it adds are worth more than the time it takes, which
depends on the text, the drafter, the batch and the machine. `Adaptive` has the same strategy in
several sizes (blocks of 1, 4, 8, 16; trees of 16, 32, 64 nodes), each compiled once and all working
on one state. The loop returns every few rounds and continues with the size that promises the most
tokens per second. If a block of 1 is among the sizes, drafting can be turned off.

Let P(x) be the share of rounds in which the draft of rank x was accepted (its slot in a chain, its
number in a best-first tree, of which the first nodes are the smaller trees), and c(s) the measured
time of a round:

  tokens per second of size s = (1 + sum_{x < s} P(x)) / c(s)

This is a cost model as in CaDDTree, with observed acceptance in place of the drafter's own
probabilities. The output stays exact: a size is chosen by what earlier rounds accepted.

Trying costs time where drafts fail. `Adaptive` counts what it has lost against the target alone,
which emits a token for each row in every round of size 1, and drafts only as long as the loss stays
below a share of the time spent, whatever the estimates promise.

Dimension key: B batch rows, X drafted nodes (of the largest size).

>>> sizes = [  # doctest: +SKIP
...     Speculative(model, dataclasses.replace(proposer, block_size=size), rules)
...     for size in (1, 4, 8, 16)
... ]
>>> responses = generate(Adaptive(sizes), params, prompts, ids=names)  # doctest: +SKIP
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxspec.decoding.speculative import Speculative
from jaxspec.decoding.state import NO_LIMIT, DecodeRules, DecodeState, Prompts
from jaxspec.decoding.target_alone import TargetAlone
from jaxspec.drafters.protocol import LateProposer
from jaxspec.models.cache import KVCache
from jaxspec.models.registry import LanguageModel

_COST_REPEATS, _COST_ROUNDS = 7, 8
_FEWEST_COST_REPEATS, _COST_SECONDS = 3, 10.0
"""A large model's rounds take long and vary little: after these seconds, 3 repeats are enough."""
_MOST_MEASUREMENTS = 3
"""Of one shape: a batch that ends at once says little, and may be like all others."""
_SHORTEST_TRIAL = 4
"""Rounds; fewer say too little."""
_STRETCHES_OFF, _MOST_STRETCHES_OFF = 4, 64
"""While drafting is off there is less to decide, and every return to the host takes time. After
each trial in vain, drafting is off for twice as long."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """What `Adaptive.measure_costs` finds."""

    rounds: list[float]
    """Seconds of a round of each size."""
    call: float
    """Seconds of calling a loop, which are in no round."""
    is_whole: bool
    """Whether every size had rounds enough to tell a round from its call."""


@dataclasses.dataclass
class LossLimit:
    """How much slower than the target alone decoding may become by trying drafts in vain.

    All times are in the unit of the costs. What good drafts gained may be lost again.
    """

    share: float = 0.02
    """Of the time spent."""
    spent: float = 0.0
    lost: float = 0.0
    """The time spent, less what the target alone would have taken for the same tokens."""

    def observe(
        self,
        *,
        rounds: int,
        cost: float,
        alone_rounds: float,
        alone_cost: float,
        extra: float = 0.0,
    ) -> None:
        """Adds a stretch of one size.

        Args:
          rounds: of the stretch.
          cost: time of one.
          alone_rounds: what the target alone would have needed.
          alone_cost: time of a round of the target alone.
          extra: time that the stretch took besides its rounds.
        """
        self.spent += rounds * cost + extra
        self.lost += rounds * cost + extra - alone_rounds * alone_cost

    def rounds(self, *, cost: float, alone_cost: float, stretch: int) -> int:
        """The rounds of a size that may be tried next, up to `stretch`; 0: too few for a trial.

        The worst case counts: each of them emits a single token.
        """
        if cost <= alone_cost:
            return stretch
        # At first nothing is spent yet: one stretch is free.
        room = stretch * (cost - alone_cost) + self.share * self.spent - self.lost
        most = min(stretch, max(0, int(room / (cost - alone_cost))))
        return most if most >= min(stretch, _SHORTEST_TRIAL) else 0


@dataclasses.dataclass
class AcceptanceByRank:
    """P(x), how often the draft of each rank is accepted; old rounds fade.

    P(x) is a share of the recent rounds that drafted rank x. A rank that few of them drafted leans
    on the rank before it: in a chain nothing can be likelier than what it builds on, so an untried
    size looks as good as it can be. It is tried as soon as that would pay. So is drafting that was
    turned off, once its bad record has faded.
    """

    num_ranks: int
    fading: float = 0.98
    """The weight that a round keeps after each later round."""
    trust: float = 2.0
    """How many rounds the rank before counts for."""
    accepted_X: npt.NDArray[np.float64] = dataclasses.field(init=False)
    tried_X: npt.NDArray[np.float64] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.accepted_X = np.zeros(self.num_ranks)
        self.tried_X = np.zeros(self.num_ranks)

    def observe(
        self, accepted_X: npt.NDArray[np.int64], *, ranks: int, row_rounds: int, rounds: int
    ) -> None:
        """Adds what one size accepted in `rounds` of the batch, `row_rounds` of single rows."""
        left = self.fading**rounds
        self.accepted_X = self.accepted_X * left + accepted_X
        self.tried_X = self.tried_X * left + np.where(
            np.arange(self.num_ranks) < ranks, row_rounds, 0
        )

    def probabilities(self) -> npt.NDArray[np.float64]:
        """P(x) for every rank."""
        found = np.ones(self.num_ranks)
        before = 1.0
        for rank in range(self.num_ranks):
            total = self.accepted_X[rank] + self.trust * before
            before = total / (self.tried_X[rank] + self.trust)
            found[rank] = before
        return found


class Adaptive:
    """Strategies of several sizes, of which the best one runs.

    Not frozen, because it remembers what was accepted. It is used like any other strategy.

    Attributes:
      history: (size, rounds) of every stretch so far; a size is the tokens that its target pass
        reads.
      measuring_s: seconds so far in which costs were measured, and nothing was decoded.
    """

    def __init__(
        self,
        strategies: Sequence[Speculative],
        *,
        costs: Sequence[float] | None = None,
        stretch: int = 16,
        fading: float = 0.98,
    ) -> None:
        """Orders the sizes.

        Args:
          strategies: the same except for their size.
          costs: time of a round of each, in any unit. None: they are measured whenever a batch has
            another number of rows or another capacity; then the choice, and with it samples above
            temperature 0, differs from run to run.
          stretch: rounds between two choices.
          fading: see `AcceptanceByRank`.

        Raises:
          ValueError: no strategies, two of one size, different models, or costs that are not one
            positive number for each.
        """
        if not strategies:
            raise ValueError("Adaptive needs strategies to choose from: got none.")
        if stretch < 1:
            raise ValueError(f"stretch must be at least 1 round: got {stretch}.")
        order = sorted(range(len(strategies)), key=lambda i: strategies[i].verified_rows)
        self.strategies = [strategies[i] for i in order]
        # Caches have room for two of the largest rounds after the text.
        largest = max(strategy.round_tokens for strategy in strategies)
        self.strategies[0] = _off(self.strategies[0], room=min(stretch, 2 * largest))
        self.sizes = [strategy.verified_rows for strategy in self.strategies]
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"Sizes must differ from one another: got {self.sizes}.")
        if any((s.model, s.rules) != (self.model, self.rules) for s in self.strategies):
            raise ValueError("Strategies of several sizes must share model and rules.")
        self.costs: list[float] | None = None
        self.measuring_s = 0.0
        self._call = 0.0
        self._measured: dict[tuple[int, ...], list[Costs]] | None = None
        if costs is None:
            self._measured = {}
        if costs is not None:
            if len(costs) != len(strategies) or min(costs) <= 0:
                raise ValueError(
                    f"Expected a positive cost for each of {len(strategies)} sizes: got "
                    f"{list(costs)}."
                )
            self.costs = [costs[i] for i in order]
        self.stretch = stretch
        self._fading = fading
        self.history: list[tuple[int, int]] = []
        self.forget()

    def forget(self) -> None:
        """Starts anew, as for other texts; what a round costs is still known."""
        self.acceptance = AcceptanceByRank(max(1, self.sizes[-1] - 1), self._fading)
        self.loss = LossLimit()
        self._stretches_off = _STRETCHES_OFF

    def remember(self) -> Callable[[], None]:
        """Keeps what was learned from the texts so far.

        Returns:
          What puts it back to that, as often as it is called; costs and history stay.
        """
        kept = copy.deepcopy((self.acceptance, self.loss, self._stretches_off))

        def put_back() -> None:
            self.acceptance, self.loss, self._stretches_off = copy.deepcopy(kept)

        return put_back

    @property
    def model(self) -> LanguageModel:
        """The target."""
        return self.strategies[-1].model

    @property
    def rules(self) -> DecodeRules:
        """When a response ends."""
        return self.strategies[-1].rules

    @property
    def verifier(self) -> str:
        """The rule of the largest size."""
        return self.strategies[-1].verifier

    @property
    def round_tokens(self) -> int:
        """Most tokens of a round."""
        return max(strategy.round_tokens for strategy in self.strategies)

    def prepare(self, params: Any) -> Any:
        """Parameters in the layout that the loops want."""
        return self.strategies[-1].prepare(params)

    def start(self, params: Any, prompts: Prompts, *, capacity: int) -> DecodeState:
        """Prefills; the state has room for the largest size."""
        return self.strategies[-1].start(params, prompts, capacity=capacity)

    def run(
        self,
        params: Any,
        state: DecodeState,
        *,
        leave_on_end: jax.Array | bool = False,
        max_rounds: int = NO_LIMIT,
    ) -> DecodeState:
        """The loop, in stretches of a few rounds."""
        assert state.accepted_at_X is not None, "a speculative state counts accepted drafts"
        leave = bool(leave_on_end)
        before = _Counts.of(state)
        if self._measured is not None and before.active:
            found = self._measured.setdefault(state.cache.keys_LBRTC.shape, [])
            if len(found) < _MOST_MEASUREMENTS and not (found and found[-1].is_whole):
                started = time.perf_counter()
                costs, state = self.measure_costs(params, state)
                self.measuring_s += time.perf_counter() - started
                found.append(costs)
            self.costs, self._call = found[-1].rounds, found[-1].call
        left = max_rounds
        while before.active and left > 0 and not (leave and before.ended):
            choice, limit = self.plan()
            state = self.strategies[choice].run(
                params, state, leave_on_end=leave, max_rounds=min(left, limit)
            )
            after = _Counts.of(state)
            rounds = after.step - before.step
            left -= rounds
            self._count(choice, before, after)
            self.acceptance.observe(
                after.accepted_X - before.accepted_X,
                ranks=self.sizes[choice] - 1,
                row_rounds=after.row_rounds - before.row_rounds,
                rounds=rounds,
            )
            self.history.append((self.sizes[choice], rounds))
            before = dataclasses.replace(after, ended=after.active < before.active)
        return state

    def choose(self) -> int:
        """Index of the size with the most expected tokens per second; the first of equal ones.

        Raises:
          ValueError: costs are neither given nor measured yet.
        """
        if self.costs is None:
            raise ValueError("The costs of a round are not known yet: call measure_costs first.")
        tokens = 1 + np.concatenate([[0.0], np.cumsum(self.acceptance.probabilities())])
        return int(
            np.argmax([tokens[s - 1] / c for s, c in zip(self.sizes, self.costs, strict=True)])
        )

    def plan(self) -> tuple[int, int]:
        """The index of the size that runs next, and for how many rounds at most."""
        choice = self.choose()
        assert self.costs is not None, "a size is chosen by its cost"
        if self.sizes[0] > 1:  # There is no drafting to turn off.
            return choice, self.stretch
        rounds = self.loss.rounds(
            cost=self.costs[choice], alone_cost=self.costs[0], stretch=self.stretch
        )
        return (choice, rounds) if choice and rounds else (0, self._stretches_off * self.stretch)

    def _count(self, choice: int, before: _Counts, after: _Counts) -> None:
        """Adds a stretch to what was spent and lost."""
        assert self.costs is not None, "a size is chosen by its cost"
        rounds, row_rounds = after.step - before.step, after.row_rounds - before.row_rounds
        if not row_rounds:
            return
        # A round of the target alone emits a token for each of the rows that took part.
        alone_rounds = (after.tokens - before.tokens) * rounds / row_rounds
        self.loss.observe(
            rounds=rounds,
            cost=self.costs[choice],
            alone_rounds=alone_rounds,
            alone_cost=self.costs[0],
            # A trial interrupts the loop of the target alone: two calls more.
            extra=2 * self._call if choice else 0.0,
        )
        if choice:
            pays = alone_rounds * self.costs[0] > rounds * self.costs[choice]
            longer = min(_MOST_STRETCHES_OFF, 2 * self._stretches_off)
            self._stretches_off = _STRETCHES_OFF if pays else longer

    def measure_costs(self, params: Any, state: DecodeState) -> tuple[Costs, DecodeState]:
        """Seconds per round of each size, and of calling a loop, on a running batch.

        Sizes take turns, and the shortest time counts: whatever else the machine does only adds to
        it. A round is the difference between a longer and a shorter loop, which leaves the call
        out. More rows never cost less, so what says otherwise is noise.

        Args:
          params: of the strategies.
          state: the batch, which is taken over.

        Returns:
          The costs, and the batch as it was: its caches differ only in slots that do not count yet.
        """
        lengths = (1, 1 + _COST_ROUNDS)
        seconds: dict[tuple[int, int], list[tuple[float, int]]] = {
            (size, length): [] for size in range(len(self.strategies)) for length in lengths
        }
        started = time.perf_counter()
        for turn in range(1 + _COST_REPEATS):  # The first compiles.
            if turn > _FEWEST_COST_REPEATS and time.perf_counter() - started >= _COST_SECONDS:
                break
            for (size, length), times in seconds.items():
                took_s, rounds, state = _timed(self.strategies[size], params, state, length)
                times.append((took_s, rounds))
        shortest = {case: min(times[1:]) for case, times in seconds.items()}
        costs, is_whole = [], True
        for size in range(len(self.strategies)):
            (short_s, short), (long_s, long) = (shortest[size, length] for length in lengths)
            grew = long > short and long_s > short_s  # Not where the batch ends at once.
            costs.append((long_s - short_s) / (long - short) if grew else long_s / max(1, long))
            is_whole &= grew
        call = max(0.0, shortest[0, 1][0] - costs[0])
        rising = [float(cost) for cost in np.maximum.accumulate(costs)]
        return Costs(rising, call, is_whole), state


def _timed(
    strategy: Speculative, params: Any, state: DecodeState, rounds: int
) -> tuple[float, int, DecodeState]:
    """How long a loop takes, its rounds (fewer if the batch ends), and the batch as it was.

    A copy of the batch would need memory for a second set of caches. In a cache, rounds write only
    after the committed tokens, so its arrays can stay as they are; everything else is put back.
    """
    kept = jax.tree.map(
        lambda node: jnp.copy(node.lengths_B if _is_cache(node) else node), state, is_leaf=_is_cache
    )
    jax.block_until_ready(kept)
    before = int(state.step)
    started = time.perf_counter()
    state = strategy.run(params, state, leave_on_end=False, max_rounds=rounds)
    state = jax.block_until_ready(state)
    seconds, after = time.perf_counter() - started, int(state.step)
    state = jax.tree.map(
        lambda node, old: dataclasses.replace(node, lengths_B=old) if _is_cache(node) else old,
        state,
        kept,
        is_leaf=_is_cache,
    )
    return seconds, after - before, state


def _is_cache(node: Any) -> bool:
    return isinstance(node, KVCache)


def _off(smallest: Speculative, *, room: int) -> Speculative:
    """The smallest size; one that drafts nothing lets its drafter read a stretch at a time."""
    if smallest.verified_rows > 1 or not isinstance(smallest.proposer, LateProposer):
        return smallest
    return TargetAlone(
        smallest.model,
        smallest.proposer,
        smallest.rules,
        verifier=smallest.verifier,
        sampling=smallest.sampling,
        room=room,
    )


@dataclasses.dataclass(frozen=True)
class _Counts:
    """What a stretch is judged by."""

    step: int
    active: int
    row_rounds: int
    tokens: int
    accepted_X: npt.NDArray[np.int64]
    ended: bool = False

    @classmethod
    def of(cls, state: DecodeState) -> _Counts:
        step, active_B, rounds_B, count_B, accepted_X = jax.device_get(
            (state.step, state.active_B, state.rounds_B, state.count_B, state.accepted_at_X)
        )
        return cls(
            step=int(step),
            active=int(active_B.sum()),
            row_rounds=int(rounds_B.sum()),
            tokens=int(count_B.sum()),
            accepted_X=accepted_X.astype(np.int64),
        )
