"""Weights from and for Hugging Face folders: targets and DFlash drafters.

The correspondence stands in `key_maps`; here it is applied. Every difference between a folder and
what its config.json promises is reported at once. Only safetensors are read; nothing is executed.

>>> config, params = load_target("Qwen3-4B", dtype="bfloat16")
>>> save_drafter("export", drafter_config, drafter_params, target_config=config, dtype="bfloat16")
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxspec.checkpoints import (
    config_json,
    config_reader,
    conversion,
    gpt2_json,
    key_maps,
    safetensors_io,
)
from jaxspec.checkpoints.conversion import Shardings
from jaxspec.checkpoints.key_maps import Row
from jaxspec.checkpoints.safetensors_io import DEFAULT_SHARD_BYTES, NUMPY_DTYPES, TensorFolder
from jaxspec.checkpoints.shapes import compare_shapes, nest_paths
from jaxspec.config import DrafterConfig, Dtype, GPT2Config, LanguageModelConfig
from jaxspec.models.dflash import resolve_config

Params = dict[str, Any]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "tokenizer.model",
)
EXPORT_FILES = frozenset(
    (*TOKENIZER_FILES, "config.json", "generation_config.json", "provenance.json",
     safetensors_io.INDEX)
)  # fmt: skip
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")


def read_config(folder: str | os.PathLike[str]) -> LanguageModelConfig:
    """The shape of the target in a folder; its dtypes are those of the stored weights.

    Raises:
      ValueError: no config.json, another family, or features that are not supported.
    """
    path = Path(folder) / "config.json"
    return config_json.target_from_json(config_reader.read_json(path), where=str(path))


def is_target(folder: str | os.PathLike[str]) -> bool:
    """Whether config.json there describes a language model that `load_target` knows.

    Raises:
      ValueError: no config.json.
    """
    raw = config_reader.read_json(Path(folder) / "config.json")
    return bool(set(raw.get("architectures") or ()) & set(config_json.MODEL_TYPES.values()))


def read_drafter_config(folder: str | os.PathLike[str]) -> DrafterConfig:
    """The shape of the DFlash drafter in a folder, layer ids as z-lab counts them.

    Raises:
      ValueError: no config.json, no DFlash drafter, or features that are not supported.
    """
    return _stored_drafter(folder).config


def _stored_drafter(folder: str | os.PathLike[str]) -> config_json.StoredDrafter:
    path = Path(folder) / "config.json"
    return config_json.drafter_from_json(config_reader.read_json(path), where=str(path))


def load_target(
    folder: str | os.PathLike[str], *, dtype: Dtype = "float32", shardings: Shardings = None
) -> tuple[LanguageModelConfig, Params]:
    """A target's configuration and parameters.

    Args:
      folder: config.json and safetensors, one file or shards.
      dtype: of the parameters and of the computation, whatever the folder stores.
      shardings: where each parameter goes: a tree like the parameters, or one sharding for all.
        Each device's part is read by itself, so that no process holds the model. None: the
        default device.

    Returns:
      The configuration, and parameters stacked over layers.

    Raises:
      ValueError: unsupported architecture, or tensors that are missing, unexpected or of another
        shape, all of them in one message.
    """
    config = dataclasses.replace(read_config(folder), dtype=dtype, param_dtype=dtype)
    sizes = key_maps.target_sizes(config)
    optional = _biases_without_a_place(config)
    if config.tie_embeddings:
        optional[key_maps.TIED_HEAD] = (config.vocab_size, config.hidden_size)
    with TensorFolder(folder, ignored=key_maps.IGNORED) as tensors:
        bare = key_maps.GPT2_EMBED[0].name in tensors.shapes
        rows = key_maps.target_rows(config, gpt2_prefix="" if bare else key_maps.GPT2_PREFIX)
        conversion.check_tensors(
            tensors,
            key_maps.tensor_shapes(rows, sizes, num_layers=config.num_layers),
            optional=optional,
        )
        conversion.check_redundant(tensors, optional, embedding=rows[0].name)
        params = conversion.read_params(
            tensors,
            rows,
            sizes,
            num_layers=config.num_layers,
            dtype=dtype,
            shardings=shardings,
        )
    return config, params


def _biases_without_a_place(config: LanguageModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of `key_maps.OUTPUT_BIAS`, where transformers has it."""
    if isinstance(config, GPT2Config) or not config.attention_bias:
        return {}
    names = key_maps.tensor_names(key_maps.OUTPUT_BIAS, num_layers=config.num_layers)
    return dict.fromkeys(names, (config.hidden_size,))


