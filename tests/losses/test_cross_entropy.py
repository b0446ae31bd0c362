import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.losses import cross_entropy, label_log_prob
from jaxspec.losses.cross_entropy import label_statistics
from tests.losses import reference

LN2 = float(np.log(2.0))
# Two blocks of three slots with label probabilities 1/2 1/4 1/2 and 1 1/2 1/4.
LOG_P = jnp.log(jnp.array([[0.5, 0.25, 0.5], [1.0, 0.5, 0.25]]))
HALVES = jnp.array([1.0, 0.5, 0.25])

statistics = jax.jit(label_statistics)
value_and_grad = jax.jit(
    jax.value_and_grad(lambda logits, labels: label_log_prob(logits, labels).sum())
)
masked_cross_entropy = jax.jit(
    jax.value_and_grad(
        lambda logits, labels, mask: cross_entropy(label_log_prob(logits, labels), mask_NG=mask)
    )
)


@pytest.mark.parametrize(
    ("weights", "mask", "normalize", "expected"),
    [
        # blocks cost 1+2+1 = 4 and 0+1+2 = 3 (in ln 2): mean 3.5, per slot 7/6
        (None, None, "block", 3.5),
        (None, None, "weight", 7 / 6),
        # weighted: 1+1+1/4 = 9/4 and 0+1/2+1/2 = 1: mean 13/8; weights sum to 2 * 7/4
        (HALVES, None, "block", 13 / 8),
        (HALVES, None, "weight", 3.25 / 3.5),
        # second block empty: it is no block
        (HALVES, [[1, 1, 1], [0, 1, 1]], "block", 9 / 4),
        (HALVES, [[1, 1, 1], [0, 1, 1]], "weight", 2.25 / 1.75),
        # first block: one slot, since the third lies behind the gap
        (None, [[1, 0, 1], [1, 1, 1]], "block", 2.0),
        (None, [[1, 0, 1], [1, 1, 1]], "weight", 1.0),
        (None, [[0, 0, 0], [0, 0, 0]], "block", 0.0),
        (None, [[0, 0, 0], [0, 0, 0]], "weight", 0.0),
    ],
)
def test_hand_computed(weights, mask, normalize, expected):
    mask = None if mask is None else jnp.array(mask)
    value = cross_entropy(LOG_P, weights_G=weights, mask_NG=mask, normalize=normalize)
    assert float(value) == pytest.approx(expected * LN2, rel=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_statistics_match_the_reference(wrap):
    logits, labels, _ = reference.random_batch(0)
    log_p, correct = wrap(label_statistics)(logits, labels)
    expected_log_p, expected_correct = reference.statistics(logits, labels)
    assert log_p.dtype == jnp.float32
    np.testing.assert_allclose(log_p, expected_log_p, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(correct, expected_correct)


def test_gradient_is_onehot_minus_softmax():
    logits, labels, _ = reference.random_batch(1)
    _, gradient = value_and_grad(logits, labels)
    softmax = [[np.exp(reference.log_softmax(row)) for row in block] for block in logits]
    np.testing.assert_allclose(gradient, np.eye(7)[labels] - softmax, atol=1e-6)


def test_gradient_matches_finite_differences():
    logits, labels, mask = reference.random_batch(2, blocks=3, slots=3, vocab=4)
    w = reference.weights(3, 2.0)

    def slow(x):
        return reference.cross_entropy(reference.statistics(x, labels)[0], w, mask, "block")

    def fast(x):
        return cross_entropy(
            label_log_prob(x, labels), weights_G=jnp.array(w), mask_NG=mask, normalize="block"
        )

    gradient = jax.jit(jax.grad(fast))(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, reference.finite_differences(slow, logits), atol=1e-6)


def test_ties_go_to_the_lowest_id_like_argmax():
    rng = np.random.default_rng(3)
    # Few levels, so that most rows tie at the top.
    logits = rng.integers(0, 3, size=(200, 6)).astype(np.float32)
    labels = rng.integers(0, 6, size=200)
    for dtype in (jnp.float32, jnp.bfloat16):
        _, correct = statistics(jnp.asarray(logits, dtype), labels)
        np.testing.assert_array_equal(correct, logits.argmax(-1) == labels)
    assert 10 < int(correct.sum()) < 100


def test_log_probability_is_never_positive_and_keeps_precision_far_from_zero():
    logits = np.array([[4000.0, 3999.0], [-4000.0, -4001.0], [1e30, -1e30]])
    log_p, _ = statistics(logits, np.zeros(3, np.int32))
    # -log(1 + 1/e) = -0.3132617
    np.testing.assert_allclose(log_p, [-0.3132617, -0.3132617, 0.0], rtol=1e-6)
    assert float(log_p.max()) <= 0.0


def test_underflow_and_forbidden_ids_keep_gradients_finite():
    inf = np.inf
    # The label's probability underflows in the first row; ids are forbidden in the second and,
    # beside a label that is certain, in the third.
    logits = np.array([[0.0, 500.0, 0.0], [1.0, -inf, 1.0], [2.0, -inf, -inf]])
    value, gradient = value_and_grad(logits, np.zeros(3, np.int32))
    # -500, -ln 2, 0
    assert float(value) == pytest.approx(-500 - LN2)
    np.testing.assert_allclose(gradient, [[1, -1, 0], [0.5, 0, -0.5], [0, 0, 0]], atol=1e-6)


def test_labels_outside_the_vocabulary_are_loud_where_they_count():
    logits, mask = np.zeros((1, 3, 3)), np.array([[True, False, False]])
    for label in (-100, -1, 3):
        labels = np.array([[1, 0, label]])
        log_p, correct = statistics(logits, labels)
        assert np.isnan(log_p).tolist() == [[False, False, True]]
        assert not correct[0, 2]
        assert np.isnan(masked_cross_entropy(logits, labels, np.ones_like(mask))[0])
        value, gradient = masked_cross_entropy(logits, labels, mask)
        assert float(value) == pytest.approx(np.log(3.0))
        expected = [[[1 / 3, -2 / 3, 1 / 3], [0, 0, 0], [0, 0, 0]]]
        np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint16, np.uint32])
