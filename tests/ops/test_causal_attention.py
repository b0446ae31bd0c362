"""Every way to compute the attention of a text is the plain one, and one place chooses."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxspec.config import UNLIMITED, GPT2Config, MeshConfig, TransformerConfig
from jaxspec.models.registry import make_model
from jaxspec.ops.attention import group_queries, merge, part, repeat_rows, ungroup_queries
from jaxspec.ops.attention_kernels import cudnn, splash
from jaxspec.ops.causal_attention import Causal, attend_causally, choose_attention
from jaxspec.parallel.constraints import on_mesh
from jaxspec.parallel.mesh import make_mesh

# Not whole chunks, spans or tiles.
LENGTH = 300
SEGMENTS = jnp.stack([jnp.ones(LENGTH, jnp.int32), jnp.arange(LENGTH) // 130])


@functools.partial(jax.jit, static_argnames=("window", "scaled"))
def plain(q_BSQC, k_BRSC, v_BRSC, *, segments_BS=None, window=None, scaled=True):
    """By its definition, with all scores."""
    order = jnp.arange(q_BSQC.shape[1])
    behind = order[:, None] - order
    mask_BSS = ((behind >= 0) & (behind < (window or UNLIMITED)))[None]
    if segments_BS is not None:
        mask_BSS = mask_BSS & (segments_BS[:, :, None] == segments_BS[:, None])
    heads, kv_heads = q_BSQC.shape[2], k_BRSC.shape[1]
    q_BRIC = group_queries(q_BSQC, kv_heads)
    mask = repeat_rows(mask_BSS, heads // kv_heads)
    return ungroup_queries(merge(part(q_BRIC, k_BRSC, v_BRSC, mask, scaled=scaled)), len(order))


def chunked(q_BSQC, k_BRSC, v_BRSC, *, segments_BS=None, window=None, scaled=True):
    seen = Causal("chunked", segments_BS)
    if window is not None:
        positions_BS = jnp.broadcast_to(jnp.arange(q_BSQC.shape[1]), q_BSQC.shape[:2])
        seen = dataclasses.replace(seen, window=jnp.int32(window), positions_BS=positions_BS)
    return attend_causally(q_BSQC, k_BRSC, v_BRSC, seen, scaled=scaled)


WAYS = {
    "chunked": chunked,
    "splash": functools.partial(splash, interpret=True),
    # What cuDNN is asked for, without it.
    "cudnn": functools.partial(cudnn, implementation="xla"),
}


@functools.cache
def arrays(width: int, *, kv_heads: int = 2, length: int = LENGTH) -> list[jax.Array]:
    shapes = [(2, length, 4, width), (2, kv_heads, length, width), (2, kv_heads, length, width)]
    keys = jax.random.split(jax.random.key(width), 3)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("width", "kv_heads", "documents", "window", "scaled"),
    [
        (64, 2, False, None, True),
        (96, 4, True, None, True),
        (128, 1, True, 37, True),
        (256, 2, False, 200, True),
        (64, 2, False, UNLIMITED, False),
    ],
)
def test_every_way_is_the_plain_one(way, width, kv_heads, documents, window, scaled) -> None:
    q, k, v = arrays(width, kv_heads=kv_heads)
    q = q if scaled else q * width**-0.5
    options = {
        "segments_BS": SEGMENTS if documents else None,
        "window": window,
        "scaled": scaled,
    }
    got = jax.jit(functools.partial(WAYS[way], **options))(q, k, v)
    np.testing.assert_allclose(got, plain(q, k, v, **options), rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_plain_one(way) -> None:
    q, k, v = arrays(64)
    options = {"segments_BS": SEGMENTS, "window": 37}

    def gradient(function):
        def total(q, k, v):
            return jnp.sin(function(q, k, v, **options)).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)

    for got, expected in zip(gradient(WAYS[way]), gradient(plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_chunks_hold_fewer_scores_and_compute_fewer() -> None:
    length = 2048
    q, k, v = arrays(64, length=length)
    programs = {
        name: jax.jit(function).lower(q, k, v).compile()
        for name, function in (("plain", plain), ("chunked", chunked))
    }
    scores = 2 * 4 * length**2 * 4
    temporaries = {n: p.memory_analysis().temp_size_in_bytes for n, p in programs.items()}
    assert temporaries["chunked"] < scores / 4 < scores < temporaries["plain"]


def test_each_device_of_a_mesh_computes_its_rows_and_heads() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    q, k, v = (jnp.concatenate([array] * 2) for array in arrays(64))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def spread(q, k, v):
        with on_mesh(mesh):
            return splash(q, k, v, window=60, interpret=True)

    got = jax.jit(spread)(*jax.device_put((q, k, v), rows))
    assert got.addressable_shards[0].data.size == got.size // 8
    np.testing.assert_allclose(got, plain(q, k, v, window=60), rtol=0, atol=1e-5)


MODELS = {
    "sliding": TransformerConfig(
        vocab_size=40,
        hidden_size=32,
        num_layers=3,
        head_dim=8,
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
        sliding_window=50,
    ),
    "full": TransformerConfig(
        vocab_size=40, hidden_size=32, num_layers=2, head_dim=8, query_pre_attn_scalar=5.0
    ),
    "gpt_neo": GPT2Config(
        family="gpt_neo",
        vocab_size=40,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        layer_types=("full_attention", "sliding_attention"),
        sliding_window=70,
    ),
}


TOKENS_BS = np.random.default_rng(0).integers(0, 40, (2, LENGTH)).astype(np.int32)


@functools.cache
def model_params(name: str):
    init = jax.jit(make_model(MODELS[name]).init)
    return init(jax.random.key(0), TOKENS_BS[:, :4])["params"]


@functools.cache
def model_output(name: str, kind: str):
    model = make_model(dataclasses.replace(MODELS[name], attention=kind))
    packed = {
        "segments_BS": SEGMENTS,
        "positions_BS": np.stack([np.arange(LENGTH), np.arange(LENGTH) % 130]),
    }
    output = jax.jit(lambda p: model.apply({"params": p}, TOKENS_BS, **packed, capture=(0,)))
    return output(model_params(name))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["chunked", "splash"])
def test_models_compute_the_same_either_way(name, kind, monkeypatch) -> None:
    """Documents are packed, layers slide, and positions begin anew."""
    monkeypatch.setattr("jaxspec.ops.causal_attention.splash", WAYS["splash"])
    monkeypatch.setattr("jaxspec.models.transformer.platform", lambda: "tpu")
    for got, expected in zip(model_output(name, kind), model_output(name, "plain"), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "dtype", "width", "length", "kind"),
    [
        ("cpu", "float32", 64, 256, "plain"),
        ("cpu", "bfloat16", 64, 257, "chunked"),
        ("gpu", "bfloat16", 128, 64, "cudnn"),
        ("gpu", "bfloat16", 128, 1023, "chunked"),
        ("gpu", "bfloat16", 256, 4096, "chunked"),
        ("gpu", "float32", 128, 4096, "chunked"),
        ("tpu", "bfloat16", 256, 4096, "splash"),
        ("tpu", "float32", 128, 4096, "chunked"),
    ],
)
def test_auto_takes_what_fits(platform, dtype, width, length, kind) -> None:
    choice = choose_attention("auto", platform=platform, dtype=dtype, head_dim=width, length=length)
    assert choice.kind == kind
    assert choice.reason


@pytest.mark.parametrize(
    ("capability", "version", "kind"),
    [
        ("9.0", "PJRT C API\ncuda 12090", "cudnn"),
        ("8.0", "PJRT C API\ncuda 12090", "cudnn"),
        ("12.0", "PJRT C API\ncuda 12090", "cudnn"),
        ("7.5", "PJRT C API\ncuda 12090", "chunked"),
        (None, "PJRT C API\nrocm 60200", "chunked"),
    ],
)
def test_cudnn_needs_a_gpu_that_it_knows(monkeypatch, capability, version, kind) -> None:
    device = SimpleNamespace(
        device_kind="GPU",
        compute_capability=capability,
        client=SimpleNamespace(platform_version=version),
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    size = {"dtype": "bfloat16", "head_dim": 128, "length": 4096}
    assert choose_attention("auto", platform="gpu", **size).kind == kind
    if kind != "cudnn":
        with pytest.raises(ValueError, match="cudnn runs on NVIDIA's GPUs from Ampere on"):
            choose_attention("cudnn", platform="gpu", **size)


@pytest.mark.parametrize(
    ("setting", "platform", "dtype", "width", "message"),
    [
        ("splash", "cpu", "float32", 64, "'splash', but splash runs on a tpu, and this is a cpu"),
        ("cudnn", "tpu", "bfloat16", 64, "runs on a gpu, and this is a tpu"),
        ("cudnn", "gpu", "float32", 64, "computes in bfloat16, and the target in float32"),
        ("cudnn", "gpu", "bfloat16", 20, "up to 128, and these have 20. Choose 'auto'"),
    ],
)
def test_kernels_that_cannot_run_are_refused(setting, platform, dtype, width, message) -> None:
    with pytest.raises(ValueError, match=message):
        choose_attention(setting, platform=platform, dtype=dtype, head_dim=width, length=64)
