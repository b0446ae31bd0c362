"""Calibration of draft graphs: what later steps revealed, in ranks, over finished responses.

Spiffy (arXiv 2509.18085) chooses its draft graph offline, for a model and its decode settings. A
response is replayed: `rank_steps` goes through its states again and finds, under the distribution
of each step, the rank of every mask that was left and the rank of the token that was revealed there
later. From these, `count_formulas` counts the formulas that drafts should have had after each step,
one, two and more steps ahead. `select_graph` takes the most useful ones.

Dimension key: B batch rows, N blocks of a row, O steps of a block (as many as it has positions),
P positions of a block, V vocabulary.

>>> state = decoder.run(params, decoder.start(prompts))  # doctest: +SKIP
>>> counts = count_formulas(rank_steps(decoder, params, state), depth=4)  # doctest: +SKIP
>>> graph = select_graph(counts, size=10)  # doctest: +SKIP
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.decoding.diffusion.decoder import (
    NOT_REVEALED,
    BlockDiffusion,
    DiffusionRules,
    DiffusionState,
)
from jaxspec.decoding.diffusion.draft_graph import PRESENT, DraftGraph, Node, Pair
from jaxspec.decoding.diffusion.unmasking import ranked
from jaxspec.decoding.layout import cut_layers, stack_layers
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.precision import exact_program

Formula = tuple[Pair, ...]
Weight = Literal["followed", "accumulated"]


@array_dataclass
class StepRanks:
    """What came later, in ranks under each step's distribution."""

    revealed_BNP: jax.Array
    """int32, the step that revealed each position; `NOT_REVEALED` where there was none."""
    positions_BNOP: jax.Array
    """int32, the position's rank among the masks left after the step."""
    tokens_BNOP: jax.Array
    """int32, the rank at that position of the token that was revealed there later. Both ranks mean
    nothing at positions that are no longer masked."""


