import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.losses import first_error_focal, first_error_slots
from tests.losses import reference

LN2 = float(np.log(2.0))
LOG_P = jnp.log(jnp.array([[0.5, 0.25, 0.5], [0.5, 0.5, 0.25]]))
CORRECT = jnp.array([[True, False, False], [False, True, False]])
HALVES = jnp.array([1.0, 0.5, 0.25])


@pytest.mark.parametrize(
    ("weights", "mask", "expected"),
    [
        # errors at slot 1 (2 ln 2) and slot 0 (ln 2)
        (None, None, 1.5),
        # (1/2 * 2 + 1 * 1) / (1/2 + 1)
        (HALVES, None, 4 / 3),
        # only the first block is left
        (HALVES, [[1, 1, 1], [0, 1, 1]], 2.0),
        # its error lies at a masked slot, and the later one behind it: no error at all
        (HALVES, [[1, 0, 1], [0, 0, 0]], 0.0),
    ],
)
def test_hand_computed(weights, mask, expected):
    mask = None if mask is None else jnp.array(mask)
    value = first_error_focal(LOG_P, correct_NG=CORRECT, weights_G=weights, mask_NG=mask)
    assert float(value) == pytest.approx(expected * LN2, rel=1e-6)


def test_marks_at_most_one_slot_a_block():
    correct = jnp.array([[True, False, False], [True, True, True]])
    marks = first_error_slots(correct, mask_NG=None)
    assert marks.tolist() == [[False, True, False], [False, False, False]]


def test_zero_and_zero_gradient_without_errors():
    value, gradient = jax.value_and_grad(first_error_focal)(
        LOG_P, correct_NG=jnp.ones((2, 3), bool)
    )
    assert float(value) == 0.0
    assert not gradient.any()


def test_gradient_is_at_the_first_errors_alone():
    gradient = jax.grad(first_error_focal)(LOG_P, correct_NG=CORRECT, weights_G=HALVES)
    # -w_k* / (1/2 + 1)
    np.testing.assert_allclose(gradient, [[0, -1 / 3, 0], [-2 / 3, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("seed", [0, 1])
def test_matches_the_reference(wrap, seed):
    logits, labels, mask = reference.random_batch(seed)
    log_p, correct = reference.statistics(logits, labels)
    w = reference.weights(log_p.shape[-1], 3.0)
    value = wrap(first_error_focal)(
        jnp.asarray(log_p), correct_NG=correct, weights_G=jnp.array(w), mask_NG=mask
    )
    assert float(value) == pytest.approx(reference.first_error(log_p, correct, w, mask), rel=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="one shape"):
        first_error_focal(LOG_P, correct_NG=CORRECT[:, :2])
