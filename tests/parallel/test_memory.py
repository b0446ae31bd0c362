from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxspec.config import DataConfig, MeshConfig, RunConfig, TrainingConfig
from jaxspec.parallel.memory import check_rows_fit, check_state_fits, memory_of
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules, check_batch_size

HERE = memory_of(jax.devices()[0])


def shapes(width: int) -> dict:
    """A tree with one kernel, a count and a key."""
    return {
        "q": {"kernel": jax.ShapeDtypeStruct((2, width, 1024), jnp.float32)},
        "count": jax.ShapeDtypeStruct((), jnp.int32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
    }


def test_the_devices_of_a_cpu_share_its_memory():
    assert HERE is not None
    with open("/proc/meminfo", encoding="ascii") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < HERE * jax.local_device_count() <= total


def test_what_each_device_holds_of_the_state_counts():
    assert HERE is not None
    width = 8 * (HERE // (2 * 1024 * 4) // 8)  # Just fits on one device.
    one = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    check_state_fits(shapes(width), Rules().shardings(shapes(width), one))
    wide = shapes(4 * width)
    with pytest.raises(ValueError, match=r"take at least .* GiB on each device, which has .* GiB"):
        check_state_fits(wide, Rules().shardings(wide, one))
    split = make_mesh(MeshConfig(fsdp=8), devices=jax.devices()[:8])
    check_state_fits(wide, Rules().shardings(wide, split))
    with pytest.raises(ValueError, match="over more devices"):
        check_state_fits(wide, Rules.replicated().shardings(wide, split))


def test_rows_on_a_device_count():
    assert HERE is not None
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:8])
    length = 1 << 13
    rows = HERE // (4 * length**2) + 1
    config = RunConfig(data=DataConfig(batch_size=32 * rows, sequence_length=length))
    with pytest.raises(ValueError, match=r"Attention over .* rows .data.batch_size. of 8192"):
        check_batch_size(config, mesh)
    parts = TrainingConfig(gradient_accumulation=4 * rows)
    check_batch_size(RunConfig(data=config.data, training=parts), mesh)
    check_rows_fit(config, mesh, rows=0)
