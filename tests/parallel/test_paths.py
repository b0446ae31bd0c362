"""One step gives the same parameters and metrics on every path and number of devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxspec.config import MeshConfig
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules
from jaxspec.parallel.step import spread
from jaxspec.training.step import make_body
from tests.training import tiny

SLOW = pytest.mark.slow("all three axes, and each path elsewhere, cover it")
PATHS = [
    ("jit", MeshConfig(data=2), 2),
    ("jit", MeshConfig(data=4), 4),
    ("jit", MeshConfig(data=8), 8),
    pytest.param(*("jit", MeshConfig(data=1, fsdp=8), 8), marks=SLOW),
    ("jit", MeshConfig(data=1, tensor=8), 8),
    ("jit", MeshConfig(data=2, fsdp=2, tensor=2), 8),
    ("shard_map", MeshConfig(path="shard_map"), 1),
    ("shard_map", MeshConfig(path="shard_map"), 2),
    ("shard_map", MeshConfig(path="shard_map"), 4),
    ("shard_map", MeshConfig(path="shard_map"), 8),
    ("pmap", MeshConfig(path="pmap"), 1),
    ("pmap", MeshConfig(path="pmap"), 2),
    ("pmap", MeshConfig(path="pmap"), 4),
    ("pmap", MeshConfig(path="pmap"), 8),
]


def one_step(config: MeshConfig, devices: int, accumulation: int = 1, chunk_blocks: int = 0):
    mesh = make_mesh(config, devices=jax.devices()[:devices])
    transform, state, hyper = tiny.start()
    loss = dataclasses.replace(tiny.LOSS, chunk_blocks=chunk_blocks)
    body = make_body(
        tiny.objective(loss), gradients_only(transform), gradient_accumulation=accumulation
    )
    rules, frozen = Rules.of(config), tiny.target_params()
    shardings, frozen_shardings = rules.shardings(state, mesh), rules.shardings(frozen, mesh)
    if config.path == "jit":
        state = jax.device_put(state, shardings)
    step = spread(
        body,
        mesh=mesh,
        path=config.path,
        state_shardings=shardings,
        frozen_shardings=frozen_shardings,
    )
    frozen = jax.device_put(frozen, frozen_shardings)
    new, metrics = step(state, frozen, tiny.batch(), hyper)
    return jax.device_get((new.params, metrics))


@functools.cache
def gradients_only(transform):
    """Plain gradient descent: Adam would hide a gradient that is a constant factor too large."""
    import optax

    return optax.GradientTransformation(transform.init, lambda g, s, p=None: (g, s))


@pytest.fixture(scope="module")
def expected():
    return one_step(MeshConfig(), 1)


@pytest.mark.parametrize(("name", "config", "devices"), PATHS)
def test_every_path_gives_the_step_of_one_device(name, config, devices, expected, is_slow):
    if devices < 8 and not is_slow:
        pytest.skip("fewer devices on the same path: --slow")
    got = one_step(config, devices)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), got, expected)


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        pytest.param(MeshConfig(), 1, marks=SLOW),
        (MeshConfig(data=2, fsdp=2, tensor=2), 8),
        (MeshConfig(path="shard_map"), 2),
        pytest.param(MeshConfig(path="pmap"), 2, marks=SLOW),
    ],
    ids=lambda value: getattr(value, "path", value),
)
def test_chunks_of_blocks_give_the_step_of_all_blocks(config, devices, expected):
    """Their gradient is made in the forward pass, on every device for its own part."""
    got = one_step(config, devices, chunk_blocks=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), got, expected)


def test_the_step_moves_every_parameter(expected):
    before = jax.device_get(tiny.drafter_params())
    unmoved = [
        jax.tree_util.keystr(path)
        for (path, new), old in zip(
            jax.tree_util.tree_flatten_with_path(expected[0])[0],
            jax.tree.leaves(before),
            strict=True,
        )
        if np.array_equal(new, old)
    ]
    assert not unmoved
