"""A masked-diffusion language model as drafter: what it reads, fills in, and refuses."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxspec.config import DiTConfig
from jaxspec.drafters.denoiser import CachedDenoiserProposer, DenoiserProposer
from jaxspec.ops.sampling import Sampling
from tests.denoisers import random_denoiser

VOCABULARY, MASK = 20, 20
CONFIG = DiTConfig(
    vocab_size=21,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    conditioning_size=8,
    max_position_embeddings=32,
    time_conditioning=True,
)
CAPACITY = 40
PROMPTS = np.array([[4, 5, 6, 7, 8], [9, 3, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 2], np.int32)
ANCHORS = np.array([11, 12], np.int32)
SAMPLING = Sampling(0.8)
probabilities = jax.jit(SAMPLING.probabilities)


def denoiser(context="bidirectional", **changes):
    config = dataclasses.replace(CONFIG, context=context, **changes)
    return random_denoiser(config, spread=0.3)


def proposer(context="bidirectional", **settings):
    model, params = denoiser(context)
    kind = CachedDenoiserProposer if context == "causal" else DenoiserProposer
    settings = {"block_size": 4, "sampling": SAMPLING, **settings}
    return kind(model, VOCABULARY, **settings), {"drafter": params}


@functools.partial(jax.jit, static_argnums=0)
def forward(context, row, mask, sigma):
    model, params = denoiser(context)
    return model.apply({"params": params}, row, mask_BSS=mask, sigma=sigma).logits_BSV


def slow_logits(context, texts, slots, time):
    """Logits behind a prefix: one whole text at a time, nothing padded, nothing cached."""
    rows = []
    for text, block in zip(texts, slots, strict=True):
        row = np.array([[*text, *block]], np.int32)
        length, prefix = row.shape[1], len(text)
        order = np.arange(length)
        mask = np.ones((length, length), bool)
        sigma = -np.log1p(-(1 - 1e-3) * np.full((1, length), time, np.float32))
        if context == "causal":
            mask = (order[:, None] >= prefix) | (order[:, None] >= order)
            sigma = np.where(order >= prefix, sigma, np.float32(0))
        logits = np.asarray(forward(context, row, mask[None], sigma))
        rows.append(logits[0, prefix:, :VOCABULARY])
    return np.stack(rows)


@pytest.mark.parametrize("context", ["bidirectional", "causal"])
def test_the_marginals_are_those_of_a_pass_over_the_whole_text(context):
    """Round after round: what was committed is read as if it had been there from the start."""
    drafter, params = proposer(context)

    @jax.jit
    def begin():
        return drafter.begin(params, PROMPTS, None, LENGTHS, capacity=CAPACITY)

    marginals = jax.jit(lambda state, anchor_B: drafter.marginal_logits(params, state, anchor_B))
    commit = jax.jit(lambda state, *kept: drafter.commit(params, state, kept[0], None, kept[1]))
    state, anchors = begin(), ANCHORS
    texts = [[4, 5, 6, 7, 8], [9, 3]]
    # Then one text is as long as another one was: fewer programs.
    for kept in ([1, 3], [4, 2]):
        found = marginals(state, anchors)
        whole = [[*text, int(anchor)] for text, anchor in zip(texts, anchors, strict=True)]
        expected = slow_logits(context, whole, [[MASK] * 3] * 2, 1.0)
        np.testing.assert_allclose(found, expected, atol=2e-4)
        block = np.array([[anchors[row], 1, 2, 3] for row in range(2)], np.int32)
        texts = [[*text, *block[row, : kept[row]].tolist()] for row, text in enumerate(texts)]
        state = commit(state, block, np.array(kept, np.int32))
        anchors = np.array([17, 18], np.int32)


def test_a_model_that_is_too_short_reads_the_newest_tokens():
    model, params = denoiser(max_position_embeddings=8)
    short = DenoiserProposer(model, VOCABULARY, block_size=4)

    @jax.jit
    def marginals():
        state = short.begin({}, PROMPTS, None, LENGTHS, capacity=CAPACITY)
        return short.marginal_logits({"drafter": params}, state, ANCHORS)

    found = marginals()
    # Four tokens of the block and four before it; the shorter prompt fits as a whole.
    expected = slow_logits("bidirectional", [[5, 6, 7, 8, 11], [9, 3, 12]], [[MASK] * 3] * 2, 1.0)
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("context", ["bidirectional", "causal"])
def test_slots_are_drawn_given_what_earlier_passes_filled_in(context):
    drafter, params = proposer(context, num_passes=3, order="left_to_right")
    keys_B = jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def propose(keys_B):
        state = drafter.begin(params, PROMPTS, None, LENGTHS, capacity=CAPACITY)
        return drafter.propose(params, state, ANCHORS, keys_B)[0]

    draft = propose(keys_B)
    texts = [[4, 5, 6, 7, 8, 11], [9, 3, 12]]
    for slot in range(3):
        slots = np.array(draft.tokens_BG)
        slots[:, slot:] = MASK
        logits = slow_logits(context, texts, slots.tolist(), 1 - slot / 3)
        expected = probabilities(logits[:, slot])
        np.testing.assert_allclose(draft.probs_BGV[:, slot], expected, atol=1e-4)
    assert draft.passes_B.tolist() == [3 + (context == "causal")] * 2


def test_passes_that_reveal_nothing_of_a_row_are_not_counted():
    drafter, params = proposer(num_passes=6)

    @jax.jit
    def propose(key):
        state = drafter.begin(params, PROMPTS, None, LENGTHS, capacity=CAPACITY)
        return drafter.propose(params, state, ANCHORS, jax.random.split(key, 2))

    counts = np.array([propose(jax.random.key(i))[0].passes_B for i in range(6)])
    # Three slots take one to three of six passes.
    assert counts.min() >= 1 and counts.max() <= 3 and len(np.unique(counts)) > 1


def test_the_likeliest_tokens_at_temperature_0_come_without_probabilities():
    drafter, params = proposer(sampling=Sampling(0.0))

    @jax.jit
    def propose(keys_B):
        state = drafter.begin(params, PROMPTS, None, LENGTHS, capacity=CAPACITY)
        draft, _ = drafter.propose(params, state, ANCHORS, keys_B)
        return draft, drafter.marginal_logits(params, state, ANCHORS)

    draft, logits = propose(jax.random.split(jax.random.key(0), 2))
    assert draft.probs_BGV is None
    assert (np.asarray(draft.tokens_BG) == np.asarray(logits).argmax(-1)).all()


def test_vocabularies_differ_by_padding_rows_and_the_mask():
    model, params = denoiser()
    for vocabulary in (18, 20, 25):
        banned = (7, MASK) if vocabulary > MASK else (7,)
        wide = DenoiserProposer(model, vocabulary, 4, sampling=SAMPLING, suppressed_ids=banned)

        @jax.jit
        def propose(keys_B, wide=wide):
            state = wide.begin({}, PROMPTS, None, LENGTHS, capacity=CAPACITY)
            return wide.propose({"drafter": params}, state, ANCHORS, keys_B)[0]

        draft = propose(jax.random.split(jax.random.key(0), 2))
        probs = np.asarray(draft.probs_BGV)
        assert probs.shape == (2, 3, vocabulary)
        np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)
        assert not probs[..., 7].any()
        assert not probs[..., min(20, vocabulary) :].any()


def test_what_cannot_work_is_refused():
    model, _ = denoiser()
    with pytest.raises(ValueError, match="block of 33 slots is longer than the drafter's 32"):
        DenoiserProposer(model, VOCABULARY, 33)
    with pytest.raises(ValueError, match="at least 1 denoising pass: got 0"):
        DenoiserProposer(model, VOCABULARY, 4, num_passes=0)
    with pytest.raises(ValueError, match="order must be one of ancestral"):
        drafter = DenoiserProposer(model, VOCABULARY, 4, order="confidence")
        state = drafter.begin({}, PROMPTS, None, LENGTHS, capacity=CAPACITY)
        drafter.propose({}, state, ANCHORS, jax.random.split(jax.random.key(0), 2))
