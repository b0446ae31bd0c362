"""A drafter's config.json in the format of vllm-project/speculators, from and to z-lab's.

The tensors are the same. Layer ids are one higher (0 is the embedding), the layers have a section
of their own, and the target ("verifier") is named: speculators 0.9 reads embedding and head from
that folder or Hub name. vLLM reads the format as well.

>>> recognises({"speculators_model_type": "dflash"})
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.json_files import shown

IGNORED = (
    "embed_tokens.weight",
    "lm_head.weight",
    "verifier_norm.weight",
    "verifier_lm_head.weight",
)
"""The target's own tensors, which this format may keep next to a drafter's."""

_LAYERS = "transformer_layer_config"
_OUTER = (_LAYERS, "speculators_config", "aux_hidden_state_layer_ids", "sliding_window_non_causal")
"""Entries that become others in z-lab's format."""
_NOT_LAYERS = (
    "architectures", "block_size", "dflash_config", "dtype", "is_causal", "num_target_layers",
)  # fmt: skip
"""Entries of z-lab's config.json that do not describe the layers here."""


def recognises(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is in this format."""
    return "speculators_model_type" in raw


def as_zlab(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The content of a config.json in z-lab's format, and what is wrong with it."""
    reader = ConfigReader(raw)
    if raw["speculators_model_type"] != "dflash":
        reader.problems.append(
            f"speculators_model_type: got {shown(raw['speculators_model_type'])}, expected 'dflash'"
        )
    layers = reader.section(_LAYERS)
    layer_ids = raw.get("aux_hidden_state_layer_ids")
    if isinstance(layer_ids, list):
        layer_ids = [i - 1 if type(i) is int else i for i in layer_ids]
    outer = {key: value for key, value in raw.items() if key not in _OUTER}
    special = {"mask_token_id": raw.get("mask_token_id"), "target_layer_ids": layer_ids}
    own: dict[str, Any] = {"dflash_config": special}
    if reader.flag("sliding_window_non_causal"):
        own["is_causal"] = False
    return {**layers, **outer, **own}, reader.problems


def from_zlab(
    document: Mapping[str, Any], *, target_name: str, target_architectures: Sequence[str]
) -> dict[str, Any]:
    """The content of a config.json in this format.

    Args:
      document: config.json in z-lab's format.
      target_name: what programs load as the target: its name on the Hub, or a folder.
      target_architectures: as in the target's config.json.

    Raises:
      ValueError: a drafter that the format cannot describe.
    """
    causal, kinds = document.get("is_causal"), document["layer_types"]
    if causal and "full_attention" in kinds:
        raise ValueError(
            "The speculators format does not support full attention layers that are causal inside "
            f"a block (drafter.is_causal true with layer_types {kinds}): use the zlab format."
        )
    special = document["dflash_config"]
    return {
        "architectures": ["DFlashSpeculator"],
        "aux_hidden_state_layer_ids": [i + 1 for i in special["target_layer_ids"]],
        "block_size": document["block_size"],
        "draft_vocab_size": document["vocab_size"],
        "dtype": document["dtype"],
        "mask_token_id": special["mask_token_id"],
        "sample_from_anchor": False,
        # vLLM makes every layer causal where this is false, and none where it is missing.
        **({"sliding_window_non_causal": causal is False} if "sliding_attention" in kinds else {}),
        "speculators_config": {
            "algorithm": "dflash",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {"proposal_type": "greedy", "speculative_tokens": document["block_size"] - 1}
            ],
            "verifier": {
                "architectures": list(target_architectures),
                "name_or_path": target_name,
            },
        },
        "speculators_model_type": "dflash",
        "torch_dtype": document["dtype"],
        _LAYERS: {key: value for key, value in document.items() if key not in _NOT_LAYERS},
    }
