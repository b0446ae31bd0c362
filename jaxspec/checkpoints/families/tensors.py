"""Tensors of a transformer in a Hugging Face folder, and where each of them goes.

Letters in shapes, for one layer: V vocabulary, D width, F MLP width, C head width, QC query heads x
head width, RC key/value heads x head width; QRC and 2F are the outputs of fused matrices, J is
experts and JF their width.

>>> layout(TransformerConfig(), output_bias=False).rows[0].name
'model.embed_tokens.weight'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from jaxspec.checkpoints import key_maps
from jaxspec.checkpoints.families.family import Layout
from jaxspec.checkpoints.key_maps import Row, under
from jaxspec.config import TransformerConfig


def _in_layer(name: str, path: str, shape: tuple[str, ...], transpose: bool = False) -> Row:
    """A row of each layer."""
    return Row(f"layers.{{i}}.{name}", f"layers/{path}", shape, transpose)


# fmt: off
Q_K_V = (
    _in_layer("self_attn.q_proj.weight", "attention/q/kernel", ("D", "QC"), True),
    _in_layer("self_attn.k_proj.weight", "attention/k/kernel", ("D", "RC"), True),
    _in_layer("self_attn.v_proj.weight", "attention/v/kernel", ("D", "RC"), True),
)
QKV = (_in_layer("self_attn.qkv_proj.weight", "attention/qkv/kernel", ("D", "QRC"), True),)
OUTPUT = (_in_layer("self_attn.o_proj.weight", "attention/o/kernel", ("QC", "D"), True),)
QK_NORM = (
    _in_layer("self_attn.q_norm.weight", "attention/q_norm/scale", ("C",)),
    _in_layer("self_attn.k_norm.weight", "attention/k_norm/scale", ("C",)),
)
QK_NORM_WHOLE = (
    _in_layer("self_attn.q_norm.weight", "attention/q_norm/scale", ("QC",)),
    _in_layer("self_attn.k_norm.weight", "attention/k_norm/scale", ("RC",)),
)
ATTENTION_BIAS = (
    _in_layer("self_attn.q_proj.bias", "attention/q/bias", ("QC",)),
    _in_layer("self_attn.k_proj.bias", "attention/k/bias", ("RC",)),
    _in_layer("self_attn.v_proj.bias", "attention/v/bias", ("RC",)),
)
GATE_UP = (
    _in_layer("mlp.gate_proj.weight", "mlp/gate/kernel", ("D", "F"), True),
    _in_layer("mlp.up_proj.weight", "mlp/up/kernel", ("D", "F"), True),
)
GATE_UP_FUSED = (
    _in_layer("mlp.gate_up_proj.weight", "mlp/gate_up/kernel", ("D", "2F"), True),
)
DOWN = (_in_layer("mlp.down_proj.weight", "mlp/down/kernel", ("F", "D"), True),)
EXPERTS = (
    _in_layer("mlp.gate.weight", "experts/router/kernel", ("D", "J"), True),
    _in_layer("mlp.experts.{e}.gate_proj.weight", "experts/gate/kernel", ("J", "D", "JF"), True),
    _in_layer("mlp.experts.{e}.up_proj.weight", "experts/up/kernel", ("J", "D", "JF"), True),
    _in_layer("mlp.experts.{e}.down_proj.weight", "experts/down/kernel", ("J", "JF", "D"), True),
)
NORMS = {
    "before": (
        _in_layer("input_layernorm.weight", "input_norm/scale", ("D",)),
        _in_layer("post_attention_layernorm.weight", "post_norm/scale", ("D",)),
    ),
    "after": (
        _in_layer("post_attention_layernorm.weight", "attention_output_norm/scale", ("D",)),
        _in_layer("post_feedforward_layernorm.weight", "mlp_output_norm/scale", ("D",)),
    ),
    "around": (
        _in_layer("input_layernorm.weight", "input_norm/scale", ("D",)),
        _in_layer("post_attention_layernorm.weight", "attention_output_norm/scale", ("D",)),
        _in_layer("pre_feedforward_layernorm.weight", "post_norm/scale", ("D",)),
        _in_layer("post_feedforward_layernorm.weight", "mlp_output_norm/scale", ("D",)),
    ),
}
EMBED = (Row("embed_tokens.weight", "embed/embedding", ("V", "D")),)
FINAL_NORM = (Row("norm.weight", "final_norm/scale", ("D",)),)
HEAD = (Row("lm_head.weight", "head/kernel", ("D", "V"), True),)
# fmt: on
BLOCK = (NORMS["before"][0], *Q_K_V, *OUTPUT, NORMS["before"][1], *GATE_UP, *DOWN)
"""A layer of Qwen3 or Llama, without norms of queries and keys."""

OUTPUT_BIAS = "model.layers.{i}.self_attn.o_proj.bias"
"""A bias that transformers gives to most models with `attention_bias`; our layers have none. It is
written as zeros, and a folder in which it is not zero is refused."""
TIED_HEAD = "lm_head.weight"
"""Some folders with tied embeddings also store the head; it must equal the embedding."""
IGNORED = ("model.layers.{i}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
"""A constant that some checkpoints contain: wavelengths."""
MULTIMODAL = "language_model."
"""What stands before the names of a text model's tensors in the folder of one that reads images."""
IMAGES = ("vision_tower.*", "multi_modal_projector.*")
"""The other tensors of such a folder."""


