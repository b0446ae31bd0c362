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
from tests.parallel.test_paths import gradients_only
from tests.parallel.test_traffic import assert_sent, compiled_step, counted
from tests.training import tiny

ANCHORS, ROWS, LENGTH = 8, 8, 56
LOSS = dataclasses.replace(tiny.LOSS, chunk_blocks=3)
MESHES = {
    "context": MeshConfig(data=1, context=8),
    "rows": MeshConfig(data=2, fsdp=2, context=2),
    "heads": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
}


def objective(loss=LOSS):
    """Chunks do not divide the blocks of a device evenly in the head, and do so in the drafter."""
    drafter = tiny.DRAFTER.clone(
        config=dataclasses.replace(tiny.DRAFTER_CONFIG, chunk_blocks=2, remat=True)
    )
    return dataclasses.replace(tiny.objective(loss, ANCHORS), drafter=drafter)


def mesh_of(config):
    sizes = (config.data, config.fsdp, config.context, config.tensor)
    return make_mesh(config, devices=jax.devices()[: int(np.prod(sizes))])


@functools.cache
def program(config, loss):
    """The compiled step, which tests run, read and measure."""
    return compiled_step(
        mesh_of(config), objective(loss), rows=ROWS, length=LENGTH, changed=gradients_only
    )


@functools.cache
def one_step(config, loss=LOSS):
    mesh, rules = mesh_of(config), Rules()
    _, state, hyper = tiny.start()
    frozen = tiny.target_params()
    arguments = state, frozen, tiny.batch(ROWS, LENGTH), hyper
    shardings = (
        *(rules.shardings(state, mesh), rules.shardings(frozen, mesh)),
        *(batch_sharding(mesh), replicated(mesh)),
    )
    new, metrics = program(config, loss)(*jax.device_put(arguments, shardings))
    return jax.device_get((new.params, metrics))


@pytest.fixture(scope="module")
def expected():
    return one_step(MeshConfig(data=1))


@pytest.mark.parametrize("name", MESHES)
def test_a_step_is_that_of_one_device(name, expected):
    got = one_step(MESHES[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6), got, expected)


def test_the_distributions_of_the_target_are_those_of_one_device():
    """Blocks compare with the target's states of their own places, which other devices may have."""
    loss = dataclasses.replace(LOSS, objective="tv")
    meshes = MeshConfig(data=1), MESHES["rows"]
    expected, got = (one_step(mesh, loss) for mesh in meshes)
    # Sums over the vocabulary: eight devices along data differ from one by about 2e-6, too.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), got, expected)


@pytest.mark.parametrize("name", MESHES)
def test_only_keys_and_values_of_whole_rows_are_brought_together(name):
    config = MESHES[name]
    rows = ROWS // (config.data * config.fsdp)
    keys = rows * LENGTH * tiny.ARCHITECTURE.num_kv_heads * tiny.ARCHITECTURE.head_dim
    collectives = collectives_of(program(config, LOSS))
    of_rows = [
        (collective, shape)
        for collective in collectives
        for shape in collective.results
        if LENGTH in shape.sizes
    ]
    assert len(of_rows) >= 4, "keys and values of the target and of the drafter"
    for collective, shape in of_rows:
        assert np.prod(shape.sizes) <= keys, (collective, shape)
    slots = ANCHORS, tiny.DRAFTER_CONFIG.block_size
    for collective in collectives:
        for shape in collective.results:
            assert slots not in zip(shape.sizes, shape.sizes[1:], strict=False), collective
            assert np.prod(slots) not in shape.sizes, collective


@pytest.mark.parametrize("name", MESHES)
def test_the_step_sends_what_the_count_says(name):
    mesh = mesh_of(MESHES[name])
    expected = counted(mesh, objective(), rows=ROWS, length=LENGTH)
    assert_sent(collectives_of(program(MESHES[name], LOSS)), expected)


def test_temporaries_fall():
    def temporaries(config):
        return program(config, LOSS).memory_analysis().temp_size_in_bytes

    assert temporaries(MESHES["context"]) < 0.3 * temporaries(MeshConfig(data=1))


def run(**changes):
    data = DataConfig(batch_size=8, sequence_length=24, anchors=12)
    return RunConfig(**{"data": data, "drafter": DrafterConfig(chunk_blocks=0), **changes})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            run(data=DataConfig(batch_size=8, sequence_length=30, anchors=12)),
            r"mesh\.context is 4, .* the 30 of data\.sequence_length: set mesh\.context to 1, 2, 3",
        ),
        (
            run(data=DataConfig(batch_size=8, sequence_length=24, anchors=6)),
            r"mesh\.context is 4, .* the 6 of data\.anchors: set mesh\.context to 1, 2, 3 or 6",
        ),
        (
            run(drafter=DrafterConfig(chunk_blocks=2)),
            r"drafter\.chunk_blocks is 2, .* the 3 blocks that a device has .* Set it to 1 or 3",
        ),
        (run(training=TrainingConfig(task="target")), "only training a drafter splits rows"),
    ],
)
def test_rows_that_cannot_be_split_are_refused(config, message):
    mesh = mesh_of(MeshConfig(data=1, context=4))
    check_batch_size(run(), mesh)
    with pytest.raises(ValueError, match=message):
        check_batch_size(config, mesh)


@pytest.mark.parametrize("path", ["shard_map", "pmap"])
def test_other_paths_refuse_it(path):
    with pytest.raises(ValueError, match=r'Use mesh\.path="jit" for fsdp, context and tensor'):
        mesh_of(MeshConfig(data=1, context=2, path=path))
