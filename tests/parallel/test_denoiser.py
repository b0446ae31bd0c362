"""A denoiser's step is the same on one device and on eight, and its weights are shared out."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxspec.config import MeshConfig
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules, replicated
from jaxspec.parallel.step import spread
from jaxspec.training.step import make_body
from tests.parallel.test_paths import gradients_only
from tests.training import test_denoiser as denoisers
from tests.training import tiny


def one_step(goal, config, devices):
    mesh = make_mesh(config, devices=jax.devices()[:devices])
    transform, _, hyper = tiny.start()
    transform = gradients_only(transform)
    state = tiny.fresh_state(transform)(denoisers.random_params())
    hyper = hyper.replace(weights=denoisers.WEIGHTS)
    body = make_body(denoisers.objective("causal", goal, time_conditioning=True), transform)
    shardings = Rules().shardings(state, mesh) if config.path == "jit" else None
    step = spread(
        body,
        mesh=mesh,
        path=config.path,
        state_shardings=shardings,
        frozen_shardings={},
    )
    placed = jax.device_put(state, replicated(mesh) if shardings is None else shardings)
    new, metrics = step(placed, {}, tiny.batch(), hyper)
    return jax.device_get((new.params, metrics))


@functools.cache
def alone(goal):
    return one_step(goal, MeshConfig(), 1)


SPLIT, MAPPED = MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(path="shard_map")
SLOW = pytest.mark.slow("each goal on the other path, and the other goal on this one, cover it")


@pytest.mark.parametrize(
    ("goal", "config"),
    [
        ("draft", SPLIT),
        ("elbo", MAPPED),
        pytest.param("elbo", SPLIT, marks=SLOW),
        pytest.param("draft", MAPPED, marks=SLOW),
    ],
    ids=["draft-jit", "elbo-map", "elbo-jit", "draft-map"],
)
def test_eight_devices_do_what_one_does(goal, config):
    state, metrics = one_step(goal, config, 8)
    expected, expected_metrics = alone(goal)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), state, expected)
    for name, (total, count) in expected_metrics.items():
        np.testing.assert_allclose(metrics[name][0], total, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(metrics[name][1], count, rtol=1e-6)


@pytest.mark.parametrize(
    "goal",
    [
        *("elbo", "draft"),
        pytest.param(
            "score_entropy",
            marks=pytest.mark.slow("elbo in the model and tests/losses in the values cover it"),
        ),
    ],
)
def test_a_step_moves_every_weight(goal):
    """A gradient that is not finite moves none."""
    before = jax.device_get(denoisers.random_params())
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max() > 0, alone(goal)[0], before)
    for path, leaf in jax.tree_util.tree_flatten_with_path(moved)[0]:
        assert leaf, path


def test_matrices_are_shared_out():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    specs = jax.tree.map(
        lambda sharding: sharding.spec, Rules().shardings(denoisers.random_params(), mesh)
    )
    layers = specs["layers"]
    assert layers["qkv"]["kernel"] == PartitionSpec(None, "fsdp", None)
    assert layers["o"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert layers["up"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert specs["head"]["kernel"] == PartitionSpec("fsdp", "tensor")
