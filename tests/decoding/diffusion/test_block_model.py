"""Several states of a block in one pass: layouts against each other and against single passes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding.diffusion.block_model import BlockContext, BlockModel
from tests.decoding.diffusion_reference import EOS, MASK, MODEL, VOCABULARY, forward, parameters

BLOCK, STATES, COLUMNS = 4, 3, 20
START, PROMPT, END = np.array([4, 8]), np.array([4, 3]), np.array([20, 17])
RNG = np.random.default_rng(0)
CANVAS = RNG.integers(0, EOS, (2, COLUMNS)).astype(np.int32)
DRAFTS = RNG.integers(0, EOS, (2, STATES, BLOCK)).astype(np.int32)
for row, start in enumerate(START):
    CANVAS[row, start + BLOCK :] = MASK
    CANVAS[row, start : start + BLOCK] = DRAFTS[row, 0]
CASES = [(caching, causal) for caching in ("none", "prefix", "dual") for causal in (False, True)]
REACH = 4


@functools.cache
def params():
    return parameters(1, sharpness=1.0)


def blocks(caching, causal, guidance=0.0):
    return BlockModel(MODEL, BLOCK, MASK, caching, causal, guidance)


@functools.partial(jax.jit, static_argnums=(0, 3))
def state_logits(block_model, params, states, layout):
    context = BlockContext(*map(jnp.asarray, (CANVAS, PROMPT, END, START)))
    first, context = block_model.open(params, context)
    return first, block_model.state_logits(params, states, context, reach=REACH, layout=layout)


def logits(caching, causal, *, states=DRAFTS, layout="mask", guidance=0.0):
    block_model = blocks(caching, causal, guidance)
    return state_logits(block_model, params(), jnp.asarray(states), layout)


@pytest.mark.parametrize(("caching", "causal"), CASES)
def test_layouts(caching, causal):
    first, together = logits(caching, causal)
    _, batched = logits(caching, causal, layout="batch")
    assert together.shape == (2, STATES, BLOCK, VOCABULARY)
    # The real block is the one the cache was made with: its logits are those of the first pass.
    np.testing.assert_allclose(together[:, 0], first, atol=1e-4)
    np.testing.assert_allclose(batched[:, 0], first, atol=1e-4)
    difference = np.abs(together[:, 1:] - batched[:, 1:]).max()
    if causal or caching == "dual":
        assert difference < 1e-4, "the surroundings of a block do not depend on it"
    else:
        assert difference > 1e-2, "a draft's surroundings have seen the real block"


def test_what_surrounds_an_appended_draft_has_seen_the_real_block():
    """By hand: a draft's columns in place of the block's, whose keys and values all others keep."""
    _, together = logits("none", False)
    for row in range(2):
        end, start = END[row], START[row]
        sees = np.ones((end, end), bool)
        _, written = forward(params(), CANVAS[row, :end], sees)
        inside = (np.arange(end) >= start) & (np.arange(end) < start + BLOCK)
        for draft in range(1, STATES):
            text = CANVAS[row, :end].copy()
            text[start : start + BLOCK] = DRAFTS[row, draft]
            expected, _ = forward(params(), text, sees, written=written, keep_T=~inside)
            np.testing.assert_allclose(together[row, draft], expected[inside], atol=1e-3)


@pytest.mark.parametrize(("caching", "causal"), CASES)
def test_the_mask_equals_one_written_pair_by_pair(caching, causal):
    context = BlockContext(*map(jnp.asarray, (CANVAS, PROMPT, END, START)))
    laid_out = blocks(caching, causal).lay_out(jnp.asarray(DRAFTS), context, reach=REACH)
    tokens, columns, mask, rows = map(np.asarray, laid_out)
    size = tokens.shape[1]
    mask = np.broadcast_to(mask, (2, size, size))
    width = size - (STATES - 1) * BLOCK
    assert width == {"none": COLUMNS, "prefix": BLOCK if causal else REACH * BLOCK}.get(
        caching, BLOCK
    )
    for row, (start, end) in enumerate(zip(START, END, strict=True)):

        def state_of(at, column, start=start):
            """0 for the real block, 1 and up for drafts, None for what is around."""
            if at >= width:
                return 1 + (at - width) // BLOCK
            return 0 if start <= column < start + BLOCK else None

        for one in range(size):
            for other in range(size):
                mine, theirs = columns[row, one], columns[row, other]
                own, seen = state_of(one, mine), state_of(other, theirs)
                # Drafts are seen by themselves; the real block by all but drafts; the rest by all.
                expected = seen == own if seen or (own and seen == 0) else True
                if causal and mine // BLOCK < theirs // BLOCK:
                    expected = False
                assert mask[row, one, other] == (expected and theirs < end)
        for state in range(STATES):
            at = rows[row, state * BLOCK : (state + 1) * BLOCK]
            assert columns[row, at].tolist() == list(range(start, start + BLOCK))
            assert tokens[row, at].tolist() == DRAFTS[row, state].tolist()


@pytest.mark.parametrize("layout", ["mask", "batch"])
def test_guided_states(layout):
    first, together = logits("dual", False, layout=layout, guidance=2.0)
    np.testing.assert_allclose(together[:, 0], first, atol=1e-3)
    for draft in range(1, STATES):
        alone = DRAFTS[:, [0, draft]][:, 1:]
        _, single = logits("dual", False, states=alone, guidance=2.0)
        np.testing.assert_allclose(together[:, draft], single[:, 0], atol=1e-3)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_block_causal_cache_goes_on_from_block_to_block(guidance):
    """Against a new pass over the whole canvas; one row's first block has nothing before it."""
    block_model = blocks("dual", True, guidance)
    canvas = CANVAS.copy()
    canvas[canvas == MASK] = 5
    starts = [np.array([0, 4]), np.array([4, 8]), np.array([8, 12])]
    contexts = [BlockContext(*map(jnp.asarray, (canvas, PROMPT, END, at))) for at in starts]

    @jax.jit
    def both(params, cache, context):
        again, anew = (
            block_model.open(params, dataclasses.replace(context, cache=each))
            for each in (cache, None)
        )
        states = jnp.asarray(DRAFTS)
        return (
            again,
            anew,
            *(block_model.state_logits(params, states, opened) for _, opened in (again, anew)),
        )

    cache = jax.jit(block_model.prefill)(params(), contexts[0])
    for context in contexts:
        again, anew, ours, expected = both(params(), cache, context)
        np.testing.assert_allclose(again[0], anew[0], atol=1e-4)
        np.testing.assert_allclose(ours, expected, atol=1e-4)
        cache = again[1].cache
        assert cache.lengths_B[:2].tolist() == context.start_B.tolist()


def test_a_cache_has_to_be_there():
    context = BlockContext(*map(jnp.asarray, (CANVAS, PROMPT, END, START)))
    with pytest.raises(ValueError, match="`open`"):
        blocks("dual", False).block_logits(params(), jnp.asarray(DRAFTS[:, 0]), context)
