"""GPT-NeoX: targets such as Pythia and GPT-NeoX-20B.

Letters in shapes: V vocabulary, D width, 3D queries, keys and values grouped by head, F MLP width.

>>> from_json(document, where="pythia-160m/config.json")  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from jaxspec.checkpoints import bounds
from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.checkpoints.families.family import Family, Layout
from jaxspec.checkpoints.families.features import rope_to_json
from jaxspec.checkpoints.key_maps import Row, under
from jaxspec.config import Dtype, GPTNeoXConfig
from jaxspec.json_files import shown

MODEL_TYPE, ARCHITECTURE = "gpt_neox", "GPTNeoXForCausalLM"

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""hidden_act -> `GPTNeoXConfig.activation`."""
ROTARY_PCT = 0.25
"""What transformers assumes for a file without it."""

# fmt: off
_ATTENTION = "layers.{i}.attention"
ROWS = (
    Row("embed_in.weight", "embed/embedding", ("V", "D")),
    Row("layers.{i}.input_layernorm.weight", "layers/input_norm/scale", ("D",)),
    Row("layers.{i}.input_layernorm.bias", "layers/input_norm/bias", ("D",)),
    Row("layers.{i}.post_attention_layernorm.weight", "layers/post_norm/scale", ("D",)),
    Row("layers.{i}.post_attention_layernorm.bias", "layers/post_norm/bias", ("D",)),
    Row(f"{_ATTENTION}.query_key_value.weight", "layers/attention/qkv/kernel", ("D", "3D"), True),
    Row(f"{_ATTENTION}.dense.weight", "layers/attention/o/kernel", ("D", "D"), True),
    Row("layers.{i}.mlp.dense_h_to_4h.weight", "layers/mlp/up/kernel", ("D", "F"), True),
    Row("layers.{i}.mlp.dense_h_to_4h.bias", "layers/mlp/up/bias", ("F",)),
    Row("layers.{i}.mlp.dense_4h_to_h.weight", "layers/mlp/down/kernel", ("F", "D"), True),
    Row("layers.{i}.mlp.dense_4h_to_h.bias", "layers/mlp/down/bias", ("D",)),
    Row("final_layer_norm.weight", "final_norm/scale", ("D",)),
    Row("final_layer_norm.bias", "final_norm/bias", ("D",)),
)
ATTENTION_BIASES = (
    Row(f"{_ATTENTION}.query_key_value.bias", "layers/attention/qkv/bias", ("3D",)),
    Row(f"{_ATTENTION}.dense.bias", "layers/attention/o/bias", ("D",)),
)
HEAD = (Row("embed_out.weight", "head/kernel", ("D", "V"), True),)
# fmt: on
PREFIX = "gpt_neox."
IGNORED = tuple(
    f"{PREFIX}{name}"
    for name in (
        *("layers.{i}.attention.bias", "layers.{i}.attention.masked_bias"),
        *("layers.{i}.attention.rotary_emb.inv_freq", "rotary_emb.inv_freq"),
    )
)
"""Constants that old checkpoints contain: causal masks, rotary wavelengths."""


