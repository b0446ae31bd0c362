"""Spiffy: drafted states of the current block, verified in the pass that is made anyway.

Spiffy (arXiv 2509.18085) speculates with the diffusion model itself. After each pass the formulas
of a draft graph (`draft_graph`) are filled from the distribution that the pass
gave; the next pass reads the present state and all drafted ones (`BlockModel.state_logits`). A step
is then taken from the present state's logits. If one of the drafts is exactly the state that it led
to, that draft's logits are what the next pass would have given: another step is taken from them,
and so on. Every step beyond the first saves a pass.

No probabilities are compared. With a cached context (dual, or a block-causal model) a draft's
logits are those of the base decoder, so at any temperature the output is the base decoder's: the
unmasking rule is replayed with the same random numbers. Without a cache or with the prefix cache
that holds in "batch" layout alone; in "mask" layout the surroundings have seen the real block, and
the output is close to the base decoder's but not the same.

Of a large graph the most promising nodes can be chosen anew in every pass (`prune`), so that a
pass reads fewer states than the graph has.

Dimension key: B rows, D drafts (of which M are kept), N states (the drafts and the present one),
L positions of a block, I ranked positions, J ranked tokens, V vocabulary.

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

from jaxspec.decoding.diffusion.block_model import BlockContext, Layout
from jaxspec.decoding.diffusion.decoder import BlockDiffusion, DiffusionState
from jaxspec.decoding.diffusion.draft_graph import PRESENT, DraftGraph
from jaxspec.decoding.diffusion.unmasking import ranked
from jaxspec.ops.sampling import largest_index


class Drafts(NamedTuple):
    """Filled formulas."""

    states_BDL: jax.Array
    """Tokens of the block, masks among them."""
    valid_BD: jax.Array
    """False where a formula names a position that is no mask, and where it fills the block: nothing
    would be read of it."""
    score_BD: jax.Array
    """log of the geometric mean of the probabilities of the tokens that a formula names."""


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
    ranking = rank_masks(graph, logits_BLV, masked_BL)
    return fill_ranked(graph, ranking, block_BL, masked_BL)


class Ranking(NamedTuple):
    """The likeliest tokens of the surest masks."""

    at_BIL: jax.Array
    """Whether a position is the mask of that rank."""
    tokens_BIJ: jax.Array
    log_p_BIJ: jax.Array


def rank_masks(graph: DraftGraph, logits_BLV: jax.Array, masked_BL: jax.Array) -> Ranking:
    """Sorts what a graph's formulas may name; see `fill_formulas`."""
    # float32 all through: as in the confidences of `Unmasker`.
    total_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    confidence_BL = jnp.exp(logits_BLV.max(axis=-1) - total_BL)
    rank_BL, _ = ranked(jnp.where(masked_BL, confidence_BL, -jnp.inf))
    wanted = min(graph.num_positions, masked_BL.shape[1])
    at_BIL = rank_BL[:, None] == jnp.arange(wanted)[:, None]
    rows_BI = jnp.argmax(at_BIL, axis=-1)
    rows_BIV = jnp.take_along_axis(logits_BLV, rows_BI[..., None], axis=1)
    tokens_BIJ, largest_BIJ = _largest(rows_BIV, graph.num_tokens)
    log_p_BIJ = largest_BIJ - jnp.take_along_axis(total_BL, rows_BI, axis=1)[..., None]
    return Ranking(at_BIL, tokens_BIJ, log_p_BIJ)


def fill_ranked(
    graph: DraftGraph, ranking: Ranking, block_BL: jax.Array, masked_BL: jax.Array
) -> Drafts:
    """`fill_formulas`, what is behind the sorting."""
    at_BIL, tokens_BIJ, log_p_BIJ = ranking
    wanted = at_BIL.shape[1]
    table_DI = graph.token_ranks()
    count_B = masked_BL.sum(axis=1)
    # One mask has to be left, and there has to be one of the last rank.
    needed_D = np.array(
        [1 + max(len(node.pairs), *(i for i, _ in node.pairs)) for node in graph.nodes]
    )
    valid_BD = jnp.asarray(needed_D) <= count_B[:, None]
    used_DI = table_DI[:, :wanted] >= 0
    ranks_1DI1 = jnp.asarray(np.maximum(table_DI[:, :wanted], 0))[None, ..., None]
    filled_BDI = jnp.take_along_axis(tokens_BIJ[:, None], ranks_1DI1, -1)[..., 0]
    log_p_BDI = jnp.take_along_axis(log_p_BIJ[:, None], ranks_1DI1, -1)[..., 0]
    named_D = jnp.asarray(np.maximum(used_DI.sum(axis=1), 1))
    score_BD = jnp.where(used_DI, log_p_BDI, 0).sum(axis=2) / named_D
    # By position: each is named by one rank at most.
    here_BDIL = at_BIL[:, None] & used_DI[:, :, None]
    token_BDL = jnp.where(here_BDIL, filled_BDI[..., None], 0).sum(axis=2)
    states_BDL = jnp.where(here_BDIL.any(axis=2), token_BDL, block_BL[:, None])
    return Drafts(states_BDL.astype(block_BL.dtype), valid_BD, score_BD)


