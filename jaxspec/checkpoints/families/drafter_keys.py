"""Keys of a drafter's config.json that change what is computed, and keys that change nothing.

A key that is neither read nor known to be harmless is refused: a drafter of another kind would look
fine and be rejected in decoding. The names are those of transformers' Qwen3 configuration, of
z-lab/dflash, vllm-project/speculators and vLLM, SGLang and tpu-inference, as seen in their
repositories in 2026.

>>> key_problems({"hidden_size": 64, "markov_rank": 16, "value_scale": 1.0})
['markov_rank: got 16, expected 0 (no head that corrects a slot by the one before)']
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxspec.json_files import shown

DFLASH2 = "DFlash2DraftModel"

IN_EITHER = frozenset(
    (
        *("block_size", "mask_token_id", "target_layer_ids", "num_target_layers"),
        *("use_swa", "swa_window_size", "is_causal", "causal"),
    )
)
"""Keys that `jaxspec.checkpoints.families.dflash` reads at the top level and in dflash_config."""

AT_TOP = frozenset(
    (
        *("architectures", "dflash_config", "num_hidden_layers", "hidden_size"),
        *("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("rms_norm_eps", "vocab_size", "rope_theta", "rope_scaling", "rope_parameters"),
        *("partial_rotary_factor", "layer_types", "sliding_window", "use_sliding_window"),
        *("max_window_layers", "hidden_act", "attention_bias", "mlp_bias", "quantization_config"),
    )
)
"""Keys that are read at the top level only."""

IN_SECTION = frozenset(("qk_norm",))
"""Keys that are read in dflash_config only."""

HARMLESS = frozenset(
    (
        # Where the file comes from.
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "model_type"),
        *("auto_map", "tokenizer_class", "speculators_version", "speculators_model_type"),
        # Training, storage and generation.
        *("dtype", "torch_dtype", "attention_dropout", "initializer_range", "use_cache"),
        *("max_position_embeddings", "tie_word_embeddings", "pretraining_tp", "max_anchors"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "mask_token"),
        *("_attn_implementation", "attn_implementation", "chunk_size_feed_forward"),
        *("gradient_checkpointing", "torchscript", "use_bfloat16", "return_dict"),
        *("output_attentions", "output_hidden_states", "is_decoder", "is_encoder_decoder"),
        # Classification, which transformers writes everywhere.
        *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params"),
    )
)
"""Keys that change nothing in what a drafter computes from its target's states and embeddings."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A key that changes what is computed, unless it is null or one of the `harmless` values."""

    harmless: tuple[Any, ...]
    meaning: str
    """What the harmless value says."""


_ONE = (1, 1.0)
_NO_CONVOLUTION = Refusal((0,), "no convolution inside the block")
_NO_SELECTOR = Refusal((0,), "no selector of candidates")
_PLAIN_LOGITS = Refusal(_ONE, "logits are the target head's")
_OWN_WEIGHTS = Refusal((False,), "embedding and head are the target's")
_NO_SINK = Refusal((False,), "attention has no sink")
_NO_SCALE = Refusal(_ONE, "values are not scaled")
_HALVES = Refusal((True,), "RoPE turns the two halves of a head")
_ONE_NORM = Refusal((False,), "states are normed once, after fc")

REFUSED = {
    "sample_from_anchor": Refusal((False,), "slot 0 predicts nothing"),
    "shift_label": Refusal((False,), "output k predicts slot k"),
    "projector_type": Refusal(("dflash",), "no other head"),
    "is_neox_style": _HALVES,
    "rope_is_neox_style": _HALVES,
    "attention_sink_bias": _NO_SINK,
    "add_swa_attention_sink_bias": _NO_SINK,
    "value_scale": _NO_SCALE,
    "attention_value_scale": _NO_SCALE,
    "input_embedding_scale": Refusal(_ONE, "the target's embeddings are not scaled"),
    "output_multiplier": _PLAIN_LOGITS,
    "logit_scale": _PLAIN_LOGITS,
    "final_logit_softcapping": Refusal((0, 0.0), "logits are the target head's"),
    "use_aux_hidden_state": Refusal((True,), "the drafter reads the target's states through fc"),
    "markov_rank": Refusal((0,), "no head that corrects a slot by the one before"),
    "enable_confidence_head": Refusal((False,), "no confidence head"),
    "norm_before_fc": _ONE_NORM,
    "norm_before_residual": _ONE_NORM,
    "has_embed_tokens": _OWN_WEIGHTS,
    "has_lm_head": _OWN_WEIGHTS,
    "conv_kernel_size": _NO_CONVOLUTION,
    "conv_group_size": _NO_CONVOLUTION,
    "selector_rank": _NO_SELECTOR,
    "selector_top_k": _NO_SELECTOR,
}
"""Keys with a value that the drafter here computes, and values that it does not."""


def key_problems(raw: Mapping[str, Any]) -> list[str]:
    """What a drafter's config.json, in z-lab's format, asks for and is not computed here.

    Keys count at the top level and in ``dflash_config``: servers look in both.
    """
    problems = []
    architectures = raw.get("architectures")
    if isinstance(architectures, list) and DFLASH2 in architectures:
        problems.append(
            f"architectures: got {shown(architectures)}, expected ['DFlashDraftModel'] (DFlash 2 "
            "has convolutions and a selector of candidates)"
        )
    special = raw.get("dflash_config")
    special = special if isinstance(special, Mapping) else {}
    top, section = "at the top level", "in dflash_config"
    for place, name, read, other, elsewhere in (
        (raw, top, AT_TOP, special, section),
        (special, section, IN_SECTION, raw, top),
    ):
        for key, value in place.items():
            if value is None or key in HARMLESS or key in IN_EITHER or key in read:
                continue
            if key in AT_TOP or key in IN_SECTION:
                # The same value again changes nothing.
                if value != other.get(key):
                    problems.append(
                        f"{key}: got {shown(value)} {name}, expected it {elsewhere}, where "
                        "it is read"
                    )
            elif expected := _expected(key, value, raw):
                problems.append(f"{key}: got {shown(value)}, expected {expected}")
    problems += [
        f"{key}: got {shown(raw[key])} and, in dflash_config, {shown(special[key])}; expected one"
        for key in sorted(IN_EITHER - {"is_causal", "causal"})
        if None not in (raw.get(key), special.get(key)) and raw[key] != special[key]
    ]
    return problems


def _expected(key: str, value: Any, raw: Mapping[str, Any]) -> str:
    """What is expected of a key instead of its value; "": it is as expected."""
    if key in REFUSED:
        refusal = REFUSED[key]
        # Types count: 1 equals True.
        if any(type(value) is type(each) and value == each for each in refusal.harmless):
            return ""
        shown_value = refusal.harmless[0]
        stated = str(shown_value).lower() if isinstance(shown_value, bool) else repr(shown_value)
        return f"{stated} ({refusal.meaning})"
    same_as = {"draft_vocab_size": "vocab_size", "target_hidden_size": "hidden_size"}.get(key)
    if same_as is not None:
        own = raw.get(same_as)
        return "" if value == own else f"{shown(own)}, the drafter's own {same_as}"
    if key == "eagle_aux_hidden_state_layer_ids":
        special = raw.get("dflash_config")
        stated_ids = special.get("target_layer_ids") if isinstance(special, Mapping) else None
        shifted = None
        if isinstance(stated_ids, list) and all(type(i) is int for i in stated_ids):
            shifted = [i + 1 for i in stated_ids]
        return "" if value == shifted else "target_layer_ids, each one higher"
    return "no such key: jaxspec does not know what it changes"
