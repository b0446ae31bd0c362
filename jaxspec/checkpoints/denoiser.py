"""Masked-diffusion language models of either kind, from and for folders.

MDLM and LLaDA lie in their released layouts (`jaxspec.checkpoints.mdlm` and `.llada`). Another
transformer that sees both ways lies as a target does, with one more entry in config.json that tells
it from a language model: ``"denoiser": {"mask_token_id": 3, "context": "causal"}``. Any target can
be made one: its weights are then what training starts from. SDAR (arXiv 2510.06303) is a Qwen3 in
shape and names of tensors, and block-causal.

>>> config, params = load_denoiser("runs/mdlm/export")
>>> save_denoiser("export", config, params)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jax

from jaxspec.checkpoints import config_reader
from jaxspec.checkpoints.config_json import SDAR_TYPE
from jaxspec.checkpoints.conversion import Shardings
from jaxspec.checkpoints.huggingface import load_target, read_config, save_target
from jaxspec.checkpoints.llada import is_llada, load_llada, read_llada
from jaxspec.checkpoints.mdlm import is_mdlm, load_mdlm, read_mdlm, save_mdlm
from jaxspec.config import Context, DiTConfig, Dtype, GPT2Config, MaskedTransformerConfig

KEY = "denoiser"
"""Entry of config.json."""
SDAR_MASK_ID, SDAR_BLOCK_LENGTH = 151_669, 4
"""Of the released SDAR models (arXiv 2510.06303), whose files need not say so."""

AnyDenoiserConfig = DiTConfig | MaskedTransformerConfig


def is_denoiser(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder holds a masked-diffusion language model, and no other kind."""
    if is_mdlm(folder) or is_llada(folder):
        return True
    raw = config_reader.read_json(Path(folder) / "config.json")
    return KEY in raw or raw.get("model_type") == SDAR_TYPE


def read_denoiser(folder: str | os.PathLike[str]) -> AnyDenoiserConfig:
    """The configuration of a denoiser, or of a target that is to become one.

    Raises:
      ValueError: no such model, or entries that make none.
    """
    if is_mdlm(folder):
        return read_mdlm(folder)
    if is_llada(folder):
        return read_llada(folder)[0]
    path = Path(folder) / "config.json"
    raw = config_reader.read_json(path)
    entry = _sdar_entry(raw) if raw.get("model_type") == SDAR_TYPE else raw.get(KEY, {})
    if not isinstance(entry, Mapping) or not (
        isinstance(entry.get("mask_token_id", 0), int)
        and isinstance(entry.get("block_length", 0), int)
        and entry.get("context", "bidirectional") in get_args(Context)
    ):
        raise ValueError(
            f"{path}: {KEY!r} is {entry!r}, expected an integer mask_token_id, a context, one of "
            f"{get_args(Context)}, and an integer block_length."
        )
    target = read_config(folder)
    if isinstance(target, GPT2Config):
        raise ValueError(
            f"{path}: a GPT-2 or GPT-Neo cannot be made a denoiser: expected a Qwen3 or Llama."
        )
    fields = {field.name: getattr(target, field.name) for field in dataclasses.fields(target)}
    try:
        return MaskedTransformerConfig(
            **fields,
            mask_token_id=entry.get("mask_token_id"),
            context=entry.get("context", "bidirectional"),
            block_length=entry.get("block_length", 0),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _sdar_entry(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What SDAR's config.json says of blocks, or what its released models were trained with."""
    return {
        "mask_token_id": raw.get("mask_token_id", SDAR_MASK_ID),
        "context": "block_causal",
        "block_length": raw.get("block_size", SDAR_BLOCK_LENGTH),
    }


def load_denoiser(
    folder: str | os.PathLike[str],
    *,
    dtype: Dtype = "float32",
    num_layers: int = 0,
    shardings: Shardings = None,
) -> tuple[AnyDenoiserConfig, dict[str, Any]]:
    """Configuration and parameters.

    Args:
      folder: of a denoiser, or of a target that is to become one.
      dtype: of the parameters and of the computation.
      num_layers: keep the first so many layers; 0: all.
      shardings: see `jaxspec.checkpoints.huggingface.load_target`.

    Raises:
      ValueError: no such model, tensors that do not fit, or more layers than there are.
    """
    config = dataclasses.replace(read_denoiser(folder), dtype=dtype, param_dtype=dtype)
    kept = keep_layers(config, num_layers)
    params: dict[str, Any]
    if isinstance(config, DiTConfig):
        _, params = load_mdlm(folder, dtype=dtype, shardings=shardings)
    elif is_llada(folder):
        params = load_llada(folder, dtype=dtype, shardings=shardings).params
    else:
        _, params = load_target(folder, dtype=dtype, shardings=shardings)
    if kept.num_layers < config.num_layers:
        params["layers"] = jax.tree.map(lambda leaf: leaf[: kept.num_layers], params["layers"])
    return kept, params


def keep_layers(config: AnyDenoiserConfig, num_layers: int) -> AnyDenoiserConfig:
    """The shape with its first layers alone; 0 keeps all.

    Raises:
      ValueError: more layers than there are.
    """
    if not num_layers:
        return config
    if num_layers > config.num_layers:
        raise ValueError(
            f"denoiser.num_layers is {num_layers}, but the model that training goes on from has "
            f"{config.num_layers} layers."
        )
    changes: dict[str, Any] = {"num_layers": num_layers}
    if isinstance(config, MaskedTransformerConfig) and config.layer_types:
        changes["layer_types"] = config.layer_types[:num_layers]
    return dataclasses.replace(config, **changes)


def save_denoiser(
    folder: str | os.PathLike[str],
    config: AnyDenoiserConfig,
    params: Mapping[str, Any],
    *,
    dtype: Dtype | None = None,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that `load_denoiser` reads, complete or not at all.

    Raises:
      ValueError: parameters that do not fit `config`, or a folder that holds other files.
    """
    if isinstance(config, DiTConfig):
        save_mdlm(
            folder,
            config,
            params,
            dtype=dtype,
            tokenizer_folder=tokenizer_folder,
            provenance=provenance,
        )
        return
    save_target(
        folder,
        config,
        params,
        dtype=dtype,
        tokenizer_folder=tokenizer_folder,
        provenance=provenance,
        more={
            KEY: {
                "mask_token_id": config.mask_id,
                "context": config.context,
                "block_length": config.block_length,
            }
        },
    )
