"""LLaDA from and for folders of the released layout.

The layout is that of GSAI-ML/LLaDA-8B-Base and -Instruct on the Hub: config.json of model type
"llada", which names its fields as OLMo does, and the tensors that `LLADA_ROWS` lists. Every
difference is reported at once; nothing is executed, and the model's own Python files are not
looked at.

Dimension key of the shapes: V vocabulary, D width, F mlp width, QC query heads x head width,
RC key/value heads x head width.

>>> model = load_llada("LLaDA-8B-Instruct", dtype="bfloat16")
>>> logits_BSV = BidirectionalTransformer(model.config).apply({"params": model.params}, tokens_BS)
>>> save_llada("export", model.config, model.params, eos_id=model.eos_id)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxspec.checkpoints import config_reader, conversion, key_maps
from jaxspec.checkpoints.conversion import Shardings
from jaxspec.checkpoints.huggingface import write_folder
from jaxspec.checkpoints.key_maps import Row
from jaxspec.checkpoints.safetensors_io import DEFAULT_SHARD_BYTES, TensorFolder
from jaxspec.config import Dtype, MaskedTransformerConfig, TransformerConfig

MODEL_TYPE, ARCHITECTURE = "llada", "LLaDAModelLM"

# fmt: off
LLADA_ROWS = (
    Row("model.transformer.wte.weight", "embed/embedding", ("V", "D")),
    Row("model.transformer.blocks.{i}.attn_norm.weight", "layers/input_norm/scale", ("D",)),
    Row("model.transformer.blocks.{i}.q_proj.weight", "layers/attention/q/kernel",
        ("D", "QC"), True),
    Row("model.transformer.blocks.{i}.k_proj.weight", "layers/attention/k/kernel",
        ("D", "RC"), True),
    Row("model.transformer.blocks.{i}.v_proj.weight", "layers/attention/v/kernel",
        ("D", "RC"), True),
    Row("model.transformer.blocks.{i}.attn_out.weight", "layers/attention/o/kernel",
        ("QC", "D"), True),
    Row("model.transformer.blocks.{i}.ff_norm.weight", "layers/post_norm/scale", ("D",)),
    Row("model.transformer.blocks.{i}.ff_proj.weight", "layers/mlp/gate/kernel", ("D", "F"), True),
    Row("model.transformer.blocks.{i}.up_proj.weight", "layers/mlp/up/kernel", ("D", "F"), True),
    Row("model.transformer.blocks.{i}.ff_out.weight", "layers/mlp/down/kernel", ("F", "D"), True),
    Row("model.transformer.ln_f.weight", "final_norm/scale", ("D",)),
)
HEAD = (Row("model.transformer.ff_out.weight", "head/kernel", ("D", "V"), True),)
# fmt: on
"""`ff_out` is two things: the head, and within a block the MLP's last projection."""

PLAIN: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False, None),
    "attention_layer_norm": (False, None),
    "block_type": ("llama",),
    "include_bias": (False, None),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False, None),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "scale_logits": (False, None),
}
"""Fields that may hold only what the models here compute; the first value is what is written."""

FIELDS = {
    "d_model": "hidden_size",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
}
"""config.json -> `TransformerConfig`, integers."""
NUMBERS = {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0}
"""Both names are the same on both sides; the values are LLaDA's own defaults."""


class Llada(NamedTuple):
    """What a folder holds."""

    config: MaskedTransformerConfig
    params: dict[str, Any]
    """Of a `BidirectionalTransformer`, stacked over layers."""
    eos_id: int
    """Ends a text, and fills what is behind the end: it is the padding as well."""


def llada_rows(config: TransformerConfig) -> tuple[Row, ...]:
    """The table of a model: without a head of its own where embeddings are tied."""
    return LLADA_ROWS if config.tie_embeddings else LLADA_ROWS + HEAD


