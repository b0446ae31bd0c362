from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from jaxspec.config import (
    DataConfig,
    MeshConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)
from jaxspec.ops.causal_attention import CHUNK
from jaxspec.parallel.chips import CHIPS
from jaxspec.parallel.memory import (
    OutOfMemory,
    attention_in,
    check_rows_fit,
    check_state_fits,
    memory_of,
    pool_bytes,
    scores_at_least,
)
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules
from jaxspec.training.tasks.registry import task_of

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


PLAIN = TargetConfig(attention="plain")


def test_rows_on_a_device_count():
    assert HERE is not None
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:8])
    length = 1 << 13
    rows = HERE // (4 * length**2) + 1
    config = RunConfig(target=PLAIN, data=DataConfig(batch_size=32 * rows, sequence_length=length))
    with pytest.raises(ValueError, match=r"Attention over .* rows .data.batch_size. of 8192"):
        check_rows_fit(config, mesh, computed_as=PLAIN, available=HERE)
    parts = TrainingConfig(gradient_accumulation=4 * rows)
    check_rows_fit(
        dataclasses.replace(config, training=parts), mesh, computed_as=PLAIN, available=HERE
    )


def test_the_memory_that_the_devices_have_is_a_parameter():
    """In a plan, they are others than those of this machine."""
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    config = RunConfig(target=PLAIN, data=DataConfig(batch_size=1, sequence_length=1 << 12))
    check = functools.partial(check_rows_fit, config, mesh, computed_as=PLAIN)
    check(available=None)
    check(available=64 << 20)
    message = r"takes at least 64\.0 MiB on each device, which has 63\.0 MiB"
    with pytest.raises(OutOfMemory, match=message):
        check(available=63 << 20)


def test_the_environment_says_what_jax_takes_of_a_gpu(monkeypatch):
    new, old = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    for variable in (new, old):
        monkeypatch.delenv(variable, raising=False)
    h100 = CHIPS["H100"]
    assert pool_bytes(h100) == 60 * 10**9
    for variable in (new, old):
        with monkeypatch.context() as patched:
            patched.setenv(variable, ".5")
            assert pool_bytes(h100) == 40 * 10**9
            assert pool_bytes(CHIPS["v5e"]) == 16 * 2**30
            for wrong in ("most", "0", "nan"):
                patched.setenv(variable, wrong)
                with pytest.raises(ValueError, match=f"{variable} is a share .* got '{wrong}'"):
                    pool_bytes(h100)


def test_scores_that_are_never_in_memory_do_not_count():
    """With "auto", a CPU has the scores of 128 queries at a time of rows of 8,192 tokens."""
    assert HERE is not None
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    length = 1 << 13
    rows = HERE // (4 * length**2) + 1
    target = TargetConfig()

    def of(batch_size: int) -> RunConfig:
        data = DataConfig(batch_size=batch_size, sequence_length=length)
        return RunConfig(target=target, data=data)

    check_rows_fit(of(rows), mesh, computed_as=target, available=HERE)
    with pytest.raises(ValueError, match="takes at least"):
        check_rows_fit(of(rows * length // CHUNK), mesh, computed_as=target, available=HERE)
    # With masks of their own.
    with pytest.raises(ValueError, match="takes at least"):
        check_rows_fit(of(rows), mesh, computed_as=None, available=HERE)


SHAPE = TransformerConfig(head_dim=128, dtype="bfloat16")
BFLOAT16 = TargetConfig(dtype="bfloat16")


@pytest.mark.parametrize(
    ("target", "task", "platform", "kind"),
    [
        (TargetConfig(), "drafter", "gpu", "chunked"),
        (BFLOAT16, "drafter", "tpu", "splash"),
        (BFLOAT16, "drafter", "gpu", "chunked"),  # Its heads may be too wide for cuDNN.
        (dataclasses.replace(BFLOAT16, architecture=SHAPE), "drafter", "gpu", "cudnn"),
        (TargetConfig(architecture=SHAPE), "drafter", "gpu", "cudnn"),
        (TargetConfig(architecture=SHAPE), "target", "gpu", "cudnn"),
        (TargetConfig(attention="splash"), "drafter", "tpu", "splash"),
        (TargetConfig(attention="cudnn", dtype="bfloat16"), "drafter", "gpu", "cudnn"),
        (BFLOAT16, "denoiser", "tpu", "plain"),
    ],
)
def test_attention_is_counted_as_it_is_computed(target, task, platform, kind):
    config = RunConfig(
        target=target,
        training=TrainingConfig(task=task),
        data=DataConfig(sequence_length=4096),
    )
    computed_as = task_of(config).computed_as(config)
    of_run = functools.partial(attention_in, config, computed_as=computed_as, platform=platform)
    assert of_run(context=1) == kind
    assert of_run(context=2) == "plain"


@pytest.mark.parametrize(
    ("target", "path", "message"),
    [
        (TargetConfig(attention="splash"), "jit", "splash runs on a tpu, and this is a gpu"),
        (TargetConfig(attention="cudnn"), "jit", "cudnn computes in bfloat16"),
        (dataclasses.replace(BFLOAT16, attention="cudnn"), "shard_map", "spread by shard_map"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_before_anything_is_read(target, path, message):
    config = RunConfig(target=target, mesh=MeshConfig(path=path))
    with pytest.raises(ValueError, match=message):
        attention_in(config, computed_as=target, platform="gpu", context=1)


def test_the_array_of_documents_counts_with_cudnn():
    assert scores_at_least("cudnn", 4096) == 2 * 4096**2
    assert scores_at_least("splash", 4096) == 0
    assert scores_at_least("chunked", 64) == scores_at_least("plain", 64) == 4 * 64**2
