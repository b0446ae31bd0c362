"""The DFlash drafter, in z-lab's format and in that of the speculators library.

vLLM, SGLang and their TPU ports load z-lab's checkpoints. The speculators format, which vLLM reads
as well, has the same tensors; its layer ids are one higher (0 is the embedding), and it names the
target. Its field names follow the DFlash configuration of vllm-project/speculators and the
converter in vLLM, as seen in their repositories in 2026; the result was not tried in a server.

Letters in shapes: those of `qwen_llama`, and E captured layers x width.

>>> from_json(document, where="config.json")  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jaxspec.checkpoints import bounds
from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.checkpoints.families.family import Family, Layout
from jaxspec.checkpoints.families.qwen_llama import (
    BLOCK,
    FINAL_NORM,
    KINDS,
    QK_NORM,
    rope_to_json,
    sliding_to_json,
)
from jaxspec.checkpoints.key_maps import Row
from jaxspec.config import DrafterConfig, Dtype, LanguageModelConfig
from jaxspec.json_files import shown
from jaxspec.models.dflash import default_layer_ids, resolve_config

ARCHITECTURE = "DFlashDraftModel"

# fmt: off
FEATURES = (
    Row("fc.weight", "fc/kernel", ("E", "D"), True),
    Row("hidden_norm.weight", "hidden_norm/scale", ("D",)),
)
# fmt: on
IGNORED_SPECULATORS = (
    "embed_tokens.weight",
    "lm_head.weight",
    "verifier_norm.weight",
    "verifier_lm_head.weight",
)
"""The target's own tensors, which the speculators format may keep next to a drafter's."""

_OWN = (
    "architectures", "auto_map", "block_size", "dflash_config", "dtype", "is_causal",
    "num_target_layers",
)  # fmt: skip
"""Entries of z-lab's config.json that do not describe the layers in the speculators format."""


@dataclasses.dataclass(frozen=True)
class StoredDrafter:
    """What a drafter's config.json says about it and its target."""

    config: DrafterConfig
    hidden_size: int
    vocab_size: int
    num_target_layers: int | None
    """None if the file does not say (speculators format)."""
    is_speculators: bool

    @classmethod
    def of(cls, config: DrafterConfig, *, target: LanguageModelConfig) -> StoredDrafter:
        """What a drafter's config.json will say."""
        return cls(config, target.hidden_size, target.vocab_size, target.num_layers, False)


def from_json(raw: Mapping[str, Any], *, where: str) -> StoredDrafter:
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
    if not special and not _names_itself(raw):
        raise ValueError(
            f"{where} does not describe a DFlash drafter: got architectures "
            f"{shown(raw.get('architectures'))} and no dflash_config, expected "
            f"{[ARCHITECTURE]} with one."
        )
    if special.get("projector_type", "dflash") != "dflash":
        reader.problems.append(
            f"projector_type: got {shown(special['projector_type'])}, expected 'dflash'"
        )
    if reader.flag("shift_label", within=special):
        reader.problems.append("shift_label: got true, expected false (output k predicts slot k)")
    num_layers = reader.integer("num_hidden_layers", largest=bounds.LAYERS)
    theta, scaling = reader.rope()
    if scaling is not None:
        reader.problems.append("rope_type: got 'llama3', expected 'default' in a drafter")
    reader.plain_layers()
    if reader.flag("attention_bias"):
        reader.problems.append("attention_bias: got true, expected false")
    num_target_layers = raw.get("num_target_layers", special.get("num_target_layers"))
    if num_target_layers is not None:
        stated = {"num_target_layers": num_target_layers}
        num_target_layers = reader.integer(
            "num_target_layers", largest=bounds.LAYERS, within=stated
        )
    layer_ids = _layer_ids(
        reader,
        special.get("target_layer_ids", raw.get("target_layer_ids")),
        num_target_layers=num_target_layers,
        num_layers=num_layers,
    )
    hidden_size = reader.integer("hidden_size", largest=bounds.WIDTH)
    mask = special.get("mask_token_id", raw.get("mask_token_id"))
    if mask is not None:
        mask = reader.integer(
            "mask_token_id", largest=bounds.VOCABULARY, smallest=0, within={"mask_token_id": mask}
        )
    num_heads = reader.integer("num_attention_heads", largest=bounds.HEADS)
    num_kv_heads = reader.integer("num_key_value_heads", num_heads, largest=bounds.HEADS)
    if num_heads % num_kv_heads:
        reader.problems.append(
            f"num_attention_heads: got {num_heads}, expected a multiple of num_key_value_heads "
            f"({num_kv_heads})"
        )
    head_dim = reader.integer("head_dim", KINDS["qwen3"].head_dim, largest=bounds.HEAD_DIM)
    if head_dim % 2:
        reader.problems.append(f"head_dim: got {head_dim}, expected an even number")
    fields: dict[str, Any] = {
        "block_size": reader.integer("block_size", special.get("block_size"), largest=bounds.BLOCK),
        "mask_token_id": mask,
        "target_layer_ids": layer_ids,
        "num_features": len(layer_ids),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": reader.integer("intermediate_size", largest=bounds.WIDTH),
        "rms_norm_eps": reader.number("rms_norm_eps", 1e-6, limits=bounds.EPSILON),
        "rope_theta": theta,
        "qk_norm": reader.flag("qk_norm", True, within=special),
        **reader.sliding_layers(num_layers),
        "is_causal": reader.causality(special),
    }
    vocab_size = reader.integer("vocab_size", largest=bounds.VOCABULARY)
    return StoredDrafter(
        config=reader.build(DrafterConfig, where=where, **fields),
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        num_target_layers=num_target_layers,
        is_speculators=is_speculators,
    )


