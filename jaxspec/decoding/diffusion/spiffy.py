"""Spiffy: drafted states of the current block, verified in the pass that is made anyway.

Spiffy (arXiv 2509.18085) speculates with the diffusion model itself. After each pass the formulas
of a draft graph (`draft_graph`) are filled from the distribution that the pass gave, and the next
pass reads the present state and all drafted ones (`BlockModel.state_logits`). A step is then taken
from the present state's logits. If one of the drafts is exactly the state that the step leads to,
its logits are those that the next pass would have given: another step is taken from them, and so
on. Every step after the first saves a pass.

No probabilities are compared. With a cached context (dual, or a block-causal model) a draft's
logits are those of the base decoder, so the output is the base decoder's at any temperature: the
unmasking rule is replayed with the same random numbers. Without a cache, or with the prefix cache,
this is true only in "batch" layout. In "mask" layout the surroundings have seen the real block, and
the output is close to the base decoder's but not the same.

From a large graph, every pass can choose its most promising nodes (`prune`), so that it reads
fewer states than the graph has.

Dimension key: B batch rows, X nodes (drafted states), Y = X + 1 states that are read (the present
one first), P positions of a block, I rows asked for (the ranked positions), J candidates (the
ranked tokens), V vocabulary.

>>> decoder = Spiffy(model, rules, graph=chain(5))  # doctest: +SKIP
>>> state = decoder.run(params, decoder.start(prompts))  # doctest: +SKIP
>>> passes_saved_BN = state.steps_BN - state.passes_BN  # doctest: +SKIP
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
from jaxspec.decoding.diffusion.unmasking import Unmasker, ranked
from jaxspec.ops.sampling import largest_index


class Drafts(NamedTuple):
    """Formulas with their tokens filled in."""

    states_BXP: jax.Array
    """Tokens of the block, masks included."""
    valid_BX: jax.Array
    """False where a formula names a position that is not a mask, and where it fills the block:
    nothing would be read from it."""
    score_BX: jax.Array
    """log of the geometric mean of the probabilities of the tokens that the formula names."""


def fill_formulas(
    graph: DraftGraph,
    logits_BPV: jax.Array,
    block_BP: jax.Array,
    masked_BP: jax.Array,
    *,
    unmasker: Unmasker,
) -> Drafts:
    """Drafted states of a block, from the distribution that led to it.

    Args:
      graph: the formulas.
      logits_BPV: of the previous pass; tokens that are never revealed have -inf
        (`Unmasker.clean_logits`).
      block_BP: the block as it is now.
      masked_BP: positions that are still to be revealed.
      unmasker: says how sure a candidate is.

    Returns:
      `Drafts`. Equal probabilities are ranked from the left, and by the smaller id.
    """
    ranking = rank_masks(graph, logits_BPV, masked_BP, unmasker=unmasker)
    return fill_ranked(graph, ranking, block_BP, masked_BP)


class Ranking(NamedTuple):
    """The likeliest tokens of the surest masks."""

    at_BIP: jax.Array
    """Whether a position is the mask of that rank."""
    tokens_BIJ: jax.Array
    log_p_BIJ: jax.Array


def rank_masks(
    graph: DraftGraph, logits_BPV: jax.Array, masked_BP: jax.Array, *, unmasker: Unmasker
) -> Ranking:
    """Ranks what a graph's formulas may name; see `fill_formulas`."""
    # float32 throughout, as in the confidences of `Unmasker`.
    total_BP = jax.nn.logsumexp(logits_BPV, axis=-1)
    confidence_BP = unmasker.best_confidence(logits_BPV)
    rank_BP, _ = ranked(jnp.where(masked_BP, confidence_BP, -jnp.inf))
    wanted = min(graph.num_positions, masked_BP.shape[1])
    at_BIP = rank_BP[:, None] == jnp.arange(wanted)[:, None]
    rows_BI = jnp.argmax(at_BIP, axis=-1)
    rows_BIV = jnp.take_along_axis(logits_BPV, rows_BI[..., None], axis=1)
    tokens_BIJ, largest_BIJ = _largest(rows_BIV, graph.num_tokens)
    log_p_BIJ = largest_BIJ - jnp.take_along_axis(total_BP, rows_BI, axis=1)[..., None]
    return Ranking(at_BIP, tokens_BIJ, log_p_BIJ)


