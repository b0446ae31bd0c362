"""Prompt look-up: drafts what followed the same few tokens earlier in the text.

It has no model, so every comparison needs it: only what a trained drafter gains over it is more
than repetition. (Saxena 2023, "Prompt Lookup Decoding".)

Several earlier places can be looked up at once: the continuations are then verified as a tree.

Dimension key: B batch rows, S prompt tokens, T positions of the text, K block slots, G = K - 1
drafted slots, A chains (continuations).

>>> proposer = NGramProposer(block_size=8)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.drafters.kind import DraftedTarget, DrafterKind, DraftSettings
from jaxspec.drafters.protocol import Draft
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.sampling import GREEDY, Sampling


@array_dataclass
class NGramState:
    """The text so far, without the anchor."""

    tokens_BT: jax.Array
    lengths_B: jax.Array


@dataclasses.dataclass(frozen=True)
class NGramProposer:
    """Copies what followed the longest earlier match of the text's end; of equal ones, the latest.

    Drafts are deterministic, for the greedy and the point-mass rule. Parameters under "drafter" are
    ignored.
    """

    block_size: int
    """K: the anchor and what is drafted after it."""
    longest: int = 3
    """Most tokens of a match that count; longer matches are no better."""
    capture: tuple[int, ...] = ()
    unroll_layers: bool = False
    sampling: Sampling = GREEDY

    def begin(
        self,
        params: Any,
        tokens_BS: jax.Array,
        features_BSE: jax.Array | None,
        lengths_B: jax.Array,
        *,
        capacity: int,
    ) -> NGramState:
        """The prompt, with room for `capacity` positions."""
        del params, features_BSE
        padding = ((0, 0), (0, capacity - tokens_BS.shape[1]))
        return NGramState(jnp.pad(tokens_BS, padding), lengths_B)

    def propose(
        self, params: Any, state: NGramState, anchor_B: jax.Array, keys_B: jax.Array
    ) -> tuple[Draft, NGramState]:
        """What followed the best match; without a match, the anchor repeated."""
        del keys_B
        (tokens_BG,) = self.chains(params, state, anchor_B, num_chains=1).swapaxes(0, 1)
        return Draft(tokens_BG, None, jnp.zeros_like(anchor_B)), state

    def chains(
        self, params: Any, state: NGramState, anchor_B: jax.Array, *, num_chains: int
    ) -> jax.Array:
        """What followed the best matches, [B, A, G]: continuations that begin differently.

        Where there are fewer of them, the first is repeated; without a match, the anchor.
        """
        del params
        text_BT = jax.vmap(lambda row, at, token: row.at[at].set(token, mode="drop"))(
            state.tokens_BT, state.lengths_B, anchor_B
        )
        end_B1 = state.lengths_B[:, None]
        matched_BT = self._matched(text_BT, end_B1)
        # The longest match; of equally long ones, the latest.
        score_BT = matched_BT * text_BT.shape[1] + jnp.arange(text_BT.shape[1])
        next_BT = jnp.roll(text_BT, -1, axis=1)
        found: list[jax.Array] = []
        for _ in range(num_chains):
            best_B1 = score_BT.argmax(axis=1, keepdims=True)
            is_match_B1 = jnp.take_along_axis(score_BT, best_B1, axis=1) >= text_BT.shape[1]
            otherwise_BG = found[0] if found else anchor_B[:, None]
            copied_BG = self._copied(text_BT, best_B1, end_B1)
            found.append(jnp.where(is_match_B1, copied_BG, otherwise_BG).astype(jnp.int32))
            taken_B1 = jnp.take_along_axis(next_BT, best_B1, axis=1)
            score_BT = jnp.where(next_BT == taken_B1, 0, score_BT)
        return jnp.stack(found, axis=1)

    def _matched(self, text_BT: jax.Array, end_B1: jax.Array) -> jax.Array:
        """How many tokens up to and including each place equal the last ones of the text."""
        place_T = jnp.arange(text_BT.shape[1])
        matched_BT = jnp.zeros(text_BT.shape, jnp.int32)
        still_BT = place_T < end_B1
        for back in range(self.longest):
            ours_B1 = jnp.take_along_axis(text_BT, jnp.maximum(end_B1 - back, 0), axis=1)
            theirs_BT = jnp.roll(text_BT, back, axis=1)
            still_BT &= (theirs_BT == ours_B1) & (place_T >= back) & (end_B1 >= back)
            matched_BT += still_BT
        return matched_BT

    def _copied(self, text_BT: jax.Array, place_B1: jax.Array, end_B1: jax.Array) -> jax.Array:
        """The G tokens that follow a place.

        A match near the end runs into its own draft: the text repeats from there.
        """
        index_BG = place_B1 + 1 + jnp.arange(self.block_size - 1)
        period_B1 = jnp.maximum(end_B1 - place_B1, 1)
        over_BG = jnp.maximum(index_BG - end_B1, 0)
        index_BG = jnp.where(over_BG > 0, place_B1 + 1 + (over_BG - 1) % period_B1, index_BG)
        return jnp.take_along_axis(text_BT, jnp.minimum(index_BG, text_BT.shape[1] - 1), axis=1)

    def commit(
        self,
        params: Any,
        state: NGramState,
        tokens_BK: jax.Array,
        features_BKE: jax.Array | None,
        count_B: jax.Array,
    ) -> NGramState:
        """Appends the block, of which only the first `count_B` tokens count."""
        del params, features_BKE
        tokens_BT = jax.vmap(
            lambda row, new, at: jax.lax.dynamic_update_slice(row, new.astype(row.dtype), (at,))
        )(state.tokens_BT, tokens_BK, state.lengths_B)
        return NGramState(tokens_BT, state.lengths_B + count_B)


def _proposer(network: None, target: DraftedTarget, settings: DraftSettings) -> NGramProposer:
    del network, target
    return NGramProposer(settings.block_size)


KIND = DrafterKind(proposer=_proposer, block_size=8, gives_rows=False)
