"""The DFlash drafter as z-lab stores it, which vLLM, SGLang and tpu-inference load.

`speculators` has the other format; both are read here. What the drafter here would compute
differently from its authors is refused by the key's name (`drafter_keys`).

Letters in shapes: those of `qwen_llama`, and E captured layers x width.

>>> from_json(document, where="config.json")  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from jaxspec.checkpoints import bounds
from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.checkpoints.families import drafter_keys, speculators
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
from jaxspec.config import DrafterConfig, Dtype, LanguageModelConfig, LayerType
from jaxspec.json_files import read_object, shown
from jaxspec.models.dflash import resolve_config, spread_layer_ids
from jaxspec.paths import user_path

ARCHITECTURE = "DFlashDraftModel"

# fmt: off
FEATURES = (
    Row("fc.weight", "fc/kernel", ("E", "D"), True),
    Row("hidden_norm.weight", "hidden_norm/scale", ("D",)),
)
# fmt: on

_TRAINED_BEFORE = (
    "{what} reads the output of its target's last layer, and was trained by a version of jaxspec "
    "that took it before the target's final norm. Servers and this version take it after the norm, "
    "so it would draft worse than it was trained to: train it again (by default, the last layer is "
    "not captured any more)."
)


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
    is_speculators = speculators.recognises(raw)
    problems: list[str] = []
    if is_speculators:
        raw, problems = speculators.as_zlab(raw)
    reader = ConfigReader(raw)
    reader.problems += problems
    special = reader.section("dflash_config")
    if not special and not _names_itself(raw):
        raise ValueError(
            f"{where} does not describe a DFlash drafter: got architectures "
            f"{shown(raw.get('architectures'))} and no dflash_config, expected "
            f"{[ARCHITECTURE]} with one."
        )
    reader.problems += drafter_keys.key_problems(raw)
    num_layers = reader.integer("num_hidden_layers", largest=bounds.LAYERS)
    theta, scaling = reader.rope()
    reader.plain_layers()
    if reader.flag("attention_bias"):
        reader.problems.append("attention_bias: got true, expected false")

    def either(key: str) -> Any:
        """What stands at the top level or in dflash_config: `key_problems` reports two values."""
        return special.get(key) if raw.get(key) is None else raw[key]

    num_target_layers = either("num_target_layers")
    if num_target_layers is not None:
        stated = {"num_target_layers": num_target_layers}
        num_target_layers = reader.integer(
            "num_target_layers", largest=bounds.LAYERS, within=stated
        )
    layer_ids = _layer_ids(
        reader,
        either("target_layer_ids"),
        num_target_layers=num_target_layers,
        num_layers=num_layers,
    )
    hidden_size = reader.integer("hidden_size", largest=bounds.WIDTH)
    mask = either("mask_token_id")
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
        "block_size": reader.integer("block_size", either("block_size"), largest=bounds.BLOCK),
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
        "rope_scaling": scaling,
        "qk_norm": reader.flag("qk_norm", True, within=special),
        **_sliding_layers(reader, special, num_layers),
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
    if num_layers == 1:
        return (num_target_layers // 2,)
    ids = spread_layer_ids(1, num_target_layers - 3, num_layers)
    if list(ids) != sorted(set(ids)):
        reader.problems.append(
            "target_layer_ids: got none, expected a list of layer ids, because num_target_layers "
            f"({num_target_layers}) is too small for the default spread over {num_layers} layers"
        )
    return ids


def _sliding_layers(
    reader: ConfigReader, special: Mapping[str, Any], num_layers: int
) -> dict[str, Any]:
    """The fields layer_types and sliding_window; empty when no layer slides.

    As servers do, layer_types decides. Beside a layer that slides, use_sliding_window may be
    absent but not false: some programs then take the window away, and others refuse the file.
    """
    kinds, window = reader.raw.get("layer_types"), reader.raw.get("sliding_window")
    if kinds is None:
        sliding = reader.sliding_layers(num_layers)
        kinds, window = list(sliding.get("layer_types", ())), sliding.get("sliding_window")
    elif not isinstance(kinds, list) or not all(kind in get_args(LayerType) for kind in kinds):
        reader.problems.append(
            f"layer_types: got {shown(kinds)}, expected a list of 'full_attention' and "
            "'sliding_attention'"
        )
        return {}
    elif len(kinds) != num_layers:
        reader.problems.append(f"layer_types: got {len(kinds)} entries for {num_layers} layers")
    slides = "sliding_attention" in kinds
    if slides and reader.raw.get("use_sliding_window") is False:
        reader.problems.append(
            "use_sliding_window: got false, expected true, because layer_types names "
            "'sliding_attention': programs differ in which of the two they follow. Set it to true "
            "if the drafter was trained with the window"
        )
    for key in ("use_swa", "swa_window_size"):
        value = special.get(key, reader.raw.get(key))
        harmless = (None, False) if key == "use_swa" else (None,)
        agrees = slides and value == (True if key == "use_swa" else window)
        if not any(value is each for each in harmless) and not agrees:
            reader.problems.append(
                f"{key}: got {shown(value)}, expected what layer_types and sliding_window say: got "
                f"{shown(kinds or None)} and {shown(window)}"
            )
    if not slides:
        return {}
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        reader.problems.append(
            f"sliding_window: got {shown(window)}, expected a positive integer, because "
            "layer_types names 'sliding_attention'"
        )
    return {"layer_types": tuple(kinds), "sliding_window": window}


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
        "architectures": [ARCHITECTURE],
        "attention_bias": False,
        "attention_dropout": 0.0,
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
        **rope_to_json(config.rope_theta, config.rope_scaling),
        **sliding_to_json(config),
        "tie_word_embeddings": target_config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": target_config.vocab_size,
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
        ignored=speculators.IGNORED if stored.is_speculators else (),
    )


def fitted(
    stored: StoredDrafter, dtype: Dtype, *, target: LanguageModelConfig | None, where: str
) -> StoredDrafter:
    """The drafter in a dtype, with what it leaves to its target filled in.

    Args:
      stored: as its config.json describes it.
      dtype: of its parameters and its computation.
      target: the one it is to draft for; None: not known yet.
      where: its folder.

    Raises:
      ValueError: it was trained for another target, or on other states of its target's last layer.
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
    _check_trained_on(resolved, user_path(where) / "provenance.json")
    return dataclasses.replace(stored, config=resolved)


