"""Spiffy: formulas filled by hand, and the base decoder's output in fewer passes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxspec.decoding import BlockDiffusion, Scheduled, Threshold, Unmasker
from jaxspec.decoding.diffusion.draft_graph import (
    PRESENT,
    DraftGraph,
    Node,
    chain,
    from_formulas,
    nested,
    star,
)
from jaxspec.decoding.diffusion.spiffy import Drafts, Spiffy, fill_formulas, prune
from jaxspec.ops.sampling import Sampling
from tests.decoding.diffusion.test_decoder import BLOCK, RESPONSE, batch, change
from tests.decoding.diffusion_reference import MASK, MODEL, VOCABULARY, parameters

UNMASKER = Unmasker(Scheduled(1), MASK)
GRAPH = from_formulas(
    [[(0, 0)], [(1, 0)], [(2, 0)], [(0, 1)], [(0, 0), (1, 0)], [(0, 0), (2, 0)],
     [(1, 0), (2, 0)], [(0, 0), (1, 0), (2, 0)]]
)  # fmt: skip


filled = jax.jit(fill_formulas, static_argnums=0, static_argnames="unmasker")
pruned = jax.jit(prune, static_argnums=0, static_argnames="kept")


def test_formulas_filled_by_hand():
    """Position 2 is the surest mask, then 0, then 3; 1 is filled already. Nothing fills a block."""
    probs = np.array(
        [
            [0.6, 0.3, 0.1],
            [0.98, 0.01, 0.01],
            [0.05, 0.15, 0.8],
            [0.25, 0.4, 0.35],
            [0.3, 0.3, 0.4],
        ],
        "f4",
    )
    block = np.array([[9, 1, 9, 9, 7], [9, 1, 7, 0, 9]])
    graph = from_formulas(
        [[(0, 0)], [(0, 1)], [(1, 0)], [(0, 0), (1, 1)], [(0, 0), (1, 1), (2, 0)]]
    )
    logits = np.log(probs)[None].repeat(2, 0)
    drafts = jax.device_get(filled(graph, logits, block, block == 9, unmasker=UNMASKER))
    numbers = {node.pairs: number for number, node in enumerate(graph.nodes)}
    expected = {
        ((0, 0),): ([9, 1, 2, 9, 7], [0, 1, 7, 0, 9]),
        ((0, 1),): ([9, 1, 1, 9, 7], [1, 1, 7, 0, 9]),
        ((1, 0),): ([0, 1, 9, 9, 7], [9, 1, 7, 0, 2]),
        ((0, 0), (1, 1)): ([1, 1, 2, 9, 7], None),
        ((0, 0), (1, 1), (2, 0)): (None, None),
    }
    assert expected.keys() == numbers.keys()
    for formula, rows in expected.items():
        for row, wanted in enumerate(rows):
            assert drafts.valid_BX[row, numbers[formula]] == (wanted is not None)
            if wanted is not None:
                assert drafts.states_BXP[row, numbers[formula]].tolist() == wanted


def slow_fill(graph, logits_PV, block_P):
    """The definition, a formula at a time."""
    masks = [place for place, token in enumerate(block_P) if token == MASK]
    probs = np.exp(logits_PV) / np.exp(logits_PV).sum(-1, keepdims=True)
    order = sorted(masks, key=lambda place: (-probs[place].max(), place))
    for node in graph.nodes:
        state = list(block_P)
        if max(len(node.pairs), *(i for i, _ in node.pairs)) >= len(order):
            yield None
            continue
        for i, j in node.pairs:
            ranked = sorted(range(len(probs[0])), key=lambda v, at=order[i]: (-probs[at][v], v))
            state[order[i]] = ranked[j]
        yield state


def test_filling_equals_the_definition():
    rng = np.random.default_rng(0)
    wide = from_formulas([[(i, j)] for i in range(7) for j in range(3)])
    for graph in (GRAPH, wide, chain(6)):
        logits = rng.standard_normal((8, 6, 12)).astype("f4")
        block = np.where(rng.random((8, 6)) < 0.6, MASK, rng.integers(0, 12, (8, 6)))
        drafts = filled(graph, logits, block, block == MASK, unmasker=UNMASKER)
        drafts = jax.device_get(drafts)
        for row in range(8):
            for number, wanted in enumerate(slow_fill(graph, logits[row], block[row].tolist())):
                assert drafts.valid_BX[row, number] == (wanted is not None)
                if wanted is not None:
                    assert drafts.states_BXP[row, number].tolist() == wanted


def test_drafts_end_last():
    """Token 2 has confidence 0; without it the masks rank 0.8, 0.6 / 0.9, 0.5 / 0.8."""
    probs = np.array([[0.6, 0.3, 0.1], [0.05, 0.05, 0.9], [0.5, 0.3, 0.2], [0.8, 0.2, 0.0]], "f4")
    unmasker = Unmasker(Scheduled(1), MASK, last_ids=(2,))
    block = np.full((1, 4), MASK)
    with np.errstate(divide="ignore"):
        logits = np.log(probs)[None]
    confidence = jax.jit(unmasker.best_confidence)(logits)
    np.testing.assert_allclose(confidence[0], [0.6 / 0.9, 0, 0.5 / 0.8, 0.8], rtol=1e-5)
    drafts = jax.device_get(filled(chain(3), logits, block, block == MASK, unmasker=unmasker))
    assert drafts.states_BXP[0].tolist() == [
        [MASK, MASK, MASK, 0], [0, MASK, MASK, 0], [0, MASK, 0, 0],
    ]  # fmt: skip


def test_scores_are_geometric_means_of_probabilities():
    probs = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], "f4")
    graph = from_formulas([[(0, 0)], [(0, 2)], [(0, 0), (1, 1)]])
    block = np.full((1, 2), 9)
    logits = 3 + np.log(probs)[None]
    drafts = jax.device_get(filled(graph, logits, block, block == 9, unmasker=UNMASKER))
    expected = [np.log(0.7), np.log(0.1), np.log(0.7 * 0.3) / 2]
    np.testing.assert_allclose(drafts.score_BX[0], expected, rtol=1e-5)


def slow_prune(graph, scores, valid, kept):
    """The definition, one node at a time."""
    worth = {}
    for number in range(graph.size):
        family = [number, *(n for n, node in enumerate(graph.nodes) if number in node.parents)]
        worth[number] = np.mean([scores[n] for n in family if valid[n]] or [0.0])
    taken = []
    while len(taken) < kept:
        reached = [
            n
            for n, node in enumerate(graph.nodes)
            if valid[n] and n not in taken and set(node.parents) & {PRESENT, *taken}
        ]
        if not reached:
            break
        taken.append(max(reached, key=lambda n: (worth[n], -n)))
    return taken


def test_pruning_equals_the_definition():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((16, GRAPH.size)).astype("f4")
    valid = rng.random((16, GRAPH.size)) < 0.8
    states = np.broadcast_to(np.arange(GRAPH.size)[:, None], (16, GRAPH.size, 3))
    for kept in (1, 3, 6):
        drafts = jax.device_get(pruned(GRAPH, Drafts(states, valid, scores), kept=kept))
        assert drafts.states_BXP.shape == (16, kept, 3)
        for row in range(16):
            got = drafts.states_BXP[row, drafts.valid_BX[row], 0].tolist()
            assert got == slow_prune(GRAPH, scores[row], valid[row], kept)
            assert drafts.score_BX[row, : len(got)].tolist() == scores[row, got].tolist()


def test_a_draft_that_the_present_state_leads_to_needs_no_other_parent():
    graph = DraftGraph((Node(((0, 0),)), Node(((0, 0), (1, 0)), (PRESENT, 0))))
    scores = np.array([[-9.0, -1.0]], "f4")
    drafts = Drafts(np.arange(2)[None, :, None], np.ones((1, 2), bool), scores)
    assert jax.device_get(pruned(graph, drafts, kept=1)).states_BXP[0, 0, 0] == 1


def test_pruning_by_hand():
    """(1, 0) alone is the better draft; but (0, 0) leads to one that is better still."""
    graph = from_formulas([[(0, 0)], [(1, 0)], [(0, 0), (2, 0)]])
    states = np.arange(3)[None, :, None]
    drafts = Drafts(states, np.ones((1, 3), bool), np.array([[-2.0, -1.5, -0.2]], "f4"))
    names = [node.pairs for node in graph.nodes]
    for kept, wanted in ((1, [((0, 0),)]), (2, [((0, 0),), ((0, 0), (2, 0))])):
        got = jax.device_get(pruned(graph, drafts, kept=kept)).states_BXP[0, :, 0].tolist()
        assert [names[number] for number in got] == wanted


@functools.cache
def params():
    return parameters()


def decode(decoder):
    state = jax.device_get(decoder.run(params(), decoder.start(batch())))
    assert not state.failed_B.any()
    return state


def check_lossless(rules, *, graph=GRAPH, layout="mask", kept=0):
    """The base decoder's text, step by step, in fewer passes; the passes that it took."""
    base = decode(BlockDiffusion(MODEL, rules))
    fast = decode(Spiffy(MODEL, rules, graph=graph, layout=layout, kept=kept))
    np.testing.assert_array_equal(fast.tokens_BT, base.tokens_BT)
    np.testing.assert_array_equal(fast.revealed_BT, base.revealed_BT)
    np.testing.assert_array_equal(fast.steps_BN, base.passes_BN)
    assert (fast.passes_BN <= base.passes_BN).all() and (
        fast.passes_BN[base.passes_BN > 0] > 0
    ).all()
    assert fast.passes_BN.sum() < base.passes_BN.sum(), "no draft was ever right"
    return fast.passes_BN