def fill_ranked(
    graph: DraftGraph, ranking: Ranking, block_BP: jax.Array, masked_BP: jax.Array
) -> Drafts:
    """The second half of `fill_formulas`, after the ranking."""
    at_BIP, tokens_BIJ, log_p_BIJ = ranking
    wanted = at_BIP.shape[1]
    table_XI = graph.token_ranks()
    count_B = masked_BP.sum(axis=1)
    # One mask has to be left over, and there has to be one of the last rank.
    needed_X = np.array(
        [1 + max(len(node.pairs), *(i for i, _ in node.pairs)) for node in graph.nodes]
    )
    valid_BX = jnp.asarray(needed_X) <= count_B[:, None]
    used_XI = table_XI[:, :wanted] >= 0
    ranks_1XI1 = jnp.asarray(np.maximum(table_XI[:, :wanted], 0))[None, ..., None]
    filled_BXI = jnp.take_along_axis(tokens_BIJ[:, None], ranks_1XI1, -1)[..., 0]
    log_p_BXI = jnp.take_along_axis(log_p_BIJ[:, None], ranks_1XI1, -1)[..., 0]
    named_X = jnp.asarray(np.maximum(used_XI.sum(axis=1), 1))
    score_BX = jnp.where(used_XI, log_p_BXI, 0).sum(axis=2) / named_X
    # By position: each is named by at most one rank.
    here_BXIP = at_BIP[:, None] & used_XI[:, :, None]
    token_BXP = jnp.where(here_BXIP, filled_BXI[..., None], 0).sum(axis=2)
    states_BXP = jnp.where(here_BXIP.any(axis=2), token_BXP, block_BP[:, None])
    return Drafts(states_BXP.astype(block_BP.dtype), valid_BX, score_BX)


def prune(graph: DraftGraph, drafts: Drafts, *, kept: int) -> Drafts:
    """The `kept` most promising drafts of each row.

    A node is worth the geometric mean of its own score and its children's. Nodes are taken one by
    one: always the best of those that the present state or a node already taken leads to, so that
    no draft is read that could not be reached. Of equal ones the first is taken.

    Args:
      graph: whose nodes the drafts are.
      drafts: of all nodes.
      kept: how many to take, at most the graph's size.

    Returns:
      `Drafts` of `kept` nodes; not valid where a row has fewer.
    """
    numbers = range(graph.size)
    leads_XX = np.array([[n in node.parents for n in numbers] for node in graph.nodes])
    first_X = np.array([PRESENT in node.parents for node in graph.nodes])
    family_XX = leads_XX.T | np.eye(graph.size, dtype=bool)
    # A child that cannot be filled in says nothing about its parent.
    family_BXX = family_XX & drafts.valid_BX[:, None]
    total_BX = jnp.where(family_BXX, drafts.score_BX[:, None], 0).sum(axis=2)
    worth_BX = total_BX / jnp.maximum(family_BXX.sum(axis=2), 1)
    # -inf marks what cannot be taken.
    worth_BX = jnp.maximum(worth_BX, jnp.finfo(worth_BX.dtype).min)
    taken_BX = jnp.zeros(drafts.valid_BX.shape, bool)
    chosen, found = [], []
    for _ in range(kept):
        reached_BX = jnp.any(taken_BX[:, None] & leads_XX, axis=2) | first_X
        open_BX = drafts.valid_BX & ~taken_BX & reached_BX
        best_B = jnp.argmax(jnp.where(open_BX, worth_BX, -jnp.inf), axis=1)
        any_B = open_BX.any(axis=1)
        taken_BX |= (jnp.arange(graph.size) == best_B[:, None]) & any_B[:, None]
        chosen.append(best_B)
        found.append(any_B)
    chosen_BA = jnp.stack(chosen, axis=1)
    return Drafts(
        jnp.take_along_axis(drafts.states_BXP, chosen_BA[..., None], axis=1),
        jnp.stack(found, axis=1),
        jnp.take_along_axis(drafts.score_BX, chosen_BA, axis=1),
    )


