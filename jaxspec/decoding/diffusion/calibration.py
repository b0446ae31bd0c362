"""Calibration of draft graphs: what the next steps did, in ranks, counted over finished responses.

Spiffy (arXiv 2509.18085) chooses its draft graph offline, for a model and a decode setting. A
response is rewound: `rank_steps` goes through its states again and says, for the distribution of
each step, which rank every mask that was left had, and which rank the token had that came to stand
there. From these, `count_formulas` counts the formulas that drafts ought to have had after each
step, one, two and more steps ahead. `select_graph` takes the most useful ones.

Dimension key: B rows, N blocks, S steps of a block (as many as it has positions), L positions of a
block.

>>> state = decoder.run(params, decoder.start(prompts))
>>> counts = count_formulas(rank_steps(decoder, params, state), depth=4)
>>> graph = select_graph(counts, size=10)
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxspec.decoding.diffusion.decoder import (
    NOT_REVEALED,
    BlockDiffusion,
    DiffusionRules,
    DiffusionState,
)
from jaxspec.decoding.diffusion.draft_graph import PRESENT, DraftGraph, Node, Pair
from jaxspec.decoding.diffusion.unmasking import ranked

Formula = tuple[Pair, ...]
Weight = Literal["followed", "accumulated"]


@struct.dataclass
class StepRanks:
    """What each step's distribution said of what came later."""

    revealed_BNL: jax.Array
    """int32, the step at which a position was revealed; `NOT_REVEALED` where none was."""
    positions_BNSL: jax.Array
    """int32, rank of a position among the masks left after the step."""
    tokens_BNSL: jax.Array
    """int32, rank there of the token that came to stand there later. Both have no meaning for
    positions that are not masked any more."""


