"""Qwen3 and Llama: targets, and denoisers with the same layers.

What the models here cannot compute is refused, never ignored: if a rotary rule or a window were
silently dropped, the model would look fine and be wrong. Sliding windows are read as Qwen3 in
transformers reads them: they count only with use_sliding_window, and if layer_types is absent, the
layers from max_window_layers on slide.

A transformer that fills in masks is stored like a target, with one more entry in config.json that
distinguishes it from a language model: ``"denoiser": {"mask_token_id": 3, "context": "causal"}``.

Letters in shapes, for one layer: V vocabulary, D width, F MLP width, C head width, QC query heads x
head width, RC key/value heads x head width.

>>> from_json(document, where="Qwen3-4B/config.json")  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, get_args

from jaxspec.checkpoints import bounds, key_maps
from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.checkpoints.families.family import Family, Layout
from jaxspec.checkpoints.key_maps import Row, under
from jaxspec.config import (
    Context,
    DrafterConfig,
    Dtype,
    Llama3RopeScaling,
    MaskedTransformerConfig,
    TransformerConfig,
)
from jaxspec.json_files import shown

DENOISER_ENTRY = "denoiser"
"""Entry of config.json that makes a transformer a denoiser."""

# fmt: off
BLOCK = (
    Row("layers.{i}.input_layernorm.weight", "layers/input_norm/scale", ("D",)),
    Row("layers.{i}.self_attn.q_proj.weight", "layers/attention/q/kernel", ("D", "QC"), True),
    Row("layers.{i}.self_attn.k_proj.weight", "layers/attention/k/kernel", ("D", "RC"), True),
    Row("layers.{i}.self_attn.v_proj.weight", "layers/attention/v/kernel", ("D", "RC"), True),
    Row("layers.{i}.self_attn.o_proj.weight", "layers/attention/o/kernel", ("QC", "D"), True),
    Row("layers.{i}.post_attention_layernorm.weight", "layers/post_norm/scale", ("D",)),
    Row("layers.{i}.mlp.gate_proj.weight", "layers/mlp/gate/kernel", ("D", "F"), True),
    Row("layers.{i}.mlp.up_proj.weight", "layers/mlp/up/kernel", ("D", "F"), True),
    Row("layers.{i}.mlp.down_proj.weight", "layers/mlp/down/kernel", ("F", "D"), True),
)
QK_NORM = (
    Row("layers.{i}.self_attn.q_norm.weight", "layers/attention/q_norm/scale", ("C",)),
    Row("layers.{i}.self_attn.k_norm.weight", "layers/attention/k_norm/scale", ("C",)),
)
ATTENTION_BIAS = (
    Row("layers.{i}.self_attn.q_proj.bias", "layers/attention/q/bias", ("QC",)),
    Row("layers.{i}.self_attn.k_proj.bias", "layers/attention/k/bias", ("RC",)),
    Row("layers.{i}.self_attn.v_proj.bias", "layers/attention/v/bias", ("RC",)),
)
EMBED = (Row("embed_tokens.weight", "embed/embedding", ("V", "D")),)
FINAL_NORM = (Row("norm.weight", "final_norm/scale", ("D",)),)
HEAD = (Row("lm_head.weight", "head/kernel", ("D", "V"), True),)
# fmt: on

OUTPUT_BIAS = "model.layers.{i}.self_attn.o_proj.bias"
"""A bias that transformers gives to every model with `attention_bias`; our layers have none. It is
written as zeros, and a folder in which it is not zero is refused."""
TIED_HEAD = "lm_head.weight"
"""Some folders with tied embeddings also store the head; it must equal the embedding."""
IGNORED = ("model.layers.{i}.self_attn.rotary_emb.inv_freq",)
"""A constant that old checkpoints contain: wavelengths."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What distinguishes one model type from another."""

    architecture: str
    """The class in transformers."""
    positions: int
    """What transformers assumes for a config.json without max_position_embeddings."""
    head_dim: int = 0
    """What it assumes for one without head_dim; 0: width / heads."""
    qk_norm: bool
    """Whether queries and keys have norms."""
    slides: bool
    """Whether layers may slide."""


KINDS = {
    "qwen3": Kind(
        architecture="Qwen3ForCausalLM", positions=32_768, head_dim=128, qk_norm=True, slides=True
    ),
    "llama": Kind(architecture="LlamaForCausalLM", positions=2_048, qk_norm=False, slides=False),
}
"""The model types, as `TransformerConfig.family` names them."""


