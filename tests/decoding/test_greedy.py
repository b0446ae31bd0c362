"""Greedy decoding: one token per pass equals a loop in Python, and blocks equal that."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import Autoregressive, DecodeRules, Speculative, TreeSpeculative
from jaxspec.decoding.state import first_state
from jaxspec.drafters.ngram import NGramProposer
from jaxspec.models.cache import KVCache
from tests.decoding import tiny


@pytest.fixture(scope="module")
def references():
    """Each prompt's response, from the loop in Python."""
    return [tiny.slow_greedy(prompt) for prompt in tiny.PROMPTS]


def test_the_references_are_worth_comparing_with(references):
    assert tuple(map(len, references)) == tiny.LENGTHS
    for reference, whole in zip(references, map(unruly, tiny.PROMPTS), strict=True):
        assert len(reference) < 8 or len(set(reference)) > 4
        assert set(whole) & {*tiny.RULES.suppressed_ids, *tiny.RULES.stop_ids}


def unruly(prompt):
    """The response if no token were suppressed, and none ended it."""
    return tiny.slow_greedy(prompt, rules=DecodeRules(24))


@pytest.mark.parametrize("number", [0, 1, 2], ids=["autoregressive", "speculative", "tree"])
def test_outputs_equal_the_loop_in_python(references, number):
    strategy, params = tiny.strategies()[number]
    responses = tiny.decode(strategy, params)
    assert [response.tokens for response in responses] == references
    assert [response.prompt_id for response in responses] == list(tiny.IDS)
    for response in responses:
        assert response.stopped == (response.tokens[-1] in tiny.RULES.stop_ids)
        if number:
            assert len(response.tokens) == 1 + sum(response.emitted)
        else:
            assert response.emitted == response.verified == ()


def test_a_row_does_not_depend_on_its_neighbours(references):
    _, (strategy, params), _ = tiny.strategies()
    chosen = [1, 4, 0]
    prompts, ids = [tiny.PROMPTS[row] for row in chosen], [tiny.IDS[row] for row in chosen]
    together = tiny.decode(strategy, params, prompts, ids)
    alone = tiny.decode(strategy, params, prompts[:1], ids[:1])
    assert alone[0] == together[0]
    assert [response.tokens for response in together] == [references[row] for row in chosen]


def scripted(scripts):
    """A drafter that knows what comes, apart from the errors in its script."""
    model, params = tiny.target()
    strategy = Speculative(model, tiny.Scripted(), tiny.RULES)
    both = {"target": params, "drafter": jnp.asarray(scripts, jnp.int32)}
    prompts, capacity = tiny.batch()
    state = strategy.run(both, strategy.start(both, prompts, capacity=capacity))
    return state, tiny.responses_of(state)


def padded(references):
    return np.array([(*tokens, *[0] * (24 - len(tokens))) for tokens in references])


def test_a_perfect_draft_fills_every_block(references):
    state, responses = scripted(padded(references))
    assert [response.tokens for response in responses] == references
    # Behind the first token 5 a round, until the stop token or the limit cuts the last round.
    assert [response.emitted for response in responses] == [
        (5, 5, 2),
        (5, 5, 5, 5, 3),
        (),
        (5, 2),
        (5, 5, 5, 5, 3),
    ]
    for response in responses:
        assert all(count == 4 for count in response.verified[:-1])
        assert response.accepted == tuple(min(count, 4) for count in response.emitted)
    assert int(state.step) == 5


def test_prompt_lookup_is_exact(references):
    model, params = tiny.target()
    strategy = Speculative(model, NGramProposer(tiny.BLOCK_SIZE), tiny.RULES)
    responses = tiny.decode(strategy, {"target": params, "drafter": {}})
    assert [response.tokens for response in responses] == references


def test_a_tree_of_prompt_lookups_is_exact(references):
    model, params = tiny.target()
    strategy = TreeSpeculative(model, NGramProposer(tiny.BLOCK_SIZE), tiny.RULES, num_nodes=10)
    # Two whole continuations of four tokens fit.
    assert strategy.verified_rows == 1 + 2 * 4
    responses = tiny.decode(strategy, {"target": params, "drafter": {}})
    assert [response.tokens for response in responses] == references
    assert sum(sum(response.accepted) for response in responses) > 0
    assert all(response.draft_passes == 0 for response in responses)
    with pytest.raises(ValueError, match="no room for a continuation of 4 tokens"):
        TreeSpeculative(model, NGramProposer(tiny.BLOCK_SIZE), tiny.RULES, num_nodes=3)