@functools.partial(jax.jit, static_argnums=0)
def rank_steps(decoder: BlockDiffusion, params: Any, finished: DiffusionState) -> StepRanks:
    """Goes through the states of finished responses again, all steps of a block in one pass each.

    Args:
      decoder: whose responses they are.
      params: the model's parameters.
      finished: what `decoder.run` returned.
    """
    rules, block_model = decoder.rules, decoder.block_model
    columns_T = jnp.arange(finished.tokens_BT.shape[1])
    steps_S = jnp.arange(rules.block_length)

    def one_block(block: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        then = dataclasses.replace(finished, block_B=jnp.full_like(finished.block_B, block))
        columns_BL = decoder.columns(then)
        revealed_BL = jnp.take_along_axis(finished.revealed_BT, columns_BL, axis=1, mode="clip")
        nothing_SBL = jnp.zeros((rules.block_length, *revealed_BL.shape), jnp.int32)
        # No pass for a block that no row came to, or filled in one step.
        ranks = jax.lax.cond(
            (revealed_BL > 0).any(),
            lambda: ranks_of(then, columns_BL, revealed_BL),
            lambda: (nothing_SBL, nothing_SBL),
        )
        return revealed_BL, *ranks

    def ranks_of(
        then: DiffusionState, columns_BL: jax.Array, revealed_BL: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        final_BL = decoder.block_tokens(then)
        # The canvas before the block: it and all behind it are masks, but for the prompt.
        hidden_BT = (columns_T >= columns_BL[:, :1]) & (columns_T >= finished.prompt_B[:, None])
        hidden_BT &= columns_T < finished.prompt_B[:, None] + rules.response_length
        canvas_BT = jnp.where(hidden_BT, rules.mask_id, finished.tokens_BT)
        context = decoder.context(dataclasses.replace(then, tokens_BT=canvas_BT))
        if rules.caching != "none":
            _, context = block_model.open(params, context)

        def one_step(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            nothing_BL = jnp.zeros(revealed_BL.shape, jnp.int32)
            return jax.lax.cond(
                (revealed_BL > step).any(), look, lambda _: (nothing_BL, nothing_BL), step
            )

        def look(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            waiting_BL = revealed_BL >= step
            logits_BLV = block_model.block_logits(
                params,
                jnp.where(waiting_BL, rules.mask_id, final_BL),
                context,
                reach=rules.num_blocks,
            )
            logits_BLV = decoder.unmasker.clean_logits(logits_BLV)
            confidence_BL = jnp.exp(logits_BLV.max(axis=-1) - jax.nn.logsumexp(logits_BLV, axis=-1))
            left_BL = revealed_BL > step
            positions_BL, _ = ranked(jnp.where(left_BL, confidence_BL, -jnp.inf))
            chosen_BL1 = jnp.take_along_axis(logits_BLV, final_BL[..., None], axis=-1)
            smaller_V = jnp.arange(logits_BLV.shape[-1])
            before_BLV = (logits_BLV > chosen_BL1) | (
                (logits_BLV == chosen_BL1) & (smaller_V < final_BL[..., None])
            )
            return positions_BL, before_BLV.sum(axis=-1, dtype=jnp.int32)

        return jax.lax.map(one_step, steps_S)

    revealed_NBL, positions_NSBL, tokens_NSBL = jax.lax.map(one_block, jnp.arange(rules.num_blocks))
    return StepRanks(
        jnp.moveaxis(revealed_NBL, 1, 0),
        jnp.moveaxis(positions_NSBL, 2, 0),
        jnp.moveaxis(tokens_NSBL, 2, 0),
    )


@dataclasses.dataclass(frozen=True)
class FormulaCounts:
    """How often each formula was what a draft ought to have been."""

    ways: Mapping[Formula, Mapping[Formula, int]]
    """By formula: the formulas that were one step before it, and how often each was; () is the
    state itself."""

    @property
    def counts(self) -> dict[Formula, int]:
        """How often each formula was right, whatever was before it."""
        return {formula: sum(before.values()) for formula, before in self.ways.items()}


def count_formulas(
    ranks: StepRanks, *, depth: int, max_position: int = 16, max_token: int = 4
) -> FormulaCounts:
    """Counts formulas over all steps of all blocks.

    Args:
      ranks: of finished responses, on the host or not.
      depth: steps ahead that are looked at.
      max_position: formulas with positions of this rank or above are left out, with what follows.
      max_token: so with the ranks of tokens.

    Raises:
      ValueError: a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth counts steps ahead and must be at least 1: got {depth}.")
    host: StepRanks = jax.device_get(ranks)
    ways: dict[Formula, collections.Counter[Formula]] = collections.defaultdict(collections.Counter)
    for row, block in np.ndindex(host.revealed_BNL.shape[:2]):
        revealed_L = host.revealed_BNL[row, block]
        last = int(revealed_L.max())
        if last == NOT_REVEALED:
            continue
        for step in range(last):
            before: Formula = ()
            # The filled block is no draft: nothing is read of it, so no pass is saved.
            for ahead in range(1, min(depth, last - 1 - step) + 1):
                places = np.flatnonzero((revealed_L > step) & (revealed_L <= step + ahead))
                formula = tuple(
                    sorted(
                        (
                            int(host.positions_BNSL[row, block, step, place]),
                            int(host.tokens_BNSL[row, block, step, place]),
                        )
                        for place in places
                    )
                )
                if any(i >= max_position or j >= max_token for i, j in formula):
                    break
                ways[formula][before] += 1
                before = formula
    return FormulaCounts({formula: dict(found) for formula, found in ways.items()})


def merge_counts(several: Iterable[FormulaCounts]) -> FormulaCounts:
    """What was counted in several batches, together."""
    ways: dict[Formula, collections.Counter[Formula]] = collections.defaultdict(collections.Counter)
    for counted in several:
        for formula, before in counted.ways.items():
            ways[formula].update(before)
    return FormulaCounts({formula: dict(found) for formula, found in ways.items()})


def graph_settings(rules: DiffusionRules, *, model: str) -> dict[str, str]:
    """What a calibrated graph is good for; see `draft_graph.check_graph`.

    Temperature, cache and length are not among them: they change how often a draft is right, but
    not what the ranks mean.

    Args:
      rules: of the base decoder.
      model: tells the model's weights from others.
    """
    return {
        "model": model,
        "mask_id": str(rules.mask_id),
        "block_length": str(rules.block_length),
        "block_causal": str(rules.block_causal),
        "unmasking": str(rules.unmasking),
        "guidance": str(float(rules.guidance)),
    }


def select_graph(counted: FormulaCounts, *, size: int, weight: Weight = "followed") -> DraftGraph:
    """The graph of at most `size` nodes that is taken greedily, the weightiest formula first.

    Taken is, again and again, the weightiest one among those that the present state or a node in
    the graph leads to; of equal ones the shorter, then the one that sorts first. So the graph is
    connected, and the same for the same counts. Nodes stand in the order in which they were taken:
    the first so many are the smaller graph.

    Args:
      counted: `count_formulas`.
      size: D.
      weight: what a formula weighs. "followed": how often a step led there from what is in the
        graph already, which is how many more steps drafts would have saved. "accumulated": its
        count and its parents' (`accumulated`), which favours whatever a frequent formula leads to.

    Raises:
      ValueError: a negative size, or an unknown weight.

    Source: Spiffy, arXiv 2509.18085, calibration; "accumulated" is its degree-1 accumulation.
    """
    if size < 0:
        raise ValueError(f"size is the number of drafts and must be at least 0: got {size}.")
    if weight not in get_args(Weight):
        raise ValueError(f"weight must be one of {', '.join(get_args(Weight))}: got {weight!r}.")
    total = accumulated(counted)
    taken: list[Formula] = []
    while len(taken) < size:
        reach = {(), *taken}
        open_to: dict[Formula, int] = {}
        for formula, before in counted.ways.items():
            led = [number for parent, number in before.items() if parent in reach]
            if led and formula not in reach:
                open_to[formula] = sum(led) if weight == "followed" else total[formula]
        if not open_to:
            break
        taken.append(min(open_to, key=lambda each: (-open_to[each], len(each), each)))
    number_of = {(): PRESENT} | {formula: number for number, formula in enumerate(taken)}
    nodes = tuple(
        Node(
            formula,
            tuple(sorted(number_of[each] for each in counted.ways[formula] if each in number_of)),
        )
        for formula in taken
    )
    return DraftGraph(nodes)


def accumulated(counted: FormulaCounts) -> dict[Formula, int]:
    """Each formula's count and those of its parents; the present state counts nothing."""
    counts = counted.counts
    return {
        formula: count + sum(counts.get(parent, 0) for parent in counted.ways[formula])
        for formula, count in counts.items()
    }
