"""Folders in and out. tests/models/test_parity.py shows that transformers reads them alike."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from jaxspec.checkpoints.families import dflash
from jaxspec.checkpoints.families.registry import target_family
from jaxspec.checkpoints.huggingface import (
    load_drafter,
    load_target,
    read_config,
    save_drafter,
    save_target,
)
from jaxspec.checkpoints.shapes import flatten_paths, nest_paths
from jaxspec.config import DrafterConfig, Llama3RopeScaling, TransformerConfig
from jaxspec.tokenizer_files import TOOL_TEMPLATE

QWEN3 = TransformerConfig(
    vocab_size=40,
    hidden_size=16,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
    tie_embeddings=False,
)
LLAMA = dataclasses.replace(
    QWEN3,
    qk_norm=False,
    attention_bias=True,
    tie_embeddings=True,
    rope_theta=500_000.0,
    rope_scaling=Llama3RopeScaling(factor=32.0),
)
DRAFTER = DrafterConfig(block_size=8, mask_token_id=39, target_layer_ids=(0, 2), num_layers=2)
RESOLVED = dataclasses.replace(
    DRAFTER,
    num_features=2,
    last_state="normed",
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
)


def random_params(shapes: dict[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return nest_paths(
        {path: generator.standard_normal(shape).astype("f4") for path, shape in shapes.items()}
    )


def target_params(config: TransformerConfig) -> dict[str, Any]:
    return random_params(target_family(config).layout(config, ()).parameter_shapes)


def drafter_params() -> dict[str, Any]:
    stored = dflash.StoredDrafter.of(RESOLVED, target=QWEN3)
    return random_params(dflash.layout(stored).parameter_shapes)


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    got, expected = flatten_paths(got), flatten_paths(expected)
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def qwen3(tmp_path: Path) -> Path:
    save_target(tmp_path / "qwen3", QWEN3, target_params(QWEN3))
    return tmp_path / "qwen3"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    save_target(tmp_path / "llama", LLAMA, target_params(LLAMA))
    return tmp_path / "llama"


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    save_drafter(tmp_path / "drafter", DRAFTER, drafter_params(), target_config=QWEN3)
    return tmp_path / "drafter"


# Round trips.


@pytest.mark.parametrize("config", [QWEN3, LLAMA], ids=["qwen3", "llama"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 4000, 1])
def test_target_round_trip_is_exact(
    config: TransformerConfig, max_shard_bytes: int, tmp_path: Path
) -> None:
    params = target_params(config)
    save_target(tmp_path / "out", config, params, max_shard_bytes=max_shard_bytes)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors*"))
    if max_shard_bytes == 10**9:
        assert files == ["model.safetensors"]
    else:
        assert len(files) > 2 and "model.safetensors.index.json" in files
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        stored = {f: load_file(tmp_path / "out" / f) for f in set(index["weight_map"].values())}
        assert index["metadata"]["total_size"] == sum(
            array.nbytes for tensors in stored.values() for array in tensors.values()
        )
        if max_shard_bytes == 4000:
            assert max(sum(a.nbytes for a in t.values()) for t in stored.values()) <= 4000
    got_config, got = load_target(tmp_path / "out")
    assert got_config == config
    assert_same(got, params)


def test_stored_tensors_have_the_published_names_and_layout(llama: Path) -> None:
    params = target_params(LLAMA)
    tensors = load_file(llama / "model.safetensors")
    assert "lm_head.weight" not in tensors, "a tied head is not stored twice"
    np.testing.assert_array_equal(
        tensors["model.layers.1.self_attn.k_proj.weight"],
        params["layers"]["attention"]["k"]["kernel"][1].T,
    )
    np.testing.assert_array_equal(
        tensors["model.layers.2.self_attn.v_proj.bias"],
        params["layers"]["attention"]["v"]["bias"][2],
    )
    assert not tensors["model.layers.0.self_attn.o_proj.bias"].any()
    np.testing.assert_array_equal(
        tensors["model.embed_tokens.weight"], params["embed"]["embedding"]
    )


def test_bfloat16_is_stored_rounded_and_read_as_asked(tmp_path: Path) -> None:
    params = target_params(QWEN3)
    save_target(tmp_path / "out", QWEN3, params, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert read_config(tmp_path / "out").param_dtype == "bfloat16"
    config, got = load_target(tmp_path / "out", dtype="bfloat16")
    assert (config.dtype, config.param_dtype) == ("bfloat16", "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("bfloat16")}
    assert_same(got, rounded)
    config, got = load_target(tmp_path / "out")
    assert (config.dtype, config.param_dtype) == ("float32", "float32")
    assert_same(got, jax.tree.map(lambda x: x.astype("f4"), rounded))


def test_drafter_round_trip_is_exact_and_fills_in_widths(drafter: Path) -> None:
    config, got = load_drafter(drafter, target_config=QWEN3)
    assert config == RESOLVED
    assert_same(got, drafter_params())
    assert_same(load_drafter(drafter)[1], drafter_params())


def test_drafter_without_head_norms_round_trips(tmp_path: Path) -> None:
    stored = dflash.StoredDrafter.of(dataclasses.replace(RESOLVED, qk_norm=False), target=QWEN3)
    params = random_params(dflash.layout(stored).parameter_shapes)
    config = dataclasses.replace(DRAFTER, qk_norm=False)
    save_drafter(tmp_path / "out", config, params, target_config=QWEN3)
    got_config, got = load_drafter(tmp_path / "out", target_config=QWEN3)
    assert got_config == dataclasses.replace(RESOLVED, qk_norm=False)
    assert_same(got, params)


def test_drafter_folder_is_what_servers_expect(drafter: Path) -> None:
    raw = json.loads((drafter / "config.json").read_text())
    expected = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "block_size": 8,
        "dflash_config": {"mask_token_id": 39, "target_layer_ids": [0, 2]},
        "num_target_layers": 3,
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "vocab_size": 40,
        "rope_theta": 10_000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "layer_types": ["full_attention"] * 2,
        "sliding_window": None,
    }
    assert {key: raw[key] for key in expected} == expected
    assert "auto_map" not in raw, "it would name a file that is not there"
    names = set(load_file(drafter / "model.safetensors"))
    block = {
        f"layers.{i}.{part}.weight"
        for i in range(2)
        for part in (
            "input_layernorm",
            "post_attention_layernorm",
            *(f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "o_proj")),
            *(f"self_attn.{p}" for p in ("q_norm", "k_norm")),
            *(f"mlp.{p}" for p in ("gate_proj", "up_proj", "down_proj")),
        )
    }
    assert names == block | {"fc.weight", "hidden_norm.weight", "norm.weight"}


# Sharded reading and writing.


def test_leaves_are_read_onto_their_shardings(qwen3: Path) -> None:
    count = min(2, jax.device_count())
    mesh = jax.make_mesh((count,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    params = target_params(QWEN3)

    def spec(path: str, leaf: np.ndarray) -> NamedSharding:
        # One axis after the other: a layer axis cannot be split in two (3 layers), the others can.
        axis = leaf.ndim - 1 if "attention" in path else leaf.ndim - 2
        parts: list[str | None] = [None] * leaf.ndim
        if axis >= 0 and leaf.shape[axis] % count == 0:
            parts[axis] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*parts))

    leaves = flatten_paths(params)
    shardings = nest_paths({path: spec(path, leaf) for path, leaf in leaves.items()})
    _, got = load_target(qwen3, shardings=shardings)
    assert_same(got, params)
    for path, leaf in flatten_paths(got).items():
        assert leaf.sharding == flatten_paths(shardings)[path]
    # A sharded tree is written like any other.
    save_target(qwen3, QWEN3, got)
    assert_same(load_target(qwen3)[1], params)


def test_one_sharding_serves_all_leaves(drafter: Path) -> None:
    sharding = SingleDeviceSharding(jax.devices()[-1])
    _, got = load_drafter(drafter, shardings=sharding)
    assert_same(got, drafter_params())
    assert {leaf.sharding for leaf in jax.tree.leaves(got)} == {sharding}


def test_shardings_of_another_tree_are_named(qwen3: Path) -> None:
    sharding = SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ValueError, match=r"missing \['embed/embedding'.*unexpected \['other'\]"):
        load_target(qwen3, shardings={"other": sharding})


# Tensors that do not fit.


def test_broken_config_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No config\.json in"):
        load_target(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_target(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list: expected a JSON object"):
        load_target(tmp_path)


def test_all_differences_are_reported_at_once(qwen3: Path) -> None:
    def damage(tensors: dict[str, np.ndarray]) -> None:
        for i in range(3):
            del tensors[f"model.layers.{i}.self_attn.q_norm.weight"]
        tensors["model.norm.weight"] = np.zeros(17, "f4")
        tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((16, 24), "f4")
        tensors["model.layers.3.input_layernorm.weight"] = np.zeros(16, "f4")
        tensors["visual.weight"] = np.zeros(2, "f4")

    edit_tensors(qwen3, damage)
    with pytest.raises(ValueError) as caught:
        load_target(qwen3)
    assert str(caught.value).splitlines()[1:] == [
        "  model.layers.{i}.self_attn.q_norm.weight: missing, expected [8] (i = 0, 1, 2)",
        "  model.layers.1.mlp.up_proj.weight: got [16, 24], expected [24, 16]",
        "  model.layers.3.input_layernorm.weight: unexpected, got [16]",
        "  model.norm.weight: got [17], expected [16]",
        "  visual.weight: unexpected, got [2]",
    ]


def test_constants_of_old_checkpoints_are_passed_over(llama: Path) -> None:
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"):
        edit_tensors(llama, lambda tensors, name=name: tensors.update({name: np.zeros(4, "f4")}))
    assert_same(load_target(llama)[1], target_params(LLAMA))


def test_a_second_copy_of_a_tied_head_must_be_equal(llama: Path) -> None:
    embedding = target_params(LLAMA)["embed"]["embedding"]
    edit_tensors(llama, lambda tensors: tensors.update({"lm_head.weight": embedding}))
    assert_same(load_target(llama)[1], target_params(LLAMA))
    edit_tensors(llama, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(ValueError, match="tie_word_embeddings is true, but lm_head"):
        load_target(llama)


def test_a_tied_head_may_be_the_only_copy(llama: Path) -> None:
    """As safetensors' save_model stores it, which keeps one name of a tensor."""
    edit_tensors(
        llama,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors.pop("model.embed_tokens.weight")}
        ),
    )
    assert_same(load_target(llama)[1], target_params(LLAMA))