def test_a_tree_finds_the_right_one_of_two_choices(references):
    """Each slot's first choice is wrong at random; all 30 paths of two choices fit the budget."""
    right = padded(references)
    rng = np.random.default_rng(0)
    swap = rng.random(right.shape) < 0.5
    other = (right + rng.integers(1, 60, right.shape)) % 60
    both_choices = np.stack([np.where(swap, other, right), np.where(swap, right, other)])
    model, params = tiny.target()
    prompts, capacity = tiny.batch()
    both = {"target": params, "drafter": jnp.asarray(both_choices, jnp.int32)}
    found = {}
    for num_nodes in (30, 4):
        strategy = TreeSpeculative(model, tiny.ScriptedMarginals(), tiny.RULES, num_nodes=num_nodes)
        state = strategy.run(both, strategy.start(both, prompts, capacity=capacity))
        responses = tiny.responses_of(state)
        assert [response.tokens for response in responses] == references
        found[num_nodes] = [response.emitted for response in responses]
    assert found[30] == [(5, 5, 2), (5, 5, 5, 5, 3), (), (5, 2), (5, 5, 5, 5, 3)]
    # Fewer nodes hold fewer of the paths.
    assert sum(map(len, found[4])) > sum(map(len, found[30]))


def test_rounds_with_errors_are_counted_as_by_hand(references):
    """Every row errs at places of its own."""
    right = padded(references)
    wrong = np.random.default_rng(0).random(right.shape) < 0.3
    state, responses = scripted(np.where(wrong, (right + 1) % 60, right))
    for row, (response, reference) in enumerate(zip(responses, references, strict=True)):
        assert response.tokens == reference
        accepted, kept, count = [], [], 1
        while count < len(reference):
            left = len(reference) - count
            good = 0
            while good < min(4, left) and not wrong[row, count + good]:
                good += 1
            accepted.append(good)
            kept.append(min(good + 1, left))
            count += kept[-1]
        assert response.emitted == tuple(kept)
        assert response.accepted == tuple(accepted)
    prompts = np.array([len(prompt) for prompt in tiny.PROMPTS])
    assert (np.array(state.cache.lengths_B) == prompts + np.array(state.count_B) - 1).all()
    assert len({len(response.emitted) for response in responses}) > 2


def test_drafts_hold_no_suppressed_token():
    _, (strategy, params), _ = tiny.strategies()
    prompts, capacity = tiny.batch()
    state = strategy.start(params, prompts, capacity=capacity)
    # More than half of the vocabulary: a random drafter would hardly avoid it by chance.
    proposer = dataclasses.replace(strategy.proposer, suppressed_ids=tuple(range(40)))
    draft, _ = jax.jit(proposer.propose)(params, state.drafter, state.anchor_B, prompts.keys_B)
    assert draft.probs_BGV is None
    assert draft.tokens_BG.min() >= 40


def test_a_single_new_token_comes_from_the_prefill():
    cache = KVCache.create(num_layers=1, num_kv_heads=1, head_dim=2, batch=4, capacity=4)
    prompts, _ = tiny.batch(tiny.PROMPTS[:4], rows=4)
    prompts = prompts.replace(active_B=jnp.array([True, True, False, True]))
    arguments = (
        jnp.array([5, 57, 6, -1]),
        jnp.array([False, False, False, True]),
        prompts,
    )
    for limit, active in ((1, [False] * 4), (2, [True, False, False, False])):
        state = first_state(
            cache,
            None,
            *arguments,
            rules=dataclasses.replace(tiny.RULES, max_new_tokens=limit),
            round_tokens=3,
            drafted_nodes=2,
        )
        assert state.active_B.tolist() == active
        assert state.count_B.tolist() == [1, 1, 0, 1]
        assert state.failed_B.tolist() == [False, False, False, True]
        assert state.tokens_BT.shape == (4, limit + 3)


def test_strategies_of_one_shape_are_equal():
    for (strategy, _), (again, _) in zip(tiny.strategies(), tiny.strategies(), strict=True):
        assert strategy == again
        assert hash(strategy) == hash(again)
    plain = tiny.strategies()[0][0]
    assert plain != Autoregressive(plain.model, DecodeRules(25))