def _largest(logits_BIV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Ids and values of the largest logits, falling: [B, I, count]. `count` passes, no sort."""
    found, values = [], []
    for _ in range(count):
        # A row with NaN has no largest logit; it fails as soon as its step is taken.
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
      ValueError: a graph with more ranks of tokens than the vocabulary has tokens, or a negative
        number of drafts.
    """

    graph: DraftGraph = dataclasses.field(default_factory=DraftGraph)
    """Empty graph: plain decoding."""
    layout: Layout = "mask"
    """How several states go through the model; see `block_model`."""
    kept: int = 0
    """D* of the paper: how many nodes are drafted per pass, the most promising ones; 0: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in ("mask", "batch"):
            raise ValueError(f"layout must be 'mask' or 'batch': got {self.layout!r}.")
        if self.kept < 0:
            raise ValueError(f"kept must be 0 (all drafts) or positive: got {self.kept}.")
        banned = len({self.rules.mask_id, *self.rules.suppressed_ids})
        if self.graph.num_tokens > self.model.config.vocab_size - banned:
            raise ValueError(
                f"The graph drafts the {self.graph.num_tokens} likeliest tokens of a position: "
                f"more than the vocabulary of {self.model.config.vocab_size} has to reveal."
            )

    @property
    def num_drafts(self) -> int:
        """Drafted states per pass."""
        return min(self.kept or self.graph.size, self.graph.size)

    def fill_block(self, params: Any, state: DiffusionState, *, reach: int) -> DiffusionState:
        """Denoises the next block of every active row."""
        if not self.graph.size:
            return super().fill_block(params, state, reach=reach)
        state = self.begin_block(state)
        # Before the block's first pass there is no distribution to draft from.
        logits_BPV, context, state = self.open_block(params, state)
        state = self.reveal(state, logits_BPV)

        def one_pass(carry: tuple[DiffusionState, Drafts]) -> tuple[DiffusionState, Drafts]:
            return self.one_pass(params, *carry, context, reach=reach)

        carry = (state, self.draft(state, logits_BPV))
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
        """Reads the states, takes steps, and drafts again."""
        logits_BYPV = self.read(params, state, drafts, context, reach=reach)
        state, logits_BPV = self.follow(self.count_pass(state), drafts, logits_BYPV)
        return state, self.draft(state, logits_BPV)

    def read(
        self,
        params: Any,
        state: DiffusionState,
        drafts: Drafts,
        context: BlockContext,
        *,
        reach: int,
    ) -> jax.Array:
        """The pass: logits of the present state and the drafts, [B, Y, P, V]."""
        real_B1P = self.block_tokens(state)[:, None]
        return self.block_model.state_logits(
            params,
            jnp.concatenate([real_B1P, drafts.states_BXP], axis=1),
            context,
            reach=reach,
            layout=self.layout,
        )

    def draft(self, state: DiffusionState, logits_BPV: jax.Array) -> Drafts:
        """The formulas filled with the logits that led to `state`."""
        logits_BPV = self.unmasker.clean_logits(logits_BPV)
        drafts = fill_formulas(
            self.graph,
            logits_BPV,
            self.block_tokens(state),
            self.masked(state),
            unmasker=self.unmasker,
        )
        if self.num_drafts == self.graph.size:
            return drafts
        return prune(self.graph, drafts, kept=self.num_drafts)

    def follow(
        self, state: DiffusionState, drafts: Drafts, logits_BYPV: jax.Array
    ) -> tuple[DiffusionState, jax.Array]:
        """Takes steps for as long as each leads to a state whose logits are known.

        Returns:
          The state after the last step, and the logits from which that step was taken.
        """

        def step(
            carry: tuple[DiffusionState, jax.Array, jax.Array],
        ) -> tuple[DiffusionState, jax.Array, jax.Array]:
            state, at_B, going_B = carry
            state = self.reveal(state, logits_of(logits_BYPV, at_B), rows_B=going_B)
            same_BX = self.drafted(state, drafts)
            going_B = going_B & same_BX.any(axis=1) & self.masked(state).any(axis=1)
            return state, jnp.where(going_B, 1 + jnp.argmax(same_BX, axis=1), at_B), going_B

        start_B = jnp.zeros(state.active_B.shape, jnp.int32)
        going_B = self.masked(state).any(axis=1)
        state, at_B, _ = jax.lax.while_loop(
            lambda carry: carry[2].any(), step, (state, start_B, going_B)
        )
        return state, logits_of(logits_BYPV, at_B)

    def drafted(self, state: DiffusionState, drafts: Drafts) -> jax.Array:
        """Which drafts equal the block as it is now: bool [B, X]."""
        same_BX = (drafts.states_BXP == self.block_tokens(state)[:, None]).all(axis=-1)
        return same_BX & drafts.valid_BX


def logits_of(logits_BYPV: jax.Array, at_B: jax.Array) -> jax.Array:
    """The logits of one state of each row, [B, P, V]."""
    return jnp.take_along_axis(logits_BYPV, at_B[:, None, None, None], axis=1)[:, 0]
