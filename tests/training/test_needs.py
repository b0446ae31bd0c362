"""Operations are counted by hand; memory is what the compiler says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import MeshConfig
from jaxspec.ops.attention_kernels import kernel_operations, splash
from jaxspec.ops.causal_attention import Causal, attend_causally
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


@pytest.mark.parametrize("rows", [1, 2])
def test_attention_in_a_kernel_counts_what_attention_by_products_does(rows):
    """The whole kernel, and not one turn of its grid: three of four tiles of 512 x 512."""
    q, k = (jnp.ones((rows, *shape), jnp.bfloat16) for shape in ((1024, 4, 128), (2, 1024, 128)))
    square = 2 * 2 * rows * 4 * 128 * 1024**2
    assert count(splash, q, k, k) == 0.75 * square
    by_products = count(lambda q, k, v: attend_causally(q, k, v, Causal("chunked")), q, k, k)
    assert 0.5 * square < by_products < 0.75 * square
    gradient = count(
        jax.grad(lambda *texts: splash(*texts).astype(jnp.float32).sum(), argnums=(0, 1, 2)),
        *(q, k, k),
    )
    assert gradient == pytest.approx((2 + 3 + 4) / 2 * count(splash, q, k, k), rel=1e-3)


def test_attention_by_cudnn_is_half_of_the_square():
    """As jax names its call: a program for a GPU cannot be traced without one."""
    queries, keys = ("bfloat16", (2, 1024, 4, 128)), ("bfloat16", (2, 1024, 2, 128))
    for name, products in (("fwd", 2), ("bwd", 5)):
        found = kernel_operations(f"dot_product_attention_{name}_wrapper", [queries, keys, keys])
        assert found == 2 * products * 2 * 4 * 128 * 1024**2 / 2


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
