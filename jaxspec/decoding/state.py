"""What the jitted loops carry, and the rules by which a response ends.

Dimension key: B batch rows, S tokens of a prompt, K tokens of a round, T positions of a response,
O rounds, X drafted nodes, D model width, E captured features.

The newest token of a row (`anchor_B`) has been emitted but not yet read by the target, so a row's
cache always holds ``prompt + count - 1`` positions. Random streams are folded by row and by the
row's own rounds, never by batch: the answer to a prompt depends neither on its neighbours in the
batch nor on when its row was filled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.decoding.placement import placed
from jaxspec.models.cache import KVCache
from jaxspec.models.registry import LanguageModel
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.sampling import INVALID

NO_ROUND = -1
"""Marks the entries of rounds that did not take place."""

_STREAMS = ("token", "draft", "verify")


@dataclasses.dataclass(frozen=True)
class DecodeRules:
    """When a response ends, and what it may contain.

    Raises:
      ValueError: a limit below 1, or a stop token that is suppressed.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    """A response ends with the first of these, which is part of it."""
    suppressed_ids: tuple[int, ...] = ()
    """Never emitted (mask, padding, unused rows of the embedding)."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1: got {self.max_new_tokens}.")
        both = sorted(set(self.stop_ids) & set(self.suppressed_ids))
        if both:
            raise ValueError(f"Stop tokens cannot be suppressed: got {both} in both lists.")


@array_dataclass
class Prompts:
    """A batch of prompts in one bucket, right-padded."""

    tokens_BS: jax.Array
    lengths_B: jax.Array
    """int32, real tokens of each row, at least 1."""
    active_B: jax.Array
    """False in rows that only fill the batch."""
    keys_B: jax.Array
    """One random key per row, made from the run's seed and the prompt's name."""


@array_dataclass
class DecodeState:
    """What the loops carry. Every array keeps its shape."""

    cache: KVCache
    """The target's cache, of every position before the anchor."""
    drafter: Any
    """The proposer's own state; None in autoregressive decoding."""
    tokens_BT: jax.Array
    """Emitted tokens. T = max_new_tokens + K, because the last round may overshoot."""
    count_B: jax.Array
    """How many emitted tokens each row has."""
    anchor_B: jax.Array
    """The newest emitted token."""
    active_B: jax.Array
    failed_B: jax.Array
    """Rows that met NaN (or another distribution that cannot be sampled)."""
    keys_B: jax.Array
    """Each row's random key (`Prompts.keys_B`)."""
    rounds_B: jax.Array
    """int32, rounds that the row has taken part in."""
    step: jax.Array
    """int32 scalar, rounds of the batch so far."""
    draft_passes_B: jax.Array | None
    """int32, forward passes of the drafter in all of a row's rounds. None in autoregressive
    decoding."""
    accepted_at_X: jax.Array | None
    """How often the draft of each rank was accepted, over all rows. A draft's rank is its slot in a
    chain and its number in a tree, so a smaller draft has exactly the lower ranks. None in
    autoregressive decoding."""
    verified_BO: jax.Array | None
    """Drafts that verification accepted in each round, before any cut; `NO_ROUND` after the row's
    last round. None in autoregressive decoding."""
    emitted_BO: jax.Array | None
    """Tokens that each round added to the response: accepted drafts and the target's token, less
    what comes after a stop token or the limit."""
    slots_BO: jax.Array | None
    """Slots that each round drafted: with adaptive sizes, rounds differ. Of a tree, its depth."""
    drafted_BX: jax.Array | None
    """int32, what the newest round drafted, accepted or not, in the order of the ranks;
    `INVALID` after it. None in autoregressive decoding."""


def stream_keys(keys_B: jax.Array, step_B: jax.Array, *streams: str) -> tuple[jax.Array, ...]:
    """One key per row for each named stream. Step 0 is the prefill, step r + 1 is round r."""
    numbers = jnp.array([_STREAMS.index(name) for name in streams])
    numbers_of_rows = numbers + len(_STREAMS) * step_B[:, None]
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
    stream_keys = fold(keys_B, numbers_of_rows)
    return tuple(stream_keys[:, use] for use in range(len(streams)))


def prefill(
    model: LanguageModel, params: Any, prompts: Prompts, *, capacity: int, capture: tuple[int, ...]
) -> tuple[KVCache, jax.Array, jax.Array | None]:
    """One pass over the prompts: the cache, hidden_BD of each row's last token, features_BSE.

    Padding comes after the real tokens, so causal attention hides it from them, and the cache's
    lengths hide it from what follows.
    """
    output = model.apply({"params": params}, prompts.tokens_BS, capture=capture)
    cache = KVCache.prefilled(
        output.keys_LBRSC, output.values_LBRSC, capacity=capacity, lengths_B=prompts.lengths_B
    )
    last_B11 = (prompts.lengths_B - 1)[:, None, None]
    hidden_BD = jnp.take_along_axis(output.hidden_BSD, last_B11, axis=1)[:, 0]
    return cache, hidden_BD, output.features_BSE


