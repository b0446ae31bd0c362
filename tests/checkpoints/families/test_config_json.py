"""config.json as others write it, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from jaxspec.checkpoints.families import dflash, speculators
from jaxspec.checkpoints.families.dflash import StoredDrafter
from jaxspec.checkpoints.families.qwen_llama import DENOISER, masked
from jaxspec.checkpoints.families.registry import target_family, target_from_json
from jaxspec.config import (
    DrafterConfig,
    LayerType,
    LinearRopeScaling,
    Llama3RopeScaling,
    TransformerConfig,
    YarnRopeScaling,
)

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
QWEN3_JSON = target_family(QWEN3).to_json(QWEN3, dtype="float32", special_ids={})
LLAMA_JSON = target_family(LLAMA).to_json(LLAMA, dtype="float32", special_ids={})
DRAFTER_JSON = dflash.to_json(DRAFTER, target_config=QWEN3, dtype="float32")


def target(raw: dict[str, Any], **changes: Any) -> TransformerConfig:
    return target_from_json({**raw, **changes}, where="FILE")


def drafter(raw: dict[str, Any] = DRAFTER_JSON, **changes: Any) -> StoredDrafter:
    return dflash.from_json({**raw, **changes}, where="FILE")


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
    assert drafter(**window).config == DRAFTER
    on = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}
    assert target(QWEN3_JSON, **on, layer_types=["full_attention"] * 3) == QWEN3
    assert target(QWEN3_JSON, **{**on, "sliding_window": None}) == QWEN3


@pytest.mark.parametrize("first", [0, 2, 3, None], ids=str)
def test_layers_from_max_window_layers_on_slide(first: int | None) -> None:
    """What is left out is what transformers leaves out: 28 layers without a window, 4096."""
    config = pytest.importorskip("transformers").Qwen3Config(
        num_hidden_layers=30, use_sliding_window=True, **named(max_window_layers=first)
    )
    raw = {**QWEN3_JSON, "num_hidden_layers": 30, "use_sliding_window": True}
    got = target(raw, **named(max_window_layers=first))
    assert got.layer_types == tuple(config.layer_types)
    assert got.sliding_window == config.sliding_window == 4096


def named(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def in_speculators_format(raw: dict[str, Any]) -> dict[str, Any]:
    return speculators.from_zlab(raw, target_name="x", target_architectures=["X"])


MIXED = ("sliding_attention", "full_attention", "sliding_attention")


def test_sliding_targets_make_the_round_trip() -> None:
    config = dataclasses.replace(QWEN3, layer_types=MIXED, sliding_window=8)
    raw = target_family(config).to_json(config, dtype="float32", special_ids={})
    assert (raw["use_sliding_window"], raw["sliding_window"]) == (True, 8)
    assert target(raw) == config
    llama = dataclasses.replace(LLAMA, layer_types=MIXED, sliding_window=8)
    with pytest.raises(ValueError, match=r"a llama of this shape .*sliding_window: got 8, exp"):
        target_family(llama).to_json(llama, dtype="float32", special_ids={})
    window = {"layer_types": list(MIXED), "sliding_window": 8, "use_sliding_window": True}
    with pytest.raises(ValueError, match="sliding_window: got 8 in a llama, expected full"):
        target(LLAMA_JSON, **window)


@pytest.mark.parametrize("is_causal", [None, False, True])
@pytest.mark.parametrize("kinds", [(), MIXED[:2], MIXED[::2]], ids=["full", "mixed", "sliding"])
def test_sliding_drafters_make_the_round_trip(
    kinds: tuple[LayerType, ...], is_causal: bool | None
) -> None:
    config = dataclasses.replace(
        DRAFTER, layer_types=kinds, sliding_window=8 if kinds else 0, is_causal=is_causal
    )
    raw = dflash.to_json(config, target_config=QWEN3, dtype="float32")
    assert drafter(raw).config == config
    if is_causal is not None:
        del raw["is_causal"]
        assert drafter(raw).config == config, "vLLM's spelling"
    raw = dflash.to_json(config, target_config=QWEN3, dtype="float32")
    if is_causal and kinds != MIXED[::2]:
        with pytest.raises(ValueError, match="use the zlab format"):
            in_speculators_format(raw)
    else:
        got = drafter(in_speculators_format(raw)).config
        assert (got.layer_types, got.reach) == (config.layer_types, config.reach)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "model_type is 'gemma2', expected 'qwen3' or 'llama'"),
        ({"hidden_size": None, "vocab_size": "40"}, r"hidden_size: got None[\s\S]*vocab_size"),
        ({"rope_scaling": {"type": "yarn"}, "rope_parameters": None}, "'yarn' lacks factor"),
        ({"rope_scaling": {"type": "dynamic"}}, r"rope_scaling: got .*'dynamic'.*, expected what"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, r"'dynamic', expected .* length of"),
        ({"rope_parameters": {"rope_type": "longrope"}}, r"'longrope', expected .* length of"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor: got 0\.5, expected 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
        ({"rope_parameters": [1]}, r"rope_parameters: got \[1\], expected an object"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', expected 'silu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_bias": 1}, "attention_bias: got 1, expected true or false"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"layer_types": ["linear_attention"] * 3}, "'linear_attention'"),
        ({"layer_types": 3}, "layer_types: got 3, expected a list"),
        ({"layer_types": ["full_attention"]}, "1 entries for 3 layers"),
        ({"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers: got -1"),
        (
            {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 0},
            "sliding_window: got 0 with use_sliding_window True, expected a positive integer",
        ),
        (
            {"layer_types": list(MIXED), "sliding_window": 8},
            "sliding_window: got 8 with use_sliding_window None, expected a positive integer",
        ),
        ({"num_attention_heads": 3}, "FILE: num_heads must be a multiple of num_kv_heads"),
    ],
)
def test_unsupported_targets_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target(QWEN3_JSON, **changes)


# DeepSeek-R1-0528-Qwen3-8B states this: its factor of the scores' root is then 1.
DEEPSEEK = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "attn_factor": 0.8782488562869419,
}


def test_a_factor_that_only_servers_read_has_to_be_stated_for_both():
    def read(**changes: Any) -> TransformerConfig:
        return target(QWEN3_JSON, rope_parameters=None, rope_scaling={**DEEPSEEK, **changes})

    message = r'attn_factor: got 0\.878.*servers scale by 1, .* by 1\.13863.*"attention_factor": 1 '
    with pytest.raises(ValueError, match=message):
        read()
    scaling = read(attention_factor=1.0).rope_scaling
    assert isinstance(scaling, YarnRopeScaling) and scaling.attention_factor == 1
    assert read(attn_factor=1.0) == read(attn_factor=None)


@pytest.mark.parametrize("rope_type", ["yarn", "linear"])
def test_a_scaling_with_an_unknown_key_is_refused(rope_type):
    scaling = {"rope_type": rope_type, "factor": 4.0, "original_max_position_embeddings": 64}
    known = target(QWEN3_JSON, rope_parameters=None, rope_scaling={**scaling, "finetuned": True})
    assert known == target(QWEN3_JSON, rope_parameters=None, rope_scaling=scaling)
    with pytest.raises(ValueError, match=f"new_factor of rope_type '{rope_type}': got 2"):
        target(QWEN3_JSON, rope_parameters=None, rope_scaling={**scaling, "new_factor": 2})


def test_transformers_4_reads_an_olmo2s_scaling_by_its_old_name():
    config = dataclasses.replace(
        LLAMA,
        family="olmo2",
        qk_norm=True,
        qk_norm_whole=True,
        norms="after",
        rope_scaling=LinearRopeScaling(factor=2.0),
    )
    family = target_family(config)
    document = family.to_json(config, dtype="float32", special_ids={})
    assert document["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert document["rope_parameters"]["rope_type"] == "linear"
    assert family.from_json(document, where="x").rope_scaling == config.rope_scaling


def test_no_server_takes_a_denoiser_for_a_causal_model():
    config = masked(LLAMA, mask_token_id=3, context="bidirectional", where="x")
    document = DENOISER.to_json(config, dtype="float32", special_ids={})
    assert not any("CausalLM" in name for name in document["architectures"])
    assert DENOISER.recognises(document)
