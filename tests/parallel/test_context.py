"""The context axis splits the tokens and the blocks of a row; nothing else changes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxspec.config import DataConfig, DrafterConfig, MeshConfig, RunConfig, TrainingConfig
from jaxspec.parallel.collectives import collectives_of
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules, batch_sharding, check_batch_size, replicated
from jaxspec.parallel.step import spread
from jaxspec.training.step import make_body
from tests.parallel.test_paths import gradients_only
from tests.training import tiny

ANCHORS = 8
LOSS = dataclasses.replace(tiny.LOSS, chunk_blocks=3)
MESHES = {
    "context": MeshConfig(data=1, context=8),
    "rows": MeshConfig(data=2, fsdp=2, context=2),
    "heads": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
}


def objective(**drafter):
    config = dataclasses.replace(tiny.DRAFTER_CONFIG, **{"chunk_blocks": 2, **drafter})
    return dataclasses.replace(
        tiny.objective(LOSS, ANCHORS), drafter=tiny.DRAFTER.clone(config=config)
    )


def one_step(config: MeshConfig, task, **batch):
    sizes = (config.data, config.fsdp, config.context, config.tensor)
    mesh = make_mesh(config, devices=jax.devices()[: int(np.prod(sizes))])
    transform, state, hyper = tiny.start()
    shardings = Rules().shardings(state, mesh)
    frozen = tiny.target_params()
    frozen_shardings = Rules().shardings(frozen, mesh)
    step = spread(
        make_body(task, gradients_only(transform)),
        mesh=mesh,
        path="jit",
        state_shardings=shardings,
        frozen_shardings=frozen_shardings,
    )
    state = jax.device_put(state, shardings)
    frozen = jax.device_put(frozen, frozen_shardings)
    new, metrics = step(state, frozen, tiny.batch(), hyper)
    return jax.device_get((new.params, metrics))


@pytest.fixture(scope="module")
def expected():
    return one_step(MeshConfig(data=1), objective())


@pytest.mark.parametrize("name", MESHES)
def test_a_step_is_that_of_one_device(name, expected):
    got = one_step(MESHES[name], objective())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), got, expected)
