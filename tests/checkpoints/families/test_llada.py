"""Released LLaDA folders: an independent forward pass in plain torch, round trip, bad folders.

The torch pass is written from the published equations, tensor by tensor; there is no module in it.
It is used a second time on Qwen3's names under a block-causal mask.
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

from jaxspec.checkpoints.denoiser import (
    is_denoiser,
    keep_layers,
    load_denoiser,
    read_denoiser,
    save_denoiser,
)
from jaxspec.checkpoints.families.family import Layout
from jaxspec.checkpoints.families.llada import llada_from_json, llada_layout
from jaxspec.checkpoints.families.registry import target_family
from jaxspec.checkpoints.huggingface import save_target
from jaxspec.checkpoints.shapes import flatten_paths, nest_paths
from jaxspec.config import ExpertsConfig, MaskedTransformerConfig
from jaxspec.models.bidirectional import BidirectionalTransformer
from jaxspec.models.block_diffusion import block_causal_mask
from jaxspec.models.llada import EOS_ID, LLADA_8B
from tests.denoisers import save_llada

TOLERANCE = 1e-4
CONFIG = MaskedTransformerConfig(
    vocab_size=23,
    hidden_size=24,
    num_layers=3,
    num_heads=3,
    num_kv_heads=3,
    head_dim=8,
    intermediate_size=20,
    rms_norm_eps=1e-5,
    rope_theta=500.0,
    qk_norm=False,
    tie_embeddings=False,
    max_position_embeddings=32,
    mask_token_id=22,
)
EOS = 21
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 17))
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
"""LLaDA's names in a block, and Qwen3's."""


def random_params(layout: Layout, *, scale: float = 0.3) -> dict[str, Any]:
    """Nothing at its initial value."""
    shapes = layout.parameter_shapes
    rng = np.random.default_rng(0)
    leaves = {}
    for path, shape in shapes.items():
        noise = scale * rng.standard_normal(shape).astype("f4")
        leaves[path] = 1 + noise if path.endswith("scale") else noise
    return nest_paths(leaves)


def saved(folder: Path, config: MaskedTransformerConfig = CONFIG, **options: Any) -> Path:
    save_llada(folder, config, random_params(llada_layout(config)), eos_id=EOS, **options)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "llada")


@pytest.fixture(scope="module")
def torch() -> types.ModuleType:
    try:
        import torch
    except ImportError:
        pytest.skip("torch is not installed: no reference to compare with")
    return torch


def torch_logits(torch: Any, tensors: dict[str, Any], config: Any, mask: np.ndarray) -> np.ndarray:
    """RMS norm, attention under `mask`, SwiGLU: on tensors of LLaDA's names, prefix left away."""
    functional = torch.nn.functional
    tensors = {name: torch.tensor(array) for name, array in tensors.items()}

    def norm(name: str, x: Any) -> Any:
        size = (x * x).mean(-1, keepdim=True) + config.rms_norm_eps
        return x / size.sqrt() * tensors[f"{name}.weight"]

    def linear(name: str, x: Any) -> Any:
        return functional.linear(x, tensors[f"{name}.weight"])

    def rotated(x: Any) -> Any:
        half = x.shape[-1] // 2
        pair = torch.arange(half, dtype=torch.float64)
        angle = torch.arange(x.shape[1])[:, None] * config.rope_theta ** (-2 * pair / x.shape[-1])
        cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

    def heads(name: str, x: Any, count: int) -> Any:
        split = linear(name, x).reshape(*x.shape[:2], count, config.head_dim)
        kind = name.rpartition(".")[2][0]
        if f"{kind}_norm.{name}.weight" in tensors:
            split = norm(f"{kind}_norm.{name}", split)
        return split

    x = tensors["wte.weight"][torch.tensor(TOKENS)]
    allowed = torch.tensor(np.asarray(mask))
    for layer in range(config.num_layers):
        name = f"blocks.{layer}"
        inner = norm(f"{name}.attn_norm", x)
        q = rotated(heads(f"{name}.q_proj", inner, config.num_heads))
        groups = config.num_heads // config.num_kv_heads
        k = rotated(heads(f"{name}.k_proj", inner, config.num_kv_heads))
        v = heads(f"{name}.v_proj", inner, config.num_kv_heads)
        k, v = (each.repeat_interleave(groups, dim=2) for each in (k, v))
        scores = torch.einsum("bshc,bthc->bhst", q, k) / math.sqrt(config.head_dim)
        weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
        mixed = torch.einsum("bhst,bthc->bshc", weights, v).flatten(2)
        x = x + linear(f"{name}.attn_out", mixed)
        inner = norm(f"{name}.ff_norm", x)
        gate = functional.silu(linear(f"{name}.ff_proj", inner))
        x = x + linear(f"{name}.ff_out", gate * linear(f"{name}.up_proj", inner))
    head = "wte" if config.tie_embeddings else "ff_out"
    return linear(head, norm("ln_f", x)).numpy()


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_those_of_a_torch_pass(torch, tmp_path, tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    loaded_config, loaded_params = load_denoiser(saved(tmp_path / "llada", config))
    stated = json.loads((tmp_path / "llada" / "config.json").read_text())
    assert loaded_config == config and stated["eos_token_id"] == EOS
    tensors = {
        name.removeprefix("model.transformer."): array
        for name, array in load_file(tmp_path / "llada" / "model.safetensors").items()
    }
    expected = torch_logits(torch, tensors, config, np.ones((17, 17), bool))
    assert expected.std() > 0.5, "the reference is too flat to tell anything"
    model = BidirectionalTransformer(loaded_config)
    got = jax.jit(model.apply)({"params": loaded_params}, jnp.asarray(TOKENS)).logits_BSV
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_block_causal_model_with_qwen3_names_equals_a_torch_pass(torch, tmp_path):
    config = dataclasses.replace(CONFIG, num_kv_heads=1, qk_norm=True)
    save_target(tmp_path / "sdar", config, random_params(target_family(config).layout(config, ())))
    config, params = load_denoiser(tmp_path / "sdar")
    stored = load_file(tmp_path / "sdar" / "model.safetensors")
    tensors = {
        "wte.weight": stored["model.embed_tokens.weight"],
        "ln_f.weight": stored["model.norm.weight"],
        "ff_out.weight": stored["lm_head.weight"],
    }
    for layer in range(config.num_layers):
        theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
        for name, other in BLOCK_NAMES.items():
            tensors[f"{ours}.{name}.weight"] = stored[f"{theirs}.{other}.weight"]
        for kind in "qk":
            array = stored[f"{theirs}.self_attn.{kind}_norm.weight"]
            tensors[f"{kind}_norm.{ours}.{kind}_proj.weight"] = array
    mask = block_causal_mask(17, block_size=4)
    expected = torch_logits(torch, tensors, config, mask)
    model = BidirectionalTransformer(config)
    apply = jax.jit(lambda p, t, m: model.apply({"params": p}, t, mask_BSS=m).logits_BSV)
    got = apply(params, jnp.asarray(TOKENS), jnp.asarray(mask)[None])
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_table_lists_the_parameters_of_the_model():
    for config in (CONFIG, dataclasses.replace(CONFIG, tie_embeddings=True), LLADA_8B):
        tokens = jnp.zeros((1, 4), jnp.int32)
        init = BidirectionalTransformer(config).init
        params = jax.eval_shape(init, jax.random.key(0), tokens)["params"]
        got = {path: leaf.shape for path, leaf in flatten_paths(params).items()}
        assert got == llada_layout(config).parameter_shapes
    assert sum(math.prod(shape) for shape in got.values()) == pytest.approx(8.02e9, rel=1e-3)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000])
