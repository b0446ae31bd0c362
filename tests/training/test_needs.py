"""Operations are counted by hand; memory is what the compiler says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import MeshConfig
from jaxspec.ops.mesh_axes import BATCH_AXES
from jaxspec.parallel.mesh import make_mesh
from jaxspec.training.needs import Needs, compile_step, matmul_operations

A, B = jnp.ones((4, 8)), jnp.ones((8, 16))


def count(function, *arguments):
    return matmul_operations(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: a @ b, 2 * 4 * 8 * 16),
        (lambda a, b: jnp.einsum("nd,df->nf", a, b) + 1, 2 * 4 * 8 * 16),
        (lambda a, b: jnp.einsum("bd,bf->bdf", a, b[:4]), 2 * 4 * 8 * 16),
        (jax.jit(lambda a, b: jax.checkpoint(jnp.matmul)(a, b)), 2 * 4 * 8 * 16),
        (
            lambda a, b: jax.lax.scan(lambda c, _: (c, c @ b), a, None, length=5)[1],
            5 * 2 * 4 * 8 * 16,
        ),
        (
            lambda a, b: jax.lax.cond(True, lambda: (a @ b).sum(), lambda: a.sum()),
            2 * 4 * 8 * 16,
        ),
    ],
)
def test_operations_by_hand(function, expected):
    assert count(function, A, B) == expected


def test_a_gradient_takes_twice_as_much_again():
    assert count(jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)), A, B) >= 2 * 2 * 4 * 8 * 16


def test_what_each_device_computes_is_added_up():
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:2])
    rows, whole = jax.sharding.PartitionSpec(BATCH_AXES), jax.sharding.PartitionSpec()
    split = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert count(split, A, B) == 2 * 4 * 8 * 16


def test_axes_along_which_a_body_is_whole_are_not_counted():
    """As of the experts of a layer, which are split by rows only."""
    devices = np.asarray(jax.devices()[:4]).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("rows", "columns"))
    rows, whole = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()
    split = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows, axis_names={"rows"}
    )
    assert count(split, A, B) == 2 * 4 * 8 * 16


def test_a_compiled_step():
    compiled, needs = compile_step(jax.jit(jnp.matmul), A, B)
    assert (compiled(A, B) == A @ B).all()
    assert needs.argument_bytes == 4 * (4 * 8 + 8 * 16)
    assert needs.result_bytes == 4 * 4 * 16
    assert needs.operations == 2 * 4 * 8 * 16
    assert needs.summary.startswith("A step needs 0 MiB on each device")
    large = Needs(
        argument_bytes=2 << 30,
        temporary_bytes=0,
        result_bytes=1 << 30,
        operations=2e12,
        compile_s=9.0,
    )
    assert "3.0 GiB on each device" in large.summary
    assert "2,000.00 GFLOP" in large.summary


def test_a_result_that_overwrites_an_argument_needs_no_room():
    _, needs = compile_step(jax.jit(lambda a: a + 1, donate_argnums=0), A)
    assert (needs.argument_bytes, needs.result_bytes) == (4 * 4 * 8, 0)
