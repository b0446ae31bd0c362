"""GPT-2 and GPT-Neo folders. tests/models/test_gpt2.py shows that transformers reads them alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxspec.checkpoints.denoiser import read_denoiser
from jaxspec.checkpoints.families import dflash
from jaxspec.checkpoints.families.registry import open_folder, target_family, target_from_json
from jaxspec.checkpoints.huggingface import (
    load_drafter,
    load_target,
    save_drafter,
    save_target,
)
from jaxspec.checkpoints.shapes import flatten_paths, nest_paths
from jaxspec.config import DrafterConfig, GPT2Config
from jaxspec.models.dflash import resolve_config

GPT_2 = GPT2Config(
    vocab_size=40,
    hidden_size=16,
    num_layers=3,
    num_heads=4,
    intermediate_size=24,
    layer_norm_eps=1e-3,
    max_position_embeddings=12,
)
GPT_NEO = dataclasses.replace(
    GPT_2,
    family="gpt_neo",
    layer_types=("full_attention", "sliding_attention", "sliding_attention"),
    sliding_window=5,
    tie_embeddings=False,
)
CONFIGS = {"gpt2": GPT_2, "gpt_neo": GPT_NEO}


def random_params(config: GPT2Config) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    shapes = target_family(config).layout(config, ()).parameter_shapes
    return nest_paths({p: generator.standard_normal(s).astype("f4") for p, s in shapes.items()})


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    got, expected = flatten_paths(got), flatten_paths(expected)
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


@pytest.fixture(params=CONFIGS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[GPT2Config, Path]:
    config = CONFIGS[request.param]
    save_target(tmp_path / "out", config, random_params(config))
    return config, tmp_path / "out"


def test_round_trip_is_exact(saved: tuple[GPT2Config, Path]) -> None:
    config, folder = saved
    assert open_folder(folder).family.role == "target"
    got_config, got = load_target(folder)
    assert got_config == config
    assert_same(got, random_params(config))


def test_gpt2_keeps_products_as_we_do_and_gpt_neo_turned(saved: tuple[GPT2Config, Path]) -> None:
    config, folder = saved
    stored = load_file(folder / "model.safetensors")
    layer = random_params(config)["layers"]
    if config.family == "gpt2":
        pairs = {
            "attn.c_attn.weight": layer["attention"]["qkv"]["kernel"][1],
            "mlp.c_fc.weight": layer["mlp"]["up"]["kernel"][1],
        }
    else:
        pairs = {
            "attn.attention.k_proj.weight": layer["attention"]["k"]["kernel"][1].T,
            "mlp.c_fc.weight": layer["mlp"]["up"]["kernel"][1].T,
        }
    for name, array in pairs.items():
        np.testing.assert_array_equal(stored[f"transformer.h.1.{name}"], array)
    assert ("lm_head.weight" in stored) == (not config.tie_embeddings)


def test_names_without_the_prefix_and_buffers_are_read(saved: tuple[GPT2Config, Path]) -> None:
    """As the Hub's gpt2 is stored; other folders carry masks along under either name."""
    config, folder = saved
    attention = "attn" if config.family == "gpt2" else "attn.attention"
    stored = load_file(folder / "model.safetensors")
    for prefix in ("transformer.", ""):
        tensors = {name.replace("transformer.", prefix): array for name, array in stored.items()}
        for i in range(config.num_layers):
            tensors[f"{prefix}h.{i}.{attention}.bias"] = np.ones((1, 1, 12, 12), "u1")
            tensors[f"{prefix}h.{i}.{attention}.masked_bias"] = np.array(-1e9, "f4")
        if config.tie_embeddings:
            tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"]
        save_file(tensors, folder / "model.safetensors")
        assert_same(load_target(folder)[1], random_params(config))


def test_a_tied_head_must_equal_the_embedding(tmp_path: Path) -> None:
    save_target(tmp_path, GPT_2, random_params(GPT_2))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight differs from transformer.wte.weight"):
        load_target(tmp_path)


def test_all_mismatches_are_said_at_once(tmp_path: Path) -> None:
    save_target(tmp_path, GPT_2, random_params(GPT_2))
    tensors = load_file(tmp_path / "model.safetensors")
    for i in range(3):
        del tensors[f"transformer.h.{i}.ln_1.bias"]
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][:7]
    tensors["transformer.h.1.extra"] = np.zeros(2, "f4")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        load_target(tmp_path)
    for line in (
        "transformer.h.{i}.ln_1.bias: missing, expected [16] (i = 0, 1, 2)",
        "transformer.wpe.weight: got [7, 16], expected [12, 16]",
        "transformer.h.1.extra: unexpected, got [2]",
    ):
        assert line in str(caught.value)


def test_published_configurations() -> None:
    """openai-community/gpt2 and EleutherAI/gpt-neo-125m, of their fields those that are read."""
    gpt2 = {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "eos_token_id": 50256,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
        "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
    }  # fmt: skip
    assert target_from_json(gpt2, where="FILE") == GPT2Config()
    neo = {
        "activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"],
        "attention_layers": ["global", "local"] * 6,
        "attention_types": [[["global", "local"], 6]], "hidden_size": 768,
        "intermediate_size": None, "layer_norm_epsilon": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neo", "num_heads": 12,
        "num_layers": 12, "vocab_size": 50257, "window_size": 256,
    }  # fmt: skip
    assert target_from_json(neo, where="FILE") == GPT2Config(
        family="gpt_neo",
        layer_types=("full_attention", "sliding_attention") * 6,
        sliding_window=256,
        max_position_embeddings=2048,
    )


