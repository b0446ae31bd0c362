"""One step: accumulation, steps that are not finite, mixed precision, a stored trace."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxspec.config import LossConfig, MeshConfig
from jaxspec.drafters.dflash import DFlash
from jaxspec.losses import LossWeights
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.step import spread
from jaxspec.training.state import TrainState
from jaxspec.training.step import Hyper, make_body
from tests.training import golden, tiny


@pytest.fixture(scope="module")
def step():
    return golden.compiled_step()


def test_the_stored_trace(step):
    """Computed with float32 on one device; CPUs differ in the last bits, so not bit for bit."""
    stored = json.loads(golden.FILE.read_text())
    assert stored["command"] == golden.COMMAND
    for expected, got in zip(stored["steps"], golden.drafter_trace(step), strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def leaves_equal(a, b) -> bool:
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_step_that_is_not_finite_changes_nothing(step):
    _, state, hyper = tiny.start()
    frozen = tiny.target_params()
    broken = jax.tree.map(jnp.copy, frozen)
    broken["embed"]["embedding"] = broken["embed"]["embedding"].at[5].set(jnp.nan)

    first, metrics = step(state, frozen, tiny.batch(), hyper)
    assert int(first.bad_step) == -1
    assert not leaves_equal(first.params, state.params)
    assert np.isfinite(float(metrics["loss"][0]))

    bad, metrics = step(first, broken, tiny.batch(), hyper)
    assert np.isnan(float(metrics["loss"][0]))
    assert (int(bad.step), int(bad.bad_step)) == (2, 1), "the second step, counted from 0"
    assert leaves_equal((bad.params, bad.opt_state), (first.params, first.opt_state))

    # A good batch afterwards does not hide it.
    later, _ = step(bad, frozen, tiny.batch(), hyper)
    assert (int(later.step), int(later.bad_step)) == (3, 1)
    assert leaves_equal((later.params, later.opt_state), (first.params, first.opt_state))


def test_a_learning_rate_beyond_float32_is_no_step(step):
    _, state, hyper = tiny.start()
    hyper = hyper.replace(learning_rate=jnp.float32(jnp.inf))
    new, metrics = step(state, tiny.target_params(), tiny.batch(), hyper)
    assert np.isfinite(float(metrics["loss"][0]))
    assert int(new.bad_step) == 0
    assert leaves_equal(new.params, state.params)


def uneven_batch() -> dict[str, np.ndarray]:
    """Every other row has next to nothing to learn: two parts of very different weight."""
    batch = tiny.batch()
    batch["loss_mask"] = batch["segments"] > 0
    batch["loss_mask"][1::2] = False
    batch["loss_mask"][1::2, 3:6] = True
    return batch


def gradient_step(*, path: str, devices: int, accumulation: int):
    """Plain gradient descent of rate 1: the new parameters show the gradient."""
    plain = optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (g, s))
    # Without the focal term, whose count is each part's own.
    loss = LossConfig(decay=4.0, focal=0.0, chain=5.0)
    body = make_body(tiny.objective(loss), plain, gradient_accumulation=accumulation)
    mesh = make_mesh(MeshConfig(path=path), devices=jax.devices()[:devices])
    state = TrainState.create(tiny.drafter_params(), plain)
    hyper = Hyper(jnp.float32(1.0), jax.random.key(7), LossWeights.from_config(loss))
    stepped = spread(body, mesh=mesh, path=path)
    new, metrics = stepped(state, tiny.target_params(), uneven_batch(), hyper)
    return jax.device_get((new.params, metrics))


@pytest.fixture(scope="module")
def undivided():
    return gradient_step(path="jit", devices=1, accumulation=1)


@pytest.mark.parametrize(("path", "devices"), [("jit", 1), ("shard_map", 2)])
def test_unequal_parts_add_up_to_the_batch(path, devices, undivided):
    _, _, mask_BNG = tiny.objective().blocks(uneven_batch(), jax.random.key(7))
    slots_B = np.asarray(mask_BNG).sum((1, 2))
    assert slots_B[0::2].sum() > 6 * slots_B[1::2].sum() > 0
    parts = gradient_step(path=path, devices=devices, accumulation=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), parts, undivided
    )


def test_bfloat16_compute_trains_float32_weights():
    config = dataclasses.replace(tiny.DRAFTER_CONFIG, dtype="bfloat16", param_dtype="float32")
    drafter = DFlash(config, tiny.ARCHITECTURE.hidden_size)
    objective = dataclasses.replace(tiny.objective(), drafter=drafter)
    step = golden.compiled_step(objective)
    _, state, hyper = tiny.start()
    assert objective.drafter.apply(
        {"params": state.params}, jnp.zeros((1, 2, 64)), jnp.zeros((1, 2), jnp.int32),
        method="context",
    )[0].dtype == jnp.bfloat16  # fmt: skip
    frozen, batch = tiny.target_params(), tiny.batch()
    losses = []
    hyper = hyper.replace(learning_rate=jnp.float32(1e-2))
    for _ in range(30):
        state, metrics = step(state, frozen, batch, hyper)
        losses.append(float(metrics["loss"][0]))
    assert int(state.bad_step) == -1
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
