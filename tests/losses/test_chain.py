import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.losses import chain_reward, prefix_probability
from tests.losses import reference

LOG_P = jnp.log(jnp.array([[0.5, 0.25, 0.5], [1.0, 0.5, 0.25]]))
masked_reward = jax.value_and_grad(lambda log_p, mask: chain_reward(log_p, mask_NG=mask))
compiled_reward = jax.jit(masked_reward)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        # products 1/2 1/8 1/16 (sum 11/16) and 1 1/2 1/8 (sum 26/16), each over 3 slots
        (None, (11 / 48 + 26 / 48) / 2),
        # a gap: the first block has one slot, so its divisor is 1
        ([[1, 0, 1], [1, 1, 1]], (1 / 2 + 26 / 48) / 2),
        # two slots: (1 + 1/2) / 2; the other block is none
        ([[0, 1, 1], [1, 1, 0]], 3 / 4),
        ([[0, 1, 1], [0, 0, 0]], 0.0),
    ],
)
def test_hand_computed(mask, expected):
    value = chain_reward(LOG_P, mask_NG=None if mask is None else jnp.array(mask))
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_hand_computed_gradient():
    # one block p = 1/2 1/4 1/2: suffix sums of 1/2 1/8 1/16, over 3
    gradient = jax.grad(chain_reward)(LOG_P[:1])
    np.testing.assert_allclose(gradient, [[11 / 48, 3 / 48, 1 / 48]], rtol=1e-6)


def test_limits():
    mask = np.array([[True, True, True], [True, False, False]])
    assert float(compiled_reward(np.zeros((2, 3)), mask)[0]) == 1.0
    assert float(compiled_reward(np.full((2, 3), -np.inf), mask)[0]) == 0.0


@pytest.mark.parametrize("function", [masked_reward, compiled_reward], ids=["eager", "jit"])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_match_the_reference(function, seed):
    logits, labels, mask = reference.random_batch(seed)
    log_p, _ = reference.statistics(logits, labels)
    value, gradient = function(jnp.asarray(log_p), mask)
    assert float(value) == pytest.approx(reference.chain(log_p, mask), rel=1e-5)
    np.testing.assert_allclose(gradient, reference.chain_gradient(log_p, mask), atol=1e-6)
    slow = reference.finite_differences(lambda x: reference.chain(x, mask), log_p)
    np.testing.assert_allclose(gradient, slow, atol=1e-6)


@pytest.mark.parametrize("poor", [-200.0, -1e30, -np.inf])
def test_finite_gradient_where_the_product_underflows(poor):
    log_p = np.array([[-0.1, poor, -0.1], [poor, -0.1, -0.1]])
    value, gradient = compiled_reward(log_p, np.ones((2, 3), bool))
    # Only the first slot of the first block is left: e^-0.1 / 3, over two blocks.
    assert float(value) == pytest.approx(np.exp(-0.1) / 6, rel=1e-6)
    np.testing.assert_allclose(gradient, [[np.exp(-0.1) / 6, 0, 0], [0, 0, 0]], rtol=1e-6)


def test_masked_slots_may_hold_anything():
    log_p = np.array([[-0.5, np.nan, -0.1], [-np.inf, np.nan, np.inf]])
    value, gradient = compiled_reward(log_p, np.array([[True, False, True], [False, True, True]]))
    assert float(value) == pytest.approx(np.exp(-0.5))
    np.testing.assert_allclose(gradient, [[np.exp(-0.5), 0, 0], [0, 0, 0]], rtol=1e-6)


def test_prefix_probability_falls_along_the_block():
    rho = np.asarray(prefix_probability(LOG_P, mask_NG=None))
    np.testing.assert_allclose(rho, [[1 / 2, 1 / 8, 1 / 16], [1, 1 / 2, 1 / 8]], rtol=1e-6)
    masked = prefix_probability(LOG_P, mask_NG=jnp.array([[1, 1, 0], [0, 1, 1]]))
    np.testing.assert_allclose(masked, [[1 / 2, 1 / 8, 0], [0, 0, 0]], rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="one entry for each slot"):
        chain_reward(LOG_P, mask_NG=jnp.ones((2, 2)))
