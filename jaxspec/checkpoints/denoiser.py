"""Reads and writes folders of masked-diffusion language models of any family.

MDLM, LLaDA and SDAR are read in their released layouts. MDLM is also written in it, and so is what
was trained from a LLaDA or an SDAR. Any other transformer that fills in masks is stored like a
target, with one more entry in config.json (`families.qwen_llama`). Any target with such layers can
become a denoiser: training then starts from its weights.

>>> config, params = load_denoiser("runs/mdlm/export")  # doctest: +SKIP
>>> save_denoiser("export", config, params)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax

from jaxspec.checkpoints.conversion import Shardings
from jaxspec.checkpoints.families import llada, mdlm, qwen_llama
from jaxspec.checkpoints.families.family import Family
from jaxspec.checkpoints.families.registry import (
    AnyDenoiserConfig,
    Folder,
    family_of,
    open_folder,
)
from jaxspec.checkpoints.huggingface import read_weights, save_transformer, write_folder
from jaxspec.checkpoints.safetensors_io import DEFAULT_SHARD_BYTES
from jaxspec.config import DiTConfig, Dtype, MaskedTransformerConfig

RUN_FIELDS = ("dtype", "param_dtype", "unroll_layers", "remat", "attention")
"""What a run chooses for a `MaskedTransformerConfig`; no folder stores it."""


def is_denoiser(folder: Folder) -> bool:
    """Whether the folder holds a masked-diffusion language model.

    Raises:
      ValueError: no config.json.
    """
    family = family_of(open_folder(folder).raw)
    return family is not None and family.role == "denoiser"


def read_denoiser(folder: Folder) -> AnyDenoiserConfig:
    """The configuration of a denoiser, or of a target that is to become one.

    Raises:
      ValueError: no such model, or entries that do not describe one.
    """
    return open_folder(folder).as_denoiser()


def load_denoiser(
    folder: Folder,
    *,
    dtype: Dtype = "float32",
    num_layers: int = 0,
    shardings: Shardings = None,
) -> tuple[AnyDenoiserConfig, dict[str, Any]]:
    """Configuration and parameters.

    Args:
      folder: folder of a denoiser, or of a target that is to become one.
      dtype: type of the parameters and of the computation.
      num_layers: keep only the first N layers; 0: all.
      shardings: see `jaxspec.checkpoints.huggingface.load_target`.

    Raises:
      ValueError: no such model, tensors that do not fit, or more layers than there are.
    """
    stored = open_folder(folder)
    config = dataclasses.replace(stored.as_denoiser(), dtype=dtype, param_dtype=dtype)
    kept = keep_layers(config, num_layers)
    family = stored.family if is_denoiser(stored) else qwen_llama.DENOISER
    params = read_weights(stored, family, config, dtype=dtype, shardings=shardings)
    if kept.num_layers < config.num_layers:
        params["layers"] = jax.tree.map(lambda leaf: leaf[: kept.num_layers], params["layers"])
    return kept, params


def keep_layers(config: AnyDenoiserConfig, num_layers: int) -> AnyDenoiserConfig:
    """The shape with only its first layers; 0 keeps all.

    Raises:
      ValueError: more layers than there are, or fewer than none; or a mixture of experts that also
        has dense layers.
    """
    if not num_layers or num_layers == config.num_layers:
        return config
    if not 0 < num_layers <= config.num_layers:
        raise ValueError(
            f"denoiser.num_layers is {num_layers}, but the model that training starts from has "
            f"{config.num_layers} layers: expected at most as many, or 0 for all of them."
        )
    changes: dict[str, Any] = {"num_layers": num_layers}
    if isinstance(config, MaskedTransformerConfig):
        kinds = config.layer_types[:num_layers]
        changes["layer_types"] = kinds
        changes["sliding_window"] = config.sliding_window if "sliding_attention" in kinds else 0
        changes["nope_layers"] = tuple(n for n in config.nope_layers if n < num_layers)
        if config.experts is not None and config.experts.dense_layers:
            raise ValueError(
                f"denoiser.num_layers is {num_layers}, but some layers of this mixture of experts "
                "are dense ones: only all of its layers can be kept (0)."
            )
    return dataclasses.replace(config, **changes)


def save_denoiser(
    folder: str | os.PathLike[str],
    config: AnyDenoiserConfig,
    params: Mapping[str, Any],
    *,
    dtype: Dtype | None = None,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    provenance: Mapping[str, Any] | None = None,
    start: Folder | None = None,
) -> None:
    """Writes a folder that `load_denoiser` reads; it appears complete or not at all.

    Args:
      folder: new, or an earlier export.
      config: shape of the denoiser.
      params: its parameters.
      dtype: type of the stored weights; None: `config.param_dtype`.
      tokenizer_folder: tokenizer files to put next to the weights.
      max_shard_bytes: weights beyond this are split into several files with an index.
      provenance: written as provenance.json.
      start: the model that training started from. If it is a LLaDA or an SDAR whose config.json can
        describe `config`, the folder has its layout.

    Raises:
      ValueError: parameters that do not fit `config`, or a folder that holds other files.
    """
    if isinstance(config, DiTConfig):
        dtype = dtype or config.param_dtype
        write_folder(
            folder,
            params,
            mdlm.layout(config),
            dtype=dtype,
            documents={"config.json": mdlm.to_json(config, dtype=dtype)},
            tokenizer_folder=tokenizer_folder,
            max_shard_bytes=max_shard_bytes,
            provenance=provenance,
        )
        return
    save_transformer(
        folder,
        config,
        params,
        family=_family_of_start(start, config) or qwen_llama.DENOISER,
        dtype=dtype,
        tokenizer_folder=tokenizer_folder,
        max_shard_bytes=max_shard_bytes,
        provenance=provenance,
    )


def _family_of_start(start: Folder | None, config: MaskedTransformerConfig) -> Family | None:
    """The released family to write `config` as; None: none can describe it.

    Its config.json is that of the start, with what training may have changed.
    """
    stored = None if start is None else open_folder(start)
    if stored is None or family_of(stored.raw) not in (llada.LLADA, llada.SDAR):
        return None
    family = stored.family

    def to_json(config: MaskedTransformerConfig, *, dtype: Dtype, **ids: Any) -> dict[str, Any]:
        del ids  # The start names its own.
        # Another name of torch_dtype, since transformers 5.
        renamed = {"dtype": dtype} if "dtype" in stored.raw else {}
        return {**stored.raw, **llada.trained(config, family, dtype=dtype), **renamed}

    try:
        described = family.from_json(to_json(config, dtype="float32"), where=stored.where)
    except ValueError:
        return None
    run = {name: getattr(described, name) for name in RUN_FIELDS}
    if dataclasses.replace(config, **run) != described:
        return None
    return dataclasses.replace(family, to_json=to_json)