def _layer_ids(
    reader: ConfigReader, stated: Any, *, num_target_layers: int | None, num_layers: int
) -> tuple[int, ...]:
    """Ids of the captured layers, as stated or by default."""
    if stated is not None or num_target_layers is None:
        return reader.layer_ids("target_layer_ids", stated)
    try:
        return default_layer_ids(num_target_layers, num_layers)
    except ValueError:
        reader.problems.append(
            "target_layer_ids: got none, expected a list of layer ids, because num_target_layers "
            f"({num_target_layers}) is too small for the default spread over {num_layers} layers"
        )
        return ()


def _from_speculators(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A speculators file, whose layer ids are one higher (0: the embedding), in z-lab's format."""
    reader = ConfigReader(raw)
    if raw["speculators_model_type"] != "dflash":
        reader.problems.append(
            f"speculators_model_type: got {shown(raw['speculators_model_type'])}, expected 'dflash'"
        )
    inner = reader.section("transformer_layer_config")
    if raw.get("draft_vocab_size") not in (None, inner.get("vocab_size")):
        reader.problems.append(
            f"draft_vocab_size: got {shown(raw['draft_vocab_size'])}, expected the target's "
            f"vocabulary ({shown(inner.get('vocab_size'))}); pruned vocabularies are not supported"
        )
    if reader.flag("sample_from_anchor"):
        reader.problems.append("sample_from_anchor: got true, expected false (slot 0 is unused)")
    layer_ids = raw.get("aux_hidden_state_layer_ids")
    if isinstance(layer_ids, list):
        layer_ids = [i - 1 if type(i) is int else i for i in layer_ids]
    special = {
        "mask_token_id": raw.get("mask_token_id"),
        "target_layer_ids": layer_ids,
        "projector_type": raw.get("projector_type", "dflash"),
        "shift_label": raw.get("shift_label", False),
    }
    own = {"block_size": raw.get("block_size"), "dflash_config": special}
    if reader.flag("sliding_window_non_causal"):
        own["is_causal"] = False
    return {**inner, **own}, reader.problems


def to_json(
    config: DrafterConfig, *, target_config: LanguageModelConfig, dtype: Dtype
) -> dict[str, Any]:
    """config.json of a drafter in z-lab's format.

    Args:
      config: resolved.
      target_config: the target it was trained for.
      dtype: type of the stored weights.
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
        **rope_to_json(config.rope_theta, None),
        **sliding_to_json(config),
        "tie_word_embeddings": target_config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": target_config.vocab_size,
    }


def speculators_json(document: Mapping[str, Any], *, target_name: str) -> dict[str, Any]:
    """The configuration in the format of speculators.

    Args:
      document: config.json of a drafter in z-lab's format.
      target_name: what servers load as the target: its name on the Hub, or a folder.

    Raises:
      ValueError: a drafter that the format cannot describe.
    """
    special = document["dflash_config"]
    if special.get("qk_norm") is False:
        raise ValueError(
            "The speculators format does not support drafters without query/key norms "
            "(drafter.qk_norm false): use the zlab format."
        )
    causal, kinds = document.get("is_causal"), document["layer_types"]
    if causal and "full_attention" in kinds:
        raise ValueError(
            "The speculators format does not support full attention layers that are causal inside "
            f"a block (drafter.is_causal true with layer_types {kinds}): use the zlab format."
        )
    layer = {key: value for key, value in document.items() if key not in _OWN}
    return {
        "architectures": ["DFlashSpeculator"],
        "aux_hidden_state_layer_ids": [i + 1 for i in special["target_layer_ids"]],
        "block_size": document["block_size"],
        "draft_vocab_size": document["vocab_size"],
        "dtype": document["dtype"],
        "mask_token_id": special["mask_token_id"],
        **({"sliding_window_non_causal": causal is False} if "sliding_attention" in kinds else {}),
        "speculators_config": {
            "algorithm": "dflash",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": document["block_size"] - 1}
            ],
            "verifier": {"name_or_path": target_name},
        },
        "speculators_model_type": "dflash",
        "torch_dtype": document["dtype"],
        "transformer_layer_config": layer,
    }


def layout(stored: StoredDrafter, names: Collection[str] = ()) -> Layout:
    """The tensors of a drafter: no embedding and no head, since both are the target's."""
    del names
    config, width = stored.config, stored.hidden_size
    return Layout(
        rows=FEATURES + BLOCK + (QK_NORM if config.qk_norm else ()) + FINAL_NORM,
        sizes={
            "D": width,
            "F": config.intermediate_size,
            "C": config.head_dim,
            "QC": config.num_heads * config.head_dim,
            "RC": config.num_kv_heads * config.head_dim,
            "E": len(config.target_layer_ids) * width,
        },
        num_layers=config.num_layers,
        ignored=IGNORED_SPECULATORS if stored.is_speculators else (),
    )


def fitted(
    stored: StoredDrafter, dtype: Dtype, *, target: LanguageModelConfig | None, where: str
) -> StoredDrafter:
    """The drafter in a dtype, with what it leaves to its target filled in.

    Raises:
      ValueError: it was trained for another target.
    """
    config = dataclasses.replace(stored.config, dtype=dtype, param_dtype=dtype)
    if target is None:
        return dataclasses.replace(stored, config=config)
    pairs: list[tuple[str, int, int]] = [
        ("hidden_size", stored.hidden_size, target.hidden_size),
        ("vocab_size", stored.vocab_size, target.vocab_size),
    ]
    if stored.num_target_layers is not None:
        pairs.append(("num_target_layers", stored.num_target_layers, target.num_layers))
    wrong = [f"{key}: got {got}, expected {want}" for key, got, want in pairs if got != want]
    if wrong:
        raise ValueError(f"The drafter in {where} is for another target: {'; '.join(wrong)}.")
    resolved = resolve_config(config, target=target, mask_token_id=0)
    resolved = dataclasses.replace(resolved, mask_token_id=config.mask_token_id)
    return dataclasses.replace(stored, config=resolved)


def recognises(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a DFlash drafter, in either format."""
    return "speculators_model_type" in raw or "dflash_config" in raw or _names_itself(raw)


def _names_itself(raw: Mapping[str, Any]) -> bool:
    architectures = raw.get("architectures")
    return isinstance(architectures, list) and ARCHITECTURE in architectures


DFLASH = Family(
    name="dflash",
    role="drafter",
    recognises=recognises,
    from_json=from_json,
    to_json=to_json,
    layout=layout,
    fitted=fitted,
    architectures=(ARCHITECTURE,),
)
