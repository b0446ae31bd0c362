"""Reads and writes weights in Hugging Face folders, in the same way for every family.

What differs between families is in `families`, one file each; their key maps are applied here.
All differences between a folder and what its config.json promises are reported at once. Only
safetensors files are read; nothing is executed.

>>> config, params = load_target("Qwen3-4B", dtype="bfloat16")  # doctest: +SKIP
>>> save_drafter("export", drafter_config, drafter_params, target_config=config, dtype="bfloat16")
... # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxspec.checkpoints import config_reader, conversion, safetensors_io
from jaxspec.checkpoints.conversion import Shardings
from jaxspec.checkpoints.families import dflash
from jaxspec.checkpoints.families.family import Family, Layout
from jaxspec.checkpoints.families.registry import (
    Folder,
    StoredModel,
    family_of,
    open_folder,
    target_family,
)
from jaxspec.checkpoints.reading_pace import ReadingPace
from jaxspec.checkpoints.safetensors_io import DEFAULT_SHARD_BYTES, NUMPY_DTYPES, TensorFolder
from jaxspec.checkpoints.shapes import compare_shapes, nest_paths
from jaxspec.config import DrafterConfig, Dtype, LanguageModelConfig
from jaxspec.files import replaced_folder
from jaxspec.models.dflash import resolve_config
from jaxspec.names import for_terminal
from jaxspec.paths import copy_file, user_path
from jaxspec.tokenizer_files import TOKENIZER_FILES

Params = dict[str, Any]
Placement = Shardings | Callable[[Any], Shardings]
"""Where parameters go, or what says so when it is given a tree of their shapes."""

EXPORT_FILES = frozenset(
    (*(name.split("/")[0] for name in TOKENIZER_FILES), "README.md", "config.json",
     "generation_config.json", "provenance.json", safetensors_io.INDEX)
)  # fmt: skip
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")


def read_config(folder: Folder) -> LanguageModelConfig:
    """The shape of the target in a folder; its dtypes are those of the stored weights.

    Raises:
      ValueError: no config.json, another family, or features that are not supported.
    """
    return open_folder(folder).as_target()


def load_target(
    folder: Folder, *, dtype: Dtype = "float32", shardings: Placement = None
) -> tuple[LanguageModelConfig, Params]:
    """A target's configuration and parameters.

    Args:
      folder: with config.json and safetensors (one file or shards).
      dtype: type of the parameters and of the computation, whatever the folder stores.
      shardings: where each parameter goes: a tree like the parameters, one sharding for all, or a
        function from the tree of their shapes. Each device's part is read separately, so that no
        process holds the whole model. None: the default device.

    Returns:
      The configuration, and parameters stacked over layers.

    Raises:
      ValueError: unsupported architecture, another dtype than float32 or bfloat16, or tensors that
        are missing, unexpected or of another shape, all of them in one message.
    """
    stored = open_folder(folder)
    config = dataclasses.replace(stored.as_target(), dtype=dtype, param_dtype=dtype)
    family = target_family(config)
    return config, read_weights(stored, family, config, dtype=dtype, shardings=shardings)


def read_weights(
    stored: StoredModel, family: Family, description: Any, *, dtype: Dtype, shardings: Placement
) -> Params:
    """The parameters in a folder, read with the key map of a family.

    Args:
      stored: the folder.
      family: the one whose tensors it has.
      description: the configuration, as the family reads it.
      dtype: see `load_target`.
      shardings: see `load_target`.

    Raises:
      ValueError: an unknown dtype; or tensors that are missing, unexpected or of another shape, all
        of them in one message.
    """
    conversion.check_dtype(dtype)
    usual = family.layout(description, ())
    with TensorFolder(stored.folder, ignored=usual.ignored, optional=usual.redundant) as tensors:
        layout = family.layout(description, tensors.shapes.keys())
        embedding = layout.rows[0].name
        if layout.tied_head in tensors.shapes and embedding not in tensors.shapes:
            # safetensors' save_model keeps one of the names of a tied tensor.
            tensors.rename(layout.tied_head, embedding)
        conversion.check_tensors(tensors, layout.tensor_shapes, optional=layout.redundant)
        conversion.check_redundant(
            tensors, layout.redundant, tied_head=layout.tied_head, embedding=embedding
        )
        pace = ReadingPace(for_terminal(str(stored.folder)), tensors.num_bytes, echo=_say)
        tensors.on_read = pace.so_far
        if callable(shardings):
            shapes = {
                path: jax.ShapeDtypeStruct(shape, dtype)
                for path, shape in layout.parameter_shapes.items()
            }
            shardings = shardings(nest_paths(shapes))
        params = conversion.read_params(
            tensors,
            layout.rows,
            layout.sizes,
            num_layers=layout.num_layers,
            dtype=dtype,
            shardings=shardings,
        )
        pace.finished(tensors.bytes_read)
        return params


def _say(line: str) -> None:
    """On stderr: what a command prints may be read by a program."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def load_params(
    folder: Folder,
    *,
    dtype: Dtype = "float32",
    target_config: LanguageModelConfig | None = None,
    shardings: Placement = None,
) -> Params:
    """The parameters of a model of any family.

    Args:
      folder: config.json and safetensors.
      dtype: of the parameters.
      target_config: the target it is to draft for, if it is a drafter.
      shardings: see `load_target`.

    Raises:
      ValueError: an unknown family, tensors that do not fit, or a drafter for another target.
    """
    stored = open_folder(folder)
    description = stored.family.fitted(
        stored.description, dtype, target=target_config, where=str(stored.folder)
    )
    return read_weights(stored, stored.family, description, dtype=dtype, shardings=shardings)