def from_json(raw: Mapping[str, Any], *, where: str) -> GPTNeoXConfig:
    """The configuration of a target whose model_type is `MODEL_TYPE`.

    Args:
      raw: the content of config.json.
      where: what to call it in messages.

    Raises:
      ValueError: features that the models here do not have; all at once.
    """
    reader = ConfigReader(raw)
    width = reader.integer("hidden_size", largest=bounds.WIDTH)
    heads = reader.integer("num_attention_heads", largest=bounds.HEADS)
    if width % heads:
        reader.problems.append(
            f"hidden_size: got {width}, expected a multiple of num_attention_heads ({heads})"
        )
    reader.head_width("hidden_size", width, heads=heads)
    if raw.get("quantization_config"):
        reader.problems.append("quantization_config: expected none; use the unquantised weights")
    dtype = reader.stored_dtype()
    fields: dict[str, Any] = {
        "vocab_size": reader.integer("vocab_size", largest=bounds.VOCABULARY),
        "hidden_size": width,
        "num_layers": reader.integer("num_hidden_layers", largest=bounds.LAYERS),
        "num_heads": heads,
        "intermediate_size": reader.integer("intermediate_size", largest=bounds.WIDTH),
        "layer_norm_eps": reader.number("layer_norm_eps", 1e-5, limits=bounds.EPSILON),
        **_rotation(reader, max(1, width // heads)),
        "parallel_residual": reader.flag("use_parallel_residual", True),
        "attention_bias": reader.flag("attention_bias", True),
        "activation": ACTIVATIONS[reader.one_of("hidden_act", tuple(ACTIVATIONS))],
        "tie_embeddings": reader.flag("tie_word_embeddings"),
        "max_position_embeddings": reader.integer(
            "max_position_embeddings", 2048, largest=bounds.POSITIONS
        ),
        "dtype": dtype,
        "param_dtype": dtype,
    }
    return reader.build(GPTNeoXConfig, where=where, **fields)


def _rotation(reader: ConfigReader, head_dim: int) -> dict[str, Any]:
    """Rotated channels, base and scaling, by GPT-NeoX's own names or those of transformers 5."""
    sections = {name: dict(reader.section(name)) for name in ("rope_scaling", "rope_parameters")}
    stated = {
        "rotary_pct": reader.raw.get("rotary_pct"),
        **{
            f"{name}.partial_rotary_factor": section.pop("partial_rotary_factor", None)
            for name, section in sections.items()
        },
    }
    values = [value for value in stated.values() if value is not None]
    if any(value != values[0] for value in values):
        reader.problems.append(f"rotary_pct: got {shown(stated)}, expected the same in both places")
    pct = reader.number(
        "rotary_pct", ROTARY_PCT, limits=(0.0, 1.0), within={"rotary_pct": next(iter(values), None)}
    )
    channels = int(head_dim * pct)
    if channels < 2 or channels % 2:
        reader.problems.append(
            f"rotary_pct: got {pct:g}, which rotates {channels} of {head_dim} channels; expected "
            "an even number of them"
        )
        channels = 2
    # With these names, the rest is as in other families.
    common = ConfigReader({"rope_theta": reader.raw.get("rotary_emb_base"), **sections})
    theta, scaling = common.rope()
    reader.problems += common.problems
    return {"rotary_dim": channels, "rope_theta": theta, "rope_scaling": scaling}


def to_json(
    config: GPTNeoXConfig, *, dtype: Dtype, special_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json of a target, which transformers reads as a GPT-NeoX.

    Args:
      config: its shape.
      dtype: type of the stored weights.
      special_ids: bos_token_id, eos_token_id, pad_token_id where known.
    """
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    share = config.rotary_dim / config.head_dim
    if int(config.head_dim * share) < config.rotary_dim:  # It is read back like this.
        share = math.nextafter(share, 1.0)
    rope = rope_to_json(config.rope_theta, config.rope_scaling)
    return {
        "architectures": [ARCHITECTURE],
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        # Written even if unknown: otherwise transformers would fall back on ids of its own.
        "bos_token_id": special_ids.get("bos_token_id"),
        "dtype": dtype,
        "eos_token_id": special_ids.get("eos_token_id"),
        "hidden_act": activations[config.activation],
        "hidden_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": MODEL_TYPE,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": special_ids.get("pad_token_id"),
        # Both ways of saying it: transformers 5 reads rope_parameters.
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": share,
        "rope_scaling": rope["rope_scaling"],
        "rope_parameters": {"partial_rotary_factor": share, **rope["rope_parameters"]},
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_parallel_residual": config.parallel_residual,
        "vocab_size": config.vocab_size,
    }


def layout(config: GPTNeoXConfig, names: Collection[str] = ()) -> Layout:
    """The tensors of a target."""
    del names
    rows = under(PREFIX, ROWS + (ATTENTION_BIASES if config.attention_bias else ()))
    width = config.hidden_size
    return Layout(
        rows=rows if config.tie_embeddings else rows + HEAD,
        sizes={"V": config.vocab_size, "D": width, "3D": 3 * width, "F": config.intermediate_size},
        num_layers=config.num_layers,
        tied_head=HEAD[0].name if config.tie_embeddings else "",
        ignored=IGNORED,
    )


TARGET = Family(
    name=MODEL_TYPE,
    role="target",
    recognises=lambda raw: raw.get("model_type") == MODEL_TYPE,
    from_json=from_json,
    to_json=to_json,
    layout=layout,
    architectures=(ARCHITECTURE,),
    tokenizer_class="GPTNeoXTokenizer",
)