def test_an_index_may_list_a_tied_head_that_no_shard_holds(tmp_path: Path) -> None:
    save_target(tmp_path / "a", LLAMA, target_params(LLAMA), max_shard_bytes=4000)
    index = tmp_path / "a" / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["lm_head.weight"] = document["weight_map"]["model.embed_tokens.weight"]
    index.write_text(json.dumps(document))
    assert_same(load_target(tmp_path / "a")[1], target_params(LLAMA))


def test_a_bias_without_a_place_must_be_zero(llama: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.bias"
    edit_tensors(llama, lambda tensors: tensors.pop(name))
    assert_same(load_target(llama)[1], target_params(LLAMA))
    edit_tensors(llama, lambda tensors: tensors.update({name: np.ones(16, "f4")}))
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.o_proj\.bias is not zero"):
        load_target(llama)


def test_pickles_are_never_opened(qwen3: Path) -> None:
    (qwen3 / "model.safetensors").rename(qwen3 / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: pickles, which can run code"):
        load_target(qwen3)


def test_damaged_and_quantised_files_are_refused(qwen3: Path) -> None:
    name = "model.norm.weight"
    edit_tensors(qwen3, lambda tensors: tensors.update({name: np.zeros(16, "i1")}))
    with pytest.raises(ValueError, match=r"\{'I8': 1\}.*Quantised weights are not supported"):
        load_target(qwen3)
    (qwen3 / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_target(qwen3)


def test_an_index_without_any_of_its_files_is_an_older_models(
    qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers leaves it when it saves a smaller model into the folder."""
    sharded = tmp_path / "sharded"
    save_target(sharded, QWEN3, target_params(QWEN3), max_shard_bytes=4000)
    index = "model.safetensors.index.json"
    (qwen3 / index).write_bytes((sharded / index).read_bytes())
    assert_same(load_target(qwen3)[1], target_params(QWEN3))
    assert f"none of the files that {index} names are there" in capsys.readouterr().err


def test_incomplete_and_straying_shards_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    save_target(folder, QWEN3, target_params(QWEN3), max_shard_bytes=4000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.extra.weight"] = shards[0]
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"1 tensors that are not in the files it names.*extra"):
        load_target(folder)
    for shard in shards[1:3]:
        (folder / shard).unlink()
    with pytest.raises(ValueError, match=f"names files that are missing.*{shards[1]}, {shards[2]}"):
        load_target(folder)
    index["weight_map"]["model.extra.weight"] = "../outside.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"files in its own folder: got \['\.\./outside"):
        load_target(folder)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        load_target(folder)


# Drafters for others.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 24}, "for another target: hidden_size: got 24, expected 16"),
        ({"num_target_layers": 4}, "num_target_layers: got 4, expected 3"),
        ({"dflash_config": {"mask_token_id": 40, "target_layer_ids": [0, 2]}}, "40 rows"),
        ({"dflash_config": {"target_layer_ids": [0, 3]}}, r"must lie in 0\.\.2"),
    ],
)
def test_drafters_of_other_targets_are_refused(
    changes: dict[str, Any], message: str, drafter: Path
) -> None:
    edit_config(drafter, **changes)
    with pytest.raises(ValueError, match=message):
        load_drafter(drafter, target_config=QWEN3)


def test_speculators_format_may_hold_tensors_of_the_target(drafter: Path) -> None:
    raw = json.loads((drafter / "config.json").read_text())
    inner = {k: v for k, v in raw.items() if k not in ("dflash_config", "block_size")}
    speculators = {
        "speculators_model_type": "dflash",
        "transformer_layer_config": inner,
        "block_size": 8,
        "aux_hidden_state_layer_ids": [1, 3],
        "mask_token_id": 39,
    }
    (drafter / "config.json").write_text(json.dumps(speculators))
    extra = {"embed_tokens.weight": np.zeros((40, 16), "f4")}
    edit_tensors(drafter, lambda tensors: tensors.update(extra))
    config, got = load_drafter(drafter, target_config=QWEN3)
    assert config == RESOLVED
    assert_same(got, drafter_params())


def test_a_drafter_of_other_widths_names_its_tensors(drafter: Path) -> None:
    edit_config(drafter, intermediate_size=32)
    with pytest.raises(ValueError, match=r"layers\.\{i\}\.mlp\.down_proj\.weight: got \[16, 24\]"):
        load_drafter(drafter)


# Writing.


def test_parameters_of_another_shape_are_not_written(tmp_path: Path) -> None:
    params = target_params(QWEN3)
    del params["head"]
    params["final_norm"]["scale"] = np.zeros(3, "f4")
    with pytest.raises(ValueError) as caught:
        save_target(tmp_path / "out", QWEN3, params)
    assert str(caught.value).splitlines()[1:] == [
        "  final_norm/scale: got [3], expected [16]",
        "  head/kernel: missing, expected [16, 40]",
    ]
    with pytest.raises(ValueError, match="40 rows"):
        wrong = dataclasses.replace(DRAFTER, mask_token_id=40)
        save_drafter(tmp_path / "out", wrong, drafter_params(), target_config=QWEN3)
    assert not any(tmp_path.iterdir())


def test_an_export_is_replaced_but_other_files_are_not(qwen3: Path) -> None:
    smaller = dataclasses.replace(QWEN3, num_layers=1)
    save_target(qwen3, QWEN3, target_params(QWEN3), max_shard_bytes=4000)
    save_target(qwen3, smaller, target_params(smaller))
    assert load_target(qwen3)[0] == smaller
    assert not list(qwen3.glob("model-*")), "shards of the earlier export are left"
    (qwen3 / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files, .*\['notes\.txt'\]"):
        save_target(qwen3, QWEN3, target_params(QWEN3))
    assert load_target(qwen3)[0] == smaller


def test_a_failed_export_leaves_the_earlier_one(qwen3: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No tokenizer in"):
        save_target(qwen3, LLAMA, target_params(LLAMA), tokenizer_folder=tmp_path / "empty")
    assert load_target(qwen3)[0] == QWEN3
    assert [path.name for path in tmp_path.iterdir()] == ["qwen3"]


@pytest.mark.parametrize(
    "added", [[{"id": 7}], [{"id": "x", "content": "<end>"}], ["<end>"], 5, {"<end>": 7}]
)
def test_added_tokens_that_are_none_are_refused(tmp_path: Path, added: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    with pytest.raises(ValueError, match=r"added_tokens of .*tokenizer\.json cannot be read"):
        save_target(tmp_path / "out", LLAMA, target_params(LLAMA), tokenizer_folder=tmp_path)


def test_a_base_model_without_special_tokens_opens(qwen3: Path) -> None:
    none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    edit_config(qwen3, **none)
    (qwen3 / "generation_config.json").write_text(json.dumps(none))
    assert_same(load_target(qwen3)[1], target_params(QWEN3))


KILLED = """
import os, signal, sys
from jaxspec.checkpoints import safetensors_io
from jaxspec.checkpoints.huggingface import load_target, save_target
def write_half(folder, *_, **__):
    (folder / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
safetensors_io.write_tensors = write_half
save_target(sys.argv[1], *load_target(sys.argv[1]))
"""


def test_what_a_killed_export_left_goes_with_the_next_one(qwen3: Path, tmp_path: Path) -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", KILLED, str(qwen3)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    left = [path for path in tmp_path.iterdir() if path != qwen3]
    assert len(left) == 1 and (left[0] / "model.safetensors").read_bytes() == b"half"
    assert_same(load_target(qwen3)[1], target_params(QWEN3))
    save_target(qwen3, QWEN3, target_params(QWEN3))
    assert [path.name for path in tmp_path.iterdir()] == ["qwen3"]


def test_tokenizer_provenance_and_special_ids_travel_along(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    added = [{"id": 7, "content": "<end>"}, {"id": 8, "content": "<pad>"}]
    (tokenizer / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<end>", "pad_token": {"content": "<pad>"}, "bos_token": None})
    )
    (tokenizer / "unrelated.bin").write_text("")
    (tokenizer / TOOL_TEMPLATE).parent.mkdir()
    (tokenizer / TOOL_TEMPLATE).write_text("{{ tools }}")
    out = tmp_path / "out"
    for _ in range(2):  # The second one replaces the first.
        save_target(
            out, QWEN3, target_params(QWEN3), tokenizer_folder=tokenizer, provenance={"seed": 3}
        )
    assert (out / TOOL_TEMPLATE).read_text() == "{{ tools }}"
    for name in ("config.json", "generation_config.json"):
        document = json.loads((out / name).read_text())
        assert (document["eos_token_id"], document["pad_token_id"]) == (7, 8)
    assert json.loads((out / "provenance.json").read_text()) == {"seed": 3}
    assert (out / "tokenizer.json").is_file() and not (out / "unrelated.bin").exists()
