"""Spiffy: drafted states of the current block, verified in the pass that is made anyway.

Spiffy (arXiv 2509.18085) speculates with the diffusion model itself. After each pass the formulas
of a draft graph (`jaxspec.decoding.draft_graph`) are filled from the distribution that the pass
gave; the next pass reads the present state and all drafted ones (`BlockModel.state_logits`). A step
is then taken from the present state's logits. If one of the drafts is exactly the state that it led
to, that draft's logits are what the next pass would have given: another step is taken from them,
and so on. Every step beyond the first saves a pass.

No probabilities are compared. With a cached context (dual, or a block-causal model) a draft's
logits are those of the base decoder, so at any temperature the output is the base decoder's: the
unmasking rule is replayed with the same random numbers. Without a cache or with the prefix cache
that holds in "batch" layout alone; in "mask" layout the surroundings have seen the real block, and
the output is close to the base decoder's but not the same.

Dimension key: B rows, D drafts, N = 1 + D states, L positions of a block, I ranked positions,
J ranked tokens, V vocabulary.

>>> decoder = Spiffy(BidirectionalTransformer(config), rules, graph=chain(5))
>>> state = decoder.run(params, decoder.start(prompts))
>>> passes_saved_BN = state.steps_BN - state.passes_BN
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.decoding.block_model import Layout
from jaxspec.decoding.diffusion import BlockDiffusion, DiffusionState
from jaxspec.decoding.draft_graph import DraftGraph
from jaxspec.decoding.unmasking import ranked


class Drafts(NamedTuple):
    """Filled formulas."""

    states_BDL: jax.Array
    """Tokens of the block, masks among them."""
    valid_BD: jax.Array
    """False where a formula names more positions than there are masks."""


def fill_formulas(
    graph: DraftGraph, logits_BLV: jax.Array, block_BL: jax.Array, masked_BL: jax.Array
) -> Drafts:
    """Drafted states of a block, from the distribution that led to it.

    Args:
      graph: the formulas.
      logits_BLV: of the pass before; tokens that are never revealed have -inf
        (`Unmasker.clean_logits`).
      block_BL: the block as it is now.
      masked_BL: positions that are still to be revealed.

    Returns:
      `Drafts`. Equal probabilities are ranked from the left, and by the smaller id.
    """
    # float32 all through: as in the confidences of `Unmasker`.
    confidence_BL = jnp.exp(logits_BLV.max(axis=-1) - jax.nn.logsumexp(logits_BLV, axis=-1))
    rank_BL, _ = ranked(jnp.where(masked_BL, confidence_BL, -jnp.inf))
    wanted = min(graph.num_positions, block_BL.shape[1])
    at_BIL = rank_BL[:, None] == jnp.arange(wanted)[:, None]
    rows_BI = jnp.argmax(at_BIL, axis=-1)
    rows_BIV = jnp.take_along_axis(logits_BLV, rows_BI[..., None], axis=1)
    tokens_BIJ = _largest(rows_BIV, graph.num_tokens)

    table_DI = graph.token_ranks()
    count_B = masked_BL.sum(axis=1)
    needed_D = np.array([1 + max(i for i, _ in node.pairs) for node in graph.nodes])
    valid_BD = jnp.asarray(needed_D) <= count_B[:, None]
    used_DI = table_DI[:, :wanted] >= 0
    filled_BDI = jnp.take_along_axis(
        tokens_BIJ[:, None], jnp.asarray(np.maximum(table_DI[:, :wanted], 0))[None, ..., None], -1
    )[..., 0]
    # By position: each is named by one rank at most.
    here_BDIL = at_BIL[:, None] & used_DI[:, :, None]
    token_BDL = jnp.where(here_BDIL, filled_BDI[..., None], 0).sum(axis=2)
    states_BDL = jnp.where(here_BDIL.any(axis=2), token_BDL, block_BL[:, None])
    return Drafts(states_BDL.astype(block_BL.dtype), valid_BD)


def _largest(logits_BIV: jax.Array, count: int) -> jax.Array:
    """The ids of the largest logits, falling, [B, I, count]; `count` passes over them, no sort."""
    found = []
    for _ in range(count):
        best_BI = jnp.argmax(logits_BIV, axis=-1)
        found.append(best_BI)
        taken_BIV = jnp.arange(logits_BIV.shape[-1]) == best_BI[..., None]
        logits_BIV = jnp.where(taken_BIV, -jnp.inf, logits_BIV)
    return jnp.stack(found, axis=-1)


@dataclasses.dataclass(frozen=True)
class Spiffy(BlockDiffusion):
    """`BlockDiffusion` with drafted states; its rules are those of the base decoder.

    Raises:
      ValueError: a graph with more ranks of tokens than the vocabulary has.
    """

    graph: DraftGraph = dataclasses.field(default_factory=DraftGraph)
    """Empty: plain decoding."""
    layout: Layout = "mask"
    """How several states go through the model; see `jaxspec.decoding.block_model`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in ("mask", "batch"):
            raise ValueError(f"layout must be 'mask' or 'batch': got {self.layout!r}.")
        banned = len({self.rules.mask_id, *self.rules.suppressed_ids})
        if self.graph.num_tokens > self.model.config.vocab_size - banned:
            raise ValueError(
                f"The graph drafts the {self.graph.num_tokens} likeliest tokens of a position: "
                f"more than the vocabulary of {self.model.config.vocab_size} has to reveal."
            )

    def fill_block(self, params: Any, state: DiffusionState, *, reach: int) -> DiffusionState:
        """Denoises the next block of every active row."""
        if not self.graph.size:
            return super().fill_block(params, state, reach=reach)
        state = self.begin_block(state)
        context, block_model = self.context(state), self.block_model
        # The block's first pass has no distribution before it to draft from.
        if self.rules.caching == "none":
            logits_BLV = block_model.block_logits(params, self.block_tokens(state), context)
        else:
            logits_BLV, context = block_model.open(params, context)
        state = self.reveal(self.count_pass(state), logits_BLV)

        def one_pass(carry: tuple[DiffusionState, Drafts]) -> tuple[DiffusionState, Drafts]:
            state, drafts = carry
            real_B1L = self.block_tokens(state)[:, None]
            logits_BNLV = block_model.state_logits(
                params,
                jnp.concatenate([real_B1L, drafts.states_BDL], axis=1),
                context,
                reach=reach,
                layout=self.layout,
            )
            state, logits_BLV = self.follow(self.count_pass(state), drafts, logits_BNLV)
            return state, self.draft(state, logits_BLV)

        carry = (state, self.draft(state, logits_BLV))
        state, _ = jax.lax.while_loop(lambda carry: self.masked(carry[0]).any(), one_pass, carry)
        return self.end_block(state)

    def draft(self, state: DiffusionState, logits_BLV: jax.Array) -> Drafts:
        """The formulas filled with the logits that led to `state`."""
        logits_BLV = self.unmasker.clean_logits(logits_BLV)
        return fill_formulas(self.graph, logits_BLV, self.block_tokens(state), self.masked(state))

    def follow(
        self, state: DiffusionState, drafts: Drafts, logits_BNLV: jax.Array
    ) -> tuple[DiffusionState, jax.Array]:
        """Steps for as long as each leads to a state whose logits are there.

        Returns:
          The state behind the last step, and the logits that step was taken from.
        """

        def logits_at(at_B: jax.Array) -> jax.Array:
            return jnp.take_along_axis(logits_BNLV, at_B[:, None, None, None], axis=1)[:, 0]

        def step(
            carry: tuple[DiffusionState, jax.Array, jax.Array],
        ) -> tuple[DiffusionState, jax.Array, jax.Array]:
            state, at_B, going_B = carry
            state = self.reveal(state, logits_at(at_B), rows_B=going_B)
            same_BD = (drafts.states_BDL == self.block_tokens(state)[:, None]).all(axis=-1)
            same_BD &= drafts.valid_BD
            going_B = going_B & same_BD.any(axis=1) & self.masked(state).any(axis=1)
            return state, jnp.where(going_B, 1 + jnp.argmax(same_BD, axis=1), at_B), going_B

        start_B = jnp.zeros(state.active_B.shape, jnp.int32)
        going_B = self.masked(state).any(axis=1)
        state, at_B, _ = jax.lax.while_loop(
            lambda carry: carry[2].any(), step, (state, start_B, going_B)
        )
        return state, logits_at(at_B)
