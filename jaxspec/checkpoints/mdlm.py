"""Masked-diffusion models (MDLM's DiT) from and for folders of the released layout.

The layout is that of kuleshov-group/mdlm-owt on the Hub: config.json of model type "mdlm", and the
tensors that `MDLM_ROWS` lists. Every difference is reported at once; nothing is executed, and the
model's own Python files are not looked at.

Dimension key of the shapes: V vocabulary, D width, 2D, 3D, 6D multiples of it, F mlp width,
E conditioning width, W waves of the noise embedding.

>>> config, params = load_mdlm("mdlm-owt")
>>> save_mdlm("export", config, params)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from jaxspec.checkpoints import config_reader, conversion, key_maps
from jaxspec.checkpoints.conversion import Shardings
from jaxspec.checkpoints.huggingface import write_folder
from jaxspec.checkpoints.key_maps import Row
from jaxspec.checkpoints.safetensors_io import DEFAULT_SHARD_BYTES, TensorFolder
from jaxspec.config import Context, DiTConfig, Dtype
from jaxspec.models.dit import FREQUENCIES

MODEL_TYPE, ARCHITECTURE = "mdlm", "MDLM"

# fmt: off
MDLM_ROWS = (
    Row("backbone.vocab_embed.embedding", "embed/embedding", ("V", "D")),
    Row("backbone.sigma_map.mlp.0.weight", "noise/in/kernel", ("W", "E"), True),
    Row("backbone.sigma_map.mlp.0.bias", "noise/in/bias", ("E",)),
    Row("backbone.sigma_map.mlp.2.weight", "noise/out/kernel", ("E", "E"), True),
    Row("backbone.sigma_map.mlp.2.bias", "noise/out/bias", ("E",)),
    Row("backbone.blocks.{i}.norm1.weight", "layers/norm_1/scale", ("D",)),
    Row("backbone.blocks.{i}.attn_qkv.weight", "layers/qkv/kernel", ("D", "3D"), True),
    Row("backbone.blocks.{i}.attn_out.weight", "layers/o/kernel", ("D", "D"), True),
    Row("backbone.blocks.{i}.norm2.weight", "layers/norm_2/scale", ("D",)),
    Row("backbone.blocks.{i}.mlp.0.weight", "layers/up/kernel", ("D", "F"), True),
    Row("backbone.blocks.{i}.mlp.0.bias", "layers/up/bias", ("F",)),
    Row("backbone.blocks.{i}.mlp.2.weight", "layers/down/kernel", ("F", "D"), True),
    Row("backbone.blocks.{i}.mlp.2.bias", "layers/down/bias", ("D",)),
    Row("backbone.blocks.{i}.adaLN_modulation.weight", "layers/modulation/kernel",
        ("E", "6D"), True),
    Row("backbone.blocks.{i}.adaLN_modulation.bias", "layers/modulation/bias", ("6D",)),
    Row("backbone.output_layer.norm_final.weight", "final_norm/scale", ("D",)),
    Row("backbone.output_layer.adaLN_modulation.weight", "final_modulation/kernel",
        ("E", "2D"), True),
    Row("backbone.output_layer.adaLN_modulation.bias", "final_modulation/bias", ("2D",)),
    Row("backbone.output_layer.linear.weight", "head/kernel", ("D", "V"), True),
    Row("backbone.output_layer.linear.bias", "head/bias", ("V",)),
)
# fmt: on
"""Columns of qkv: queries, keys and values one after the other, heads within each. Chunks of the
modulation: shift, scale, gate of the attention, then of the MLP; shift and scale of the head."""

IGNORED = ("backbone.rotary_emb.inv_freq",)
"""A constant that is stored with the weights."""

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_dim": "hidden_size",
    "n_blocks": "num_layers",
    "n_heads": "num_heads",
    "cond_dim": "conditioning_size",
    "model_length": "max_position_embeddings",
}
"""config.json -> `DiTConfig`, integers."""


def mdlm_sizes(config: DiTConfig) -> dict[str, int]:
    """What the letters of the shapes mean."""
    width = config.hidden_size
    return {
        "V": config.vocab_size,
        "D": width,
        "2D": 2 * width,
        "3D": 3 * width,
        "6D": 6 * width,
        "F": config.intermediate_size,
        "E": config.conditioning_size,
        "W": FREQUENCIES,
    }


def mdlm_from_json(raw: Mapping[str, Any], *, where: str) -> DiTConfig:
    """The configuration of an MDLM.

    Args:
      raw: the content of config.json; `dropout` is not looked at. `mask_token_id` and `context`
        are jaxspec's own; released folders lack them.
      where: what to call it in messages.

    Raises:
      ValueError: another model type, or fields that are missing or make no model; all at once.
    """
    if raw.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{where}: model_type is {raw.get('model_type')!r}, expected {MODEL_TYPE!r}."
        )
    problems = []
    for key in FIELDS:
        value = raw.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"{key}: got {value!r}, expected a positive integer")
    conditioned = raw.get("time_conditioning", False)
    if not isinstance(conditioned, bool):
        problems.append(f"time_conditioning: got {conditioned!r}, expected true or false")
    mask_id = raw.get("mask_token_id")
    if isinstance(mask_id, bool) or not isinstance(mask_id, int | None):
        problems.append(f"mask_token_id: got {mask_id!r}, expected an integer or null")
    context = raw.get("context", "bidirectional")
    if context not in get_args(Context):
        problems.append(f"context: got {context!r}, expected one of {get_args(Context)}")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"{where} is not a model that jaxspec can compute:{lines}")
    fields = {ours: raw[key] for key, ours in FIELDS.items()}
    try:
        return DiTConfig(
            **fields, time_conditioning=conditioned, mask_token_id=mask_id, context=context
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def mdlm_to_json(config: DiTConfig, *, dtype: Dtype) -> dict[str, Any]:
    """config.json of an MDLM."""
    return {
        "architectures": [ARCHITECTURE],
        "context": config.context,
        "dropout": 0.0,
        "mask_token_id": config.mask_token_id,
        "model_type": MODEL_TYPE,
        "time_conditioning": config.time_conditioning,
        "torch_dtype": dtype,
        **{key: getattr(config, ours) for key, ours in FIELDS.items()},
    }


def read_mdlm(folder: str | os.PathLike[str]) -> DiTConfig:
    """The configuration of the MDLM in a folder.

    Raises:
      ValueError: no MDLM, or one that cannot be computed.
    """
    path = Path(folder) / "config.json"
    return mdlm_from_json(config_reader.read_json(path), where=str(path))


def is_mdlm(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder's config.json is that of an MDLM."""
    return config_reader.read_json(Path(folder) / "config.json").get("model_type") == MODEL_TYPE