def is_llada(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder's config.json is that of a LLaDA."""
    return config_reader.read_json(Path(folder) / "config.json").get("model_type") == MODEL_TYPE


def read_llada(folder: str | os.PathLike[str]) -> tuple[MaskedTransformerConfig, int]:
    """Configuration and end of text of a folder; see `llada_from_json`."""
    path = Path(folder) / "config.json"
    return llada_from_json(config_reader.read_json(path), where=str(path))


def llada_from_json(raw: Mapping[str, Any], *, where: str) -> tuple[MaskedTransformerConfig, int]:
    """The configuration of a LLaDA, and the id that ends a text.

    Args:
      raw: the content of config.json; dropout rates and settings of training are not looked at.
      where: what to call it in messages.

    Raises:
      ValueError: another model type, or fields that are missing or make no model that can be
        computed here; all at once.
    """
    if raw.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{where}: model_type is {raw.get('model_type')!r}, expected {MODEL_TYPE!r}."
        )
    problems: list[str] = []

    def integer(key: str, default: Any = None, *, smallest: int = 1) -> int:
        value = raw.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            problems.append(f"{key}: got {value!r}, expected an integer from {smallest}")
            return 1
        return value

    for key, allowed in PLAIN.items():
        value = raw.get(key, allowed[0])
        if value not in allowed:
            problems.append(f"{key}: got {value!r}, expected {allowed[0]!r}")
    tied = raw.get("weight_tying", False)
    if not isinstance(tied, bool):
        problems.append(f"weight_tying: got {tied!r}, expected true or false")
    fields: dict[str, Any] = {ours: integer(key) for key, ours in FIELDS.items()}
    for key, default in NUMBERS.items():
        value = raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            problems.append(f"{key}: got {value!r}, expected a positive number")
        else:
            fields[key] = float(value)
    width, heads = fields["hidden_size"], fields["num_heads"]
    if width % heads:
        problems.append(f"d_model: got {width}, expected a multiple of n_heads ({heads})")
    fields["num_kv_heads"] = integer("n_kv_heads", heads)
    # The embedding may have more rows than the vocabulary, for round sizes.
    fields["vocab_size"] = integer("embedding_size", raw.get("vocab_size"))
    ids = {key: integer(key, smallest=0) for key in ("mask_token_id", "eos_token_id")}
    for key, value in ids.items():
        if value >= fields["vocab_size"]:
            problems.append(
                f"{key}: got {value}, expected an id below {fields['vocab_size']}, the rows of the "
                "embedding"
            )
    if not problems and ids["mask_token_id"] == ids["eos_token_id"]:
        problems.append(f"mask_token_id: got {ids['mask_token_id']}, which is eos_token_id as well")
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"{where} is not a model that jaxspec can compute:{lines}")
    try:
        config = MaskedTransformerConfig(
            **fields,
            head_dim=width // heads,
            qk_norm=False,
            tie_embeddings=tied,
            mask_token_id=ids["mask_token_id"],
        )
        return config, ids["eos_token_id"]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def llada_to_json(config: MaskedTransformerConfig, *, eos_id: int, dtype: Dtype) -> dict[str, Any]:
    """config.json of a LLaDA.

    Raises:
      ValueError: layers that LLaDA does not have, or an end of text that is no id of its own.
    """
    if not 0 <= eos_id < config.vocab_size or eos_id == config.mask_id:
        raise ValueError(
            f"eos_id must be an id below {config.vocab_size} that is not the mask's "
            f"({config.mask_id}): got {eos_id}."
        )
    wrong = [
        name
        for name, used in {
            "qk_norm": config.qk_norm,
            "attention_bias": config.attention_bias,
            "rope_scaling": config.rope_scaling is not None,
            "layer_types": bool(config.windows),
            "head_dim": config.head_dim * config.num_heads != config.hidden_size,
        }.items()
        if used
    ]
    if wrong:
        raise ValueError(
            f"LLaDA's config.json has no place for {', '.join(wrong)} of {config}. A model with "
            "Qwen3's or Llama's layers is written by save_target."
        )
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        **{key: allowed[0] for key, allowed in PLAIN.items()},
        **{key: getattr(config, ours) for key, ours in FIELDS.items()},
        **{key: getattr(config, key) for key in NUMBERS},
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "weight_tying": config.tie_embeddings,
        "mask_token_id": config.mask_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "torch_dtype": dtype,
    }


def load_llada(
    folder: str | os.PathLike[str], *, dtype: Dtype = "float32", shardings: Shardings = None
) -> Llada:
    """Configuration, parameters and end of text of a LLaDA.

    Args:
      folder: config.json and safetensors, one file or shards.
      dtype: of the parameters and of the computation, whatever the folder stores.
      shardings: a tree like the parameters, one sharding for all, or None: the default device.

    Raises:
      ValueError: no LLaDA, or tensors that are missing, unexpected or of another shape, all of them
        in one message.
    """
    config, eos_id = read_llada(folder)
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
    rows, sizes = llada_rows(config), key_maps.target_sizes(config)
    with TensorFolder(folder) as tensors:
        conversion.check_tensors(
            tensors,
            key_maps.tensor_shapes(rows, sizes, num_layers=config.num_layers),
            optional={},
        )
        params = conversion.read_params(
            tensors, rows, sizes, num_layers=config.num_layers, dtype=dtype, shardings=shardings
        )
    return Llada(config, params, eos_id)


def save_llada(
    folder: str | os.PathLike[str],
    config: MaskedTransformerConfig,
    params: Mapping[str, Any],
    *,
    eos_id: int,
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
      eos_id: the id that ends a text.
      dtype: of the stored weights; None: `config.param_dtype`, which loses nothing.
      tokenizer_folder: tokenizer files to put beside the weights.
      max_shard_bytes: weights beyond this are split into several files with an index.
      provenance: written as provenance.json.

    Raises:
      ValueError: layers that LLaDA does not have, parameters that do not fit `config`, or a folder
        that holds other files.
    """
    dtype = dtype or config.param_dtype
    write_folder(
        folder,
        params,
        llada_rows(config),
        key_maps.target_sizes(config),
        config.num_layers,
        dtype=dtype,
        zeros={},
        documents={"config.json": llada_to_json(config, eos_id=eos_id, dtype=dtype)},
        tokenizer_folder=tokenizer_folder,
        max_shard_bytes=max_shard_bytes,
        provenance=provenance,
    )