def layout(config: TransformerConfig, names: Collection[str] = (), *, output_bias: bool) -> Layout:
    """The tensors of a target, or of a denoiser with the same layers.

    Args:
      config: its shape.
      names: of the tensors in the folder, which may be that of a model that reads images.
      output_bias: whether the family has `OUTPUT_BIAS`.
    """
    rows = EMBED + _block(config)
    if config.qk_norm:
        rows += QK_NORM_WHOLE if config.qk_norm_whole else QK_NORM
    rows = under("model.", rows + FINAL_NORM + (ATTENTION_BIAS if config.attention_bias else ()))
    rows = rows if config.tie_embeddings else rows[:1] + HEAD + rows[1:]
    prefix = MULTIMODAL if any(name.startswith(MULTIMODAL) for name in names) else ""
    zeros: dict[str, tuple[int, ...]] = {}
    if output_bias:
        biases = key_maps.tensor_names(prefix + OUTPUT_BIAS, num_layers=config.num_layers)
        zeros = dict.fromkeys(biases, (config.hidden_size,))
    return Layout(
        rows=under(prefix, rows),
        sizes=sizes(config),
        num_layers=config.num_layers,
        zeros=zeros,
        tied_head=prefix + TIED_HEAD if config.tie_embeddings else "",
        ignored=IGNORED + (IMAGES if config.family == "gemma3_text" else ()),
    )


def _block(config: TransformerConfig) -> tuple[Row, ...]:
    """The rows of a layer, but for biases and the norms of queries and keys."""
    norms, fused = NORMS[config.norms], config.fused_projections
    dense = config.dense_layers
    sparse = tuple(i for i in range(config.num_layers) if i not in dense)
    mlp: tuple[Row, ...] = ()
    if dense:
        mlp += _only((GATE_UP_FUSED if fused else GATE_UP) + DOWN, dense if sparse else None)
    if sparse:
        mlp += _only(EXPERTS, sparse if dense else None)
    return norms[:1] + (QKV if fused else Q_K_V) + OUTPUT + norms[1:] + mlp


def _only(rows: tuple[Row, ...], layers: tuple[int, ...] | None) -> tuple[Row, ...]:
    """The rows of tensors that only these layers have; None: all layers."""
    return tuple(dataclasses.replace(row, layers=layers) for row in rows)


def sizes(config: TransformerConfig) -> dict[str, int]:
    """What the letters in shapes mean."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    letters = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "2F": 2 * config.intermediate_size,
        "C": config.head_dim,
        "QC": queries,
        "RC": keys,
        "QRC": queries + 2 * keys,
    }
    if config.experts is not None:
        letters |= {"J": config.experts.num_experts, "JF": config.experts.width}
    return letters
