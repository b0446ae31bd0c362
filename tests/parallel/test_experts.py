"""A mixture of experts on a mesh: every device sorts the tokens that it has, and no others."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxspec.config import ExpertsConfig, MeshConfig
from jaxspec.models.experts import Experts, computed_rows
from jaxspec.models.transformer import Transformer
from jaxspec.ops.mesh_axes import BATCH_AXES
from jaxspec.parallel.collectives import read_collectives, wire_bytes_by_kind
from jaxspec.parallel.constraints import on_mesh
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules, batch_sharding
from jaxspec.parallel.traffic import Use, traffic
from tests.training import tiny

ROWS, LENGTH = 8, 24
EXPERTS = ExpertsConfig(num_experts=4, per_token=2, width=16)
MODEL = Transformer(dataclasses.replace(tiny.ARCHITECTURE, experts=EXPERTS))
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp and tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "context": MeshConfig(data=2, fsdp=2, context=2),
}


@functools.cache
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def program(name):
    """(compiled value and gradient, its arguments)."""
    mesh = make_mesh(MESHES[name])

    def value(params, tokens_BS):
        with on_mesh(mesh):
            hidden_BSD = MODEL.apply({"params": params}, tokens_BS).hidden_BSD
            return (hidden_BSD**2).mean()

    shardings = Rules().shardings(params(), mesh)
    arguments = (
        jax.device_put(params(), shardings),
        jax.device_put(tiny.batch(ROWS, LENGTH)["tokens"], batch_sharding(mesh)),
    )
    function = jax.jit(jax.value_and_grad(value), in_shardings=(shardings, batch_sharding(mesh)))
    return function.lower(*arguments).compile(), arguments


@pytest.fixture(scope="module")
def expected():
    def value(params, tokens_BS):
        return (MODEL.apply({"params": params}, tokens_BS).hidden_BSD ** 2).mean()

    return jax.jit(jax.value_and_grad(value))(params(), tiny.batch(ROWS, LENGTH)["tokens"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("data", marks=pytest.mark.slow("the other meshes split rows, too")),
        *("fsdp and tensor", "context"),
    ],
)
def test_every_device_sorts_its_own_tokens(name, expected):
    compiled, arguments = program(name)
    config = MESHES[name]
    parts = config.data * config.fsdp * config.context
    own = ROWS * LENGTH * EXPERTS.per_token // parts
    sorted_sizes = [
        int(size) for size in re.findall(r"= \(?\w+\[(\d+)\].* sort\(", compiled.as_text())
    ]
    assert sorted_sizes and set(sorted_sizes) == {own}
    got = compiled(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), got, expected)


def test_devices_may_run_it_on_their_own_rows():
    """As the path "shard_map" does."""
    model, mesh = Experts(EXPERTS), make_mesh(MeshConfig(data=8, path="shard_map"))
    x_BSD = jax.random.normal(jax.random.key(0), (ROWS, 6, 16))
    params = jax.jit(model.init)(jax.random.key(1), x_BSD)

    rows = PartitionSpec(BATCH_AXES)
    spread = jax.shard_map(model.apply, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows)
    np.testing.assert_allclose(
        jax.jit(spread)(params, x_BSD), jax.jit(model.apply)(params, x_BSD), atol=1e-6
    )


def test_what_is_sent_is_what_is_expected() -> None:
    """The sums of a token's experts, not of all experts."""
    experts = dataclasses.replace(EXPERTS, num_experts=16)
    model, mesh = (
        Transformer(dataclasses.replace(tiny.ARCHITECTURE, experts=experts)),
        make_mesh(MESHES["fsdp and tensor"]),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        Rules().shardings(shapes, mesh),
    )
    split = batch_sharding(mesh)
    tokens_BS = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=split)

    def forward(params, tokens_BS):
        with on_mesh(mesh):
            return model.apply({"params": params}, tokens_BS).hidden_BSD

    text = jax.jit(forward, out_shardings=split).lower(placed, tokens_BS).compile().as_text()
    use = functools.partial(Use, tokens=ROWS * LENGTH, itemsize=4, gathers=1)
    expert_rows = functools.partial(computed_rows, experts)
    expected = traffic(
        [
            use({"layers": shapes["layers"]}, expert_rows=expert_rows),
            use({"embed": shapes["embed"]}, is_lookup=True),
        ],
        mesh=mesh,
        scatters=False,
    )
    assert wire_bytes_by_kind(read_collectives(text)) == expected