def from_json(raw: Mapping[str, Any], *, where: str, family: str = "") -> TransformerConfig:
    """The configuration of a target.

    Args:
      raw: the content of config.json.
      where: what to call it in messages.
      family: one of `KINDS`; "": the one that the file names.

    Raises:
      ValueError: another model type, or features that the models here do not have; all at once.
    """
    family = family or str(raw.get("model_type"))
    if family not in KINDS:
        raise ValueError(
            f"{where}: model_type is {shown(raw.get('model_type'))}, expected "
            f"{' or '.join(map(repr, KINDS))}."
        )
    kind = KINDS[family]
    reader = ConfigReader(raw)
    hidden_size = reader.integer("hidden_size", largest=bounds.WIDTH)
    num_heads = reader.integer("num_attention_heads", largest=bounds.HEADS)
    num_layers = reader.integer("num_hidden_layers", largest=bounds.LAYERS)
    default_head_dim = kind.head_dim or max(1, hidden_size // num_heads)
    if raw.get("head_dim") is None and not kind.head_dim and hidden_size % num_heads:
        reader.problems.append(
            f"hidden_size: got {hidden_size} without head_dim, expected a multiple of "
            f"num_attention_heads ({num_heads})"
        )
    theta, scaling = reader.rope()
    reader.plain_layers()
    sliding = reader.sliding_layers(num_layers)
    if sliding and not kind.slides:
        reader.problems.append(
            f"sliding_window: got {sliding['sliding_window']} in a {family}, expected full "
            "attention in every layer, as transformers computes it"
        )
    dtype = reader.stored_dtype()
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": reader.integer("vocab_size", largest=bounds.VOCABULARY),
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": reader.integer("num_key_value_heads", num_heads, largest=bounds.HEADS),
        "head_dim": reader.integer("head_dim", default_head_dim, largest=bounds.HEAD_DIM),
        "intermediate_size": reader.integer("intermediate_size", largest=bounds.WIDTH),
        "rms_norm_eps": reader.number("rms_norm_eps", 1e-6, limits=bounds.EPSILON),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qk_norm": kind.qk_norm,
        "attention_bias": reader.flag("attention_bias"),
        **sliding,
        "tie_embeddings": reader.flag("tie_word_embeddings"),
        "max_position_embeddings": reader.integer(
            "max_position_embeddings", kind.positions, largest=bounds.POSITIONS
        ),
        "dtype": dtype,
        "param_dtype": dtype,
    }
    return reader.build(TransformerConfig, where=where, **fields)


def family_name(config: TransformerConfig) -> str:
    """The model type that a configuration is written as.

    Raises:
      ValueError: no such type, or layers that it does not have in transformers.
    """
    # Configurations of older runs do not name their family.
    family = config.family or ("qwen3" if config.qk_norm else "llama")
    if family not in KINDS:
        raise ValueError(
            f"The family of a TransformerConfig is {family!r}, expected "
            f"{' or '.join(map(repr, KINDS))}, or '' to choose by qk_norm."
        )
    kind = KINDS[family]
    if config.qk_norm != kind.qk_norm:
        raise ValueError(
            f"A {family} in transformers has {'' if kind.qk_norm else 'no '}query/key norms: got "
            f"family {family!r} with qk_norm {str(config.qk_norm).lower()}, expected qk_norm "
            f"{str(kind.qk_norm).lower()} or another family."
        )
    if config.windows and not kind.slides:
        raise ValueError(
            "transformers has no model with sliding layers and no query/key norms: got layer_types "
            f"{list(config.layer_types)} with qk_norm false, expected qk_norm true (a Qwen3) or "
            "full attention in every layer."
        )
    return family


