"""Released MDLM folders: an independent forward pass in plain torch, round trip, bad folders.

The torch pass is written from the published equations, tensor by tensor; there is no flash
attention and no module in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from jaxspec.checkpoints.denoiser import load_denoiser, save_denoiser
from jaxspec.checkpoints.families import mdlm
from jaxspec.checkpoints.shapes import flatten_paths, nest_paths
from jaxspec.config import DiTConfig
from jaxspec.models.dit import DiT

TOLERANCE = 1e-4
CONFIG = DiTConfig(
    vocab_size=23,
    hidden_size=24,
    num_layers=3,
    num_heads=3,
    conditioning_size=10,
    time_conditioning=True,
    max_position_embeddings=32,
)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 17))
SIGMA = np.array([0.3, 4.0], np.float32)


def random_params(config: DiTConfig, *, scale: float = 0.3) -> dict[str, Any]:
    """Nothing at its initial value, at which gates and head are zero."""
    shapes = mdlm.layout(config).parameter_shapes
    rng = np.random.default_rng(0)
    leaves = {}
    for path, shape in shapes.items():
        noise = scale * rng.standard_normal(shape).astype("f4")
        leaves[path] = 1 + noise if path.endswith("scale") else noise
    return nest_paths(leaves)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_denoiser(tmp_path / "mdlm", CONFIG, random_params(CONFIG))
    return tmp_path / "mdlm"


@pytest.fixture(scope="module")
def torch() -> types.ModuleType:
    try:
        import torch
    except ImportError:
        pytest.skip("torch is not installed: no reference to compare with")
    return torch


def torch_logits(torch: Any, folder: Path, sigma: np.ndarray) -> np.ndarray:
    """MDLM's forward pass on the tensors of a folder."""
    functional = torch.nn.functional
    shape = json.loads((folder / "config.json").read_text())
    tensors = {
        name.removeprefix("backbone."): torch.tensor(array)
        for name, array in load_file(folder / "model.safetensors").items()
    }

    def affine(name: str, x: Any) -> Any:
        return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(name: str, x: Any) -> Any:
        return functional.layer_norm(x, x.shape[-1:]) * tensors[f"{name}.weight"]

    def rotated(x: Any) -> Any:
        half = x.shape[-1] // 2
        pair = torch.arange(half, dtype=torch.float64)
        angle = torch.arange(x.shape[1])[:, None] * 10_000.0 ** (-2 * pair / x.shape[-1])
        cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

    noise = torch.tensor(sigma if shape["time_conditioning"] else 0 * sigma)
    rates = torch.exp(-math.log(10_000.0) * torch.arange(128) / 128)
    waves = torch.cat([(noise[:, None] * rates).cos(), (noise[:, None] * rates).sin()], dim=1)
    hidden = functional.silu(affine("sigma_map.mlp.0", waves))
    condition = functional.silu(affine("sigma_map.mlp.2", hidden))
    x = tensors["vocab_embed.embedding"][torch.tensor(TOKENS)]
    batch, length, width = x.shape
    heads = shape["n_heads"]
    for layer in range(shape["n_blocks"]):
        name = f"blocks.{layer}"
        parts = affine(f"{name}.adaLN_modulation", condition)[:, None].chunk(6, dim=-1)
        qkv = affine(f"{name}.attn_qkv", norm(f"{name}.norm1", x) * (1 + parts[1]) + parts[0])
        q, k, v = qkv.reshape(batch, length, 3, heads, width // heads).unbind(2)
        scores = torch.einsum("bshc,bthc->bhst", rotated(q), rotated(k))
        weights = (scores / math.sqrt(width // heads)).softmax(-1)
        mixed = torch.einsum("bhst,bthc->bshc", weights, v).reshape(batch, length, width)
        x = x + parts[2] * affine(f"{name}.attn_out", mixed)
        inner = affine(f"{name}.mlp.0", norm(f"{name}.norm2", x) * (1 + parts[4]) + parts[3])
        x = x + parts[5] * affine(f"{name}.mlp.2", functional.gelu(inner, approximate="tanh"))
    shift, scale = affine("output_layer.adaLN_modulation", condition)[:, None].chunk(2, dim=-1)
    x = norm("output_layer.norm_final", x) * (1 + scale) + shift
    return affine("output_layer.linear", x).numpy()


@pytest.mark.parametrize("conditioned", [False, True])
def test_logits_equal_those_of_a_torch_pass(torch, tmp_path, conditioned):
    config = dataclasses.replace(CONFIG, time_conditioning=conditioned)
    save_denoiser(tmp_path / "mdlm", config, random_params(config))
    loaded, params = load_denoiser(tmp_path / "mdlm")
    assert loaded == config
    expected = torch_logits(torch, tmp_path / "mdlm", SIGMA)
    assert expected.std() > 0.5, "the reference is too flat to tell anything"
    apply = jax.jit(lambda p, t, s: DiT(loaded).apply({"params": p}, t, sigma=s).logits_BSV)
    got = apply(params, jnp.asarray(TOKENS), jnp.asarray(SIGMA))
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_table_lists_the_parameters_of_the_model():
    for config in (CONFIG, DiTConfig()):
        tokens = jnp.zeros((1, 4), jnp.int32)
        params = jax.eval_shape(DiT(config).init, jax.random.key(0), tokens)["params"]
        got = {path: leaf.shape for path, leaf in flatten_paths(params).items()}
        expected = mdlm.layout(config).parameter_shapes
        assert got == expected


@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
def test_round_trip_is_exact(tmp_path, max_shard_bytes):
    params = random_params(CONFIG)
    save_denoiser(
        tmp_path / "out", CONFIG, params, max_shard_bytes=max_shard_bytes, provenance={"seed": 3}
    )
    assert json.loads((tmp_path / "out" / "provenance.json").read_text()) == {"seed": 3}
    config, got = load_denoiser(tmp_path / "out", shardings=SingleDeviceSharding(jax.devices()[1]))
    assert config == CONFIG
    expected = flatten_paths(params)
    for path, leaf in flatten_paths(got).items():
        np.testing.assert_array_equal(leaf, expected.pop(path), err_msg=path)
    assert not expected


def test_stored_tensors_have_the_released_names_and_layout(folder):
    tensors, params = load_file(folder / "model.safetensors"), random_params(CONFIG)
    assert len(tensors) == 10 + 10 * CONFIG.num_layers
    np.testing.assert_array_equal(
        tensors["backbone.blocks.2.attn_qkv.weight"], params["layers"]["qkv"]["kernel"][2].T
    )
    assert tensors["backbone.vocab_embed.embedding"].shape == (23, 24)
    assert tensors["backbone.sigma_map.mlp.0.weight"].shape == (10, 256)
    assert tensors["backbone.output_layer.linear.weight"].shape == (23, 24)
    raw = json.loads((folder / "config.json").read_text())
    assert (raw["model_type"], raw["hidden_dim"], raw["cond_dim"]) == ("mdlm", 24, 10)


def test_bfloat16_is_what_was_asked_for(tmp_path):
    save_denoiser(tmp_path / "out", CONFIG, random_params(CONFIG), dtype="bfloat16")
    config, params = load_denoiser(tmp_path / "out", dtype="bfloat16")
    assert config.dtype == config.param_dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    logits = jax.jit(DiT(config).apply)({"params": params}, jnp.asarray(TOKENS)).logits_BSV
    assert logits.dtype == jnp.float32 and jnp.isfinite(logits).all()


def test_stored_constants_are_passed_over(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["backbone.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, folder / "model.safetensors")
    load_denoiser(folder)


def test_every_mismatch_is_named_at_once(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["backbone.sigma_map.mlp.2.bias"]
    for layer in range(3):
        name = f"backbone.blocks.{layer}.attn_out.weight"
        tensors[name] = np.zeros((5, 24), np.float32)
    tensors["backbone.label_map.weight"] = np.zeros(2, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        load_denoiser(folder)
    message = str(caught.value)
    assert "backbone.sigma_map.mlp.2.bias: missing, expected [10]" in message
    assert "blocks.{i}.attn_out.weight: got [5, 24], expected [24, 24] (i = 0, 1, 2)" in message
    assert "backbone.label_map.weight: unexpected, got [2]" in message


def test_every_wrong_field_is_named_at_once(folder):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "n_heads": 0, "cond_dim": None, "time_conditioning": 1.5}))
    with pytest.raises(ValueError) as caught:
        load_denoiser(folder)
    assert all(key in str(caught.value) for key in ("n_heads", "cond_dim", "time_conditioning"))
    path.write_text(json.dumps({**raw, "n_heads": 5}))
    with pytest.raises(ValueError, match="even width"):
        load_denoiser(folder)
    path.write_text(json.dumps({**raw, "hidden_dim": 2**20, "n_heads": 2}))
    with pytest.raises(ValueError, match="hidden_dim: got 1048576 for 2 heads, expected at most"):
        load_denoiser(folder)
    with pytest.raises(ValueError, match="expected 'mdlm'"):
        mdlm.from_json({**raw, "model_type": "qwen3"}, where="config.json")


def test_parameters_of_another_shape_are_not_written(tmp_path):
    params = random_params(dataclasses.replace(CONFIG, vocab_size=24))
    with pytest.raises(ValueError, match=r"head/bias: got \[24\], expected \[23\]"):
        save_denoiser(tmp_path / "out", CONFIG, params)
    assert not (tmp_path / "out").exists()
