from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxspec.config import OptimizerConfig
from jaxspec.training.lora import init_updates
from jaxspec.training.optimizer import make_optimizer, schedule_warnings
from jaxspec.training.tasks.registry import task_of


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


def test_a_final_rate_that_a_constant_one_never_reaches_is_said(run_config, tmp_path, capsys):
    config = OptimizerConfig(schedule="constant", final_learning_rate=1e-5)
    run = dataclasses.replace(run_config, optimizer=config)
    task_of(run).prepare(run, workdir=tmp_path / "run")
    [line] = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    assert "final_learning_rate is 1e-05, but optimizer.schedule is 'constant'" in line
    assert not schedule_warnings(OptimizerConfig(schedule="constant"))
    assert not schedule_warnings(OptimizerConfig(final_learning_rate=1e-5))


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


LAYERS, INPUTS, OUTPUTS = 3, 6, 10
MUON = OptimizerConfig(name="muon", clip_norm=0)


def stacked(key: int):
    """Stacked layers, and the other kinds of parameters."""
    keys = jax.random.split(jax.random.key(key), 4)
    return {
        "layers": {
            "up": {"kernel": jax.random.normal(keys[0], (LAYERS, INPUTS, OUTPUTS))},
            "norm": {"scale": jax.random.normal(keys[1], (LAYERS, INPUTS))},
        },
        "head": {"kernel": jax.random.normal(keys[2], (INPUTS, OUTPUTS))},
        "embed": {"embedding": jax.random.normal(keys[3], (OUTPUTS, INPUTS))},
    }


def updates_of(config: OptimizerConfig, gradients, params):
    transform, _ = make_optimizer(config, steps=10)
    return jax.jit(lambda g, p: transform.update(g, transform.init(p), p)[0])(gradients, params)


def test_muon_orthogonalises_each_layer_by_itself():
    gradients = stacked(0)
    # One layer's gradient is far larger: together they would not come out alike.
    kernel = gradients["layers"]["up"]["kernel"].at[1].multiply(1e3)
    gradients["layers"]["up"]["kernel"] = kernel
    updates = updates_of(MUON, gradients, stacked(1))["layers"]["up"]["kernel"]
    for layer in range(LAYERS):
        alone = {"up": {"kernel": kernel[layer]}}
        expected = updates_of(MUON, alone, alone)["up"]["kernel"]
        np.testing.assert_allclose(updates[layer], expected, rtol=1e-4, atol=1e-5)
        # All singular values are near 1 times the scale: each direction learns at one pace.
        scaled = updates[layer] / (0.2 * math.sqrt(OUTPUTS))
        assert np.abs(np.linalg.svd(scaled, compute_uv=False) - 1).max() < 0.4
        left, _, right = np.linalg.svd(kernel[layer], full_matrices=False)
        assert np.sum(scaled * (left @ right)) > 0.9 * np.linalg.norm(scaled) * INPUTS**0.5
        assert np.sqrt(np.mean(updates[layer] ** 2)) == pytest.approx(0.2, rel=0.3)


def test_muon_is_adam_for_ends_and_norms():
    gradients, params = stacked(0), stacked(1)
    updates = updates_of(MUON, gradients, params)
    adam = optax.scale_by_adam(b1=MUON.b1, b2=MUON.b2, eps=MUON.eps, nesterov=True)
    expected = adam.update(gradients, adam.init(params))[0]
    for module in (("layers", "norm"), ("head",), ("embed",)):
        got, want = updates, expected
        for name in module:
            got, want = got[name], want[name]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def test_muon_decays_matrices_only():
    gradients, params = stacked(0), stacked(1)
    plain = updates_of(MUON, gradients, params)
    decayed = updates_of(dataclasses.replace(MUON, weight_decay=0.1), gradients, params)
    difference = jax.tree.map(lambda a, b: a - b, decayed, plain)
    norm = params["layers"]["norm"]
    params["layers"]["norm"] = {"scale": jnp.zeros_like(norm["scale"])}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.1 * b, atol=1e-5), difference, params)


def test_updates_of_low_rank_are_matrices_too():
    """They decay, and Muon makes each factor's update orthogonal."""
    base = {"layers": {"up": {"kernel": jnp.ones((2, 8, 16))}}}
    params = init_updates(jax.random.key(0), base, rank=2)
    gradients = jax.tree.map(lambda leaf: jnp.ones_like(leaf).at[..., 0].set(3.0), params)

    def updates(**settings):
        transform, _ = make_optimizer(OptimizerConfig(**settings), steps=10)
        return transform.update(gradients, transform.init(params), params)[0]["layers/up/kernel"]

    plain, decayed = updates(weight_decay=0.0), updates(weight_decay=0.5)
    np.testing.assert_allclose(
        decayed["a"] - plain["a"], 0.5 * params["layers/up/kernel"]["a"], rtol=1e-5, atol=1e-6
    )
    for factor in updates(name="muon", weight_decay=0.0).values():
        sizes = jnp.linalg.svd(factor, compute_uv=False)
        # The gradient has rank 1.
        assert (sizes[:, 1] < 1e-3 * sizes[:, 0]).all()
        assert not np.allclose(np.abs(factor), np.abs(factor).max()), "Adam's would be signs"