def prune(graph: DraftGraph, drafts: Drafts, *, kept: int) -> Drafts:
    """The `kept` most promising drafts of each row.

    A node is worth the geometric mean of its own score and its children's. Taken is, again and
    again, the best one among those that the present state or a node taken before leads to, so that
    no draft is read that could not be reached; of equal ones the first.

    Args:
      graph: whose nodes the drafts are.
      drafts: filled in.
      kept: M, at most the graph's size.

    Returns:
      `Drafts` of M nodes; those that a row has not got are not valid.
    """
    numbers = range(graph.size)
    leads_DD = np.array([[n in node.parents for n in numbers] for node in graph.nodes])
    first_D = np.array([PRESENT in node.parents for node in graph.nodes])
    family_DD = leads_DD.T | np.eye(graph.size, dtype=bool)
    # A child that cannot be filled in says nothing of its parent.
    family_BDD = family_DD & drafts.valid_BD[:, None]
    total_BD = jnp.where(family_BDD, drafts.score_BD[:, None], 0).sum(axis=2)
    worth_BD = total_BD / jnp.maximum(family_BDD.sum(axis=2), 1)
    # -inf is for what cannot be taken.
    worth_BD = jnp.maximum(worth_BD, jnp.finfo(worth_BD.dtype).min)
    taken_BD = jnp.zeros(drafts.valid_BD.shape, bool)
    chosen, found = [], []
    for _ in range(kept):
        reached_BD = jnp.any(taken_BD[:, None] & leads_DD, axis=2) | first_D
        open_BD = drafts.valid_BD & ~taken_BD & reached_BD
        best_B = jnp.argmax(jnp.where(open_BD, worth_BD, -jnp.inf), axis=1)
        any_B = open_BD.any(axis=1)
        taken_BD |= (jnp.arange(graph.size) == best_B[:, None]) & any_B[:, None]
        chosen.append(best_B)
        found.append(any_B)
    chosen_BM = jnp.stack(chosen, axis=1)
    return Drafts(
        jnp.take_along_axis(drafts.states_BDL, chosen_BM[..., None], axis=1),
        jnp.stack(found, axis=1),
        jnp.take_along_axis(drafts.score_BD, chosen_BM, axis=1),
    )