def load_drafter(
    folder: str | os.PathLike[str],
    *,
    target_config: LanguageModelConfig | None = None,
    dtype: Dtype = "float32",
    shardings: Shardings = None,
) -> tuple[DrafterConfig, Params]:
    """A DFlash drafter's configuration and parameters, from z-lab's format or speculators'.

    Args:
      folder: config.json and safetensors.
      target_config: the target it is to draft for; given, the drafter is checked against it.
      dtype: of the parameters and of the computation.
      shardings: see `load_target`.

    Raises:
      ValueError: not a DFlash drafter, one for another target, or tensors that do not fit.
    """
    stored = _stored_drafter(folder)
    config = dataclasses.replace(stored.config, dtype=dtype, param_dtype=dtype)
    if target_config is not None:
        config = _fit_to_target(stored, config, target_config, where=str(folder))
    rows = key_maps.drafter_rows(qk_norm=config.qk_norm)
    sizes = _drafter_sizes(config, stored.hidden_size)
    ignored = key_maps.IGNORED_SPECULATORS if stored.is_speculators else ()
    with TensorFolder(folder, ignored=ignored) as tensors:
        conversion.check_tensors(
            tensors,
            key_maps.tensor_shapes(rows, sizes, num_layers=config.num_layers),
            optional={},
        )
        params = conversion.read_params(
            tensors,
            rows,
            sizes,
            num_layers=config.num_layers,
            dtype=dtype,
            shardings=shardings,
        )
    return config, params


def _fit_to_target(
    stored: config_json.StoredDrafter,
    config: DrafterConfig,
    target: LanguageModelConfig,
    *,
    where: str,
) -> DrafterConfig:
    pairs: list[tuple[str, int, int]] = [
        ("hidden_size", stored.hidden_size, target.hidden_size),
        ("vocab_size", stored.vocab_size, target.vocab_size),
    ]
    if stored.num_target_layers is not None:
        pairs.append(("num_target_layers", stored.num_target_layers, target.num_layers))
    wrong = [f"{key}: got {got}, expected {want}" for key, got, want in pairs if got != want]
    if wrong:
        raise ValueError(f"The drafter in {where} is for another target: {'; '.join(wrong)}.")
    resolved = resolve_config(config, target=target, mask_token_id=0)
    return dataclasses.replace(resolved, mask_token_id=config.mask_token_id)


def _drafter_sizes(config: DrafterConfig, width: int) -> dict[str, int]:
    return {
        "D": width,
        "F": config.intermediate_size,
        "C": config.head_dim,
        "QC": config.num_heads * config.head_dim,
        "RC": config.num_kv_heads * config.head_dim,
        "MD": len(config.target_layer_ids) * width,
    }