def load_mdlm(
    folder: str | os.PathLike[str], *, dtype: Dtype = "float32", shardings: Shardings = None
) -> tuple[DiTConfig, dict[str, Any]]:
    """Configuration and parameters of a `jaxspec.models.dit.DiT`.

    Args:
      folder: config.json and safetensors, one file or shards.
      dtype: of the parameters and of the computation, whatever the folder stores.
      shardings: a tree like the parameters, one sharding for all, or None: the default device.

    Returns:
      The configuration, and parameters stacked over layers.

    Raises:
      ValueError: no MDLM, or tensors that are missing, unexpected or of another shape, all of them
        in one message.
    """
    config = dataclasses.replace(read_mdlm(folder), dtype=dtype, param_dtype=dtype)
    sizes = mdlm_sizes(config)
    with TensorFolder(folder, ignored=IGNORED) as tensors:
        conversion.check_tensors(
            tensors,
            key_maps.tensor_shapes(MDLM_ROWS, sizes, num_layers=config.num_layers),
            optional={},
        )
        params = conversion.read_params(
            tensors,
            MDLM_ROWS,
            sizes,
            num_layers=config.num_layers,
            dtype=dtype,
            shardings=shardings,
        )
    return config, params


def save_mdlm(
    folder: str | os.PathLike[str],
    config: DiTConfig,
    params: Mapping[str, Any],
    *,
    dtype: Dtype | None = None,
    tokenizer_folder: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder of the released layout, complete or not at all.

    Args:
      folder: new, or an earlier export.
      config: shape of the model.
      params: its parameters; sharded arrays are gathered one at a time.
      dtype: of the stored weights; None: `config.param_dtype`, which loses nothing.
      tokenizer_folder: its tokenizer files are copied.
      max_shard_bytes: weights beyond this are split into several files with an index.
      provenance: written as provenance.json.

    Raises:
      ValueError: parameters that do not fit `config`, or a folder that holds other files.
    """
    dtype = dtype or config.param_dtype
    write_folder(
        folder,
        params,
        MDLM_ROWS,
        mdlm_sizes(config),
        config.num_layers,
        dtype=dtype,
        zeros={},
        documents={"config.json": mdlm_to_json(config, dtype=dtype)},
        tokenizer_folder=tokenizer_folder,
        max_shard_bytes=max_shard_bytes,
        provenance=provenance,
    )
