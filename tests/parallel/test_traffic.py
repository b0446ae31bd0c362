"""The compiled step sends what the analytic count says, and never the whole batch."""

from __future__ import annotations

import functools
import importlib.util

import jax
import pytest

from jaxspec.config import MeshConfig
from jaxspec.parallel.collectives import collectives_of, wire_bytes_by_kind
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules, batch_sharding, replicated
from jaxspec.parallel.step import spread
from jaxspec.planning.topologies import compiling_for, parse_topology, topology_devices
from jaxspec.training.step import make_body
from jaxspec.training.traffic import step_traffic
from tests.training import tiny

ROWS, LENGTH = 56, 25
SLOTS = 6 * tiny.DRAFTER_CONFIG.block_size
DRAFTED = 6 * (tiny.DRAFTER_CONFIG.block_size - 1)
WHOLE_BATCH = {ROWS, ROWS * LENGTH, ROWS * SLOTS, ROWS * DRAFTED}
"""Axes of arrays with all rows, flattened or not; no width and no part of a device is as long."""
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "both": MeshConfig(data=2, fsdp=4),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
    "tensor": MeshConfig(data=4, tensor=2),
}


SLOW = pytest.mark.slow("all three axes together cover it")
PARTS = [
    *("data", "fsdp", "all"),
    *(pytest.param(name, marks=SLOW) for name in ("both", "tensor")),
]


def compiled_step(mesh, objective=None, *, rows=ROWS, length=LENGTH, changed=lambda same: same):
    """The step of the tiny models, from shapes alone."""
    transform, state, hyper = tiny.start()
    frozen, batch = tiny.target_params(), tiny.batch(rows, length)
    rules = Rules()
    shardings = rules.shardings(state, mesh), rules.shardings(frozen, mesh)
    step = spread(
        make_body(objective or tiny.objective(), changed(transform)),
        mesh=mesh,
        path="jit",
        state_shardings=shardings[0],
        frozen_shardings=shardings[1],
    )

    def placed(tree, sharding):
        if not isinstance(sharding, jax.sharding.NamedSharding):
            return jax.tree.map(placed, tree, sharding)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    return step.lower(
        placed(state, shardings[0]),
        placed(frozen, shardings[1]),
        placed(batch, batch_sharding(mesh)),
        placed(hyper, replicated(mesh)),
    ).compile()


def counted(mesh, objective=None, *, rows=ROWS, length=LENGTH):
    return step_traffic(
        objective or tiny.objective(),
        params=tiny.drafter_params(),
        frozen=tiny.target_params(),
        rows=rows,
        length=length,
        mesh=mesh,
        scatters=False,
    ).by_kind


@functools.cache
def collectives_on(name):
    """What the step runs on the virtual devices of this machine."""
    return collectives_of(compiled_step(make_mesh(MESHES[name])))


def holds_the_batch(collective):
    return any(WHOLE_BATCH.intersection(shape.sizes) for shape in collective.results)


@pytest.mark.parametrize("name", PARTS)
def test_no_collective_brings_the_rows_of_all_devices_together(name):
    assert not [c for c in collectives_on(name) if holds_the_batch(c)]


@pytest.mark.parametrize("name", ["all", pytest.param("tensor", marks=SLOW)])
def test_tensor_only_sums_activations(name):
    """Nothing but weights is gathered, and nothing is moved from one split to another."""
    collectives = collectives_on(name)
    assert not [c for c in collectives if c.kind == "all-to-all"]
    gathered = [c for c in collectives if c.kind == "all-gather" and c.result_bytes > 256]
    for collective in gathered:
        for shape in collective.results:
            assert not {LENGTH, ROWS // 4, ROWS // 4 * LENGTH}.intersection(shape.sizes), collective


@pytest.mark.parametrize("name", PARTS)
def test_the_step_sends_what_the_count_says(name):
    assert_sent(collectives_on(name), counted(make_mesh(MESHES[name])))


def assert_sent(collectives, expected):
    """That the collectives of a compiled step send what is expected, kind by kind."""
    sent, total = wire_bytes_by_kind(collectives), sum(expected.values())
    for kind, size in expected.items():
        # What the count leaves out, sums of a few numbers, is under a fifth of this tiny step.
        assert sent[kind] <= 1.3 * size + 0.02 * total, (kind, sent, expected)
        assert sent[kind] >= 0.95 * size, (kind, sent, expected)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, which compiles for TPUs, is missing"
)
@pytest.mark.parametrize("name", ["fsdp", "all"])
def test_a_tpu_program_sends_no_more(name):
    jax.devices()  # The CPU's flags have been read, and are hidden from libtpu.
    topology = parse_topology("v5e:4x2")
    with compiling_for(topology):
        mesh = make_mesh(MESHES[name], devices=topology_devices(topology))
        collectives = collectives_of(compiled_step(mesh))
    assert not [c for c in collectives if holds_the_batch(c)]
    # XLA for TPUs scatters large gradients, and reduces these tiny ones whole.
    expected = counted(mesh)
    assert sum(wire_bytes_by_kind(collectives).values()) <= 1.3 * sum(expected.values())