def test_round_trip_is_exact(tmp_path, max_shard_bytes):
    saved(tmp_path / "out", max_shard_bytes=max_shard_bytes, provenance={"seed": 3})
    assert json.loads((tmp_path / "out" / "provenance.json").read_text()) == {"seed": 3}
    config, params = load_denoiser(
        tmp_path / "out", shardings=SingleDeviceSharding(jax.devices()[1])
    )
    assert config == CONFIG
    expected = flatten_paths(random_params(llada_layout(CONFIG)))
    for path, leaf in flatten_paths(params).items():
        np.testing.assert_array_equal(leaf, expected.pop(path), err_msg=path)
    assert not expected


def test_head_and_down_projection_keep_apart(folder):
    tensors = load_file(folder / "model.safetensors")
    assert len(tensors) == 3 + 9 * CONFIG.num_layers
    assert tensors["model.transformer.ff_out.weight"].shape == (23, 24)
    assert tensors["model.transformer.blocks.2.ff_out.weight"].shape == (24, 20)
    params = load_denoiser(folder)[1]
    down = params["layers"]["mlp"]["down"]["kernel"]
    np.testing.assert_array_equal(tensors["model.transformer.blocks.2.ff_out.weight"], down[2].T)


RELEASED = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "include_bias": False,
    "include_qkv_bias": False,
    "layer_norm_type": "rms",
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": 126464,
    "weight_tying": False,
}


def test_released_configuration():
    config = llada_from_json(RELEASED, where="config.json")
    assert config == dataclasses.replace(LLADA_8B, dtype="float32", param_dtype="float32")
    assert RELEASED["eos_token_id"] == EOS_ID


