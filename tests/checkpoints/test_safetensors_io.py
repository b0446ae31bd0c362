"""Weights that others wrote: which file is read, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import runpy
import shlex
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from jaxspec.checkpoints import conversion, safetensors_io
from jaxspec.checkpoints.families.registry import target_family
from jaxspec.checkpoints.folders import EMBEDDED_TARGET, fingerprint, target_folder
from jaxspec.checkpoints.huggingface import load_target, save_target
from jaxspec.checkpoints.safetensors_io import INDEX, NUMPY_DTYPES, WEIGHTS, TensorFolder
from jaxspec.checkpoints.shapes import flatten_paths, nest_paths
from jaxspec.config import Dtype, MeshConfig, TransformerConfig
from jaxspec.interruption import hearing_progress
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules

CONFIG = TransformerConfig(
    vocab_size=40, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=24, tie_embeddings=False,
)  # fmt: skip
NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def params() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    shapes = target_family(CONFIG).layout(CONFIG, ()).parameter_shapes
    return nest_paths(
        {path: generator.standard_normal(shape).astype("f4") for path, shape in shapes.items()}
    )


@pytest.fixture
def folder(tmp_path: Path, params: dict[str, Any]) -> Path:
    save_target(tmp_path / "model", CONFIG, params)
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path: Path, params: dict[str, Any]) -> Path:
    save_target(tmp_path / "shards", CONFIG, params, max_shard_bytes=8000)
    return tmp_path / "shards"


def assert_loads(folder: Path, params: dict[str, Any]) -> None:
    got, expected = flatten_paths(load_target(folder)[1]), flatten_paths(params)
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array)


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def edit_tensors(file: Path, **changes: Any) -> None:
    save_file({**load_file(file), **changes}, file)


def test_writing_gets_on_with_each_tensor(tmp_path: Path, params: dict[str, Any]) -> None:
    heard: list[int] = []
    with hearing_progress(lambda: heard.append(1)):
        save_target(tmp_path / "model", CONFIG, params)
    with TensorFolder(tmp_path / "model") as tensors:
        assert len(heard) == len(tensors.shapes)


def test_the_index_decides_which_file_counts(shards: Path, params: dict[str, Any]) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    files = sorted(set(weight_map.values()))
    assert len(files) > 2
    for file in files:
        if file != weight_map[NORM]:
            edit_tensors(shards / file, **{NORM: np.full(16, 9, "f4")})
    assert_loads(shards, params)


def test_what_the_index_does_not_list_is_absent(shards: Path, params: dict[str, Any]) -> None:
    files = sorted(shards.glob("*.safetensors"))
    edit_tensors(files[0], **{"model.extra.weight": np.zeros(3, "f4")})
    (shards / "model-00099-of-00099.safetensors").write_bytes(b"not even one")
    assert_loads(shards, params)
    edit_index(shards, lambda index: index["weight_map"].pop(NORM))
    with pytest.raises(ValueError, match=rf"{NORM}: missing"):
        load_target(shards)


def test_a_tensor_in_another_file_than_the_index_names(shards: Path) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    other = next(file for file in weight_map.values() if file != weight_map[NORM])
    edit_index(shards, lambda index: index["weight_map"].update({NORM: other}))
    with pytest.raises(ValueError, match=f"not in the files it names .*'{NORM}': '{other}'"):
        load_target(shards)


def test_an_index_beside_a_file_that_it_does_not_name(
    folder: Path, shards: Path, params: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_loads(shards, params)
    assert not capsys.readouterr().err
    edit_tensors(folder / WEIGHTS, **{NORM: np.full(16, 9, "f4")})
    (folder / WEIGHTS).rename(shards / WEIGHTS)
    assert_loads(shards, params)
    assert f"{WEIGHTS} and an {INDEX} that does not name it" in capsys.readouterr().err


@pytest.mark.parametrize("metadata", [None, 5, {}, {"total_size": -1}, {"total_size": "many"}])
def test_the_total_size_is_of_no_importance(
    shards: Path, params: dict[str, Any], metadata: Any
) -> None:
    edit_index(shards, lambda index: index.update(metadata=metadata))
    assert_loads(shards, params)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ([NORM], "has no weight_map"),
        ({}, "has no weight_map"),
        ({NORM: 5}, f"expected the name of a file for each tensor, got {{'{NORM}': 5}}"),
        ({NORM: None, UP: ["x"]}, "expected the name of a file for each tensor"),
        ({NORM: ""}, "names files that are missing"),
        ({NORM: ".."}, "names files that are missing"),
        ({NORM: "x" * 5000}, "names files that are missing"),
        ({NORM: "folder.safetensors"}, "names files that are missing"),
        ({NORM: "/etc/passwd"}, "only name files in its own folder"),
        ({NORM: "../model/model.safetensors"}, "only name files in its own folder"),
        ({NORM: "a\0b"}, "names files that are missing"),
        ({NORM: "config.json"}, "config.json cannot be read as safetensors"),
    ],
)
def test_an_index_that_names_no_files(shards: Path, weight_map: Any, message: str) -> None:
    (shards / "folder.safetensors").mkdir()
    edit_index(shards, lambda index: index.update(weight_map=weight_map))
    with pytest.raises(ValueError, match=message) as caught:
        load_target(shards)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "is not JSON"),
        (b"[]", "expected a JSON object"),
    ],
)
def test_an_index_that_is_no_json(shards: Path, content: bytes, message: str) -> None:
    (shards / INDEX).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_target(shards)
    assert INDEX in str(caught.value)


def test_folders_in_place_of_files(folder: Path) -> None:
    (folder / "old.safetensors").mkdir()
    assert load_target(folder) and fingerprint(folder)
    (folder / INDEX).mkdir()
    with pytest.raises(ValueError, match=f"{INDEX} is a folder"):
        load_target(folder)


def test_shards_may_be_links(shards: Path, tmp_path: Path, params: dict[str, Any]) -> None:
    for file in shards.glob("*.safetensors"):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    assert_loads(shards, params)


def test_a_name_that_a_header_holds_twice(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    entry = json.dumps({NORM: json.loads(header)[NORM]}).encode()
    header = header[:-1] + b"," + entry[1:]
    (folder / WEIGHTS).write_bytes(
        len(header).to_bytes(8, "little") + header + content[8 + length :]
    )
    with pytest.raises(ValueError, match=rf"header of .*{WEIGHTS}.*'{NORM}' occurs twice"):
        load_target(folder)


class PanicException(BaseException):
    """Has the name of what the library raises when its own code panics."""


@pytest.mark.parametrize("error", [PanicException("index out of range"), TypeError("no such type")])
def test_what_the_library_raises_names_the_file(
    folder: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(safetensors_io, "safe_open", broken)
    with pytest.raises(ValueError, match=rf"{WEIGHTS} cannot be read as safetensors: {error}"):
        load_target(folder)


def test_a_file_that_is_cut_while_it_is_read(folder: Path) -> None:
    with TensorFolder(folder) as tensors:
        os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 4)
        last = max(tensors.shapes, key=lambda name: tensors._stored[name].start)
        with pytest.raises(ValueError, match=rf"{last} in .*{WEIGHTS} cannot be .* ends early"):
            tensors.read(last)


@pytest.mark.parametrize("piece_bytes", [1, 100, 1 << 23])
@pytest.mark.parametrize("stored", ["f2", "f4", "f8", "bfloat16"])
def test_parts_of_tensors_in_any_layout(
    tmp_path: Path, stored: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of a few rows, slices on each axis, turned or not, into either dtype."""
    monkeypatch.setattr(safetensors_io, "_PIECE_BYTES", piece_bytes)
    generator = np.random.default_rng(0)
    dtype = jnp.dtype(stored)
    tensors = {
        "first": generator.standard_normal(3).astype(dtype),
        "matrix": generator.standard_normal((7, 10)).astype(dtype),
        "cube": generator.standard_normal((4, 3, 5)).astype(dtype),
        "number": np.array(2.5).astype(dtype),
    }
    save_file(tensors, tmp_path / WEIGHTS)
    cuts: dict[str, list[tuple[slice, ...]]] = {
        "first": [(slice(None),), (slice(1, 3),)],
        "matrix": [(slice(None),) * 2, (slice(2, 6), slice(None)), (slice(1, 7), slice(3, 9))],
        "cube": [(slice(None),) * 3, (slice(1, 3), slice(0, 2), slice(4, 5)), (slice(2, 2),) * 3],
        "number": [()],
    }
    with TensorFolder(tmp_path) as folder:
        for name, array in tensors.items():
            np.testing.assert_array_equal(folder.read(name), array)
            for cut in cuts[name]:
                expected = array[cut]
                np.testing.assert_array_equal(folder.read(name, cut), expected)
                for dtype in NUMPY_DTYPES.values():
                    plain = np.empty(expected.shape, dtype)
                    turned = np.empty(expected.shape[::-1], dtype)
                    folder.read_into(plain, name, cut)
                    folder.read_into(turned.T, name, cut)
                    np.testing.assert_array_equal(plain, expected.astype(dtype))
                    np.testing.assert_array_equal(turned, expected.astype(dtype).T)


