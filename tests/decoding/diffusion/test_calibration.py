"""Calibration: ranks against the slow reference, counts by hand, and a graph that saves passes."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jaxspec.decoding import BlockDiffusion, Scheduled, Threshold
from jaxspec.decoding.diffusion.calibration import (
    FormulaCounts,
    StepRanks,
    accumulated,
    count_formulas,
    graph_settings,
    merge_counts,
    rank_steps,
    select_graph,
)
from jaxspec.decoding.diffusion.draft_graph import PRESENT, DraftGraph
from jaxspec.decoding.diffusion.spiffy import Spiffy
from tests.decoding.diffusion.test_decoder import BLOCK, PROMPTS, RESPONSE, batch, change
from tests.decoding.diffusion_reference import MASK, MODEL, parameters, slow_decode

RULES = change(caching="dual", unmasking=Scheduled(4))
DECODER = BlockDiffusion(MODEL, RULES)


@functools.cache
def finished():
    params = parameters()
    prepared = DECODER.prepare(params)
    state = DECODER.run(prepared, DECODER.start(batch()))
    return params, state, jax.device_get(rank_steps(DECODER, prepared, state))


def test_ranks_equal_those_of_the_slow_reference():
    params, state, ranks = finished()
    for row, prompt in enumerate(PROMPTS):
        start = len(prompt)
        slow = slow_decode(params, prompt, RULES)
        final = state.tokens_BT[row, start : start + RESPONSE].tolist()
        assert final == slow.tokens
        steps = iter(slow.states)
        for block in range(RESPONSE // BLOCK):
            revealed = slow.revealed[block * BLOCK : (block + 1) * BLOCK]
            assert ranks.revealed_BNP[row, block].tolist() == revealed
            for step in range(BLOCK):
                _, logits = next(steps)
                logits = logits.copy()
                logits[:, MASK] = -np.inf
                probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
                left = [place for place in range(BLOCK) if revealed[place] > step]
                order = sorted(left, key=lambda place, p=probs: (-p[place].max(), place))
                for place in left:
                    token = final[block * BLOCK + place]
                    at = row, block, step, place
                    assert ranks.positions_BNOP[at] == order.index(place)
                    assert ranks.tokens_BNOP[at] == (logits[place] > logits[place, token]).sum()


def by_hand():
    """One block of four: position 2 first, then 0, then 1, then 3."""
    revealed = np.array([[[1, 2, 0, 3]]])
    positions, tokens = np.zeros((2, 1, 1, 4, 4), int)
    # Under step 0's distribution: 0 is the second mask and its token the best, 1 the first, third.
    positions[0, 0, 0, :], tokens[0, 0, 0, :] = [1, 0, 0, 2], [0, 2, 0, 1]
    positions[0, 0, 1, 1::2], tokens[0, 0, 1, 1::2] = [0, 1], [1, 0]
    return StepRanks(revealed, positions, tokens)


def test_counts_by_hand():
    counted = count_formulas(by_hand(), depth=3)
    assert counted.counts == {((1, 0),): 1, ((0, 2), (1, 0)): 1, ((0, 1),): 1}
    assert counted.ways == {
        ((1, 0),): {(): 1},
        ((0, 2), (1, 0)): {((1, 0),): 1},
        ((0, 1),): {(): 1},
    }
    # What fills the block ((0, 2), (1, 0), (2, 1) after step 0, for one) saves no pass.
    assert set(count_formulas(by_hand(), depth=1).counts) == {((1, 0),), ((0, 1),)}
    assert set(count_formulas(by_hand(), depth=3, max_token=2).counts) == {((1, 0),), ((0, 1),)}
    assert set(count_formulas(by_hand(), depth=3, max_position=1).counts) == {((0, 1),)}
    with pytest.raises(ValueError, match="depth"):
        count_formulas(by_hand(), depth=0)


A, B, C, AB, BC = ((0, 0),), ((1, 0),), ((2, 0),), ((0, 0), (1, 0)), ((1, 0), (2, 0))
COUNTED = FormulaCounts(
    {A: {(): 6}, B: {(): 5}, C: {(): 1}, AB: {A: 1, B: 2}, BC: {C: 4}},
)


def test_batches_are_counted_together():
    more = FormulaCounts({A: {(): 1}, AB: {(): 1, A: 2}})
    merged = merge_counts([COUNTED, more])
    assert merged.counts == {A: 7, B: 5, C: 1, AB: 6, BC: 4}
    assert merged.ways[AB] == {(): 1, A: 3, B: 2} and merged.ways[BC] == {C: 4}
    assert merge_counts([]) == FormulaCounts({})


def test_settings_tell_rules_apart():
    ours = graph_settings(RULES, model="a1")
    assert graph_settings(change(caching="none", unmasking=Scheduled(4)), model="a1") == ours
    others = [change(unmasking=Scheduled(2)), change(unmasking=Threshold(0.9)), change(guidance=1)]
    assert all(graph_settings(rules, model="a1") != ours for rules in others)
    assert graph_settings(RULES, model="b2") != ours


def orders(weight):
    return [
        [node.pairs for node in select_graph(COUNTED, size=n, weight=weight).nodes]
        for n in range(7)
    ]


def test_selection_by_hand():
    # AB adds 1 step after A, and 3 once B is there too; BC waits for C.
    assert orders("followed") == [[], [A], [A, B], [A, B, AB], [A, B, AB, C]] + 2 * [
        [A, B, AB, C, BC]
    ]
    graph = select_graph(COUNTED, size=5)
    assert [node.parents for node in graph.nodes] == [(PRESENT,)] * 2 + [(0, 1), (PRESENT,), (3,)]
    for size in range(6):
        assert graph.first(size) == select_graph(COUNTED, size=size)
    assert select_graph(COUNTED, size=0) == DraftGraph()
    with pytest.raises(ValueError, match="size"):
        select_graph(COUNTED, size=-1)
    with pytest.raises(ValueError, match="followed, accumulated: got 'counted'"):
        select_graph(COUNTED, size=1, weight="counted")


def test_degree_1_accumulation_by_hand():
    assert accumulated(COUNTED) == {A: 6, B: 5, C: 1, AB: 14, BC: 5}
    # AB is worth most, but nothing leads there before A does.
    assert orders("accumulated") == [[], [A], [A, AB], [A, AB, B], [A, AB, B, C]] + 2 * [
        [A, AB, B, C, BC]
    ]
    graph = select_graph(COUNTED, size=5, weight="accumulated")
    root = (PRESENT,)
    assert [node.parents for node in graph.nodes] == [root, (0, 2), root, root, (3,)]


def test_every_node_of_a_selected_graph_is_reached():
    """Whatever was counted: parents are in the graph, and lead back to the present state."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        formulas = [(), *(((i, int(j)),) for i, j in enumerate(rng.integers(0, 3, 3)))]
        ways = {formula: {(): int(rng.integers(1, 9))} for formula in formulas[1:]}
        for _ in range(12):
            before = formulas[rng.integers(1, len(formulas))]
            formula = tuple(sorted({*before, (len(before) + 3, int(rng.integers(0, 2)))}))
            ways.setdefault(formula, {})[before] = int(rng.integers(1, 9))
            formulas.append(formula)
        for weight in ("followed", "accumulated"):
            graph = select_graph(FormulaCounts(ways), size=8, weight=weight)
            reached: set[int] = set()
            for number, node in enumerate(graph.nodes):
                if set(node.parents) & {PRESENT, *reached}:
                    reached.add(number)
            assert reached == set(range(graph.size)) and graph.size == min(8, len(ways))