def read_drafter_config(folder: Folder, *, target_config: LanguageModelConfig) -> DrafterConfig:
    """A DFlash drafter's configuration, with what it leaves to its target filled in.

    Raises:
      ValueError: not a DFlash drafter, or a drafter for another target.
    """
    stored = open_folder(folder)
    where = str(stored.folder)
    return dflash.fitted(stored.as_drafter(), "float32", target=target_config, where=where).config


def load_drafter(
    folder: Folder,
    *,
    target_config: LanguageModelConfig | None = None,
    dtype: Dtype = "float32",
    shardings: Shardings = None,
) -> tuple[DrafterConfig, Params]:
    """A DFlash drafter's configuration and parameters, from z-lab's format or speculators'.

    Args:
      folder: config.json and safetensors.
      target_config: the target it is to draft for; if given, the drafter is checked against it.
      dtype: type of the parameters and of the computation.
      shardings: see `load_target`.

    Raises:
      ValueError: not a DFlash drafter, a drafter for another target, or tensors that do not fit.
    """
    stored = open_folder(folder)
    drafter = dflash.fitted(
        stored.as_drafter(), dtype, target=target_config, where=str(stored.folder)
    )
    params = read_weights(stored, dflash.DFLASH, drafter, dtype=dtype, shardings=shardings)
    return drafter.config, params


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
) -> None:
    """Writes a folder that transformers and servers load as a model of the target's family.

    The folder appears complete or not at all. With several processes, all of them must call this;
    only the first one writes.

    Args:
      folder: new, or an earlier export.
      config: shape of the target.
      params: its parameters; sharded arrays are gathered one at a time.
      dtype: type of the stored weights; None: `config.param_dtype`, which loses nothing.
      tokenizer_folder: folder of the tokenizer files to put next to the weights; its files also
        give the ids of special tokens.
      eos_token_ids: ids that end an answer; (): the tokenizer's.
      max_shard_bytes: weights beyond this are split into several files with an index.
      provenance: written as provenance.json.

    Raises:
      ValueError: a family that does not have such layers, parameters that do not fit `config`, or a
        folder that holds other files.
    """
    save_transformer(
        folder,
        config,
        params,
        family=target_family(config),
        dtype=dtype,
        tokenizer_folder=tokenizer_folder,
        eos_token_ids=eos_token_ids,
        max_shard_bytes=max_shard_bytes,
        provenance=provenance,
    )


