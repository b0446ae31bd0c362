"""What decoding asks of a drafter: begin, propose, commit.

A proposer is a small frozen dataclass, hashable, so that it can be a static argument of a jitted
loop. Whatever changes while it drafts is a pytree that it defines and the loop carries. Arrays in
that state have the batch as their first axis (except those of a `KVCache`), so that a row can be
refilled. Drafters that read hidden states name the target's layers in `capture`; others leave it
empty.

Dimension key: B batch rows, S prompt tokens, K block slots, G = K - 1 drafted slots, V vocabulary,
E captured features, A chains.

>>> proposer = DFlashProposer(target=model, drafter=drafter, block_size=8)  # doctest: +SKIP
>>> state = proposer.begin(  # doctest: +SKIP
...     params, tokens_BS, features_BSE, lengths_B, capacity=128
... )
>>> draft, state = proposer.propose(params, state, anchor_B, keys_B)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.sampling import Sampling, largest_index


@array_dataclass
class Draft:
    """One proposed block for every row."""

    tokens_BG: jax.Array
    """int32; INVALID (-1) where there was nothing to draw from: verification fails such a row."""
    probs_BGV: jax.Array | None
    """The distribution that each token was drawn from, exactly as sampled; None: the draft is
    judged as a point mass, as deterministic ones are."""
    passes_B: jax.Array | None = None
    """int32, forward passes that the drafter took for this round; None: one."""


def draw(keys_B: jax.Array, logits_BGV: jax.Array, *, sampling: Sampling) -> Draft:
    """Drafts each slot from its own logits, with one key per row; INVALID where they are NaN."""
    if sampling.greedy:
        return Draft(largest_index(logits_BGV), None)
    # Tokens are drawn from exactly the array that the verifier receives: any difference between the
    # two (a dtype, a temperature) would bias the output.
    probs_BGV = sampling.probabilities(logits_BGV)
    return Draft(jax.vmap(sampling.sample)(keys_B, probs_BGV), probs_BGV)


def no_draft(batch: int, vocabulary: int, *, sampling: Sampling, passes: int = 0) -> Draft:
    """A draft of no slots (G = 0); `passes` of the drafter only read what was emitted."""
    logits_B0V = jnp.zeros((batch, 0, vocabulary))
    probs_B0V = None if sampling.greedy else logits_B0V
    passes_B = jnp.full(batch, passes, jnp.int32)
    return Draft(jnp.zeros((batch, 0), jnp.int32), probs_B0V, passes_B)


class Proposer(Protocol):
    """A drafter as decoding sees it. Every method is traced inside a jitted loop."""

    @property
    def block_size(self) -> int:
        """K: the anchor and what is drafted after it.

        With 1 nothing is drafted: the drafter only reads what is emitted.
        """

    @property
    def capture(self) -> tuple[int, ...]:
        """Target layers whose outputs `begin` and `commit` want."""

    @property
    def unroll_layers(self) -> bool:
        """Whether its parameters under "layers" are used one by one instead of scanned."""

    @property
    def sampling(self) -> Sampling:
        """How drafts are drawn. Greedy drafts are deterministic and come without probabilities."""

    def begin(
        self,
        params: Any,
        tokens_BS: jax.Array,
        features_BSE: jax.Array | None,
        lengths_B: jax.Array,
        *,
        capacity: int,
    ) -> Any:
        """State after the prompt (right-padded rows), with room for `capacity` positions."""

    def propose(
        self, params: Any, state: Any, anchor_B: jax.Array, keys_B: jax.Array
    ) -> tuple[Draft, Any]:
        """Tokens for the G positions after the anchor, which is not in the state yet.

        `keys_B` has one key per row, so that a row's draft does not depend on its neighbours. The
        returned state may hold what drafting wrote, but nothing is committed.
        """

    def commit(
        self,
        params: Any,
        state: Any,
        tokens_BK: jax.Array,
        features_BKE: jax.Array | None,
        count_B: jax.Array,
    ) -> Any:
        """State after the first `count_B` tokens of the block [anchor, draft] were emitted."""


@runtime_checkable
class MarginalProposer(Proposer, Protocol):
    """A drafter that gives the distribution of every slot at once, as trees of drafts need it."""

    @property
    def marginal_passes(self) -> int:
        """Forward passes that a round takes when it is drafted from these distributions."""

    def marginal_logits(self, params: Any, state: Any, anchor_B: jax.Array) -> jax.Array:
        """Logits of the G slots after the anchor, [B, G, V]."""


@runtime_checkable
class ChainProposer(Proposer, Protocol):
    """A drafter without a model that gives several deterministic continuations at once."""

    def chains(self, params: Any, state: Any, anchor_B: jax.Array, *, num_chains: int) -> jax.Array:
        """Continuations of the anchor, best first, int32 [B, A, G]; equal ones count once."""


@runtime_checkable
class LateProposer(Proposer, Protocol):
    """A drafter that with a block of 1 only reads, in `commit`, and as many tokens as it is given.

    The tokens of several rounds may then be committed together.
    """

    @property
    def commits_late(self) -> bool:
        """True."""

    @property
    def other_passes(self) -> int:
        """Forward passes that a commit takes; 0 where it is less than a pass."""