def test_an_interruption_is_not_taken_for_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors_io, "safe_open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_target(folder)


def test_many_unexpected_tensors_are_one_short_message(folder: Path) -> None:
    edit_tensors(folder / WEIGHTS, **{f"\x1b[2J\n{i}": np.zeros(1, "f4") for i in range(500)})
    with pytest.raises(ValueError, match="450 more") as caught:
        load_target(folder)
    assert "\x1b" not in str(caught.value) and len(str(caught.value).splitlines()) < 60


def test_pickles_are_refused_with_a_command_that_converts_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it writes such files")
    import transformers

    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, head_dim=8,
        )
    )  # fmt: skip
    folder = tmp_path / "it's a model"
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED_TARGET / name, folder / name)
    state = model.state_dict()
    files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    weight_map = {name: files[i % 2] for i, name in enumerate(state)}
    for file in files:
        part = {name: state[name] for name, where in weight_map.items() if where == file}
        torch.save(part, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="pickles, which can run code") as caught:
        load_target(folder)
    message = str(caught.value)
    python, flag, code = shlex.split(message.splitlines()[-1])
    assert (python, flag) == ("python", "-c")
    (tmp_path / "convert.py").write_text(code)
    runpy.run_path(str(tmp_path / "convert.py"))  # In this process, where torch is loaded.
    converted = Path(f"{folder}-safetensors")
    assert str(converted) in message
    _, params = load_target(converted)
    expected = state["model.layers.0.mlp.up_proj.weight"].numpy().T
    np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"][0], expected)
    assert (converted / "tokenizer.json").is_file()