def save_transformer(
    folder: str | os.PathLike[str],
    config: LanguageModelConfig,
    params: Mapping[str, Any],
    *,
    family: Family,
    dtype: Dtype | None = None,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    eos_token_ids: Sequence[int] = (),
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """`save_target` for any family whose config.json holds special ids: targets and denoisers."""
    dtype = dtype or config.param_dtype
    special_ids = _special_ids(tokenizer_folder)
    if eos_token_ids:
        special_ids["eos_token_id"] = [int(i) for i in eos_token_ids]
    write_folder(
        folder,
        params,
        family.layout(config, ()),
        dtype=dtype,
        documents={
            "config.json": family.to_json(config, dtype=dtype, special_ids=special_ids),
            "generation_config.json": {"do_sample": False, **special_ids},
        },
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
    """Writes a drafter in the format of z-lab's checkpoints.

    vLLM, SGLang and tpu-inference load this format.

    Args:
      folder: new, or an earlier export.
      config: shape of the drafter; what it leaves to the target is filled in.
      params: its parameters.
      target_config: the target it was trained for.
      dtype: type of the stored weights; None: `config.param_dtype`.
      tokenizer_folder: tokenizer files to put next to the weights.
      max_shard_bytes: weights beyond this are split into several files with an index.
      provenance: written as provenance.json.

    Raises:
      ValueError: a configuration that does not fit the target, parameters that do not fit the
        configuration, or a folder that holds other files.
    """
    dtype = dtype or config.param_dtype
    config = resolve_config(config, target=target_config)
    stored = dflash.StoredDrafter.of(config, target=target_config)
    write_folder(
        folder,
        params,
        dflash.layout(stored),
        dtype=dtype,
        documents={"config.json": dflash.to_json(config, target_config=target_config, dtype=dtype)},
        tokenizer_folder=tokenizer_folder,
        max_shard_bytes=max_shard_bytes,
        provenance=provenance,
    )


def write_folder(
    folder: str | os.PathLike[str],
    params: Mapping[str, Any],
    layout: Layout,
    *,
    dtype: Dtype,
    documents: Mapping[str, Mapping[str, Any]],
    tokenizer_folder: str | os.PathLike[str] | None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    provenance: Mapping[str, Any] | None,
) -> None:
    """Writes weights and documents into a folder, which appears complete or not at all.

    Raises:
      ValueError: an unknown dtype, parameters whose shapes are not the layout's, or a folder that
        holds other files.
    """
    conversion.check_dtype(dtype)
    messages = compare_shapes(nest_paths(layout.parameter_shapes), params)
    if messages:
        lines = "".join(f"\n  {line}" for line in messages)
        raise ValueError(f"The parameters are not those the configuration describes:{lines}")
    shapes = {**layout.tensor_shapes, **layout.zeros}
    item_bytes = NUMPY_DTYPES[dtype].itemsize
    stream = conversion.stored_tensors(params, layout.rows, zeros=layout.zeros, dtype=dtype)
    written = dict(documents)
    if provenance is not None:
        written["provenance.json"] = provenance
    if jax.process_index() == 0:
        with replaced_folder(folder, is_own=is_exported) as temporary:
            safetensors_io.write_tensors(
                temporary,
                stream,
                sizes={name: math.prod(shape) * item_bytes for name, shape in shapes.items()},
                max_shard_bytes=max_shard_bytes,
            )
            if tokenizer_folder is not None:
                _copy_tokenizer(user_path(tokenizer_folder), temporary)
            for name, document in written.items():
                text = json.dumps(document, indent=2, allow_nan=False)
                (temporary / name).write_text(text + "\n", encoding="utf-8")
    else:
        for _ in stream:  # Gathering is collective: other processes take part but write nothing.
            pass
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("jaxspec export")


def is_exported(name: str) -> bool:
    """Whether a file or folder with this name, in the folder of an export, belongs to it."""
    return name in EXPORT_FILES or (name.startswith("model") and name.endswith(".safetensors"))


def _copy_tokenizer(source: Path, folder: Path) -> None:
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise ValueError(
            f"No tokenizer in {source}: expected tokenizer.json or other tokenizer files."
        )
    for name in found:
        (folder / name).parent.mkdir(exist_ok=True)
        copy_file(source / name, folder / name)
    _keep_tokenizer_class(source, folder)


def _keep_tokenizer_class(source: Path, folder: Path) -> None:
    """Writes the tokenizer's class to tokenizer_config.json if only the config.json tells it.

    A GPT-2's folder leaves it to its config.json, but a drafter gets a different config.json.
    """
    stated = {}
    if (folder / "tokenizer_config.json").is_file():
        stated = config_reader.read_json(folder / "tokenizer_config.json")
    if stated.get("tokenizer_class") or not (source / "config.json").is_file():
        return
    family = family_of(config_reader.read_json(source / "config.json"))
    if family is not None and family.tokenizer_class:
        text = json.dumps({**stated, "tokenizer_class": family.tokenizer_class}, indent=2)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _special_ids(tokenizer_folder: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Those of bos_token_id, eos_token_id and pad_token_id that the tokenizer's files give."""
    if tokenizer_folder is None:
        return {}
    source = user_path(tokenizer_folder)
    if not ((source / "tokenizer_config.json").is_file() and (source / "tokenizer.json").is_file()):
        return {}
    names = config_reader.read_json(source / "tokenizer_config.json")
    tokenizer = config_reader.read_json(source / "tokenizer.json")
    added = tokenizer.get("added_tokens") or []
    try:
        ids = {str(token["content"]): int(token["id"]) for token in added}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"added_tokens of {source / 'tokenizer.json'} cannot be read: expected a list of "
            "objects with content and id."
        ) from error
    special_ids = {}
    for key in SPECIAL_TOKENS:
        token = names.get(key)
        content = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(content, str) and content in ids:
            special_ids[f"{key}_id"] = ids[content]
    return special_ids
