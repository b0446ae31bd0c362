"""Greedy decoding: one token a pass equals a loop in Python, and blocks equal one token a pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import Autoregressive, DecodeRules, Speculative, generate
from jaxspec.decoding.generate import read_responses
from tests.decoding import tiny


def slow_greedy(model, params, prompt, *, rules, width=64):
    """The obvious way: the whole text through the model for every token, no cache."""
    apply = jax.jit(
        lambda tokens, last: model.apply(
            {"params": params}, model.apply({"params": params}, tokens).hidden_BSD[0, last],
            method="logits",
        )
    )  # fmt: skip
    text = list(prompt)
    emitted = []
    while len(emitted) < rules.max_new_tokens:
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(text)] = text
        logits = np.array(apply(tokens, len(text) - 1))
        logits[list(rules.suppressed_ids)] = -np.inf
        emitted.append(int(logits.argmax()))
        text.append(emitted[-1])
        if emitted[-1] in rules.stop_ids:
            break
    return tuple(emitted)


@pytest.fixture(scope="module")
def references():
    """Each prompt's response without stop tokens, one token a pass."""
    (strategy, params), _ = tiny.strategies(rules=tiny.RULES)
    responses = generate(strategy, params, tiny.PROMPTS, ids=tiny.IDS, batch_size=8)
    return [response.tokens for response in responses]


def test_autoregressive_equals_the_loop_in_python(references):
    model, params = tiny.target()
    for prompt, reference in list(zip(tiny.PROMPTS, references, strict=True))[:3]:
        assert slow_greedy(model, params, prompt, rules=tiny.RULES) == reference
    # Otherwise the comparisons of this file would say little.
    assert all(len(set(reference)) > 5 for reference in references)


@pytest.mark.parametrize("unroll_layers", [False, True])
def test_speculative_equals_autoregressive(references, unroll_layers):
    _, (strategy, params) = tiny.strategies(rules=tiny.RULES, unroll_layers=unroll_layers)
    responses = generate(strategy, params, tiny.PROMPTS, ids=tiny.IDS, batch_size=8)
    assert [response.tokens for response in responses] == references
    assert all(len(r.tokens) == 1 + sum(r.kept) == 24 for r in responses)
    assert not any(response.stopped for response in responses)


def test_stop_tokens_end_both_alike(references):
    # Different places of different rows, the first token of one of them included.
    stops = (references[0][7], references[1][0], references[3][12])
    rules = dataclasses.replace(tiny.RULES, stop_ids=stops)
    (plain, target), (fast, both) = tiny.strategies(rules=rules)
    ours = generate(fast, both, tiny.PROMPTS, ids=tiny.IDS, batch_size=8)
    theirs = generate(plain, target, tiny.PROMPTS, ids=tiny.IDS, batch_size=8)
    for mine, other, whole in zip(ours, theirs, references, strict=True):
        ends = [place for place, token in enumerate(whole) if token in stops]
        expected = whole[: ends[0] + 1] if ends else whole
        assert mine.tokens == other.tokens == expected
        assert mine.stopped == other.stopped == bool(ends)
    assert len(ours[1].tokens) == 1
    assert ours[1].kept == ours[1].verified == ()
    assert len({len(response.tokens) for response in ours}) > 2


def scripted(scripts, rules):
    model, params = tiny.target()
    strategy = Speculative(model, tiny.Scripted(), rules)
    state = tiny.start_and_run(
        strategy,
        {"target": params, "drafter": jnp.asarray(scripts, jnp.int32)},
        tiny.PROMPTS,
    )
    return state, read_responses(state, ids=tiny.IDS, rules=rules)


def test_a_perfect_draft_fills_every_block(references):
    state, responses = scripted(references, tiny.RULES)
    assert [response.tokens for response in responses] == references
    # 23 tokens behind the first one, 5 a round; the last round is cut to 3 by the limit.
    for response in responses:
        # The script ends in the last round: its fourth draft is padding.
        assert response.verified[:4] == (4, 4, 4, 4)
        assert response.kept == (5, 5, 5, 5, 3)
        assert response.accepted == (4, 4, 4, 4, 3)
    assert int(state.step) == 5


