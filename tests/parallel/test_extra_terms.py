"""A term of the user's own has the step of one device on any number of them."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import MeshConfig
from jaxspec.losses import LossWeights, Term, counted_slots
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules, replicated
from jaxspec.parallel.step import spread
from jaxspec.training.step import make_body
from tests.parallel.test_paths import gradients_only
from tests.training import tiny


def wrong_slots(slots, *, mask_NG, weights_G):
    """Cross-entropy of wrong slots, per wrong slot: devices have different numbers of them."""
    wrong_NG = counted_slots(mask_NG, shape=slots.log_p_NG.shape) & ~slots.correct_NG
    values_NG = jnp.where(wrong_NG, -slots.log_p_NG, 0.0) * weights_G
    return values_NG.sum(), jnp.where(wrong_NG, weights_G, 0.0).sum()


def odd_slots(slots, *, mask_NG, weights_G):
    """Of every other slot, whose number follows from the masks: rows have different numbers."""
    counted_NG = counted_slots(mask_NG, shape=slots.log_p_NG.shape)
    odd_NG = counted_NG & (jnp.arange(counted_NG.shape[-1]) % 2 == 1)
    return jnp.where(odd_NG, -slots.log_p_NG, 0.0).sum(), odd_NG.sum()


ODD = Term(odd_slots, counts_follow_predictions=False)


def loss_of(*entries):
    return dataclasses.replace(
        tiny.LOSS, focal=0.0, chain=0.0, extra=tuple(f"{__name__}:{entry}" for entry in entries)
    )


@functools.cache
def program(loss, config, devices, accumulation):
    mesh = make_mesh(config, devices=jax.devices()[:devices])
    transform, state, _ = tiny.start()
    body = make_body(
        tiny.objective(loss), gradients_only(transform), gradient_accumulation=accumulation
    )
    shardings = Rules().shardings(state, mesh) if config.path == "jit" else None
    step = spread(body, mesh=mesh, path=config.path, state_shardings=shardings)
    return step, mesh, shardings


def one_step(loss, config, devices, accumulation=1, weights=None):
    step, mesh, shardings = program(loss, config, devices, accumulation)
    _, state, hyper = tiny.start()
    hyper = hyper.replace(weights=LossWeights.from_config(weights or loss))
    if shardings is not None:
        state = jax.device_put(state, shardings)
    frozen = jax.device_put(tiny.target_params(), replicated(mesh))
    new, metrics = step(state, frozen, tiny.batch(), hyper)
    return jax.device_get((new.params, metrics))


BOTH = loss_of("wrong_slots=2", "ODD=3")


@pytest.fixture(scope="module")
def expected():
    return one_step(BOTH, MeshConfig(), 1)


def assert_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), got, expected)


@pytest.mark.parametrize(
    "path",
    [
        *("jit", "shard_map"),
        pytest.param("pmap", marks=pytest.mark.slow("shard_map runs the same code on each device")),
    ],
)
def test_eight_devices_give_the_step_of_one(path, expected):
    assert_same(one_step(BOTH, MeshConfig(path=path), 8), expected)


def test_the_terms_are_logged_and_move_the_step(expected):
    params, metrics = expected
    assert 0 < metrics["extra/ODD"][1] < metrics["extra/wrong_slots"][1]
    without, _ = one_step(BOTH, MeshConfig(), 1, weights=loss_of("wrong_slots=0", "ODD=0"))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, without)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_parts_of_a_batch_give_the_whole_if_counts_follow_from_the_masks():
    loss = loss_of("ODD=3")
    whole, metrics = one_step(BOTH, MeshConfig(), 1, weights=loss_of("wrong_slots=0", "ODD=3"))
    parts = one_step(loss, MeshConfig(), 1, accumulation=2)
    assert_same(parts, (whole, {name: metrics[name] for name in parts[1]}))
