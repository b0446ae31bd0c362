"""Decoding a list of prompts: buckets, batches, errors that name the prompt.

Prompts are right-padded to a few lengths, so that few programs are compiled, and batches are filled
up with rows that are never active.

Dimension key: B batch rows, S prompt tokens.

>>> responses = generate(strategy, params, prompts, ids=names, batch_size=8, seed=0)
>>> responses[0].tokens, responses[0].kept
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.decoding.state import NO_ROUND, DecodeRules, DecodeState, Prompts
from jaxspec.models.transformer import Transformer

SMALLEST_BUCKET = 128
_CAPACITY_STEP = 64


class Strategy(Protocol):
    """`Autoregressive` and `Speculative`, as far as the host is concerned."""

    @property
    def model(self) -> Transformer:
        """The target."""

    @property
    def rules(self) -> DecodeRules:
        """When a response ends."""

    @property
    def round_tokens(self) -> int:
        """Most tokens of a round."""

    def start(self, params: Any, prompts: Prompts, *, capacity: int) -> DecodeState:
        """Prefills."""

    def run(self, params: Any, state: DecodeState, keys_B: jax.Array) -> DecodeState:
        """The loop; the state is donated."""


@dataclasses.dataclass(frozen=True)
class Response:
    """What one prompt was answered."""

    prompt_id: str
    tokens: tuple[int, ...]
    """Emitted ids, with the stop token if there was one."""
    stopped: bool
    """Whether a stop token ended it; otherwise the limit did."""
    kept: tuple[int, ...] = ()
    """Tokens that each round put into the response. The first token comes from the prefill and is
    in no round: ``len(tokens) == 1 + sum(kept)``. Empty in autoregressive decoding."""
    verified: tuple[int, ...] = ()
    """Drafts that each round's verification accepted, before a stop token or the limit cut it."""

    @property
    def accepted(self) -> tuple[int, ...]:
        """Drafts of each round that stand in the response."""
        return tuple(min(pair) for pair in zip(self.verified, self.kept, strict=True))


def bucket_length(length: int) -> int:
    """The padded length of a prompt: the next power of two, at least `SMALLEST_BUCKET`.

    >>> bucket_length(129)
    256
    """
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def needed_capacity(prompt_tokens: int, *, rules: DecodeRules, round_tokens: int) -> int:
    """Cache slots for a prompt: the last round may overshoot, and rejected drafts lie behind it."""
    needed = prompt_tokens + rules.max_new_tokens + 2 * round_tokens
    return -(-needed // _CAPACITY_STEP) * _CAPACITY_STEP


def check_prompts(
    prompts: Sequence[Sequence[int]],
    *,
    ids: Sequence[str],
    strategy: Strategy,
    capacity: int | None = None,
) -> None:
    """Refuses what the loops would silently get wrong.

    Raises:
      ValueError: no prompts, an empty one, ids outside the embedding, or a prompt for which cache
        or positions do not suffice.
    """
    if not prompts:
        raise ValueError("The list of prompts is empty: there is nothing to decode.")
    if len(ids) != len(prompts):
        raise ValueError(f"Expected a name for each of {len(prompts)} prompts: got {len(ids)}.")
    config, rules = strategy.model.config, strategy.rules
    for name, prompt in zip(ids, prompts, strict=True):
        if len(prompt) == 0:
            raise ValueError(f"Prompt {name!r} holds no token: at least one is needed.")
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"Prompt {name!r} holds token ids from {low} to {high}, but the target's embedding "
                f"has {config.vocab_size} rows: is this the target's tokenizer?"
            )
        needed = len(prompt) + rules.max_new_tokens
        if needed > config.max_position_embeddings:
            raise ValueError(
                f"Prompt {name!r} has {len(prompt)} tokens; with {rules.max_new_tokens} new ones "
                f"that is more than the target's {config.max_position_embeddings} positions. "
                "Shorten it, leave it out, or lower max_new_tokens."
            )
        needed += 2 * strategy.round_tokens
        if capacity is not None and needed > capacity:
            raise ValueError(
                f"Prompt {name!r} has {len(prompt)} tokens and is too long for the cache: with "
                f"{rules.max_new_tokens} new ones and two rounds of {strategy.round_tokens} it "
                f"needs {needed} slots, but the cache has {capacity}."
            )


@functools.partial(jax.jit, static_argnames="seed")
def _row_keys(numbers_B: jax.Array, *, seed: int) -> jax.Array:
    key = jax.random.key(seed)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers_B)


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, ids: Sequence[str], length: int, rows: int, seed: int
) -> Prompts:
    """A device batch of `rows` rows of `length` tokens; rows without a prompt are not active."""
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
        keys_B=_row_keys(jnp.asarray(numbers_B), seed=seed),
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
) -> list[Response]:
    """Decodes every prompt.

    Args:
      strategy: `Autoregressive` or `Speculative`.
      params: its parameters.
      prompts: token ids.
      ids: a name for each prompt; errors use it, and so does its random stream.
      batch_size: prompts decoded together.
      seed: of the random streams.
      capacity: slots of the caches; None: as many as each batch needs.
      progress: called with the number of prompts done since the last call.

    Returns:
      Responses in the order of the prompts.

    Raises:
      ValueError: see `check_prompts`; also a prompt on which the model gave NaN.
    """
    check_prompts(prompts, ids=ids, strategy=strategy, capacity=capacity)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1: got {batch_size}.")
    responses: dict[int, Response] = {}
    for chosen in _batches(prompts, batch_size):
        names = [ids[index] for index in chosen]
        rows = [prompts[index] for index in chosen]
        longest = max(map(len, rows))
        length = bucket_length(longest)
        slots = capacity or needed_capacity(
            length, rules=strategy.rules, round_tokens=strategy.round_tokens
        )
        batch = pad_prompts(rows, ids=names, length=min(length, slots), rows=batch_size, seed=seed)
        state = strategy.start(params, batch, capacity=slots)
        state = strategy.run(params, state, batch.keys_B)
        decoded = read_responses(state, ids=names, rules=strategy.rules)
        responses.update(zip(chosen, decoded, strict=True))
        if progress is not None:
            progress(len(chosen))
    return [responses[index] for index in range(len(prompts))]


def _batches(prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Prompts of similar length together: the longest one decides a batch's bucket."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def read_responses(state: DecodeState, *, ids: Sequence[str], rules: DecodeRules) -> list[Response]:
    """Brings a finished state to the host; rows behind `ids` are padding.

    Raises:
      ValueError: names the prompts on which the model gave NaN.
    """
    host = jax.device_get(
        (state.tokens_BT, state.count_B, state.failed_B, state.verified_BR, state.kept_BR)
    )
    tokens_BT, count_B, failed_B, verified_BR, kept_BR = host
    failed = [name for row, name in enumerate(ids) if failed_B[row]]
    if failed:
        raise ValueError(
            f"Decoding gave NaN or infinite logits on prompt{'s' if len(failed) > 1 else ''} "
            f"{', '.join(map(repr, failed))}: check the weights of target and drafter."
        )
    responses = []
    for row, name in enumerate(ids):
        tokens = tuple(tokens_BT[row, : count_B[row]].tolist())
        kept: tuple[int, ...] = ()
        verified: tuple[int, ...] = ()
        if kept_BR is not None:
            took_place = kept_BR[row] != NO_ROUND
            kept = tuple(kept_BR[row][took_place].tolist())
            verified = tuple(verified_BR[row][took_place].tolist())
        responses.append(Response(name, tokens, tokens[-1] in rules.stop_ids, kept, verified))
    return responses
