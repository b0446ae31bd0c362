import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.losses import positional_weights


def test_hand_computed():
    # decay 2: exp(0), exp(-1/2), exp(-1)
    np.testing.assert_allclose(
        positional_weights(3, decay=2.0), [1.0, 0.60653066, 0.36787944], rtol=1e-6
    )


def test_sum_of_the_papers_weights():
    # (1 - e^-1.5) / (1 - e^-0.1) = 0.77687 / 0.0951626 = 8.1636
    assert float(positional_weights(15, decay=10.0).sum()) == pytest.approx(8.16360, abs=1e-4)


@pytest.mark.parametrize("decay", [None, float("inf")])
def test_no_decay_is_uniform(decay):
    weights = positional_weights(4, decay=decay)
    assert weights.tolist() == [1.0] * 4
    assert weights.dtype == jnp.float32


def test_traced_decay():
    weights = jax.jit(lambda decay: positional_weights(3, decay=decay))
    np.testing.assert_allclose(weights(2.0), positional_weights(3, decay=2.0), rtol=1e-6)
    assert weights(jnp.inf).tolist() == [1.0] * 3


@pytest.mark.parametrize("decay", [0, -1.0, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=r"decay must be positive.*got"):
        positional_weights(3, decay=decay)


def test_no_slots():
    with pytest.raises(ValueError, match="at least 1: got 0"):
        positional_weights(0, decay=None)
