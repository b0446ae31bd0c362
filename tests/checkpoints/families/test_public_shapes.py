"""config.json of public models: read, and of the size that their authors state. No weights."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest

from jaxspec.checkpoints.families.registry import target_family, target_from_json
from jaxspec.checkpoints.shapes import flatten_paths
from jaxspec.config import LinearRopeScaling
from jaxspec.models.registry import make_model

PUBLIC: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_theta": 1_000_000.0,
            "max_position_embeddings": 32_768,
            "max_window_layers": 21,
            "sliding_window": 32_768,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "vocab_size": 151_936,
            "torch_dtype": "bfloat16",
        },
        494_032_768,
    ),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "sliding_window": 4096,
            "max_position_embeddings": 32_768,
            "tie_word_embeddings": False,
            "vocab_size": 32_000,
            "torch_dtype": "bfloat16",
        },
        7_241_732_096,
    ),
    "Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe",
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "rope_theta": 1_000_000.0,
            "max_position_embeddings": 40_960,
            "tie_word_embeddings": False,
            "vocab_size": 151_936,
            "torch_dtype": "bfloat16",
        },
        30_532_122_624,
    ),
    "Gemma-3-1B": (
        {
            "model_type": "gemma3_text",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1_000_000,
            "rope_local_base_freq": 10_000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "max_position_embeddings": 32_768,
            "vocab_size": 262_144,
            "torch_dtype": "bfloat16",
        },
        999_885_952,
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_shape_is_read(name: str) -> None:
    document, parameters = PUBLIC[name]
    config = target_from_json(document, where=name)
    assert config.dtype == "bfloat16"
    tokens_BS = jax.ShapeDtypeStruct((1, 8), "int32")
    made = jax.eval_shape(make_model(config).init, jax.random.key(0), tokens_BS)["params"]
    layout = target_family(config).layout(config, ())
    shapes = {path: leaf.shape for path, leaf in flatten_paths(made).items()}
    assert shapes == layout.parameter_shapes
    assert sum(map(math.prod, layout.tensor_shapes.values())) == parameters


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_written_is_read_as_the_same(name: str) -> None:
    config = target_from_json(PUBLIC[name][0], where=name)
    family = target_family(config)
    document = family.to_json(config, dtype="bfloat16", special_ids={})
    assert document["model_type"] == PUBLIC[name][0]["model_type"]
    assert target_from_json(document, where=name) == config


def test_gemma_slides_in_five_layers_of_six() -> None:
    config = target_from_json(PUBLIC["Gemma-3-1B"][0], where="FILE")
    full = [i for i, window in enumerate(config.windows) if window != 512]
    assert full == [5, 11, 17, 23]
    assert config.tie_embeddings
    assert {config.rotations[i] for i in full} == {"full"}
    assert set(np.delete(config.rotations, full)) == {"sliding"}


def test_sizes_that_a_file_leaves_out_are_those_of_transformers() -> None:
    """Gemma-3-4B, whose file says only what differs."""
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    raw = {"model_type": "gemma3", "torch_dtype": "bfloat16", "text_config": text}
    config = target_from_json(raw, where="FILE")
    assert (config.dtype, config.rope_scaling) == ("bfloat16", LinearRopeScaling(8.0))
    shapes = target_family(config).layout(config, ()).tensor_shapes
    assert sum(map(math.prod, shapes.values())) == 3_880_263_168
    with pytest.raises(ValueError, match=r"text_config\.model_type is 'llama'"):
        target_from_json({**raw, "text_config": {"model_type": "llama"}}, where="FILE")


def changed(name: str, **changes: Any) -> dict[str, Any]:
    return {**PUBLIC[name][0], **changes}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            changed("Mistral-7B-v0.1", layer_types=["full_attention"] * 32),
            "layer_types: got .*, expected 'sliding_attention' in every layer",
        ),
        (changed("Mistral-7B-v0.1", sliding_window=0), "sliding_window: got 0, expected a pos"),
        (changed("Gemma-3-1B", attn_logit_softcapping=50.0), "attn_logit_softcapping: got 50"),
        (changed("Gemma-3-1B", final_logit_softcapping=-1), "final_logit_softcapping: got -1"),
        (changed("Gemma-3-1B", hidden_activation="silu"), "hidden_activation: got 'silu'"),
        (changed("Gemma-3-1B", use_bidirectional_attention=True), "use_bidirectional_attention"),
        (changed("Gemma-3-1B", sliding_window_pattern=0), "sliding_window_pattern: got 0"),
        (
            changed("Gemma-3-1B", rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
            "'dynamic', expected .*: the wavelengths would depend on the length",
        ),
        (
            changed(
                "Gemma-3-1B",
                rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}},
            ),
            "rope_type: got 'linear' in sliding layers",
        ),
        (
            changed("Gemma-3-1B", rope_scaling={"rope_type": "yarn", "factor": 2.0}),
            "'yarn', expected 'default' or 'linear' or 'llama3'",
        ),
        (
            changed("Qwen2.5-0.5B", rope_parameters={"full_attention": {"rope_theta": 5.0}}),
            r"rope_parameters: got \['full_attention'\], expected one rule for all layers",
        ),
        (changed("Qwen3-30B-A3B", num_experts_per_tok=129), "at most num_experts .128."),
        (changed("Qwen3-30B-A3B", mlp_only_layers=[1.5]), r"mlp_only_layers: got \[1.5\]"),
        (changed("Qwen3-30B-A3B", num_experts="many"), "num_experts: got 'many'"),
        (
            changed("Mistral-7B-v0.1", model_type="smollm3", no_rope_layers=[1, 2]),
            r"no_rope_layers: got \[1, 2\]",
        ),
        (
            changed("Mistral-7B-v0.1", model_type="smollm3", no_rope_layers=[1]),
            "no_rope_layers: got 1 entries for 32 layers",
        ),
        (
            changed("Mistral-7B-v0.1", model_type="phi3", partial_rotary_factor=0.01),
            "rotates 1 of 128 channels",
        ),
        (
            changed("Mistral-7B-v0.1", model_type="phi3", rope_scaling={"type": "longrope"}),
            "'longrope', expected 'default': the wavelengths",
        ),
        (
            changed("Mistral-7B-v0.1", model_type="olmo2", partial_rotary_factor=0.5),
            "partial_rotary_factor: got 0.5, expected 1",
        ),
        (
            changed("Qwen2.5-0.5B", rope_scaling={"type": "yarn", "factor": 2, "beta_fast": "x"}),
            "beta_fast: got 'x'",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_from_json(document, where="FILE")


@pytest.mark.parametrize("other", ["bert", "mamba", "gemma2", "deepseek_v3"])
def test_another_family_is_named_with_those_that_are_read(other: str) -> None:
    with pytest.raises(ValueError, match=f"'{other}', expected 'qwen3' or .*'phi3'"):
        target_from_json({"model_type": other}, where="FILE")
