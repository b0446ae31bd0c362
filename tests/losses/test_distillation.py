import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.losses import (
    LK,
    OBJECTIVES,
    TV,
    DetachedStreak,
    DPace,
    ForwardKL,
    LossConfig,
    SlotStatistics,
    SpecAUF,
    Streak,
    d_pace_weights,
    loss_terms,
    ratio,
    slot_statistics,
)
from tests.losses import reference

# One block: label probabilities 1/2 1/4 1/2, the second slot wrong.
SLOTS = SlotStatistics(
    log_p_NG=jnp.log(jnp.array([[0.5, 0.25, 0.5]])), correct_NG=jnp.array([[True, False, True]])
)
LN2 = float(np.log(2.0))


def test_names_are_those_of_the_config():
    annotation = typing.get_type_hints(LossConfig)["objective"]
    assert set(OBJECTIVES) == set(typing.get_args(annotation))


def test_d_pace_by_hand():
    # a = 1/2: smoothed 3/4 5/8 3/4, products 3/4 15/32 45/128 = 96 60 45 / 128
    weights = d_pace_weights(SLOTS.log_p_NG)
    np.testing.assert_allclose(weights * 128, [[201, 105, 45]], rtol=1e-6)
    values, counted = DPace().slot_values(SLOTS, None)
    np.testing.assert_allclose(values * 128, [[201 * LN2, 210 * LN2, 45 * LN2]], rtol=1e-6)
    assert counted.all()


def test_d_pace_limits():
    mask = jnp.array([[True, True, False]])
    np.testing.assert_allclose(
        d_pace_weights(SLOTS.log_p_NG, mask_NG=mask, smoothing=1.0), [[2, 1, 0]]
    )

    def total(objective, log_p):
        values, _ = objective.slot_values(SLOTS.replace(log_p_NG=log_p), None)
        return values.sum()

    # Without smoothing its gradient is that of streak distillation: -(11, 3, 1) / 16.
    plain = jax.grad(lambda x: total(DPace(smoothing=0.0), x))(SLOTS.log_p_NG)
    streak = jax.grad(lambda x: total(Streak(), x))(SLOTS.log_p_NG)
    np.testing.assert_allclose(plain * 16, [[-11, -3, -1]], rtol=1e-6)
    np.testing.assert_allclose(streak, plain, rtol=1e-6)


def test_spec_auf_stops_behind_the_first_failure():
    values, reached = SpecAUF().slot_values(SLOTS, None)
    assert reached.tolist() == [[True, True, False]]
    np.testing.assert_allclose(values[0, :2], [LN2, 2 * LN2], rtol=1e-6)
    config = LossConfig(decay=None, objective="spec_auf", normalize="weight")
    assert float(ratio(*loss_terms(SLOTS, config=config)["spec_auf"])) == pytest.approx(1.5 * LN2)


def test_streak_by_hand():
    values, _ = Streak().slot_values(SLOTS, None)
    np.testing.assert_allclose(values * 16, [[-8, -2, -1]], rtol=1e-6)


def test_detached_streak_by_hand():
    def total(log_p):
        return DetachedStreak().slot_values(SLOTS.replace(log_p_NG=log_p), None)[0].sum()

    value, gradient = jax.value_and_grad(total)(SLOTS.log_p_NG)
    # weights 1 1/2 1/8 on ln 2, 2 ln 2, ln 2
    assert float(value) == pytest.approx((1 + 1 + 1 / 8) * LN2, rel=1e-6)
    np.testing.assert_allclose(gradient, [[-1, -1 / 2, -1 / 8]], rtol=1e-6)


def test_overlap_and_kl_by_hand():
    # q = 1/2 1/2 0+, p = 3/4 1/4: overlap 3/4, kl = 3/4 ln(3/2) + 1/4 ln(1/2)
    logits = jnp.log(jnp.array([[[0.5, 0.5]]]))
    target = jnp.log(jnp.array([[[0.75, 0.25]]]))
    slots = slot_statistics(logits, jnp.array([[0]]), target_logits_NGV=target)
    assert float(slots.overlap_NG[0, 0]) == pytest.approx(0.75, rel=1e-6)
    assert float(slots.kl_NG[0, 0]) == pytest.approx(0.75 * np.log(1.5) - 0.25 * LN2, rel=1e-5)
    assert float(TV().slot_values(slots, None)[0][0, 0]) == pytest.approx(0.25, rel=1e-6)
    assert float(LK().slot_values(slots, None)[0][0, 0]) == pytest.approx(-np.log(0.75), rel=1e-5)