ONE = Scheduled(4)
"""A token a step."""
CASES = {
    "dual": change(caching="dual", unmasking=ONE),
    "dual_threshold": change(caching="dual", unmasking=Threshold(0.7)),
    "dual_warm_last": change(
        caching="dual",
        unmasking=ONE,
        sampling=Sampling(0.3),
        last_ids=tuple(range(0, VOCABULARY, 3)),
    ),
    "block_causal": change(caching="prefix", block_causal=True, unmasking=ONE),
    "block_causal_uncached": change(block_causal=True, unmasking=ONE),
}


UNCACHED = pytest.mark.slow("the block-causal case with a cache covers it")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=UNCACHED if name == "block_causal_uncached" else ())
        for name in CASES
    ],
)
def test_the_base_decoders_output(name):
    check_lossless(CASES[name])


@pytest.mark.parametrize("name", ["dual", "uncached", "prefix"])
def test_batch_layout_is_lossless_with_every_cache(name):
    """Each state has surroundings of its own."""
    # With a prefix, more blocks are more bodies in the program.
    length = 2 * BLOCK if name == "prefix" else RESPONSE
    caching = {"uncached": "none"}.get(name, name)
    rules = change(caching=caching, unmasking=ONE, response_length=length)
    passes = check_lossless(rules, layout="batch")
    if name == "dual":
        np.testing.assert_array_equal(passes, check_lossless(rules))