def test_other_pickles_are_named(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"weights\.pt: pickles.* save_pretrained, which writes"):
        TensorFolder(tmp_path)


# How it is read.


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_each_byte_is_read_once(
    sizes: dict[str, int],
    shards: Path,
    params: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where devices hold other columns of the same rows."""
    shardings = None
    if sizes:
        mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}))
        shardings = functools.partial(Rules().shardings, mesh=mesh)
    read: dict[str, list[tuple[int, int]]] = {}
    preadv = os.preadv

    def counted(descriptor: int, buffers: list[memoryview], start: int) -> int:
        count = preadv(descriptor, buffers, start)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        read.setdefault(name, []).append((start, start + count))
        return count

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(safetensors_io, "_PIECE_BYTES", 200)
    got = flatten_paths(load_target(shards, shardings=shardings)[1])
    for path, array in flatten_paths(params).items():
        np.testing.assert_array_equal(got[path], array)
    assert len(read) == len(list(shards.glob("*.safetensors"))) > 1
    for name, pieces in read.items():
        starts, ends = zip(*sorted(pieces), strict=True)
        assert starts[1:] == ends[:-1], "pieces overlap or leave a gap"
        assert ends[-1] == os.path.getsize(name)
        header = int.from_bytes(Path(name).read_bytes()[:8], "little")
        assert starts[0] == 8 + header


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_little_more_than_the_parameters_is_in_memory(tmp_path: Path, dtype: Dtype) -> None:
    config = dataclasses.replace(
        CONFIG, vocab_size=3000, hidden_size=256, num_layers=4, intermediate_size=1000
    )
    shapes = target_family(config).layout(config, ()).parameter_shapes
    save_target(
        tmp_path / "model", config, nest_paths({p: np.ones(s, "f4") for p, s in shapes.items()})
    )
    load_target(tmp_path / "model", dtype=dtype)  # Whatever is made once is there.
    tracemalloc.start()
    try:
        _, params = load_target(tmp_path / "model", dtype=dtype)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    leaves = jax.tree.leaves(params)
    held = sum(leaf.nbytes for leaf in leaves)
    pieces = safetensors_io._MOST_THREADS * safetensors_io._MOST_ROWS * 1000 * 4 * 1.5
    assert held > 10_000_000 / (2 if dtype == "bfloat16" else 1)
    assert peak < held + pieces, "more than the parameters and the pieces that are being read"


@pytest.mark.parametrize("spread", [None, PartitionSpec(None, "data"), PartitionSpec("data")])
def test_devices_with_memory_of_their_own_get_layer_by_layer(
    shards: Path,
    params: dict[str, Any],
    spread: PartitionSpec | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversion, "_on_host", lambda sharding: False)
    mesh = jax.make_mesh((2,), ("data",))
    shardings = None
    if spread is not None:
        shapes = target_family(CONFIG).layout(CONFIG, ()).parameter_shapes
        shardings = nest_paths(
            {
                path: NamedSharding(mesh, spread if "mlp/up" in path else PartitionSpec())
                for path in shapes
            }
        )
    _, loaded = load_target(shards, shardings=shardings)
    got, expected = flatten_paths(loaded), flatten_paths(params)
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array)
        if shardings is not None:
            asked = flatten_paths(shardings)[path]
            assert got[path].sharding.is_equivalent_to(asked, array.ndim), path


# Values.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_named(folder: Path, bad: float, dtype: Dtype) -> None:
    up = load_file(folder / WEIGHTS)[UP]
    up[3, 5] = up[0, 1] = bad
    edit_tensors(folder / WEIGHTS, **{UP: up})
    with pytest.raises(ValueError, match=rf"2 of 384 values of {UP} in .* not finite in {dtype}"):
        load_target(folder, dtype=dtype)


def test_infinities_that_cancel_each_other_are_found(folder: Path) -> None:
    norm = load_file(folder / WEIGHTS)[NORM]
    norm[:2] = np.inf, -np.inf
    edit_tensors(folder / WEIGHTS, **{NORM: norm})
    with pytest.raises(ValueError, match=rf"2 of 16 values of {NORM}"):
        load_target(folder)


def test_large_weights_are_finite_until_they_are_rounded(
    folder: Path, params: dict[str, Any]
) -> None:
    largest = np.finfo("f4").max
    params["final_norm"]["scale"][:] = largest  # Their sum overflows.
    edit_tensors(folder / WEIGHTS, **{NORM: np.full(16, largest, "f4")})
    assert_loads(folder, params)
    with pytest.raises(ValueError, match=rf"16 of 16 values of {NORM} .*in bfloat16"):
        load_target(folder, dtype="bfloat16")
    edit_tensors(folder / WEIGHTS, **{NORM: np.full(16, 1e300)})
    with pytest.raises(ValueError, match=rf"16 of 16 values of {NORM} .*in float32"):
        load_target(folder)


def test_parts_of_a_sharded_weight_are_checked(folder: Path) -> None:
    up = load_file(folder / WEIGHTS)[UP]
    up[-1, -1] = np.nan
    edit_tensors(folder / WEIGHTS, **{UP: up})
    mesh = jax.make_mesh((2,), ("data",))
    shapes = target_family(CONFIG).layout(CONFIG, ()).parameter_shapes
    spread = {
        path: NamedSharding(mesh, PartitionSpec(None, "data") if "up" in path else PartitionSpec())
        for path in shapes
    }
    with pytest.raises(ValueError, match=rf"1 of 192 values of {UP}"):
        load_target(folder, shardings=nest_paths(spread))


def test_a_home_that_nobody_has() -> None:
    with pytest.raises(ValueError, match=r"no config\.json in ~nobody-of-this-name/model"):
        target_folder("~nobody-of-this-name/model")
