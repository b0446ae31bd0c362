"""Speculative decoding while drafting is off: the drafter reads the text a stretch at a time.

With a block of 1 nothing is drafted, but the drafter follows what the target emits, so that it can
draft again. Token by token that costs a pass over some of its weights in every round. A drafter
that a block of 1 leaves as it is (`LateProposer`) can read the tokens of many rounds at once.

Dimension key: B batch rows, O rounds of a stretch, K = 1 block slot, E captured features.

>>> off = TargetAlone(model, proposer, rules, room=16)  # doctest: +SKIP
>>> state = off.run(params, state, max_rounds=64)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxspec.decoding.layout import stack_layers
from jaxspec.decoding.speculative import Speculative
from jaxspec.decoding.state import NO_LIMIT, DecodeState, last_step, loop
from jaxspec.drafters.protocol import Draft, LateProposer, Proposer, no_draft
from jaxspec.models.registry import LanguageModel
from jaxspec.ops.sampling import Sampling


@struct.dataclass
class Unread:
    """What the drafter has not read yet."""

    tokens_BO: jax.Array
    features_BOE: jax.Array | None
    count_B: jax.Array
    """How many of these tokens each row has emitted; rows that have ended emit none."""
    place_B: jax.Array
    """The next column to fill, the same for all rows."""


@dataclasses.dataclass(frozen=True)
class Keeping:
    """A proposer that drafts nothing and keeps what `proposer` has to read."""

    model: LanguageModel
    proposer: Proposer
    room: int
    block_size: int = 1

    @property
    def capture(self) -> tuple[int, ...]:
        """As the drafter's."""
        return self.proposer.capture

    @property
    def unroll_layers(self) -> bool:
        """As the drafter's."""
        return self.proposer.unroll_layers

    @property
    def sampling(self) -> Sampling:
        """As the drafter's."""
        return self.proposer.sampling

    def nothing(self, batch: int) -> Unread:
        """The state at the beginning of a stretch."""
        config = self.model.config
        features = len(self.capture) * config.hidden_size
        none_B = jnp.zeros(batch, jnp.int32)
        return Unread(
            tokens_BO=jnp.zeros((batch, self.room), jnp.int32),
            features_BOE=(
                jnp.zeros((batch, self.room, features), config.dtype) if features else None
            ),
            count_B=none_B,
            place_B=none_B,
        )

    def begin(self, *_: Any, **__: Any) -> Any:
        """Never called: a stretch begins with `nothing`."""
        raise AssertionError("a stretch begins with nothing to read")

    def propose(
        self, params: Any, state: Unread, anchor_B: jax.Array, keys_B: jax.Array
    ) -> tuple[Draft, Unread]:
        """Nothing."""
        del params, keys_B
        vocabulary = self.model.config.vocab_size
        return no_draft(anchor_B.shape[0], vocabulary, sampling=self.sampling), state

    def commit(
        self,
        params: Any,
        state: Unread,
        tokens_BK: jax.Array,
        features_BKE: jax.Array | None,
        count_B: jax.Array,
    ) -> Unread:
        """Keeps the round's token and its features."""
        del params

        def put(kept: jax.Array, new: jax.Array) -> jax.Array:
            new = new.astype(kept.dtype)
            return jax.lax.dynamic_update_slice_in_dim(kept, new, state.place_B[0], axis=1)

        features_BOE = state.features_BOE
        if features_BOE is not None:
            assert features_BKE is not None, "captured layers come with features"
            features_BOE = put(features_BOE, features_BKE)
        return Unread(
            put(state.tokens_BO, tokens_BK),
            features_BOE,
            state.count_B + count_B,
            state.place_B + 1,
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

    @functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
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
        keeping = Keeping(self.model, self.proposer, self.room)
        one_by_one = Speculative(
            self.model, keeping, self.rules, verifier=self.verifier, sampling=self.sampling
        )
        end = last_step(state, max_rounds)

        def stretch(state: DecodeState) -> DecodeState:
            drafter = state.drafter
            after = loop(
                lambda state: one_by_one.round(stack_layers(pieces), state),
                dataclasses.replace(state, drafter=keeping.nothing(state.anchor_B.shape[0])),
                leave_on_end=leave_on_end,
                max_rounds=jnp.minimum(self.room, end - state.step),
            )
            unread: Unread = after.drafter
            read = self.proposer.commit(
                stack_layers(pieces), drafter, unread.tokens_BO, unread.features_BOE, unread.count_B
            )
            return dataclasses.replace(after, drafter=read)

        return loop(stretch, state, leave_on_end=leave_on_end, max_rounds=max_rounds)