def to_json(
    config: TransformerConfig, *, dtype: Dtype, special_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json of a target, which transformers reads as one of `KINDS`.

    Args:
      config: its shape. (transformers refuses a Llama whose width is not a multiple of its heads.)
      dtype: type of the stored weights.
      special_ids: bos_token_id, eos_token_id, pad_token_id where known.

    Raises:
      ValueError: see `family_name`.
    """
    family = family_name(config)
    return {
        "architectures": [KINDS[family].architecture],
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        # Written even if unknown: otherwise transformers falls back on ids 1 and 2 for a Llama.
        "bos_token_id": special_ids.get("bos_token_id"),
        "dtype": dtype,
        "eos_token_id": special_ids.get("eos_token_id"),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": family,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": special_ids.get("pad_token_id"),
        "rms_norm_eps": config.rms_norm_eps,
        **rope_to_json(config.rope_theta, config.rope_scaling),
        **(sliding_to_json(config) if config.windows else {}),
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def rope_to_json(theta: float, scaling: Llama3RopeScaling | None) -> dict[str, Any]:
    """Both spellings: most servers read the first two keys, transformers 5 the last one."""
    rule = {"rope_type": "llama3", **dataclasses.asdict(scaling)} if scaling else None
    return {
        "rope_theta": theta,
        "rope_scaling": rule,
        "rope_parameters": {**(rule or {"rope_type": "default"}), "rope_theta": theta},
    }


def sliding_to_json(config: TransformerConfig | DrafterConfig) -> dict[str, Any]:
    """Kinds of layers. max_window_layers is only for readers that do not know layer_types."""
    return {
        "layer_types": list(config.layer_types) or ["full_attention"] * config.num_layers,
        "max_window_layers": config.num_layers,
        "sliding_window": config.sliding_window or None,
        "use_sliding_window": config.sliding_window > 0,
    }


def layout(config: TransformerConfig, names: Collection[str] = ()) -> Layout:
    """The tensors of a target, or of a denoiser with the same layers."""
    del names
    rows = EMBED + BLOCK + (QK_NORM if config.qk_norm else ()) + FINAL_NORM
    rows = under("model.", rows + (ATTENTION_BIAS if config.attention_bias else ()))
    zeros: dict[str, tuple[int, ...]] = {}
    if config.attention_bias:
        biases = key_maps.tensor_names(OUTPUT_BIAS, num_layers=config.num_layers)
        zeros = dict.fromkeys(biases, (config.hidden_size,))
    return Layout(
        rows=rows if config.tie_embeddings else rows[:1] + HEAD + rows[1:],
        sizes=sizes(config),
        num_layers=config.num_layers,
        zeros=zeros,
        tied_head=TIED_HEAD if config.tie_embeddings else "",
        ignored=IGNORED,
    )


def sizes(config: TransformerConfig) -> dict[str, int]:
    """What the letters in shapes mean."""
    return {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "C": config.head_dim,
        "QC": config.num_heads * config.head_dim,
        "RC": config.num_kv_heads * config.head_dim,
    }


def denoiser_from_json(raw: Mapping[str, Any], *, where: str) -> MaskedTransformerConfig:
    """The configuration of a denoiser, or of a target that is to become one.

    Raises:
      ValueError: an entry that does not describe a denoiser, or a target that cannot be computed
        here.
    """
    target = from_json(raw, where=where)
    entry = raw.get(DENOISER_ENTRY, {})
    reader = ConfigReader(entry if isinstance(entry, Mapping) else {})
    mask_id = reader.raw.get("mask_token_id")
    if mask_id is not None:
        mask_id = reader.integer("mask_token_id", largest=bounds.VOCABULARY, smallest=0)
    block_length = reader.integer("block_length", 0, largest=bounds.BLOCK, smallest=0)
    context = reader.one_of("context", get_args(Context))
    if reader.problems or not isinstance(entry, Mapping):
        raise ValueError(
            f"{where}: {DENOISER_ENTRY!r} is {shown(entry)}, expected a mask_token_id from 0, a "
            f"context (one of {get_args(Context)}) and a block_length from 0 to {bounds.BLOCK}."
        )
    return masked(
        target, where=where, mask_token_id=mask_id, context=context, block_length=block_length
    )


def masked(
    target: TransformerConfig,
    *,
    where: str,
    mask_token_id: int | None = None,
    context: Context = "bidirectional",
    block_length: int = 0,
) -> MaskedTransformerConfig:
    """A target's shape as that of a denoiser.

    Args:
      target: its layers.
      where: what to call the file in messages.
      mask_token_id: see `MaskedTransformerConfig`, as for the others.
      context: what clean tokens before a block see.
      block_length: tokens per block.

    Raises:
      ValueError: fields that do not fit the target.
    """
    fields = {field.name: getattr(target, field.name) for field in dataclasses.fields(target)}
    return ConfigReader({}).build(
        MaskedTransformerConfig,
        where=where,
        **fields,
        mask_token_id=mask_token_id,
        context=context,
        block_length=block_length,
    )


def denoiser_to_json(
    config: MaskedTransformerConfig, *, dtype: Dtype, special_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json of a denoiser: that of a target, with the denoiser's entry."""
    entry = {
        "mask_token_id": config.mask_id,
        "context": config.context,
        "block_length": config.block_length,
    }
    document = to_json(config, dtype=dtype, special_ids=special_ids)
    return {**document, DENOISER_ENTRY: entry}


def _target(family: str, kind: Kind) -> Family:
    return Family(
        name=family,
        role="target",
        recognises=lambda raw: raw.get("model_type") == family,
        from_json=from_json,
        to_json=to_json,
        layout=layout,
        architectures=(kind.architecture,),
    )


DENOISER = Family(
    name="denoiser",
    role="denoiser",
    recognises=lambda raw: DENOISER_ENTRY in raw,
    from_json=denoiser_from_json,
    to_json=denoiser_to_json,
    layout=layout,
)
TARGETS = tuple(_target(family, kind) for family, kind in KINDS.items())