def test_equal_distributions_cost_nothing():
    logits = jax.random.normal(jax.random.key(0), (4, 3, 9))
    slots = slot_statistics(logits, jnp.zeros((4, 3), jnp.int32), target_logits_NGV=logits)
    for objective in (LK(), TV(), ForwardKL()):
        np.testing.assert_allclose(objective.slot_values(slots, None)[0], 0.0, atol=1e-6)


def test_forward_kl_to_a_one_hot_target_is_cross_entropy():
    logits = jax.random.normal(jax.random.key(1), (2, 3, 5))
    labels = jnp.array([[0, 1, 2], [3, 4, 0]])
    target = jnp.where(jax.nn.one_hot(labels, 5) > 0, 0.0, -jnp.inf)
    slots = slot_statistics(logits, labels, target_logits_NGV=target)
    np.testing.assert_allclose(slots.kl_NG, -slots.log_p_NG, rtol=1e-5)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_matches_the_reference(name, wrap):
    logits, labels, mask = reference.random_batch(4)
    target = logits + np.random.default_rng(5).normal(size=logits.shape)
    # An id that only the drafter forbids, never a label.
    logits, labels = logits.copy(), np.where(labels == 6, 0, labels).astype(np.int32)
    logits[..., 6] = -np.inf
    log_p, correct = reference.statistics(logits, labels)
    overlap, kl = reference.divergences(logits, target)
    for normalize in ("block", "weight"):
        config = LossConfig(decay=3.0, objective=name, normalize=normalize)

        def term(x, config=config):
            slots = slot_statistics(x, labels, target_logits_NGV=jnp.asarray(target))
            return ratio(*loss_terms(slots, mask, config=config)[config.objective])

        value, gradient = wrap(jax.value_and_grad(term))(jnp.asarray(logits))
        expected = reference.objective(
            name,
            log_p=log_p,
            correct=correct,
            w=reference.weights(labels.shape[-1], 3.0),
            mask=mask,
            normalize=normalize,
            overlap=overlap,
            kl=kl,
        )
        assert float(value) == pytest.approx(expected, rel=1e-5)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["lk", "tv", "forward_kl"])
def test_gradients_match_finite_differences(name):
    logits, labels, mask = reference.random_batch(6, blocks=3, slots=2, vocab=4)
    mask[2] = [True, False]
    target = logits + np.random.default_rng(7).normal(size=logits.shape)
    config = LossConfig(decay=2.0, objective=name)

    def fast(x):
        slots = slot_statistics(x, labels, target_logits_NGV=jnp.asarray(target))
        return ratio(*loss_terms(slots, mask, config=config)[name])

    def slow(x):
        log_p, correct = reference.statistics(x, labels)
        overlap, kl = reference.divergences(x, target)
        return reference.objective(
            name,
            log_p=log_p,
            correct=correct,
            w=reference.weights(2, 2.0),
            mask=mask,
            normalize="block",
            overlap=overlap,
            kl=kl,
        )

    gradient = jax.jit(jax.grad(fast))(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, reference.finite_differences(slow, logits), atol=2e-6)


def test_no_gradient_reaches_the_target():
    logits = jax.random.normal(jax.random.key(2), (2, 3, 5))

    def total(target):
        slots = slot_statistics(logits, jnp.zeros((2, 3), jnp.int32), target_logits_NGV=target)
        return slots.overlap_NG.sum() + slots.kl_NG.sum()

    assert not jax.grad(total)(logits + 1.0 * jnp.arange(5)).any()


def test_disjoint_distributions_stay_finite():
    logits = jnp.array([[[300.0, 0.0]]])
    target = jnp.array([[[0.0, 300.0]]])

    def total(x, name):
        slots = slot_statistics(x, jnp.array([[1]]), target_logits_NGV=target)
        return OBJECTIVES[name].slot_values(slots, None)[0].sum()

    for name in OBJECTIVES:
        value, gradient = jax.value_and_grad(total)(logits, name)
        assert np.isfinite(value), name
        assert np.isfinite(gradient).all(), name


@pytest.mark.parametrize("name", ["lk", "tv", "forward_kl"])
def test_missing_target_logits(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*without target logits"):
        loss_terms(SLOTS, config=LossConfig(objective=name))


def test_errors():
    with pytest.raises(ValueError, match="smoothing must lie"):
        d_pace_weights(SLOTS.log_p_NG, smoothing=1.5)
    with pytest.raises(ValueError, match="share one vocabulary"):
        slot_statistics(
            jnp.zeros((1, 2, 5)),
            jnp.zeros((1, 2), jnp.int32),
            target_logits_NGV=jnp.zeros((1, 2, 6)),
        )