def test_defaults_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    raw = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_head": 12, "n_layer": 12}
    own, theirs = target_from_json(raw, where="FILE"), transformers.GPT2Config()
    assert isinstance(own, GPT2Config)
    assert own.max_position_embeddings == theirs.n_positions
    assert own.layer_norm_eps == theirs.layer_norm_epsilon
    assert own.tie_embeddings == theirs.tie_word_embeddings
    raw = {"model_type": "gpt_neo", "vocab_size": 9, "hidden_size": 8, "num_heads": 2}
    own = target_from_json({**raw, "num_layers": 24}, where="FILE")
    theirs = transformers.GPTNeoConfig()
    assert isinstance(own, GPT2Config)
    names = {"full_attention": "global", "sliding_attention": "local"}
    assert [names[kind] for kind in own.layer_types] == theirs.attention_layers
    assert own.sliding_window == theirs.window_size
    assert own.max_position_embeddings == theirs.max_position_embeddings
    assert own.intermediate_size == 32 and own.tie_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize("config", [GPT_2, GPT_NEO], ids=["gpt2", "gpt_neo"])
def test_config_round_trip(config: GPT2Config) -> None:
    raw = target_family(config).to_json(config, dtype="float32", special_ids={"eos_token_id": 3})
    assert json.loads(json.dumps(raw)) == raw and raw["eos_token_id"] == 3
    assert target_from_json(raw, where="FILE") == config


def test_all_problems_of_a_config_are_said_at_once() -> None:
    raw = target_family(GPT_2).to_json(GPT_2, dtype="float32", special_ids={})
    wrong = {
        "activation_function": "relu",
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "add_cross_attention": True,
        "n_embd": 18,
        "n_layer": None,
        "quantization_config": {"bits": 4},
    }
    with pytest.raises(ValueError, match="FILE is not a model that") as caught:
        target_from_json({**raw, **wrong}, where="FILE")
    for line in (
        "activation_function: got 'relu', expected 'gelu_new' or 'gelu_pytorch_tanh'",
        "scale_attn_weights: got False, expected true",
        "scale_attn_by_inverse_layer_idx: got True, expected false",
        "add_cross_attention: got True, expected false",
        "n_embd: got 18, expected a multiple of n_head (4)",
        "n_layer: got None, expected a positive integer",
        "quantization_config: expected none",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([[["global"], 2]], r"got 2 entries for 3 layers"),
        ([[["global", "sparse"], 1]], "attention_types: got sparse, expected pairs"),
        ("global", "attention_types: got global, expected pairs"),
        ([["global", 3]], "attention_types: got a, b, g, l, o, expected pairs"),
    ],
)
def test_kinds_of_layers_that_cannot_be_read_are_refused(kinds: Any, message: str) -> None:
    raw = target_family(GPT_NEO).to_json(GPT_NEO, dtype="float32", special_ids={})
    with pytest.raises(ValueError, match=message):
        target_from_json({**raw, "attention_types": kinds}, where="FILE")


def test_drafters_of_these_targets_have_norms_and_wavelengths_of_their_own(tmp_path: Path) -> None:
    asked = DrafterConfig(block_size=4, num_features=2)
    with pytest.raises(ValueError, match=r"set drafter\.mask_token_id .* its end-of-text token"):
        resolve_config(asked, target=GPT_2)
    config = resolve_config(asked, target=GPT_2, mask_token_id=39)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-6, 10_000.0)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 4, 4)
    odd = dataclasses.replace(GPT_2, hidden_size=12)
    with pytest.raises(ValueError, match="head_dim must be even for RoPE: got 3"):
        resolve_config(asked, target=odd, mask_token_id=39)

    shapes = dflash.layout(dflash.StoredDrafter.of(config, target=GPT_2)).parameter_shapes
    params = nest_paths({path: np.ones(shape, "f4") for path, shape in shapes.items()})
    save_drafter(tmp_path / "drafter", config, params, target_config=GPT_2)
    assert load_drafter(tmp_path / "drafter", target_config=GPT_2)[0] == config


def test_exports_say_of_which_class_the_tokenizer_is(tmp_path: Path) -> None:
    """The Hub's gpt2 leaves it to the target's config.json, which a drafter's folder has not."""
    source = tmp_path / "gpt2"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "gpt2"}')
    (source / "vocab.json").write_text("{}")
    for stated in (None, {"model_max_length": 1024}, {"tokenizer_class": "Own"}):
        if stated is not None:
            (source / "tokenizer_config.json").write_text(json.dumps(stated))
        save_target(tmp_path / "out", GPT_2, random_params(GPT_2), tokenizer_folder=source)
        got = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
        assert got == {"tokenizer_class": "GPT2Tokenizer", **(stated or {})}


def test_it_cannot_be_made_a_denoiser(saved: tuple[GPT2Config, Path]) -> None:
    """Masked diffusion sees both ways, and takes a `Transformer` without its causal mask."""
    with pytest.raises(ValueError, match="a GPT-2, GPT-Neo or GPT-NeoX cannot become a denoiser"):
        read_denoiser(saved[1])
