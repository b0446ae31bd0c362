"""LLaDA's losses by hand, against the bound they are a variant of, and in expectation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.losses import answer_terms, elbo_values, masked_values, ratio, token_terms

MASK, VOCABULARY = 3, 4
LABELS = jnp.array([[0, 1, 2, 0], [2, 2, 1, 0]])
MASKED = jnp.array([[True, False, True, False], [False, True, True, True]])
P = jnp.array([[0.5], [0.25]])


def logits(*, probability=0.5):
    """The label gets `probability`, and the other three, the mask among them, share the rest."""
    others = (1 - probability) / (VOCABULARY - 1)
    return jnp.log(jnp.where(jax.nn.one_hot(LABELS, VOCABULARY) > 0, probability, others))


@pytest.mark.parametrize("wrapped", [jax.jit, lambda f: f])
def test_pretraining_by_hand(wrapped):
    @wrapped
    def loss(logits_BSV):
        values = masked_values(logits_BSV, LABELS, masked_BS=MASKED, probabilities=P)
        return ratio(*token_terms(values))

    # Two masked tokens at p = 1/2 and three at 1/4, each log 2, over 2 x 4 tokens.
    assert loss(logits()) == pytest.approx(math.log(2) * (2 / 0.5 + 3 / 0.25) / 8, rel=1e-6)
    assert loss(logits(probability=0.9)) < loss(logits())


def test_answers_by_hand():
    answer = jnp.array([[False, False, True, True], [False, True, True, True]])
    values = masked_values(logits(), LABELS, masked_BS=MASKED & answer, probabilities=P)
    total, sequences = answer_terms(values, answer_BS=answer)
    expected = math.log(2) * (1 / 0.5 / 2 + 3 / 0.25 / 3)
    assert total == pytest.approx(expected, rel=1e-6) and sequences == 2
    # What stands outside the answer does not matter, NaN neither; padding adds nothing.
    noise = jnp.where(answer, values, jnp.nan)
    assert answer_terms(noise, answer_BS=answer)[0] == total
    wide = [jnp.pad(array, ((0, 1), (0, 3))) for array in (values, answer)]
    assert answer_terms(wide[0], answer_BS=wide[1]) == (total, sequences)


def test_whole_rows_as_answers_are_pretraining():
    values = masked_values(logits(), LABELS, masked_BS=MASKED, probabilities=P)
    whole = ratio(*answer_terms(values, answer_BS=jnp.ones_like(MASKED)))
    np.testing.assert_allclose(whole, ratio(*token_terms(values)), rtol=1e-6)
    assert ratio(*answer_terms(values, answer_BS=jnp.zeros_like(MASKED))) == 0


def test_equals_the_bound_where_the_mask_has_no_mass():
    without = logits().at[..., MASK].set(-jnp.inf)
    values = masked_values(without, LABELS, masked_BS=MASKED, probabilities=P)
    bound = elbo_values(logits(), LABELS, masked_BS=MASKED, times_BS=P, mask_id=MASK)
    np.testing.assert_allclose(values, bound, rtol=1e-6)
    with_mask = masked_values(logits(), LABELS, masked_BS=MASKED, probabilities=P)
    assert (with_mask >= values).all() and (with_mask > values).any()


def test_gradients_are_finite_and_only_at_masked_tokens():
    def loss(logits_BSV):
        return masked_values(logits_BSV, LABELS, masked_BS=MASKED, probabilities=P).sum()

    gradient = jax.jit(jax.grad(loss))(logits().at[..., MASK].set(-jnp.inf))
    assert jnp.isfinite(gradient).all()
    np.testing.assert_array_equal(jnp.abs(gradient).sum(-1) > 0, MASKED)


def test_labels_outside_the_vocabulary():
    labels = jnp.where(MASKED, LABELS, -100)
    values = masked_values(logits(), labels, masked_BS=MASKED, probabilities=P)
    assert jnp.isfinite(values).all()
    assert jnp.isnan(masked_values(logits(), labels, masked_BS=~MASKED, probabilities=P)[0, 1]), (
        "a masked label outside the vocabulary must be seen"
    )


def test_bad_input():
    with pytest.raises(ValueError, match="one entry for each value"):
        answer_terms(jnp.zeros((2, 3)), answer_BS=jnp.ones((2, 2), bool))