@exact_program()
def rank_steps(decoder: BlockDiffusion, params: Any, finished: DiffusionState) -> StepRanks:
    """Goes through the states of finished responses again, with one pass per step.

    Args:
      decoder: the one that gave the responses.
      params: the model's parameters, prepared (`decoder.prepare`) or not.
      finished: what `decoder.run` returned.
    """
    rules, block_model = decoder.rules, decoder.block_model
    pieces = cut_layers(params, unrolled=decoder.model.config.unroll_layers)
    columns_T = jnp.arange(finished.tokens_BT.shape[1])
    steps_O = jnp.arange(rules.block_length)

    def one_block(block: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        then = dataclasses.replace(finished, block_B=jnp.full_like(finished.block_B, block))
        columns_BP = decoder.columns(then)
        revealed_BP = jnp.take_along_axis(finished.revealed_BT, columns_BP, axis=1, mode="clip")
        nothing_OBP = jnp.zeros((rules.block_length, *revealed_BP.shape), jnp.int32)
        # No pass for a block that no row reached, or that every row filled in one step.
        ranks = jax.lax.cond(
            (revealed_BP > 0).any(),
            lambda: ranks_of(then, columns_BP, revealed_BP),
            lambda: (nothing_OBP, nothing_OBP),
        )
        return revealed_BP, *ranks

    def ranks_of(
        then: DiffusionState, columns_BP: jax.Array, revealed_BP: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        final_BP = decoder.block_tokens(then)
        # The canvas before the block: it and all that follows are masks, except for the prompt.
        hidden_BT = (columns_T >= columns_BP[:, :1]) & (columns_T >= finished.prompt_B[:, None])
        hidden_BT &= columns_T < finished.prompt_B[:, None] + rules.response_length
        canvas_BT = jnp.where(hidden_BT, rules.mask_id, finished.tokens_BT)
        context = decoder.context(dataclasses.replace(then, tokens_BT=canvas_BT))
        if rules.caching != "none":
            _, context = block_model.open(stack_layers(pieces), context)

        def one_step(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            nothing_BP = jnp.zeros(revealed_BP.shape, jnp.int32)
            return jax.lax.cond(
                (revealed_BP > step).any(), look, lambda _: (nothing_BP, nothing_BP), step
            )

        def look(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            waiting_BP = revealed_BP >= step
            logits_BPV = block_model.block_logits(
                stack_layers(pieces),
                jnp.where(waiting_BP, rules.mask_id, final_BP),
                context,
                reach=rules.num_blocks,
            )
            logits_BPV = decoder.unmasker.clean_logits(logits_BPV)
            confidence_BP = decoder.unmasker.best_confidence(logits_BPV)
            left_BP = revealed_BP > step
            positions_BP, _ = ranked(jnp.where(left_BP, confidence_BP, -jnp.inf))
            chosen_BP1 = jnp.take_along_axis(logits_BPV, final_BP[..., None], axis=-1)
            smaller_V = jnp.arange(logits_BPV.shape[-1])
            before_BPV = (logits_BPV > chosen_BP1) | (
                (logits_BPV == chosen_BP1) & (smaller_V < final_BP[..., None])
            )
            return positions_BP, before_BPV.sum(axis=-1, dtype=jnp.int32)

        return jax.lax.map(one_step, steps_O)

    revealed_NBP, positions_NOBP, tokens_NOBP = jax.lax.map(one_block, jnp.arange(rules.num_blocks))
    return StepRanks(
        jnp.moveaxis(revealed_NBP, 1, 0),
        jnp.moveaxis(positions_NOBP, 2, 0),
        jnp.moveaxis(tokens_NOBP, 2, 0),
    )


@dataclasses.dataclass(frozen=True)
class FormulaCounts:
    """How often each formula was what a draft should have been."""

    ways: Mapping[Formula, Mapping[Formula, int]]
    """For each formula, the formulas that were one step before it, and how often each of them was;
    () is the state itself."""

    @property
    def counts(self) -> dict[Formula, int]:
        """How often each formula was right, whatever came before it."""
        return {formula: sum(before.values()) for formula, before in self.ways.items()}


def count_formulas(
    ranks: StepRanks, *, depth: int, max_position: int = 16, max_token: int = 4
) -> FormulaCounts:
    """Counts formulas over all steps of all blocks.

    Args:
      ranks: of finished responses, on the host or not.
      depth: steps ahead that are looked at.
      max_position: formulas with a position of this rank or higher are left out, and so are those
        further ahead.
      max_token: the same for ranks of tokens.

    Raises:
      ValueError: a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth counts steps ahead and must be at least 1: got {depth}.")
    host: StepRanks = jax.device_get(ranks)
    ways: dict[Formula, collections.Counter[Formula]] = collections.defaultdict(collections.Counter)
    for row, block in np.ndindex(host.revealed_BNP.shape[:2]):
        revealed_P = host.revealed_BNP[row, block]
        last = int(revealed_P.max())
        if last == NOT_REVEALED:
            continue
        for step in range(last):
            before: Formula = ()
            # The filled block is not a draft: nothing is read from it, so no pass is saved.
            for ahead in range(1, min(depth, last - 1 - step) + 1):
                places = np.flatnonzero((revealed_P > step) & (revealed_P <= step + ahead))
                formula = tuple(
                    sorted(
                        (
                            int(host.positions_BNOP[row, block, step, place]),
                            int(host.tokens_BNOP[row, block, step, place]),
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
    """The counts of several batches, added up."""
    ways: dict[Formula, collections.Counter[Formula]] = collections.defaultdict(collections.Counter)
    for counted in several:
        for formula, before in counted.ways.items():
            ways[formula].update(before)
    return FormulaCounts({formula: dict(found) for formula, found in ways.items()})


def to_plain(counted: FormulaCounts) -> list[Any]:
    """Counts as lists, which JSON can hold."""
    return [[formula, list(before.items())] for formula, before in counted.ways.items()]


def from_plain(ways: Iterable[Any]) -> FormulaCounts:
    """The inverse of `to_plain`, after JSON has made lists of all tuples."""
    return FormulaCounts(
        {
            _formula(formula): {_formula(one): number for one, number in before}
            for formula, before in ways
        }
    )


def _formula(pairs: Iterable[Any]) -> Formula:
    return tuple((int(i), int(j)) for i, j in pairs)


def graph_settings(rules: DiffusionRules, *, model: str) -> dict[str, str]:
    """What a calibrated graph is good for; see `draft_graph.check_graph`.

    Temperature, cache and length are not among the settings: they change how often a draft is
    right, but not what the ranks mean.

    Args:
      rules: of the base decoder.
      model: identifies the model's weights.

    Returns:
      Settings by name, as text; the unmasking rule is its name and a setting for each parameter.
    """
    rule: Any = rules.unmasking
    parameters = {field.name: str(getattr(rule, field.name)) for field in dataclasses.fields(rule)}
    return {
        "model": model,
        "mask_id": str(rules.mask_id),
        "block_length": str(rules.block_length),
        "block_causal": str(rules.block_causal),
        "unmasking": rule.name,
        **parameters,
        "guidance": str(float(rules.guidance)),
        **({"last_ids": str(rules.last_ids)} if rules.last_ids else {}),
    }


def select_graph(counted: FormulaCounts, *, size: int, weight: Weight = "followed") -> DraftGraph:
    """A graph of at most `size` nodes, chosen greedily by weight.

    Formulas are taken one by one: always the one of largest weight among those that the present
    state or a node in the graph leads to; of equal ones the shorter, then the one that sorts first.
    So the graph is connected, and the same counts give the same graph. Nodes are in the order in
    which they were taken, so the first nodes are the smaller graph.

    Args:
      counted: what `count_formulas` returned.
      size: the most nodes.
      weight: a formula's weight. "followed": how often a step led there from what is already in the
        graph. That is more than the steps that a draft saves: every step counts as a start, and
        the way to what is in the graph may lead through states that are not. "accumulated": its
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
    """Each formula's count plus those of its parents; the present state's is 0."""
    counts = counted.counts
    return {
        formula: count + sum(counts.get(parent, 0) for parent in counted.ways[formula])
        for formula, count in counts.items()
    }