def test_labels_of_any_integer_type(kind):
    # 256 is 0 in 8 bits, so every label looked as if it were outside the vocabulary.
    logits = np.zeros((1, 2, 256), np.float32)
    log_p, correct = label_statistics(logits, jnp.array([[0, 100]], kind))
    np.testing.assert_allclose(log_p, -np.log(256.0), rtol=1e-6)
    assert correct.tolist() == [[True, False]]


def test_rows_without_any_allowed_id_do_no_harm_under_the_mask():
    logits, mask = np.zeros((1, 3, 3)), np.array([[True, False, False]])
    logits[0, 1:] = -np.inf
    value, gradient = masked_cross_entropy(logits, np.array([[1, 0, 0]]), mask)
    assert float(value) == pytest.approx(np.log(3.0))
    assert np.isfinite(gradient).all()


def test_bfloat16_logits_give_float32_values_and_bfloat16_gradients():
    logits = jnp.asarray(reference.random_batch(4)[0], jnp.bfloat16)
    labels = reference.random_batch(4)[1]
    value, gradient = value_and_grad(logits, labels)
    wide_value, wide_gradient = value_and_grad(logits.astype(jnp.float32), labels)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert float(value) == pytest.approx(float(wide_value), rel=1e-6)
    np.testing.assert_allclose(gradient.astype(jnp.float32), wide_gradient, atol=4e-3)


def test_nothing_of_vocabulary_size_is_kept_for_the_backward_pass_but_the_logits():
    logits = jax.ShapeDtypeStruct((8, 15, 512), jnp.float32)
    labels = jax.ShapeDtypeStruct((8, 15), jnp.int32)
    _, backward = jax.eval_shape(
        lambda x, y: jax.vjp(lambda x: label_log_prob(x, y), x), logits, labels
    )
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= logits.size]
    assert len(kept) <= 1


def test_errors():
    with pytest.raises(ValueError, match=r"got labels \(2, 4\) and logits \(2, 3, 5\)"):
        label_log_prob(jnp.zeros((2, 3, 5)), jnp.zeros((2, 4), jnp.int32))
    with pytest.raises(ValueError, match="must be integer token ids: got dtype float32"):
        label_log_prob(jnp.zeros((2, 3, 5)), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="floating point: got dtype int32"):
        label_log_prob(jnp.zeros((2, 3), jnp.int32), jnp.zeros((2,), jnp.int32))
    with pytest.raises(ValueError, match="one weight for each"):
        cross_entropy(jnp.zeros((2, 3)), weights_G=jnp.ones(2))