def brute_force(ranks, *, depth):
    """Each formula's count by looking at every state, and every number of steps ahead, anew."""
    found = {}
    for row, block in np.ndindex(ranks.revealed_BNP.shape[:2]):
        when = ranks.revealed_BNP[row, block].tolist()
        for step in range(len(when)):
            for ahead in range(1, depth + 1):
                if step + ahead >= max(when):
                    continue
                formula = sorted(
                    (
                        int(ranks.positions_BNOP[row, block, step, place]),
                        int(ranks.tokens_BNOP[row, block, step, place]),
                    )
                    for place, at in enumerate(when)
                    if step < at <= step + ahead
                )
                found[tuple(formula)] = found.get(tuple(formula), 0) + 1
    return found


def test_counts_and_accumulation_equal_a_brute_force_count():
    _, _, ranks = finished()
    counted = count_formulas(ranks, depth=3, max_position=99, max_token=99)
    expected = brute_force(ranks, depth=3)
    assert counted.counts == expected and len(expected) > 10
    one_less = {
        formula: {tuple(p for p in formula if p != left) for left in formula}
        for formula in expected
    }
    for formula, total in accumulated(counted).items():
        parents = counted.ways[formula].keys() - {()}
        assert parents <= one_less[formula]
        assert total == expected[formula] + sum(expected[parent] for parent in parents)


def test_a_calibrated_graph_saves_passes_and_nothing_else():
    params, base, ranks = finished()
    graph = select_graph(count_formulas(ranks, depth=3, max_token=8), size=8)
    assert graph == select_graph(count_formulas(ranks, depth=3, max_token=8), size=8)
    fast = Spiffy(MODEL, RULES, graph=graph)
    state = fast.run(params, fast.start(batch()))
    np.testing.assert_array_equal(state.tokens_BT, base.tokens_BT)
    assert state.passes_BN.sum() < base.passes_BN.sum()
    np.testing.assert_array_equal(state.steps_BN, base.passes_BN)