def first_state(
    cache: KVCache,
    drafter: Any,
    first_B: jax.Array,
    failed_B: jax.Array,
    prompts: Prompts,
    *,
    rules: DecodeRules,
    round_tokens: int,
    drafted_nodes: int = 0,
) -> DecodeState:
    """The state before the first round: one token emitted, from the prefill.

    Rounds are recorded if they draft (`drafted_nodes` > 0).
    """
    batch, limit = first_B.shape[0], rules.max_new_tokens
    active_B = prompts.active_B
    first_B = jnp.where(failed_B, 0, first_B)
    failed_B = failed_B & active_B
    tokens_BT = jnp.zeros((batch, limit + round_tokens), jnp.int32).at[:, 0].set(first_B)
    rounds_BO = jnp.full((batch, limit), NO_ROUND, jnp.int32) if drafted_nodes else None
    drafted_BX = jnp.full((batch, drafted_nodes), INVALID, jnp.int32) if drafted_nodes else None
    state = DecodeState(
        cache=cache,
        drafter=drafter,
        tokens_BT=tokens_BT,
        count_B=active_B.astype(jnp.int32),
        anchor_B=first_B,
        active_B=active_B & ~failed_B & ~is_stop(first_B, rules) & (limit > 1),
        failed_B=failed_B,
        keys_B=prompts.keys_B,
        rounds_B=jnp.zeros(batch, jnp.int32),
        step=jnp.int32(0),
        draft_passes_B=jnp.zeros(batch, jnp.int32) if drafted_nodes else None,
        accepted_at_X=jnp.zeros(drafted_nodes, jnp.int32) if drafted_nodes else None,
        verified_BO=rounds_BO,
        emitted_BO=rounds_BO,
        slots_BO=rounds_BO,
        drafted_BX=drafted_BX,
    )
    return placed(state)


def is_stop(tokens: jax.Array, rules: DecodeRules) -> jax.Array:
    """Whether each token ends a response."""
    if not rules.stop_ids:
        return jnp.zeros(tokens.shape, bool)
    return jnp.isin(tokens, jnp.asarray(rules.stop_ids, jnp.int32))


def emit(
    state: DecodeState,
    tokens_BK: jax.Array,
    offered_B: jax.Array,
    failed_B: jax.Array,
    *,
    rules: DecodeRules,
) -> tuple[DecodeState, jax.Array]:
    """Appends a round's tokens, up to the first stop token and the limit.

    Args:
      state: before the round; rows that are not active stay as they are.
      tokens_BK: the round's tokens.
      offered_B: how many of them the round offers (>= 1); the rest is padding.
      failed_B: rows that could not be judged; they end here with nothing appended.
      rules: when a response ends.

    Returns:
      The state with the tokens, counts, anchors and flags of the next round, and emitted_B: how
      many tokens were appended. Caches and records are up to the caller.
    """
    order_K = jnp.arange(tokens_BK.shape[1])
    running_B = state.active_B & ~failed_B
    room_B = rules.max_new_tokens - state.count_B
    stops_BK = is_stop(tokens_BK, rules) & (order_K < offered_B[:, None])
    through_stop_B = jnp.where(
        stops_BK.any(axis=1), jnp.argmax(stops_BK, axis=1).astype(jnp.int32) + 1, offered_B
    )
    emitted_B = jnp.where(running_B, jnp.minimum(through_stop_B, room_B), 0)
    stopped_B = (stops_BK & (order_K < emitted_B[:, None])).any(axis=1)
    append = jax.vmap(lambda row_T, new_K, at: jax.lax.dynamic_update_slice(row_T, new_K, (at,)))
    newest_B = jnp.take_along_axis(tokens_BK, jnp.maximum(emitted_B - 1, 0)[:, None], axis=1)[:, 0]
    state = dataclasses.replace(
        state,
        tokens_BT=append(state.tokens_BT, tokens_BK.astype(jnp.int32), state.count_B),
        count_B=state.count_B + emitted_B,
        anchor_B=jnp.where(emitted_B > 0, newest_B, state.anchor_B),
        active_B=running_B & ~stopped_B & (emitted_B < room_B),
        failed_B=state.failed_B | (state.active_B & failed_B),
        rounds_B=state.rounds_B + state.active_B,
        step=state.step + 1,
    )
    return state, emitted_B


NO_LIMIT = np.iinfo(np.int32).max


def last_step(state: DecodeState, max_rounds: jax.Array | int) -> jax.Array:
    """`DecodeState.step` after at most `max_rounds` more rounds."""
    return jnp.minimum(state.step, NO_LIMIT - max_rounds) + max_rounds


def loop(
    one_round: Callable[[DecodeState], DecodeState],
    state: DecodeState,
    *,
    leave_on_end: jax.Array | bool,
    max_rounds: jax.Array | int,
) -> DecodeState:
    """Runs rounds until all rows have ended, or one has (`leave_on_end`), or after `max_rounds`.

    Both may be traced, so the loop is compiled once.
    """
    enough = jnp.where(leave_on_end, state.active_B.sum(), 1)
    end = last_step(state, max_rounds)

    def goes_on(state: DecodeState) -> jax.Array:
        active = state.active_B.sum()
        return (active > 0) & (active >= enough) & (state.step < end)

    return jax.lax.while_loop(goes_on, lambda state: placed(one_round(state)), placed(state))
