"""An output that differs is told by how far its token is from the target's choice."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxspec.decoding import Autoregressive
from jaxspec.evals.speculative.differences import first_difference, logit_gaps
from tests.decoding import tiny


def with_token(response, place, token):
    """The response with another token at a place, and nothing after it."""
    return dataclasses.replace(response, tokens=(*response.tokens[:place], token))


@pytest.fixture(scope="module")
def answered():
    """(strategy, params, the target's responses to `tiny.PROMPTS`)."""
    model, params = tiny.target()
    strategy = Autoregressive(model, tiny.RULES)
    return strategy, params, tiny.decode(strategy, params)


def test_equal_outputs_have_no_gaps(answered):
    strategy, params, responses = answered
    assert logit_gaps(strategy, params, tiny.PROMPTS, responses, responses) == []


@pytest.mark.parametrize("place", [0, 3])
def test_the_gap_is_that_of_the_whole_text_through_the_model(answered, place):
    strategy, params, theirs = answered
    number = max(range(len(theirs)), key=lambda index: len(theirs[index].tokens))
    wrong = 7 if theirs[number].tokens[place] != 7 else 8
    ours = [*theirs]
    ours[number] = with_token(theirs[number], place, wrong)
    (gap,) = logit_gaps(strategy, params, tiny.PROMPTS, ours, theirs)
    text = jnp.array([[*tiny.PROMPTS[number], *theirs[number].tokens[:place]]])

    @jax.jit
    def logits_of(params, text):
        output = strategy.model.apply({"params": params}, text)
        return strategy.model.apply({"params": params}, output.hidden_BSD[:, -1], method="logits")

    logits_V = logits_of(params, text)[0]
    best = theirs[number].tokens[place]
    assert gap == pytest.approx(float(logits_V[best] - logits_V[wrong]), abs=1e-4)
    assert gap > 0.01


def test_a_reference_that_is_wrong_gives_no_gap(answered):
    strategy, params, ours = answered
    other = 7 if ours[0].tokens[0] != 7 else 8
    theirs = [with_token(ours[0], 0, other), *ours[1:]]
    assert logit_gaps(strategy, params, tiny.PROMPTS, ours, theirs) == [0.0]


def test_the_first_difference():
    assert first_difference((1, 2, 3), (1, 2, 4)) == 2
    assert first_difference((5, 2), (1, 2, 4)) == 0
