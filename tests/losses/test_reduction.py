import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.losses import counted_slots, ratio, reached_slots
from jaxspec.losses.reduction import slot_weights, weighted_terms


def test_slots_behind_a_gap_do_not_count():
    mask = jnp.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    assert counted_slots(mask, shape=(3, 4)).tolist() == [
        [True, True, False, False],
        [False, False, False, False],
        [True, True, True, True],
    ]


def test_no_mask_counts_everything():
    assert counted_slots(None, shape=(2, 3)).all()


def test_reached_slots_end_at_the_first_error():
    correct = jnp.array([[True, False, True], [True, True, True], [False, True, True]])
    mask = jnp.array([[True, True, True], [True, True, False], [True, True, True]])
    assert reached_slots(correct, mask_NG=mask).tolist() == [
        [True, True, False],
        [True, True, False],
        [True, False, False],
    ]


def test_ratio_of_nothing_is_zero_with_zero_gradient():
    value, gradients = jax.value_and_grad(ratio, argnums=(0, 1))(0.0, 0.0)
    assert float(value) == 0.0
    assert [float(g) for g in gradients] == [0.0, 0.0]


def test_values_under_the_mask_do_not_matter():
    values = jnp.array([[1.0, jnp.inf], [jnp.nan, jnp.nan]])
    mask = jnp.array([[True, False], [False, True]])
    for normalize in ("block", "weight"):
        terms = weighted_terms(values, weights_G=None, mask_NG=mask, normalize=normalize)
        np.testing.assert_array_equal(terms, [1.0, 1.0])


def test_errors():
    with pytest.raises(ValueError, match=r"got \(2, 4\), expected \(2, 3\)"):
        counted_slots(jnp.ones((2, 4)), shape=(2, 3))
    with pytest.raises(ValueError, match="one weight for each of the 3 slots"):
        slot_weights(jnp.ones(4), num_slots=3)
    with pytest.raises(ValueError, match="got 'mean'"):
        weighted_terms(jnp.ones((1, 2)), weights_G=None, mask_NG=None, normalize="mean")