def test_rounds_with_errors_are_counted_one_by_one(references):
    """Every row errs at places of its own; the counts are those of a simulation by hand."""
    rng = np.random.default_rng(0)
    wrong = rng.random((len(references), 24)) < 0.3
    scripts = np.where(wrong, (np.array(references) + 1) % 60, np.array(references))
    stops = (references[2][9],)
    rules = DecodeRules(24, stops, tiny.RULES.suppressed_ids)
    state, responses = scripted(scripts, rules)
    for row, (response, reference) in enumerate(zip(responses, references, strict=True)):
        ends = [place for place, token in enumerate(reference) if token in stops]
        length = ends[0] + 1 if ends else 24
        assert response.tokens == reference[:length]
        verified, kept, count = [], [], 1
        while count < length:
            good = 0
            # Drafts behind the script's end are padding, which the target never writes.
            while good < 4 and count + good < 24 and not wrong[row, count + good]:
                good += 1
            verified.append(good)
            kept.append(min(good + 1, length - count))
            count += kept[-1]
        assert response.kept == tuple(kept)
        ran_to_the_end = count == 24
        compared = slice(None, -1) if ran_to_the_end else slice(None)
        assert response.verified[compared] == tuple(verified)[compared]
    lengths = np.array([len(prompt) for prompt in tiny.PROMPTS])
    assert (np.array(state.cache.lengths_B) == lengths + np.array(state.count_B) - 1).all()


def test_a_row_does_not_depend_on_its_neighbours(references):
    _, (strategy, params) = tiny.strategies(rules=tiny.RULES)
    names = ["prompt/1", "x", "y"]
    mixed = [tiny.PROMPTS[1], tiny.PROMPTS[4], tiny.PROMPTS[0]]
    alone = generate(strategy, params, tiny.PROMPTS[1:2], ids=names[:1], batch_size=8)
    together = generate(strategy, params, mixed, ids=names, batch_size=8)
    assert alone[0] == together[0]
    assert alone[0].tokens == references[1]


def test_suppressed_tokens_are_neither_drafted_nor_emitted(references):
    banned = tuple(sorted({tiny.MASK_ID, *references[0][:6]}))
    rules = DecodeRules(24, (), banned)
    (plain, target), (fast, both) = tiny.strategies(rules=rules, suppressed_ids=banned)
    ours = generate(fast, both, tiny.PROMPTS, ids=tiny.IDS, batch_size=8)
    theirs = generate(plain, target, tiny.PROMPTS, ids=tiny.IDS, batch_size=8)
    assert [r.tokens for r in ours] == [r.tokens for r in theirs]
    assert not {token for response in ours for token in response.tokens} & set(banned)
    batch_drafts = fast.proposer.propose(
        both,
        fast.start(both, _batch(), capacity=128).drafter,
        jnp.arange(4, dtype=jnp.int32),
        jax.random.split(jax.random.key(0), 4),
    )
    assert not set(np.array(batch_drafts.tokens_BG).ravel().tolist()) & set(banned)


def _batch():
    from jaxspec.decoding.generate import pad_prompts

    return pad_prompts(tiny.PROMPTS[:4], ids=tiny.IDS[:4], length=32, rows=4, seed=0)


def test_one_new_token_needs_no_round(references):
    rules = dataclasses.replace(tiny.RULES, max_new_tokens=1)
    (plain, target), (fast, both) = tiny.strategies(rules=rules)
    for strategy, params in ((plain, target), (fast, both)):
        responses = generate(strategy, params, tiny.PROMPTS, ids=tiny.IDS, batch_size=8)
        assert [r.tokens for r in responses] == [reference[:1] for reference in references]


def test_another_block_size_changes_nothing(references):
    model, params = tiny.target()
    proposer, drafter_params = tiny.dflash(model, block_size=3)
    strategy = Speculative(model, proposer, tiny.RULES)
    both = {"target": params, "drafter": drafter_params}
    responses = generate(strategy, both, tiny.PROMPTS, ids=tiny.IDS, batch_size=8)
    assert [response.tokens for response in responses] == references


def test_strategies_of_one_shape_are_equal():
    (plain, _), (fast, _) = tiny.strategies(rules=tiny.RULES)
    (plain_again, _), (fast_again, _) = tiny.strategies(rules=tiny.RULES)
    assert plain == plain_again
    assert fast == fast_again
    assert hash(fast) == hash(fast_again)
    assert plain != Autoregressive(plain.model, DecodeRules(25))