def test_every_mismatch_is_named_at_once(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.transformer.ln_f.weight"]
    for layer in range(3):
        tensors[f"model.transformer.blocks.{layer}.attn_out.weight"] = np.zeros((5, 24), "f4")
    tensors["model.transformer.wpe.weight"] = np.zeros(2, "f4")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        load_denoiser(folder)
    message = str(caught.value)
    assert "model.transformer.ln_f.weight: missing, expected [24]" in message
    assert "blocks.{i}.attn_out.weight: got [5, 24], expected [24, 24] (i = 0, 1, 2)" in message
    assert "model.transformer.wpe.weight: unexpected, got [2]" in message


def test_every_wrong_field_is_named_at_once():
    wrong = {
        "activation_type": "swiglu",
        "alibi": True,
        "include_qkv_bias": True,
        "mask_token_id": 126464,
        "n_layers": 0,
        "rms_norm_eps": -1,
        "weight_tying": "no",
    }
    with pytest.raises(ValueError) as caught:
        llada_from_json({**RELEASED, **wrong}, where="config.json")
    assert all(f"{key}: got" in str(caught.value) for key in wrong)
    with pytest.raises(ValueError, match="d_model: got 1048576 for 32 heads, expected at most"):
        llada_from_json({**RELEASED, "d_model": 2**20}, where="config.json")
    with pytest.raises(ValueError, match="expected 'llada'"):
        llada_from_json({**RELEASED, "model_type": "llama"}, where="config.json")
    with pytest.raises(ValueError, match="multiple of num_kv_heads"):
        llada_from_json({**RELEASED, "n_kv_heads": 5}, where="config.json")
    with pytest.raises(ValueError, match="which is also eos_token_id"):
        llada_from_json({**RELEASED, "mask_token_id": 126081}, where="config.json")


@pytest.mark.parametrize("entry", [{"eos_token_id": None}, {}])
def test_a_base_model_may_have_no_end_of_text(entry):
    raw = {key: value for key, value in RELEASED.items() if key != "eos_token_id"}
    expected = llada_from_json(RELEASED, where="config.json")
    assert llada_from_json({**raw, **entry}, where="config.json") == expected


def test_layers_that_llada_does_not_have_are_not_written(tmp_path):
    config = dataclasses.replace(CONFIG, qk_norm=True, head_dim=16)
    with pytest.raises(ValueError, match="qk_norm, head_dim"):
        saved(tmp_path / "out", config)
    params = random_params(llada_layout(dataclasses.replace(CONFIG, vocab_size=24)))
    with pytest.raises(ValueError, match=r"embed/embedding: got \[24, 24\], expected \[23, 24\]"):
        save_llada(tmp_path / "out", CONFIG, params, eos_id=EOS)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="eos_id must be an id below 23"):
        save_llada(tmp_path / "out", CONFIG, params, eos_id=CONFIG.mask_id)


def test_the_folder_is_a_denoiser_like_any_other(folder):
    assert is_denoiser(folder) and read_denoiser(folder) == CONFIG
    config, params = load_denoiser(folder, num_layers=2)
    assert config == dataclasses.replace(CONFIG, num_layers=2)
    whole = flatten_paths(load_denoiser(folder)[1])
    for path, leaf in flatten_paths(params).items():
        expected = whole[path][:2] if path.startswith("layers") else whole[path]
        np.testing.assert_array_equal(leaf, expected)


def test_what_is_said_of_layers_is_cut_with_them():
    kinds = ("full_attention",) * 4 + ("sliding_attention",) * 4
    config = MaskedTransformerConfig(
        num_layers=8, layer_types=kinds, sliding_window=64, nope_layers=(3, 7)
    )
    assert keep_layers(config, 0) == keep_layers(config, 8) == config
    half, most = keep_layers(config, 4), keep_layers(config, 6)
    assert (half.layer_types, half.sliding_window, half.nope_layers) == (kinds[:4], 0, (3,))
    assert (most.layer_types, most.sliding_window) == (kinds[:6], 64)
    mixed = dataclasses.replace(config, experts=ExpertsConfig(dense_layers=(0, 7)))
    with pytest.raises(ValueError, match="only all of its layers can be kept"):
        keep_layers(mixed, 4)
    sparse = dataclasses.replace(config, experts=ExpertsConfig())
    assert keep_layers(sparse, 4).experts == sparse.experts


@pytest.mark.parametrize("num_layers", [-1, 4])
def test_only_layers_that_are_there_are_kept(folder, num_layers):
    assert load_denoiser(folder, num_layers=2)[0].num_layers == 2
    with pytest.raises(ValueError, match=rf"num_layers is {num_layers}, but .* has 3 layers"):
        load_denoiser(folder, num_layers=num_layers)


def test_what_was_trained_from_a_llada_is_written_as_one(folder, tmp_path):
    """With the tensor names that other programs read, and the rest of its config.json."""
    document = json.loads((folder / "config.json").read_text())
    document |= {"embedding_dropout": 0.0, "vocab_size": 20, "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(document))
    config, params = load_denoiser(folder, num_layers=2)
    run = dataclasses.replace(config, unroll_layers=True, remat=True, attention="plain")
    save_denoiser(tmp_path / "out", run, params, dtype="bfloat16", start=folder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {**document, "n_layers": 2, "torch_dtype": "bfloat16", "dtype": "bfloat16"}
    save_denoiser(tmp_path / "full", run, params, start=folder)
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "full" / "model.safetensors")
    assert set(after) == {name for name in before if ".blocks.2." not in name}
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name])
    assert load_denoiser(tmp_path / "full")[0] == config


@pytest.mark.parametrize("change", [{"context": "causal"}, {"rope_theta": 77.0}])
def test_what_lladas_config_cannot_say_is_written_in_our_layout(folder, tmp_path, change):
    config, params = load_denoiser(folder)
    config = dataclasses.replace(config, **change)
    save_denoiser(tmp_path / "out", config, params, start=folder)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    assert load_denoiser(tmp_path / "out")[0] == config
