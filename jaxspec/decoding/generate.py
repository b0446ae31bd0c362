"""Decoding a list of prompts: buckets, refilled rows, errors that name the prompt.

Prompts are right-padded to a few lengths, so that few programs are compiled. Prompts of one length
share a batch: when a row ends, the next prompt takes its place (continuous batching, as in Orca,
Yu et al. 2022), so the device does not wait for the longest response.

Dimension key: B batch rows, S tokens of a prompt, T positions of a response, O rounds.

>>> responses = generate(  # doctest: +SKIP
...     strategy, params, prompts, ids=names, batch_size=8, seed=0)
>>> responses[0].tokens, responses[0].emitted  # doctest: +SKIP
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.decoding.placement import on_mesh_of
from jaxspec.decoding.rows import insert, places, read, vacant
from jaxspec.decoding.state import NO_LIMIT, NO_ROUND, DecodeRules, DecodeState, Prompts
from jaxspec.models.registry import LanguageModel

SMALLEST_BUCKET = 128
_PREFILLED_TOKENS = 8192
"""Most tokens of one pass over prompts, so that it takes little memory beside the caches."""
_CAPACITY_STEP = 64


class Strategy(Protocol):
    """What the host needs of `Autoregressive`, `Speculative` and the like."""

    @property
    def model(self) -> LanguageModel:
        """The target."""

    @property
    def rules(self) -> DecodeRules:
        """When a response ends."""

    @property
    def round_tokens(self) -> int:
        """The most tokens that a round emits."""

    def prepare(self, params: Any) -> Any:
        """Parameters in the layout that the loop wants."""

    def start(self, params: Any, prompts: Prompts, *, capacity: int) -> DecodeState:
        """Prefills."""

    def run(
        self,
        params: Any,
        state: DecodeState,
        *,
        leave_on_end: jax.Array | bool = False,
        max_rounds: Any = NO_LIMIT,
    ) -> DecodeState:
        """The loop, to its end, until some row has ended or for some rounds; the state is donated.

        An argument that is left out is a constant of the program: give both, so that all calls
        share one.
        """


@dataclasses.dataclass(frozen=True)
class Response:
    """The answer to one prompt."""

    prompt_id: str
    tokens: tuple[int, ...]
    """Emitted ids, with the stop token if there was one."""
    stopped: bool
    """Whether a stop token ended it; otherwise the limit did."""
    emitted: tuple[int, ...] = ()
    """Tokens that each round added to the response. The first token comes from the prefill and
    belongs to no round: ``len(tokens) == 1 + sum(emitted)``. Empty in autoregressive decoding."""
    verified: tuple[int, ...] = ()
    """Drafts that each round's verification accepted, before a stop token or the limit cut it
    short."""
    draft_passes: int = 0
    """Forward passes of the drafter in all rounds."""
    slots: tuple[int, ...] = ()
    """Slots that each round drafted (of a tree, its depth); with adaptive sizes, rounds differ."""

    @property
    def accepted(self) -> tuple[int, ...]:
        """Drafts of each round that are in the response."""
        return tuple(min(pair) for pair in zip(self.verified, self.emitted, strict=True))


def bucket_length(length: int) -> int:
    """The padded length of a prompt: the next power of two, at least `SMALLEST_BUCKET`.

    >>> bucket_length(129)
    256
    """
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def needed_capacity(prompt_tokens: int, *, rules: DecodeRules, round_tokens: int) -> int:
    """Cache slots for a prompt: the last round may overshoot, and rejected drafts come after it."""
    needed = prompt_tokens + rules.max_new_tokens + 2 * round_tokens
    return -(-needed // _CAPACITY_STEP) * _CAPACITY_STEP


def check_prompt_ids(
    prompts: Sequence[Sequence[int]], *, ids: Sequence[str], vocab_size: int
) -> None:
    """Refuses prompts that no decoder can read.

    Raises:
      ValueError: no prompts, an empty one, another number of names, or ids outside the embedding.
    """
    if not prompts:
        raise ValueError("The list of prompts is empty: there is nothing to decode.")
    if len(ids) != len(prompts):
        raise ValueError(f"Expected a name for each of {len(prompts)} prompts: got {len(ids)}.")
    for name, prompt in zip(ids, prompts, strict=True):
        if len(prompt) == 0:
            raise ValueError(f"Prompt {name!r} holds no token: at least one is needed.")
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"Prompt {name!r} holds token ids from {low} to {high}, but the target's embedding "
                f"has {vocab_size} rows: is this the target's tokenizer?"
            )


def check_positions(
    prompt: Sequence[int], *, name: str, max_new_tokens: int, positions: int
) -> None:
    """Refuses a prompt that leaves too few of the target's positions for a response.

    Raises:
      ValueError: names the prompt.
    """
    if len(prompt) + max_new_tokens > positions:
        raise ValueError(
            f"Prompt {name!r} has {len(prompt)} tokens; with {max_new_tokens} new ones "
            f"that is more than the target's {positions} positions. "
            "Shorten it, leave it out, or lower max_new_tokens."
        )


def check_prompts(
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[str],
    strategy: Strategy,
    capacity: int | None = None,
) -> None:
    """Refuses prompts that the loops would silently get wrong.

    Raises:
      ValueError: no prompts, an empty one, ids outside the embedding, or a prompt that is too long
        for the cache or the positions.
    """
    config, rules = strategy.model.config, strategy.rules
    check_prompt_ids(prompts, ids=ids, vocab_size=config.vocab_size)
    for name, prompt in zip(ids, prompts, strict=True):
        check_positions(
            prompt,
            name=name,
            max_new_tokens=rules.max_new_tokens,
            positions=config.max_position_embeddings,
        )
        needed = len(prompt) + rules.max_new_tokens + 2 * strategy.round_tokens
        if capacity is not None and needed > capacity:
            raise ValueError(
                f"Prompt {name!r} has {len(prompt)} tokens and is too long for the cache: with "
                f"{rules.max_new_tokens} new ones and two rounds of {strategy.round_tokens} it "
                f"needs {needed} slots, but the cache has {capacity}."
            )


@jax.jit
def _row_keys(key: jax.Array, numbers_B: jax.Array) -> jax.Array:
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers_B)


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, ids: Sequence[str], length: int, rows: int, seed: int
) -> Prompts:
    """A batch on the device, `rows` by `length` tokens; rows without a prompt are not active."""
    # A prompt's key depends on its name and the seed, not on its place in a batch.
    tokens_BS = np.zeros((rows, length), np.int32)
    lengths_B = np.ones(rows, np.int32)
    numbers_B = np.zeros(rows, np.uint32)
    for row, (name, prompt) in enumerate(zip(ids, prompts, strict=True)):
        tokens_BS[row, : len(prompt)] = prompt
        lengths_B[row] = len(prompt)
        numbers_B[row] = zlib.crc32(name.encode())
    return Prompts(
        tokens_BS=jnp.asarray(tokens_BS),
        lengths_B=jnp.asarray(lengths_B),
        active_B=jnp.asarray(np.arange(rows) < len(prompts)),
        # The seed is no part of a program: whoever draws many samples would compile as many.
        keys_B=_row_keys(jax.random.key(seed), jnp.asarray(numbers_B)),
    )


def generate(
    strategy: Strategy,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[str],
    batch_size: int = 8,
    seed: int = 0,
    capacity: int | None = None,
    progress: Callable[[int], None] | None = None,
    answered: Callable[[int, Response], None] | None = None,
) -> list[Response]:
    """Decodes every prompt.

    Args:
      strategy: `Autoregressive`, `Speculative` or another one.
      params: its parameters; on a mesh, rows and caches are spread over it (`placement`).
      prompts: token ids.
      ids: a name for each prompt; errors use it, and so does its random stream.
      batch_size: rows, that is, prompts decoded together. A prompt's answer does not depend on it.
        On a mesh, a multiple of its data and fsdp axes; otherwise each device has all rows.
      seed: of the random streams.
      capacity: slots of the caches; None: as many as a batch needs.
      progress: called with the number of prompts done since the last call.
      answered: called with the prompt's number and the response, as soon as there is one.

    Returns:
      Responses in the order of the prompts.

    Raises:
      ValueError: see `check_prompts`; also a prompt on which the model gave NaN.
    """
    check_prompts(prompts, ids=ids, strategy=strategy, capacity=capacity)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1: got {batch_size}.")
    responses: dict[int, Response] = {}
    with on_mesh_of(params):
        params = strategy.prepare(params)
        for group in groups(prompts, batch_size):
            slots = capacity or needed_capacity(
                bucket_length(max(len(prompts[index]) for index in group)),
                rules=strategy.rules,
                round_tokens=strategy.round_tokens,
            )

            def prefilled(batch: Sequence[int], slots: int = slots) -> DecodeState:
                length = bucket_length(len(prompts[batch[0]]))
                padded = pad_prompts(
                    [prompts[index] for index in batch],
                    ids=[ids[index] for index in batch],
                    length=min(length, slots),
                    rows=prefill_rows(length, rows=batch_size),
                    seed=seed,
                )
                return strategy.start(params, padded, capacity=slots)

            def run(state: DecodeState, *, leave_on_end: bool) -> DecodeState:
                return strategy.run(params, state, leave_on_end=leave_on_end, max_rounds=NO_LIMIT)

            def answer(state: DecodeState, row: int, index: int) -> Response:
                return read_response(state, row, name=ids[index], rules=strategy.rules)

            queue = prefill_batches(group, prompts, rows=batch_size)
            for index, response in serve(queue, prefilled, run, answer, rows=batch_size):
                responses[index] = response
                if answered is not None:
                    answered(index, response)
                if progress is not None:
                    progress(1)
    return [responses[index] for index in range(len(prompts))]


def groups(prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Groups prompts of one bucket, longest first: the longest decides the size of the caches.

    A group that would not fill the batch is joined by the next shorter prompts.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    while order:
        bucket = bucket_length(len(prompts[order[0]]))
        same = sum(bucket_length(len(prompts[index])) == bucket for index in order)
        size = max(same, batch_size)
        yield order[:size]
        order = order[size:]


def prefill_rows(length: int, *, rows: int) -> int:
    """How many prompts of this padded length are prefilled together, for a batch of `rows`.

    A row that has ended waits until this many are free. With a sixteenth of the batch, 1 row in 32
    is idle on average. A batch of 256 still prefills thousands of tokens in a pass, and a batch
    that is too small to gain by it shares the program for one prompt.

    >>> prefill_rows(128, rows=256), prefill_rows(4096, rows=256), prefill_rows(128, rows=16)
    (16, 2, 1)
    """
    return max(1, min(rows // 16, _PREFILLED_TOKENS // length))


def prefill_batches(
    group: Sequence[int], prompts: Sequence[Sequence[int]], *, rows: int
) -> Iterator[list[int]]:
    """Splits a group of prompts into those that are prefilled together: all of one bucket."""
    for length, same in itertools.groupby(group, lambda index: bucket_length(len(prompts[index]))):
        indices, most = list(same), prefill_rows(length, rows=rows)
        yield from (indices[first : first + most] for first in range(0, len(indices), most))


class _Rows(Protocol):
    """The state of a running batch, `DecodeState` or `DiffusionState`."""

    @property
    def active_B(self) -> jax.Array:
        """Rows that have not ended."""


StateT = TypeVar("StateT", bound=_Rows)
AnswerT = TypeVar("AnswerT")


class _Run(Protocol[StateT]):
    def __call__(self, state: StateT, *, leave_on_end: bool) -> StateT: ...


def serve(
    queue: Iterable[Sequence[int]],
    prefilled: Callable[[Sequence[int]], StateT],
    run: _Run[StateT],
    answer: Callable[[StateT, int, int], AnswerT],
    *,
    rows: int,
) -> Iterator[tuple[int, AnswerT]]:
    """Decodes a queue of prompts in a batch whose rows are refilled; yields answers as they end.

    Prompts that are prefilled together wait until there is a row for each of them.

    Args:
      queue: numbers of the prompts, at most `rows` of them together.
      prefilled: a state whose first rows are those of the prompts.
      run: the loop, to its end or until some row has ended.
      answer: (state, row, prompt) -> what a row that has ended holds.
      rows: of the batch.
    """
    waiting = collections.deque(queue)
    place: dict[int, int] = {}  # row -> prompt
    state: StateT | None = None
    while waiting or place:
        free = [row for row in range(rows) if row not in place]
        while waiting and len(waiting[0]) <= len(free):
            batch = waiting.popleft()
            filled, free = free[: len(batch)], free[len(batch) :]
            place.update(zip(filled, batch, strict=True))
            new = prefilled(batch)
            state = vacant(new, rows=rows) if state is None else state
            state = insert(state, new, places(filled, of=new))
        assert state is not None, "a queue that is not empty fills a row"
        # A response of one token ends with its prefill: its row is free before the loop starts.
        if not (ended := _ended(state, place)):
            state = run(state, leave_on_end=bool(waiting))
            ended = _ended(state, place)
        for row in ended:
            index = place.pop(row)
            yield index, answer(state, row, index)


def _ended(state: _Rows, rows: Iterable[int]) -> list[int]:
    active_B = jax.device_get(state.active_B)
    return [row for row in rows if not active_B[row]]


def read_response(state: DecodeState, row: int, *, name: str, rules: DecodeRules) -> Response:
    """Brings the response of a row that has ended to the host.

    Raises:
      ValueError: names the prompt, if the model gave NaN on it.
    """
    result = jax.device_get(read(state, row))
    if result.failed:
        raise ValueError(
            f"Decoding gave NaN or infinite logits on prompt {name!r}: check the weights of "
            "target and drafter."
        )
    tokens = tuple(result.tokens_T[: result.num_tokens].tolist())
    emitted: tuple[int, ...] = ()
    verified: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    if result.emitted_O is not None:
        took_place = result.emitted_O != NO_ROUND
        emitted = tuple(result.emitted_O[took_place].tolist())
        verified = tuple(result.verified_O[took_place].tolist())
        slots = tuple(result.slots_O[took_place].tolist())
    return Response(
        name,
        tokens,
        stopped=tokens[-1] in rules.stop_ids,
        emitted=emitted,
        verified=verified,
        draft_passes=0 if result.draft_passes is None else int(result.draft_passes),
        slots=slots,
    )
