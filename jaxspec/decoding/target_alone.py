"""Speculative decoding while drafting is off: the drafter reads the text a stretch at a time.

With a block of 1 nothing is drafted, but the drafter follows what the target emits, so that it can
draft again. Token by token that costs a pass over some of its weights in every round. A drafter
that a block of 1 leaves as it is (`LateProposer`) can read the tokens of many rounds at once.

Dimension key: B batch rows, O rounds of a stretch, K block slots (here 1), E captured features.

>>> off = TargetAlone(model, proposer, rules, room=16)  # doctest: +SKIP
>>> state = off.run(params, state, max_rounds=64)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxspec.decoding.layout import stack_layers
from jaxspec.decoding.speculative import Plan, Speculative
from jaxspec.decoding.state import NO_LIMIT, DecodeState, emit, last_step, loop, stream_keys
from jaxspec.drafters.protocol import LateProposer
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.precision import exact_program
from jaxspec.ops.sampling import INVALID


@array_dataclass
class Unread:
    """What the drafter has not read yet."""

    tokens_BO: jax.Array
    features_BOE: jax.Array | None
    count_B: jax.Array
    """How many of these tokens each row has emitted; rows that have ended emit none."""
    place_B: jax.Array
    """The next column to fill, the same for all rows."""

    def add(
        self, tokens_BK: jax.Array, features_BKE: jax.Array | None, emitted_B: jax.Array
    ) -> Unread:
        """With the token of one more round, which counts in the rows that emitted one."""

        def put(kept: jax.Array, new: jax.Array) -> jax.Array:
            new = new.astype(kept.dtype)
            return jax.lax.dynamic_update_slice_in_dim(kept, new, self.place_B[0], axis=1)

        features_BOE = self.features_BOE
        if features_BOE is not None:
            assert features_BKE is not None, "captured layers come with features"
            features_BOE = put(features_BOE, features_BKE)
        return Unread(
            put(self.tokens_BO, tokens_BK),
            features_BOE,
            self.count_B + emitted_B,
            self.place_B + 1,
        )


@dataclasses.dataclass(frozen=True)
class TargetAlone(Speculative):
    """`Speculative` with a block of 1 and a `LateProposer`; the output is the same."""

    room: int = 16
    """Rounds after which the drafter reads. Its cache needs as many slots after the text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.proposer.block_size == 1, "with longer blocks there are drafts"
        assert isinstance(self.proposer, LateProposer), "other drafters read in every round"

    @exact_program(donate_argnames=("state",))
    def run(
        self,
        params: Any,
        state: DecodeState,
        *,
        leave_on_end: jax.Array | bool = False,
        max_rounds: jax.Array | int = NO_LIMIT,
    ) -> DecodeState:
        """Decodes to the end (see `jaxspec.decoding.state.loop`) without the host."""
        pieces = self.cut(params)
        end = last_step(state, max_rounds)

        def stretch(before: DecodeState) -> DecodeState:
            after = loop(
                lambda state: self._step(stack_layers(pieces), state),
                dataclasses.replace(before, drafter=self._nothing(before.anchor_B.shape[0])),
                leave_on_end=leave_on_end,
                max_rounds=jnp.minimum(self.room, end - before.step),
            )
            unread: Unread = after.drafter
            read = self.proposer.commit(
                stack_layers(pieces),
                before.drafter,
                unread.tokens_BO,
                unread.features_BOE,
                unread.count_B,
            )
            assert after.draft_passes_B is not None, "a speculative state counts the passes"
            reading = cast(LateProposer, self.proposer).other_passes
            passes_B = jnp.where(unread.count_B > 0, reading, 0)
            return dataclasses.replace(
                _recorded(before, after, unread.count_B),
                drafter=read,
                draft_passes_B=after.draft_passes_B + passes_B,
            )

        return loop(stretch, state, leave_on_end=leave_on_end, max_rounds=max_rounds)

    def _nothing(self, batch: int) -> Unread:
        """What is unread at the beginning of a stretch."""
        config, none_B = self.model.config, jnp.zeros(batch, jnp.int32)
        shape = (batch, self.room, len(self.proposer.capture) * config.hidden_size)
        return Unread(
            tokens_BO=jnp.zeros((batch, self.room), jnp.int32),
            features_BOE=jnp.zeros(shape, config.dtype) if shape[-1] else None,
            count_B=none_B,
            place_B=none_B,
        )

    def _step(self, params: Any, state: DecodeState) -> DecodeState:
        """A round without a draft; its records are made at the end of the stretch."""
        _, keys_B = stream_keys(state.keys_B, state.rounds_B + 1, "draft", "verify")
        draft, unread = self.proposer.propose(params, state.drafter, state.anchor_B, keys_B)
        plan = Plan(state.anchor_B[:, None], unread, draft)
        output, logits_B1V = self.target_pass(params, plan, state.cache)
        verdict = self.verify(keys_B, plan, logits_B1V).verdict
        cache = state.cache.write_after(
            output.keys_LBRSC, output.values_LBRSC, failed_B=verdict.failed_B
        )
        state, emitted_B = emit(
            state,
            verdict.next_token_B[:, None],
            jnp.ones_like(verdict.next_token_B),
            verdict.failed_B,
            rules=self.rules,
        )
        kept = unread.add(plan.rows_BY, output.features_BSE, emitted_B)
        return dataclasses.replace(state, cache=cache.advance(emitted_B), drafter=kept)


def _recorded(before: DecodeState, after: DecodeState, count_B: jax.Array) -> DecodeState:
    """The state after a stretch, with a record of each row's rounds: one token, nothing drafted."""
    assert before.verified_BO is not None, "a speculative state records its rounds"
    assert before.emitted_BO is not None, "a speculative state records its rounds"
    assert before.slots_BO is not None, "a speculative state records its rounds"
    assert before.drafted_BX is not None, "a speculative state holds the newest draft"
    order_O = jnp.arange(before.emitted_BO.shape[1])
    first_B1 = before.rounds_B[:, None]
    took_place_BO = (order_O >= first_B1) & (order_O < first_B1 + count_B[:, None])
    return dataclasses.replace(
        after,
        verified_BO=jnp.where(took_place_BO, 0, before.verified_BO),
        emitted_BO=jnp.where(took_place_BO, 1, before.emitted_BO),
        slots_BO=jnp.where(took_place_BO, 0, before.slots_BO),
        drafted_BX=jnp.where(count_B[:, None] > 0, INVALID, before.drafted_BX),
    )
