"""Hugging Face's config.json against jaxspec's configurations, both ways.

What the models here cannot compute is refused, never passed over: a rotary rule or a window that
is silently dropped gives a model that looks fine and is wrong. Sliding windows are read as
transformers' Qwen3 reads them: they count only with use_sliding_window, and where layer_types is
absent the layers from max_window_layers on slide.

>>> target_from_json({"model_type": "qwen3", ...}, where="Qwen3-4B/config.json")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxspec.checkpoints import gpt2_json
from jaxspec.checkpoints.config_reader import ConfigReader, stored_dtype
from jaxspec.config import (
    DrafterConfig,
    Dtype,
    GPT2Config,
    LanguageModelConfig,
    Llama3RopeScaling,
    TransformerConfig,
)
from jaxspec.models.dflash import default_layer_ids

MODEL_TYPES = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    **gpt2_json.MODEL_TYPES,
}
SDAR_TYPE = "sdar"
"""A Qwen3 in shape; what else it is says `jaxspec.checkpoints.denoiser`."""
DEFAULT_POSITIONS = {"qwen3": 32_768, "llama": 2_048}
QWEN3_HEAD_DIM = 128
"""What transformers assumes for a Qwen3 without head_dim; for a Llama it is width / heads."""


def target_from_json(raw: Mapping[str, Any], *, where: str) -> LanguageModelConfig:
    """The configuration of a target.

    Args:
      raw: the content of config.json.
      where: what to call it in messages.

    Raises:
      ValueError: another family, or features that the models here do not have; all at once.
    """
    kind = raw.get("model_type")
    if kind == SDAR_TYPE:
        kind = "qwen3"
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"{where}: model_type is {kind!r}, expected {' or '.join(map(repr, MODEL_TYPES))}."
        )
    if kind in gpt2_json.MODEL_TYPES:
        return gpt2_json.target_from_json(raw, where=where)
    reader = ConfigReader(raw)
    hidden_size, num_heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    num_layers = reader.integer("num_hidden_layers")
    theta, scaling = reader.rope()
    reader.plain_layers()
    sliding = reader.sliding_layers(num_layers)
    if sliding and kind != "qwen3":
        reader.problems.append(
            f"sliding_window: got {sliding['sliding_window']} in a {kind}, expected full attention "
            "in every layer, as transformers computes it"
        )
    dtype = stored_dtype(raw)
    fields: dict[str, Any] = {
        "vocab_size": reader.integer("vocab_size"),
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": reader.integer("num_key_value_heads", num_heads),
        "head_dim": reader.integer(
            "head_dim", QWEN3_HEAD_DIM if kind == "qwen3" else max(1, hidden_size // num_heads)
        ),
        "intermediate_size": reader.integer("intermediate_size"),
        "rms_norm_eps": reader.number("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qk_norm": kind == "qwen3",
        "attention_bias": reader.flag("attention_bias"),
        **sliding,
        "tie_embeddings": reader.flag("tie_word_embeddings"),
        "max_position_embeddings": reader.integer(
            "max_position_embeddings", DEFAULT_POSITIONS[str(kind)]
        ),
        "dtype": dtype,
        "param_dtype": dtype,
    }
    reader.raise_problems(where)
    try:
        return TransformerConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def target_to_json(
    config: LanguageModelConfig, *, dtype: Dtype, special_ids: Mapping[str, Any]
) -> dict[str, Any]:
    """config.json of a target, which transformers reads as one of `MODEL_TYPES`.

    Args:
      config: a `TransformerConfig` with query/key norms is a Qwen3, one without a Llama.
        (transformers refuses a Llama whose width is no multiple of its heads.)
      dtype: of the stored weights.
      special_ids: bos_token_id, eos_token_id, pad_token_id where known.

    Raises:
      ValueError: sliding layers in a Llama, for which transformers has no code.
    """
    if isinstance(config, GPT2Config):
        return gpt2_json.target_to_json(config, dtype=dtype, special_ids=special_ids)
    kind = "qwen3" if config.qk_norm else "llama"
    if config.windows and kind != "qwen3":
        raise ValueError(
            "A target with sliding layers and no query/key norms has no place in transformers: got "
            f"layer_types {list(config.layer_types)} with qk_norm false, expected qk_norm true (a "
            "Qwen3) or full attention in every layer."
        )
    return {
        "architectures": [MODEL_TYPES[kind]],
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        # Written even when unknown: transformers would fall back on ids 1 and 2 for a Llama.
        "bos_token_id": special_ids.get("bos_token_id"),
        "dtype": dtype,
        "eos_token_id": special_ids.get("eos_token_id"),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": kind,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": special_ids.get("pad_token_id"),
        "rms_norm_eps": config.rms_norm_eps,
        **_rope_to_json(config.rope_theta, config.rope_scaling),
        **(_sliding_to_json(config) if config.windows else {}),
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def _rope_to_json(theta: float, scaling: Llama3RopeScaling | None) -> dict[str, Any]:
    """Both spellings: most servers read the first two keys, transformers 5 the last one."""
    rule = {"rope_type": "llama3", **dataclasses.asdict(scaling)} if scaling else None
    return {
        "rope_theta": theta,
        "rope_scaling": rule,
        "rope_parameters": {**(rule or {"rope_type": "default"}), "rope_theta": theta},
    }


def _sliding_to_json(config: TransformerConfig | DrafterConfig) -> dict[str, Any]:
    """Kinds of layers. max_window_layers counts only for readers that know no layer_types."""
    return {
        "layer_types": list(config.layer_types) or ["full_attention"] * config.num_layers,
        "max_window_layers": config.num_layers,
        "sliding_window": config.sliding_window or None,
        "use_sliding_window": config.sliding_window > 0,
    }


@dataclasses.dataclass(frozen=True)
class StoredDrafter:
    """What config.json of a drafter says, also about the target it belongs to."""

    config: DrafterConfig
    hidden_size: int
    vocab_size: int
    num_target_layers: int | None
    """None where the file does not say (speculators format)."""
    is_speculators: bool


def drafter_from_json(raw: Mapping[str, Any], *, where: str) -> StoredDrafter:
    """The configuration of a DFlash drafter, in z-lab's format or in speculators'.

    Args:
      raw: the content of config.json.
      where: what to call it in messages.

    Raises:
      ValueError: not a DFlash drafter, or features that the drafter here does not have.
    """
    is_speculators = "speculators_model_type" in raw
    if is_speculators:
        raw, problems = _from_speculators(raw)
    else:
        problems = []
    reader = ConfigReader(raw)
    reader.problems += problems
    special = reader.section("dflash_config")
    architectures = raw.get("architectures") or []
    if not special and "DFlashDraftModel" not in architectures:
        raise ValueError(
            f"{where} describes no DFlash drafter: got architectures {architectures} and no "
            "dflash_config, expected ['DFlashDraftModel'] with one."
        )
    if special.get("projector_type", "dflash") != "dflash":
        reader.problems.append(
            f"projector_type: got {special['projector_type']!r}, expected 'dflash'"
        )
    if special.get("shift_label"):
        reader.problems.append("shift_label: got true, expected false (output k predicts slot k)")
    num_layers = reader.integer("num_hidden_layers")
    theta, scaling = reader.rope()
    if scaling is not None:
        reader.problems.append("rope_type: got 'llama3', expected 'default' in a drafter")
    reader.plain_layers()
    if reader.flag("attention_bias"):
        reader.problems.append("attention_bias: got true, expected false")
    num_target_layers = raw.get("num_target_layers", special.get("num_target_layers"))
    layer_ids = special.get("target_layer_ids", raw.get("target_layer_ids"))
    if layer_ids is None and isinstance(num_target_layers, int):
        layer_ids = default_layer_ids(num_target_layers, num_layers)
    hidden_size, num_heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    mask = special.get("mask_token_id", raw.get("mask_token_id"))
    if mask is not None and (isinstance(mask, bool) or not isinstance(mask, int)):
        reader.problems.append(f"mask_token_id: got {mask!r}, expected an integer")
    layer_ids = reader.integers("target_layer_ids", layer_ids)
    fields: dict[str, Any] = {
        "block_size": reader.integer("block_size", special.get("block_size")),
        "mask_token_id": mask,
        "target_layer_ids": layer_ids,
        "num_features": len(layer_ids),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": reader.integer("num_key_value_heads", num_heads),
        "head_dim": reader.integer("head_dim", QWEN3_HEAD_DIM),
        "intermediate_size": reader.integer("intermediate_size"),
        "rms_norm_eps": reader.number("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "qk_norm": special.get("qk_norm", True) is not False,
        **reader.sliding_layers(num_layers),
        "is_causal": reader.causality(special),
    }
    vocab_size = reader.integer("vocab_size")
    reader.raise_problems(where)
    try:
        config = DrafterConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return StoredDrafter(
        config=config,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        num_target_layers=num_target_layers if isinstance(num_target_layers, int) else None,
        is_speculators=is_speculators,
    )


def _from_speculators(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """z-lab's spelling of a speculators file, whose layer ids are one higher (0: the embedding)."""
    problems = []
    if raw["speculators_model_type"] != "dflash":
        problems.append(
            f"speculators_model_type: got {raw['speculators_model_type']!r}, expected 'dflash'"
        )
    inner = dict(raw.get("transformer_layer_config") or {})
    if raw.get("draft_vocab_size") not in (None, inner.get("vocab_size")):
        problems.append(
            f"draft_vocab_size: got {raw['draft_vocab_size']}, expected the target's vocabulary "
            f"({inner.get('vocab_size')}); pruned vocabularies are not supported"
        )
    if raw.get("sample_from_anchor"):
        problems.append("sample_from_anchor: got true, expected false (slot 0 is unused)")
    layer_ids = raw.get("aux_hidden_state_layer_ids")
    if isinstance(layer_ids, list):
        layer_ids = [i - 1 if isinstance(i, int) else i for i in layer_ids]
    special = {
        "mask_token_id": raw.get("mask_token_id"),
        "target_layer_ids": layer_ids,
        "projector_type": raw.get("projector_type", "dflash"),
        "shift_label": raw.get("shift_label", False),
    }
    own = {"block_size": raw.get("block_size"), "dflash_config": special}
    if raw.get("sliding_window_non_causal"):
        own["is_causal"] = False
    return {**inner, **own}, problems


def drafter_to_json(
    config: DrafterConfig, *, target_config: LanguageModelConfig, dtype: Dtype
) -> dict[str, Any]:
    """config.json of a drafter, as z-lab's checkpoints and the servers that load them have it.

    Args:
      config: resolved.
      target_config: the target it was trained for.
      dtype: of the stored weights.
    """
    special: dict[str, Any] = {
        "mask_token_id": config.mask_token_id,
        "target_layer_ids": list(config.target_layer_ids),
    }
    if not config.qk_norm:
        special["qk_norm"] = False
    causality = {}
    if config.is_causal is not None:
        special["causal"] = causality["is_causal"] = config.is_causal
    return {
        "architectures": ["DFlashDraftModel"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
        "block_size": config.block_size,
        "dflash_config": special,
        "dtype": dtype,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": target_config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        **causality,
        "max_position_embeddings": target_config.max_position_embeddings,
        "model_type": "qwen3",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "num_target_layers": target_config.num_layers,
        "rms_norm_eps": config.rms_norm_eps,
        **_rope_to_json(config.rope_theta, None),
        **_sliding_to_json(config),
        "tie_word_embeddings": target_config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": target_config.vocab_size,
    }
