"""Qwen, Llama and their relatives (`kinds`): targets, and denoisers with the same layers.

What the models here cannot compute is refused, never ignored: if a rotary rule or a window were
silently dropped, the model would look fine and be wrong. A configuration is written only if reading
it again gives the same one: a family whose transformers code computes something else is refused.

A transformer that fills in masks is stored like a target, with one more entry in config.json that
distinguishes it from a language model: ``"denoiser": {"mask_token_id": 3, "context": "causal"}``.

>>> from_json(document, where="Qwen3-4B/config.json")  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, get_args

from jaxspec.checkpoints import bounds
from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.checkpoints.families import tensors
from jaxspec.checkpoints.families.family import Family, Layout
from jaxspec.checkpoints.families.features import Shape
from jaxspec.checkpoints.families.features import rope_to_json as rope_to_json
from jaxspec.checkpoints.families.features import sliding_to_json as sliding_to_json
from jaxspec.checkpoints.families.kinds import KINDS as KINDS
from jaxspec.checkpoints.families.kinds import Kind
from jaxspec.checkpoints.families.tensors import BLOCK as BLOCK
from jaxspec.checkpoints.families.tensors import FINAL_NORM as FINAL_NORM
from jaxspec.checkpoints.families.tensors import QK_NORM as QK_NORM
from jaxspec.checkpoints.families.tensors import sizes as sizes
from jaxspec.config import Context, Dtype, MaskedTransformerConfig, TransformerConfig
from jaxspec.json_files import shown

DENOISER_ARCHITECTURE = "JaxspecMaskedDenoiser"
"""What no other program takes for a model that it knows."""
DENOISER_ENTRY = "denoiser"
"""Entry of config.json that makes a transformer a denoiser."""
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
"""Our names of activations, and those of transformers."""


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
    head_dim = reader.integer("head_dim", default_head_dim, largest=bounds.HEAD_DIM)
    positions = reader.integer("max_position_embeddings", kind.positions, largest=bounds.POSITIONS)
    theta, scaling = reader.rope_rule(
        types=kind.rope_types,
        theta=kind.theta,
        positions=positions,
        part=kind.rope_part,
        partial=kind.partial_rotary,
    )
    activation = ACTIVATIONS[kind.fixed.get("activation", "silu")]
    reader.plain_layers(key=kind.activation_key, activation=activation)
    dtype = reader.stored_dtype()
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": reader.integer("vocab_size", largest=bounds.VOCABULARY),
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": reader.integer("num_key_value_heads", num_heads, largest=bounds.HEADS),
        "head_dim": head_dim,
        "intermediate_size": reader.integer("intermediate_size", largest=bounds.WIDTH),
        "rms_norm_eps": reader.number("rms_norm_eps", kind.eps, limits=bounds.EPSILON),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "attention_bias": (
            reader.flag("attention_bias") if kind.bias == "stated" else kind.bias == "always"
        ),
        "tie_embeddings": reader.flag("tie_word_embeddings", kind.tied),
        "max_position_embeddings": positions,
        "dtype": dtype,
        "param_dtype": dtype,
        **kind.fixed,
    }
    for feature in (kind.sliding, *kind.more):
        fields |= feature.read(reader, Shape(num_layers=num_layers, head_dim=head_dim))
    return reader.build(TransformerConfig, where=where, **fields)


def multimodal_from_json(raw: Mapping[str, Any], *, where: str) -> TransformerConfig:
    """The text model of a Gemma 3 that also reads images; images cannot be given to it here.

    Raises:
      ValueError: see `from_json`.
    """
    text = ConfigReader(raw).section("text_config")
    if text.get("model_type") != "gemma3_text":
        raise ValueError(
            f"{where}: text_config.model_type is {shown(text.get('model_type'))}, expected "
            "'gemma3_text'."
        )
    outer = ("dtype", "torch_dtype", "tie_word_embeddings")
    stated = {key: raw[key] for key in outer if raw.get(key) is not None}
    return from_json({**_GEMMA3_SIZES, **stated, **text}, where=f"{where}, text_config")


_GEMMA3_SIZES = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""What transformers assumes: the published files of larger Gemma 3 leave sizes out."""


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
    wrong = unlike(config, family)
    if wrong:
        differences = "; ".join(
            f"{name}: got {getattr(config, name)!r}, expected {value!r}"
            for name, value in wrong.items()
        )
        raise ValueError(
            f"transformers does not have a {family} of this shape ({differences}): choose another "
            "family, or the expected settings."
        )
    return family


def unlike(config: TransformerConfig, family: str) -> dict[str, Any]:
    """Fields of a configuration that a family cannot have, with the values that it would have.

    Raises:
      ValueError: numbers that are not read from any config.json.
    """
    if not config.windows:  # Full attention in every layer need not be spelt out.
        config = dataclasses.replace(config, layer_types=())
    document = _document(config, family, dtype=config.param_dtype, special_ids={})
    read = from_json(document, where=f"A {family} of this shape")
    return {
        field.name: getattr(read, field.name)
        for field in dataclasses.fields(read)
        if field.name not in _HOW_IT_RUNS
        and getattr(config, field.name) != getattr(read, field.name)
    }


_HOW_IT_RUNS = ("family", "dtype", "param_dtype", "unroll_layers", "remat", "attention")
"""Fields of a configuration that config.json does not hold."""


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
    return _document(config, family_name(config), dtype=dtype, special_ids=special_ids)


def _document(
    config: TransformerConfig, family: str, *, dtype: Dtype, special_ids: Mapping[str, Any]
) -> dict[str, Any]:
    kind = KINDS[family]
    document = {
        "architectures": [kind.architecture],
        **({"attention_bias": config.attention_bias} if kind.bias == "stated" else {}),
        "attention_dropout": 0.0,
        # Written even if unknown: otherwise transformers falls back on ids 1 and 2 for a Llama.
        "bos_token_id": special_ids.get("bos_token_id"),
        "dtype": dtype,
        "eos_token_id": special_ids.get("eos_token_id"),
        "head_dim": config.head_dim,
        kind.activation_key: ACTIVATIONS[config.activation],
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
        **rope_to_json(config.rope_theta, config.rope_scaling, type_key=kind.rope_type_key),
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    for feature in (kind.sliding, *kind.more):
        document |= feature.write(config)
    return document


def layout(config: TransformerConfig, names: Collection[str] = ()) -> Layout:
    """The tensors of a target, or of a denoiser with the same layers."""
    kind = KINDS[config.family or ("qwen3" if config.qk_norm else "llama")]
    return tensors.layout(
        config, names, output_bias=config.attention_bias and kind.bias == "stated"
    )


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
    """config.json of a denoiser: that of a target, with the denoiser's entry.

    Its architecture has a name of its own: servers that know the target's would read it as a causal
    language model.
    """
    entry = {
        "mask_token_id": config.mask_id,
        "context": config.context,
        "block_length": config.block_length,
    }
    document = to_json(config, dtype=dtype, special_ids=special_ids)
    return {**document, "architectures": [DENOISER_ARCHITECTURE], DENOISER_ENTRY: entry}


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
TARGETS = (
    *(_target(family, kind) for family, kind in KINDS.items()),
    Family(
        name="gemma3",
        role="target",
        recognises=lambda raw: raw.get("model_type") == "gemma3",
        from_json=multimodal_from_json,
        to_json=to_json,
        layout=layout,
        architectures=("Gemma3ForConditionalGeneration",),
    ),
)