def test_an_empty_graph_is_plain_decoding():
    rules = CASES["dual"]
    plain = decode(Spiffy(MODEL, rules, graph=DraftGraph()))
    base = decode(BlockDiffusion(MODEL, rules))
    assert jax.tree.all(
        jax.tree.map(np.array_equal, plain.replace(keys_B=0), base.replace(keys_B=0))
    )


def test_every_right_draft_saves_one_pass():
    """A graph that holds the steps of the first row's first block; and what follows from that."""
    rules = change(caching="dual", unmasking=ONE, response_length=4)
    base = decode(BlockDiffusion(MODEL, rules))
    assert base.passes_BN[0].tolist() == [4]
    # Of 3 masks after the first pass, all formulas with tokens of rank below 4.
    ranks = range(4)
    singles = [[(i, j)] for i in range(3) for j in ranks]
    pairs = [
        [(i, j), (k, m)] for i in range(3) for k in range(i + 1, 3) for j in ranks for m in ranks
    ]
    graph = from_formulas([*singles, *pairs])
    fast = decode(Spiffy(MODEL, rules, graph=graph))
    np.testing.assert_array_equal(fast.tokens_BT, base.tokens_BT)
    # The open pass, one pass over all drafts, and no more where both next steps were drafted.
    assert fast.passes_BN.min() == 2
    assert (fast.steps_BN == 4).all()


TWO = change(caching="dual", unmasking=Scheduled(4), response_length=24, block_length=8)
"""Two tokens per step."""


IN_GRAPH = pytest.mark.slow("test_the_base_decoders_output has a graph with more formulas")


@pytest.mark.parametrize(
    ("rules", "graph"),
    [
        pytest.param(CASES["dual"], star(3), id="star", marks=IN_GRAPH),
        pytest.param(CASES["dual"], chain(3), id="ssd", marks=IN_GRAPH),
        pytest.param(TWO, nested(1, tokens_per_step=2), id="freedave"),
    ],
)
def test_uncalibrated_graphs_are_lossless(rules, graph):
    check_lossless(rules, graph=graph)


UNPRUNED = pytest.mark.slow("pruning with one rule and this rule without pruning cover it")


@pytest.mark.parametrize(
    "name",
    [
        "dual",
        *(pytest.param(name, marks=UNPRUNED) for name in ("dual_threshold", "dual_warm_last")),
    ],
)
def test_pruned_graphs_are_lossless(name):
    passes = check_lossless(CASES[name], kept=3)
    assert passes.sum() >= check_lossless(CASES[name]).sum()


def test_keeping_all_is_no_pruning():
    for kept in (0, GRAPH.size, 99):
        assert Spiffy(MODEL, TWO, graph=GRAPH, kept=kept).num_drafts == GRAPH.size
    assert Spiffy(MODEL, TWO, graph=GRAPH, kept=3).num_drafts == 3


def test_bad_input():
    with pytest.raises(ValueError, match="layout"):
        Spiffy(MODEL, CASES["dual"], graph=GRAPH, layout="rows")
    with pytest.raises(ValueError, match="kept must be 0"):
        Spiffy(MODEL, CASES["dual"], graph=GRAPH, kept=-1)
    wide = DraftGraph((Node(((0, 28),)),))
    with pytest.raises(ValueError, match="29 likeliest tokens"):
        Spiffy(MODEL, CASES["dual"], graph=wide)
    with pytest.raises(ValueError, match="graph"):
        dataclasses.replace(GRAPH, nodes=(Node(()),))