def _largest(logits_BIV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Ids and values of the largest logits, falling, [B, I, count]; `count` passes, no sort."""
    found, values = [], []
    for _ in range(count):
        # A row with NaN has none; it fails as soon as its step is taken.
        best_BI = jnp.maximum(largest_index(logits_BIV), 0)
        found.append(best_BI)
        values.append(logits_BIV.max(axis=-1))
        taken_BIV = jnp.arange(logits_BIV.shape[-1]) == best_BI[..., None]
        logits_BIV = jnp.where(taken_BIV, -jnp.inf, logits_BIV)
    return jnp.stack(found, axis=-1), jnp.stack(values, axis=-1)


@dataclasses.dataclass(frozen=True)
class Spiffy(BlockDiffusion):
    """`BlockDiffusion` with drafted states; its rules are those of the base decoder.

    Raises:
      ValueError: a graph with more ranks of tokens than the vocabulary has, or a negative number of
        drafts.
    """

    graph: DraftGraph = dataclasses.field(default_factory=DraftGraph)
    """Empty: plain decoding."""
    layout: Layout = "mask"
    """How several states go through the model; see `block_model`."""
    kept: int = 0
    """D*: so many nodes of the graph are drafted in a pass, the most promising ones; 0: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in ("mask", "batch"):
            raise ValueError(f"layout must be 'mask' or 'batch': got {self.layout!r}.")
        if self.kept < 0:
            raise ValueError(f"kept must be 0 (all drafts) or more: got {self.kept}.")
        banned = len({self.rules.mask_id, *self.rules.suppressed_ids})
        if self.graph.num_tokens > self.model.config.vocab_size - banned:
            raise ValueError(
                f"The graph drafts the {self.graph.num_tokens} likeliest tokens of a position: "
                f"more than the vocabulary of {self.model.config.vocab_size} has to reveal."
            )

    @property
    def num_drafts(self) -> int:
        """Drafted states of a pass."""
        return min(self.kept or self.graph.size, self.graph.size)

    def fill_block(self, params: Any, state: DiffusionState, *, reach: int) -> DiffusionState:
        """Denoises the next block of every active row."""
        if not self.graph.size:
            return super().fill_block(params, state, reach=reach)
        state = self.begin_block(state)
        # The block's first pass has no distribution before it to draft from.
        logits_BLV, context, state = self.open_block(params, state)
        state = self.reveal(state, logits_BLV)

        def one_pass(carry: tuple[DiffusionState, Drafts]) -> tuple[DiffusionState, Drafts]:
            return self.one_pass(params, *carry, context, reach=reach)

        carry = (state, self.draft(state, logits_BLV))
        state, _ = jax.lax.while_loop(lambda carry: self.masked(carry[0]).any(), one_pass, carry)
        return self.end_block(state)

    def one_pass(
        self,
        params: Any,
        state: DiffusionState,
        drafts: Drafts,
        context: BlockContext,
        *,
        reach: int,
    ) -> tuple[DiffusionState, Drafts]:
        """Reads, takes steps, and drafts anew."""
        logits_BNLV = self.read(params, state, drafts, context, reach=reach)
        state, logits_BLV = self.follow(self.count_pass(state), drafts, logits_BNLV)
        return state, self.draft(state, logits_BLV)

    def read(
        self,
        params: Any,
        state: DiffusionState,
        drafts: Drafts,
        context: BlockContext,
        *,
        reach: int,
    ) -> jax.Array:
        """The pass: logits of the present state and of the drafts, [B, N, L, V]."""
        real_B1L = self.block_tokens(state)[:, None]
        return self.block_model.state_logits(
            params,
            jnp.concatenate([real_B1L, drafts.states_BDL], axis=1),
            context,
            reach=reach,
            layout=self.layout,
        )

    def draft(self, state: DiffusionState, logits_BLV: jax.Array) -> Drafts:
        """The formulas filled with the logits that led to `state`."""
        logits_BLV = self.unmasker.clean_logits(logits_BLV)
        drafts = fill_formulas(self.graph, logits_BLV, self.block_tokens(state), self.masked(state))
        if self.num_drafts == self.graph.size:
            return drafts
        return prune(self.graph, drafts, kept=self.num_drafts)

    def follow(
        self, state: DiffusionState, drafts: Drafts, logits_BNLV: jax.Array
    ) -> tuple[DiffusionState, jax.Array]:
        """Steps for as long as each leads to a state whose logits are there.

        Returns:
          The state behind the last step, and the logits that step was taken from.
        """

        def step(
            carry: tuple[DiffusionState, jax.Array, jax.Array],
        ) -> tuple[DiffusionState, jax.Array, jax.Array]:
            state, at_B, going_B = carry
            state = self.reveal(state, logits_of(logits_BNLV, at_B), rows_B=going_B)
            same_BD = self.drafted(state, drafts)
            going_B = going_B & same_BD.any(axis=1) & self.masked(state).any(axis=1)
            return state, jnp.where(going_B, 1 + jnp.argmax(same_BD, axis=1), at_B), going_B

        start_B = jnp.zeros(state.active_B.shape, jnp.int32)
        going_B = self.masked(state).any(axis=1)
        state, at_B, _ = jax.lax.while_loop(
            lambda carry: carry[2].any(), step, (state, start_B, going_B)
        )
        return state, logits_of(logits_BNLV, at_B)

    def drafted(self, state: DiffusionState, drafts: Drafts) -> jax.Array:
        """Which drafts are the block as it is now, [B, D]."""
        same_BD = (drafts.states_BDL == self.block_tokens(state)[:, None]).all(axis=-1)
        return same_BD & drafts.valid_BD


def logits_of(logits_BNLV: jax.Array, at_B: jax.Array) -> jax.Array:
    """The logits of one state of each row, [B, L, V]."""
    return jnp.take_along_axis(logits_BNLV, at_B[:, None, None, None], axis=1)[:, 0]
