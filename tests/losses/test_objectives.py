import functools

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
from jaxspec.losses.objectives import find_objective
from tests.losses import reference

LN2 = float(np.log(2.0))
# One block: label probabilities 1/2 1/4 1/2, the second slot wrong.
SLOTS = SlotStatistics(
    log_p_NG=jnp.log(jnp.array([[0.5, 0.25, 0.5]])), correct_NG=jnp.array([[True, False, True]])
)
statistics = jax.jit(slot_statistics)


def terms(logits, labels, mask, target, *, decay=2.0, normalize="block"):
    """The term of every objective at once, in the order of their names."""
    slots = slot_statistics(logits, labels, target_logits_NGV=target)
    values = []
    for name in sorted(OBJECTIVES):
        config = LossConfig(decay=decay, objective=name, normalize=normalize)
        values.append(ratio(*loss_terms(slots, mask, config=config)[name]))
    return jnp.stack(values)


def slow_terms(logits, labels, mask, target, *, decay=2.0, normalize="block"):
    log_p, correct = reference.statistics(logits, labels)
    overlap, kl = reference.divergences(logits, target)
    return [
        reference.objective(
            name,
            log_p=log_p,
            correct=correct,
            w=reference.weights(labels.shape[-1], decay),
            mask=mask,
            normalize=normalize,
            overlap=overlap,
            kl=kl,
        )
        for name in sorted(OBJECTIVES)
    ]


gradients = jax.jit(jax.jacrev(terms))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_says_what_it_needs(name):
    """What it says is compared with what it does."""
    objective, slots = OBJECTIVES[name], SLOTS
    if objective.needs_target_rows:
        with pytest.raises(ValueError, match="without target logits"):
            objective.slot_values(SLOTS, None)
        slots = SLOTS.replace(overlap_NG=SLOTS.log_p_NG, kl_NG=SLOTS.log_p_NG)
    _, counted = objective.slot_values(slots, None)
    _, of_others = objective.slot_values(slots.replace(correct_NG=~slots.correct_NG), None)
    assert bool((counted != of_others).any()) == objective.counts_follow_predictions


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match=r"'streek'.*cross_entropy.*Did you mean 'streak'"):
        find_objective("streek")


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
    # q = 1/2 1/2, p = 3/4 1/4: overlap 3/4, kl = 3/4 ln(3/2) + 1/4 ln(1/2)
    logits = np.zeros((1, 1, 2), np.float32)
    target = np.log(np.array([[[0.75, 0.25]]], np.float32))
    slots = statistics(logits, np.array([[0]]), target_logits_NGV=target)
    assert float(slots.overlap_NG[0, 0]) == pytest.approx(0.75, rel=1e-6)
    assert float(slots.kl_NG[0, 0]) == pytest.approx(0.75 * np.log(1.5) - 0.25 * LN2, rel=1e-5)
    assert float(TV().slot_values(slots, None)[0][0, 0]) == pytest.approx(0.25, rel=1e-6)
    assert float(LK().slot_values(slots, None)[0][0, 0]) == pytest.approx(-np.log(0.75), rel=1e-5)


def test_equal_distributions_cost_nothing():
    logits, labels, _ = reference.random_batch(0)
    slots = statistics(logits, labels, target_logits_NGV=logits)
    for objective in (LK(), TV(), ForwardKL()):
        np.testing.assert_allclose(objective.slot_values(slots, None)[0], 0.0, atol=1e-6)


def test_forward_kl_to_a_one_hot_target_is_cross_entropy():
    logits, labels, _ = reference.random_batch(1)
    target = np.where(np.eye(logits.shape[-1])[labels] > 0, 0.0, -np.inf)
    slots = statistics(logits, labels, target_logits_NGV=target)
    np.testing.assert_allclose(slots.kl_NG, -slots.log_p_NG, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", ["block", "weight"])
def test_values_match_the_reference(normalize):
    logits, labels, mask = reference.random_batch(4)
    target = logits + np.random.default_rng(5).normal(size=logits.shape)
    # An id that the drafter alone forbids, never a label.
    labels = np.where(labels == 6, 0, labels)
    logits[..., 6] = -np.inf
    fast = jax.jit(lambda x, y: terms(x, labels, mask, y, decay=3.0, normalize=normalize))
    expected = slow_terms(logits, labels, mask, target, decay=3.0, normalize=normalize)
    np.testing.assert_allclose(fast(logits, target), expected, rtol=1e-5)


def small_batch():
    logits, labels, mask = reference.random_batch(6, blocks=4, slots=3, vocab=4)
    target = logits + np.random.default_rng(7).normal(size=logits.shape)
    return logits, labels, mask, target


def test_gradients_match_finite_differences():
    logits, labels, mask, target = small_batch()
    gradient = gradients(logits, labels, mask, target)
    # Weights that are constants to the gradient are held while x moves.
    log_p = reference.statistics(logits, labels)[0]
    held = {
        "d_pace": reference.d_pace_weights(log_p, mask, 0.5),
        "detached_streak": reference.reach(log_p, mask),
    }
    w = reference.weights(3, 2.0)

    def weighted(x, name):
        values = -held[name] * reference.statistics(x, labels)[0]
        return reference.weighted_mean(values, w, reference.counted(mask), "block")

    for index, name in enumerate(sorted(OBJECTIVES)):

        def slow(x, index=index):
            return slow_terms(x, labels, mask, target)[index]

        function = functools.partial(weighted, name=name) if name in held else slow
        expected = reference.finite_differences(function, logits)
        np.testing.assert_allclose(gradient[index], expected, atol=2e-6, err_msg=name)


def test_disjoint_and_forbidden_distributions_stay_finite():
    logits, labels, mask, target = small_batch()
    logits, target = np.zeros_like(logits), np.zeros_like(target)
    logits[0, :, 0], target[0, :, 1] = 300.0, 300.0
    logits[1, :, 3] = -np.inf
    target[2, :, 3] = -np.inf
    logits[3, :, 3] = target[3, :, 3] = -np.inf
    labels, mask = np.ones_like(labels), np.ones_like(mask)
    assert np.isfinite(gradients(logits, labels, mask, target)).all()
    slots = statistics(logits, labels, target_logits_NGV=target)
    assert np.isfinite(slots.kl_NG).all()
    assert np.isfinite(LK().slot_values(slots, None)[0]).all()


def test_no_gradient_reaches_the_target():
    logits, labels, mask, target = small_batch()
    gradient = jax.jit(jax.grad(lambda y: terms(logits, labels, mask, y).sum()))(target)
    assert not np.any(gradient)


@pytest.mark.parametrize("name", ["lk", "tv", "forward_kl"])
def test_missing_target_logits(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*without target logits"):
        loss_terms(SLOTS, config=LossConfig(objective=name))


def test_errors():
    with pytest.raises(ValueError, match="smoothing must lie"):
        d_pace_weights(SLOTS.log_p_NG, smoothing=1.5)
    with pytest.raises(ValueError, match="share one vocabulary"):
        statistics(
            jnp.zeros((1, 2, 5)),
            jnp.zeros((1, 2), jnp.int32),
            target_logits_NGV=jnp.zeros((1, 2, 6)),
        )