def save_target(
    folder: str | os.PathLike[str],
    config: LanguageModelConfig,
    params: Mapping[str, Any],
    *,
    dtype: Dtype | None = None,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    eos_token_ids: Sequence[int] = (),
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    provenance: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that transformers and servers load as one of `config_json.MODEL_TYPES`.

    The folder appears complete or not at all. With several processes all must call this; the
    first one writes.

    Args:
      folder: new, or an earlier export.
      config: shape of the target.
      params: its parameters; sharded arrays are gathered one at a time.
      dtype: of the stored weights; None: `config.param_dtype`, which loses nothing.
      tokenizer_folder: tokenizer files to put beside the weights, and where special ids are found.
      eos_token_ids: ids that end an answer; (): the tokenizer's.
      max_shard_bytes: weights beyond this are split into several files with an index.
      provenance: written as provenance.json.
      more: entries of config.json besides those of the format.

    Raises:
      ValueError: parameters that do not fit `config`, or a folder that holds other files.
    """
    dtype = dtype or config.param_dtype
    rows, sizes = key_maps.target_rows(config), key_maps.target_sizes(config)
    special_ids = _special_ids(tokenizer_folder)
    if eos_token_ids:
        special_ids["eos_token_id"] = [int(i) for i in eos_token_ids]
    document = config_json.target_to_json(config, dtype=dtype, special_ids=special_ids)
    documents: dict[str, Mapping[str, Any]] = {
        "config.json": {**document, **(more or {})},
        "generation_config.json": {"do_sample": False, **special_ids},
    }
    write_folder(
        folder,
        params,
        rows,
        sizes,
        config.num_layers,
        dtype=dtype,
        zeros=_biases_without_a_place(config),
        documents=documents,
        tokenizer_folder=tokenizer_folder,
        max_shard_bytes=max_shard_bytes,
        provenance=provenance,
    )


def save_drafter(
    folder: str | os.PathLike[str],
    config: DrafterConfig,
    params: Mapping[str, Any],
    *,
    target_config: LanguageModelConfig,
    dtype: Dtype | None = None,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a drafter as z-lab's checkpoints are, which vLLM, SGLang and their TPU ports load.

    Args:
      folder: new, or an earlier export.
      config: shape of the drafter; what it leaves to the target is filled in.
      params: its parameters.
      target_config: the target it was trained for.
      dtype: of the stored weights; None: `config.param_dtype`.
      tokenizer_folder: tokenizer files to put beside the weights.
      max_shard_bytes: weights beyond this are split into several files with an index.
      provenance: written as provenance.json.

    Raises:
      ValueError: a configuration that does not fit the target, parameters that do not fit the
        configuration, or a folder that holds other files.
    """
    dtype = dtype or config.param_dtype
    config = resolve_config(config, target=target_config)
    document = config_json.drafter_to_json(config, target_config=target_config, dtype=dtype)
    write_folder(
        folder,
        params,
        key_maps.drafter_rows(qk_norm=config.qk_norm),
        _drafter_sizes(config, target_config.hidden_size),
        config.num_layers,
        dtype=dtype,
        zeros={},
        documents={"config.json": document},
        tokenizer_folder=tokenizer_folder,
        max_shard_bytes=max_shard_bytes,
        provenance=provenance,
    )


def write_folder(
    folder: str | os.PathLike[str],
    params: Mapping[str, Any],
    rows: tuple[Row, ...],
    sizes: dict[str, int],
    num_layers: int,
    *,
    dtype: Dtype,
    zeros: Mapping[str, tuple[int, ...]],
    documents: dict[str, Mapping[str, Any]],
    tokenizer_folder: str | os.PathLike[str] | None,
    max_shard_bytes: int,
    provenance: Mapping[str, Any] | None,
) -> None:
    """Writes weights and documents into a folder, complete or not at all.

    Raises:
      ValueError: parameters of other shapes than the rows give, or a folder that holds other files.
    """
    expected = key_maps.parameter_shapes(rows, sizes, num_layers=num_layers)
    messages = compare_shapes(nest_paths(expected), params)
    if messages:
        lines = "".join(f"\n  {line}" for line in messages)
        raise ValueError(f"The parameters are not those the configuration describes:{lines}")
    shapes = {**key_maps.tensor_shapes(rows, sizes, num_layers=num_layers), **zeros}
    item_bytes = NUMPY_DTYPES[dtype].itemsize
    stream = conversion.stored_tensors(
        params, rows, num_layers=num_layers, zeros=zeros, dtype=dtype
    )
    if jax.process_index() == 0:
        with safetensors_io.replaced_folder(folder, own_files=EXPORT_FILES) as temporary:
            safetensors_io.write_tensors(
                temporary,
                stream,
                sizes={name: math.prod(shape) * item_bytes for name, shape in shapes.items()},
                max_shard_bytes=max_shard_bytes,
            )
            if tokenizer_folder is not None:
                _copy_tokenizer(Path(tokenizer_folder), temporary)
            if provenance is not None:
                documents["provenance.json"] = provenance
            for name, document in documents.items():
                text = json.dumps(document, indent=2, allow_nan=False)
                (temporary / name).write_text(text + "\n", encoding="utf-8")
    else:
        for _ in stream:  # Gathering is collective: the others take part and write nothing.
            pass
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("jaxspec export")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise ValueError(
            f"No tokenizer in {source}: expected tokenizer.json or others of its files."
        )
    for path in found:
        shutil.copyfile(path, folder / path.name)
    _keep_tokenizer_class(source, folder)


def _keep_tokenizer_class(source: Path, folder: Path) -> None:
    """Says in tokenizer_config.json what a GPT-2's folder leaves to its config.json.

    The config.json of a drafter is another one.
    """
    stated = {}
    if (folder / "tokenizer_config.json").is_file():
        stated = config_reader.read_json(folder / "tokenizer_config.json")
    if stated.get("tokenizer_class") or not (source / "config.json").is_file():
        return
    model = config_reader.read_json(source / "config.json")
    if model.get("model_type") in gpt2_json.MODEL_TYPES:
        text = json.dumps({**stated, "tokenizer_class": "GPT2Tokenizer"}, indent=2)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _special_ids(tokenizer_folder: str | os.PathLike[str] | None) -> dict[str, Any]:
    """bos_token_id, eos_token_id and pad_token_id, as far as the tokenizer's files name them."""
    if tokenizer_folder is None:
        return {}
    source = Path(tokenizer_folder)
    if not ((source / "tokenizer_config.json").is_file() and (source / "tokenizer.json").is_file()):
        return {}
    names = config_reader.read_json(source / "tokenizer_config.json")
    tokenizer = config_reader.read_json(source / "tokenizer.json")
    ids = {str(t["content"]): int(t["id"]) for t in tokenizer.get("added_tokens") or []}
    special_ids = {}
    for key in SPECIAL_TOKENS:
        token = names.get(key)
        content = token.get("content") if isinstance(token, Mapping) else token
        if content in ids:
            special_ids[f"{key}_id"] = ids[content]
    return special_ids
