"""Values in config.json that no model has are refused by name, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxspec.checkpoints.families import dflash
from jaxspec.checkpoints.families.registry import StoredModel, open_folder, target_family
from jaxspec.config import DrafterConfig, GPT2Config, Llama3RopeScaling, TransformerConfig

QWEN3 = TransformerConfig(
    vocab_size=64, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48
)
LLAMA = TransformerConfig(
    family="llama", vocab_size=64, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8,
    qk_norm=False, rope_scaling=Llama3RopeScaling(),
)  # fmt: skip
GPT_NEO = GPT2Config(family="gpt_neo", hidden_size=32, num_layers=2, num_heads=4)
DRAFTER = DrafterConfig(
    block_size=8, mask_token_id=3, target_layer_ids=(0, 2), num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, intermediate_size=48, rms_norm_eps=1e-6, rope_theta=1e4,
)  # fmt: skip


def written(config: Any) -> dict[str, Any]:
    if isinstance(config, DrafterConfig):
        return dflash.to_json(config, target_config=QWEN3, dtype="float32")
    return target_family(config).to_json(config, dtype="float32", special_ids={})


def opened(folder: Path, text: str | bytes) -> StoredModel:
    content = text.encode() if isinstance(text, str) else text
    (folder / "config.json").write_bytes(content)
    return open_folder(folder)


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (QWEN3, "hidden_size", 10**12),
        (QWEN3, "num_hidden_layers", 10**9),
        (QWEN3, "vocab_size", 10**15),
        (QWEN3, "vocab_size", 10**400),
        (QWEN3, "num_attention_heads", True),
        (QWEN3, "max_position_embeddings", 2**40),
        (QWEN3, "rms_norm_eps", 1e-60),
        (QWEN3, "rms_norm_eps", 10**400),
        (QWEN3, "rms_norm_eps", 7.0),
        (QWEN3, "intermediate_size", -48),
        (QWEN3, "head_dim", "8"),
        (QWEN3, "head_dim", 7),
        (QWEN3, "head_dim", 2**20),
        (QWEN3, "dtype", 5),
        (QWEN3, "dtype", "float7"),
        (QWEN3, "mlp_bias", 0),
        (LLAMA, "num_key_value_heads", 2**60),
        (GPT_NEO, "hidden_size", 10**12),
        (GPT_NEO, "num_layers", 10**9),
        (GPT_NEO, "attention_types", [[["global"], 10**12]]),
        (GPT_NEO, "attention_types", [[["global"] * 3, -1]]),
        (GPT_NEO, "layer_norm_epsilon", 0),
        (DRAFTER, "block_size", 10**9),
        (DRAFTER, "num_attention_heads", 3),
        (DRAFTER, "head_dim", 7),
        (DRAFTER, "num_target_layers", "4"),
        (DRAFTER, "num_target_layers", 10**9),
    ],
)
def test_no_model_has_such_a_field(tmp_path: Path, config: Any, key: str, value: Any) -> None:
    raw = written(config)
    assert opened(tmp_path, json.dumps(raw)).config
    stored = opened(tmp_path, json.dumps({**raw, key: value}))
    with pytest.raises(ValueError) as caught:
        assert stored.config
    assert str(tmp_path / "config.json") in str(caught.value)
    assert key in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope_theta", 10**400, "rope_theta: got 1"),
        ("rope_theta", 0.5, "rope_theta: got 0.5, expected a number from 1 to 1e"),
        ("factor", 10**400, "factor: got 1"),
        ("high_freq_factor", 1.0, "expected more than low_freq_factor"),
        ("original_max_position_embeddings", 2**40, "expected an integer from 1 to"),
    ],
)
def test_a_rotation_that_no_model_has(tmp_path: Path, key: str, value: Any, message: str) -> None:
    raw = written(LLAMA)
    rule = {**raw.pop("rope_parameters"), key: value}
    stored = opened(tmp_path, json.dumps({**raw, "rope_theta": None, "rope_parameters": rule}))
    with pytest.raises(ValueError, match=message):
        assert stored.config


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ({"target_layer_ids": []}, r"target_layer_ids: got \[\], expected a list of layer ids"),
        ({"target_layer_ids": [0, 10**9]}, "target_layer_ids: got"),
        ({"target_layer_ids": [True]}, "target_layer_ids: got"),
        ({"target_layer_ids": [2, 0]}, r"target_layer_ids: got \[2, 0\], .*increasing order"),
        ({"target_layer_ids": None}, "too small for the default spread over 2 layers"),
        ({"target_layer_ids": [0], "mask_token_id": -1}, "mask_token_id: got -1"),
        ({"target_layer_ids": [0], "mask_token_id": 10**12}, "mask_token_id: got 1000"),
        ({"target_layer_ids": [0], "qk_norm": "no"}, "qk_norm: got 'no', expected true or false"),
        ({"target_layer_ids": [0], "shift_label": "no"}, "shift_label: got 'no'"),
    ],
)
def test_a_drafter_that_cannot_be(tmp_path: Path, special: dict[str, Any], message: str) -> None:
    raw = {**written(DRAFTER), "num_target_layers": 1, "dflash_config": special}
    with pytest.raises(ValueError, match=message):
        assert opened(tmp_path, json.dumps(raw)).config


@pytest.mark.parametrize("config", [QWEN3, LLAMA, GPT_NEO, DRAFTER])
def test_numbers_that_are_not_finite_are_named_wherever_they_stand(
    tmp_path: Path, config: Any
) -> None:
    key = "layer_norm_epsilon" if isinstance(config, GPT2Config) else "rms_norm_eps"
    for place, value in ((key, "NaN"), ("initializer_range", "Infinity"), ("unknown", "-1e999")):
        text = json.dumps({**written(config), place: 12345}).replace("12345", value)
        with pytest.raises(ValueError, match=f"config.json: {place} is .*expected a finite number"):
            assert opened(tmp_path, text).config


def test_architectures_that_are_no_list_name_no_family(tmp_path: Path) -> None:
    raw = written(DRAFTER)
    del raw["dflash_config"]
    assert isinstance(opened(tmp_path, json.dumps(raw)).raw["architectures"], list)
    for value in (5, "DFlashDraftModel", {"DFlashDraftModel": 1}):
        stored = opened(tmp_path, json.dumps({**raw, "architectures": value}))
        assert stored.family.name == "qwen3"
        with pytest.raises(ValueError, match="does not describe a DFlash drafter"):
            stored.as_drafter()


def test_a_width_that_its_heads_do_not_divide(tmp_path: Path) -> None:
    raw = {**written(LLAMA), "hidden_size": 33, "head_dim": None}
    with pytest.raises(ValueError, match=r"hidden_size: got 33 without head_dim, expected a mult"):
        assert opened(tmp_path, json.dumps(raw)).config
    assert opened(tmp_path, json.dumps({**raw, "head_dim": 8})).config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b'{"model_type": "qwen3", "model_type": "llama"}', "'model_type' occurs twice"),
        (b"", "is not JSON"),
    ],
)
def test_a_file_that_is_no_json(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        assert opened(tmp_path, content).raw
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"config\.json is a folder"):
        open_folder(tmp_path)


def test_an_unknown_type_is_shown_in_short(tmp_path: Path) -> None:
    for value in ("x" * 100_000, ["a"] * 100_000, {"a": "\n"}, None):
        stored = opened(tmp_path, json.dumps({"model_type": value}))
        with pytest.raises(ValueError, match="model_type is") as caught:
            assert stored.family
        assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)