def check_last_state(document: Mapping[str, Any], trained: DrafterConfig) -> None:
    """Raises ValueError if a run from before `DrafterConfig.last_state` captured the last layer.

    Args:
      document: config.json of the drafter, in z-lab's format.
      trained: the drafter's configuration in the record of its run.
    """
    last = document["num_target_layers"] - 1
    if last in document["dflash_config"]["target_layer_ids"] and not trained.last_state:
        raise ValueError(_TRAINED_BEFORE.format(what="This drafter"))


def _check_trained_on(config: DrafterConfig, record: Path) -> None:
    """`check_last_state` for a folder that an earlier version of jaxspec wrote."""
    if not config.last_state or not record.is_file():
        return
    trained: Any = read_object(record)
    for key in ("config", "drafter"):
        trained = trained.get(key) if isinstance(trained, Mapping) else None
    if isinstance(trained, Mapping) and "last_state" not in trained:
        raise ValueError(_TRAINED_BEFORE.format(what=f"The drafter in {record.parent}"))


def recognises(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a DFlash drafter, in either format."""
    return speculators.recognises(raw) or "dflash_config" in raw or _names_itself(raw)


def _names_itself(raw: Mapping[str, Any]) -> bool:
    architectures = raw.get("architectures")
    names = (ARCHITECTURE, drafter_keys.DFLASH2)
    return isinstance(architectures, list) and any(name in architectures for name in names)


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
