"""config.json as others write it, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jaxspec.checkpoints.config_json import (
    StoredDrafter,
    drafter_from_json,
    drafter_to_json,
    target_from_json,
    target_to_json,
)
from jaxspec.config import DrafterConfig, Llama3RopeScaling, TransformerConfig

QWEN3 = TransformerConfig(
    vocab_size=40, hidden_size=16, num_layers=3, head_dim=8, tie_embeddings=False
)
LLAMA = dataclasses.replace(
    QWEN3,
    qk_norm=False,
    attention_bias=True,
    tie_embeddings=True,
    rope_theta=500_000.0,
    rope_scaling=Llama3RopeScaling(factor=32.0),
)
DRAFTER = DrafterConfig(
    block_size=8,
    mask_token_id=39,
    target_layer_ids=(0, 2),
    num_features=2,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
)
QWEN3_JSON = target_to_json(QWEN3, dtype="float32", special_ids={})
LLAMA_JSON = target_to_json(LLAMA, dtype="float32", special_ids={})
DRAFTER_JSON = drafter_to_json(DRAFTER, target_config=QWEN3, dtype="float32")


def target(raw: dict[str, Any], **changes: Any) -> TransformerConfig:
    return target_from_json({**raw, **changes}, where="FILE")


def drafter(raw: dict[str, Any] = DRAFTER_JSON, **changes: Any) -> StoredDrafter:
    return drafter_from_json({**raw, **changes}, where="FILE")


def test_round_trips() -> None:
    assert target(QWEN3_JSON) == QWEN3
    assert target(LLAMA_JSON) == LLAMA
    assert drafter() == StoredDrafter(
        config=DRAFTER, hidden_size=16, vocab_size=40, num_target_layers=3, is_speculators=False
    )


def test_rope_theta_is_read_from_both_places() -> None:
    for place in ({"rope_parameters": None}, {"rope_parameters": {"rope_theta": 7.0}}):
        assert target(QWEN3_JSON, **{"rope_theta": 7.0, **place}).rope_theta == 7.0
    assert target(QWEN3_JSON, rope_theta=None).rope_theta == 10_000.0
    with pytest.raises(ValueError, match="rope_theta: got different values"):
        target(QWEN3_JSON, rope_theta=5.0, rope_parameters={"rope_theta": 6.0})


def test_llama3_scaling_is_read_from_both_places() -> None:
    assert target(LLAMA_JSON, rope_parameters=None) == LLAMA
    assert target(LLAMA_JSON, rope_scaling=None, rope_theta=None) == LLAMA
    parameters = {"rope_type": "llama3", "factor": 2.0}
    with pytest.raises(ValueError, match="lacks low_freq_factor, high_freq_factor, original"):
        target(QWEN3_JSON, rope_parameters=parameters)


def test_defaults_are_those_of_transformers() -> None:
    left_out = dict.fromkeys(
        ("head_dim", "num_key_value_heads", "tie_word_embeddings", "rms_norm_eps", "rope_theta",
         "rope_parameters", "rope_scaling", "max_position_embeddings", "attention_bias", "dtype")
    )  # fmt: skip
    for raw, head_dim, positions in ((QWEN3_JSON, 128, 32_768), (LLAMA_JSON, 4, 2_048)):
        config = target(raw, **left_out)
        assert (config.head_dim, config.num_kv_heads) == (head_dim, 4)
        assert (config.tie_embeddings, config.attention_bias) == (False, False)
        assert (config.rms_norm_eps, config.rope_theta) == (1e-6, 10_000.0)
        assert config.max_position_embeddings == positions


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_stored_dtype_is_read_under_both_names(key: str) -> None:
    changes = {"dtype": None, "torch_dtype": None, key: "bfloat16"}
    assert target(QWEN3_JSON, **changes).dtype == "bfloat16"


def test_a_window_that_is_switched_off_does_no_harm() -> None:
    window = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 1}
    assert target(QWEN3_JSON, **window) == QWEN3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3"}, "model_type is 'gemma3', expected 'qwen3' or 'llama'"),
        ({"hidden_size": None, "vocab_size": "40"}, r"hidden_size: got None[\s\S]*vocab_size"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_parameters": None}, "'yarn'"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor: got 0\.5, expected 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
        ({"rope_parameters": [1]}, r"rope_parameters: got \[1\], expected an object"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', expected 'silu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"layer_types": ["linear_attention"] * 3}, "'linear_attention'"),
        ({"layer_types": 3}, "layer_types: got 3, expected a list"),
        ({"layer_types": ["full_attention"]}, "1 entries for 3 layers"),
        (
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
            "sliding_window: got 8",
        ),
        ({"num_attention_heads": 3}, "FILE: num_heads must be a multiple of num_kv_heads"),
    ],
)
def test_unsupported_targets_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target(QWEN3_JSON, **changes)


def test_older_spellings_of_a_drafter() -> None:
    assert drafter(rope_parameters=None) == drafter()
    assert drafter(rope_theta=None, rope_parameters={"rope_theta": 10_000.0}) == drafter()
    default = drafter(dflash_config={"mask_token_id": 39}, num_target_layers=36)
    assert default.config.target_layer_ids == (1, 33)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dflash_config": None, "architectures": ["Qwen3ForCausalLM"]}, "no DFlash drafter"),
        ({"block_size": None}, "block_size: got None"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention'"),
        ({"attention_bias": True}, "attention_bias: got true"),
        (
            {"rope_scaling": LLAMA_JSON["rope_scaling"], "rope_parameters": None},
            "expected 'default' in a drafter",
        ),
        ({"dflash_config": {"mask_token_id": "x", "target_layer_ids": [0]}}, "mask_token_id"),
        ({"dflash_config": {"target_layer_ids": "02"}}, "expected a list of layer ids"),
        ({"dflash_config": {"target_layer_ids": [0, 2], "shift_label": True}}, "shift_label"),
        ({"block_size": 1}, "must be at least 2"),
    ],
)
def test_unsupported_drafters_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drafter(**changes)


SPECULATORS_JSON = {
    "architectures": ["DFlashSpeculator"],
    "speculators_model_type": "dflash",
    "transformer_layer_config": {
        key: value
        for key, value in DRAFTER_JSON.items()
        if key not in ("architectures", "block_size", "dflash_config", "num_target_layers")
    },
    "draft_vocab_size": 40,
    "block_size": 8,
    "aux_hidden_state_layer_ids": [1, 3],
    "mask_token_id": 39,
}


def test_speculators_format_counts_layers_from_one() -> None:
    assert drafter(SPECULATORS_JSON) == dataclasses.replace(
        drafter(), num_target_layers=None, is_speculators=True
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft_vocab_size": 20}, "draft_vocab_size: got 20"),
        ({"sample_from_anchor": True}, "sample_from_anchor"),
        ({"projector_type": "domino"}, "projector_type: got 'domino'"),
        ({"aux_hidden_state_layer_ids": [0, 3]}, "target_layer_ids: got"),
        ({"speculators_model_type": "eagle3"}, "got 'eagle3', expected 'dflash'"),
    ],
)
def test_unsupported_speculators_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drafter(SPECULATORS_JSON, **changes)
