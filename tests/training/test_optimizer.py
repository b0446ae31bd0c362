from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import OptimizerConfig
from jaxspec.training.optimizer import make_optimizer


def test_warm_up_and_cosine_by_hand():
    config = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_fraction=0.2)
    _, rates = make_optimizer(config, steps=10)
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(1, 9)]
    np.testing.assert_allclose(rates, [0.5, 1.0, *cosine], rtol=1e-6)
    assert rates[-1] == pytest.approx(0.1)


def test_a_constant_rate_after_the_warm_up():
    config = OptimizerConfig(learning_rate=1.0, schedule="constant", warmup_fraction=0.2)
    _, rates = make_optimizer(config, steps=10)
    np.testing.assert_allclose(rates, [0.5, *[1.0] * 9], rtol=1e-6)


def test_a_schedule_that_starts_later_is_that_of_a_shorter_run():
    config = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.2)
    _, whole = make_optimizer(config, steps=10)
    _, rates = make_optimizer(config, steps=14, schedule_from=4)
    np.testing.assert_array_equal(rates, [*[0.0] * 4, *whole])


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.0), (1, 0.99), (2, 0.99), (100, 0.999)])
def test_short_runs_have_rates(steps, fraction):
    _, rates = make_optimizer(OptimizerConfig(warmup_fraction=fraction), steps=steps)
    assert rates.shape == (steps,)
    assert np.isfinite(rates).all()
    assert rates.max() > 0


def test_a_step_by_hand():
    """Clipped to norm 1, Adam's first step is the sign, and only matrices decay."""
    transform, _ = make_optimizer(OptimizerConfig(weight_decay=0.1, eps=0.2), steps=10)
    params = {"fc": {"kernel": jnp.array([[3.0]])}, "norm": {"scale": jnp.array([2.0])}}
    gradients = {"fc": {"kernel": jnp.array([[6.0]])}, "norm": {"scale": jnp.array([-8.0])}}
    updates, _ = transform.update(gradients, transform.init(params), params)
    np.testing.assert_allclose(updates["fc"]["kernel"], [[0.6 / (0.6 + 0.2) + 0.1 * 3]], rtol=1e-5)
    np.testing.assert_allclose(updates["norm"]["scale"], [-0.8 / (0.8 + 0.2)], rtol=1e-5)


def test_no_clipping():
    config = OptimizerConfig(clip_norm=0, eps=1.0)
    transform, _ = make_optimizer(config, steps=10)
    params = {"norm": {"scale": jnp.array([2.0])}}
    updates, _ = transform.update(params, transform.init(params), params)
    np.testing.assert_allclose(updates["norm"]["scale"], [2.0 / 3.0], rtol=1e-5)
