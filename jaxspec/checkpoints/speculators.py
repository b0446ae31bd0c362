"""A drafter's config.json in the format of the speculators library, which vLLM reads as well.

The tensors are those of z-lab's format; layer ids are one higher there (0 is the embedding), and
the target is named. Field names follow vllm-project/speculators' DFlash configuration and the
converter in vLLM, seen in their repositories in 2026; no server was run on the result.

>>> speculators_json(document, target_name="Qwen/Qwen3-4B")["aux_hidden_state_layer_ids"]
[2, 10, 18, 26, 34]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OWN = (
    "architectures", "auto_map", "block_size", "dflash_config", "dtype", "is_causal",
    "num_target_layers",
)  # fmt: skip


def speculators_json(document: Mapping[str, Any], *, target_name: str) -> dict[str, Any]:
    """The configuration in the format of speculators.

    Args:
      document: config.json of a drafter in z-lab's format.
      target_name: what servers load the target by: its name on the Hub, or a folder.

    Raises:
      ValueError: a drafter that the format cannot describe.
    """
    special = document["dflash_config"]
    if special.get("qk_norm") is False:
        raise ValueError(
            "The speculators format has no drafters without query/key norms (drafter.qk_norm "
            "false): use the zlab format."
        )
    causal, kinds = document.get("is_causal"), document["layer_types"]
    if causal and "full_attention" in kinds:
        raise ValueError(
            "The speculators format has no full attention layers that are causal inside a block "
            f"(drafter.is_causal true with layer_types {kinds}): use the zlab format."
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
