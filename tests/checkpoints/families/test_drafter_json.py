"""config.json of drafters as others write it: what is read, and what is refused by its key."""

from __future__ import annotations

from typing import Any

import pytest

from jaxspec.checkpoints.families import dflash
from jaxspec.checkpoints.families.dflash import StoredDrafter
from jaxspec.checkpoints.families.registry import family_of
from jaxspec.config import Llama3RopeScaling

ZLAB: dict[str, Any] = {
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "block_size": 8,
    "dflash_config": {"mask_token_id": 90, "target_layer_ids": [1, 3]},
    "num_target_layers": 6,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "vocab_size": 96,
    "dtype": "float32",
}
SPECULATORS: dict[str, Any] = {
    "architectures": ["DFlashSpeculator"],
    "speculators_model_type": "dflash",
    "speculators_version": "0.9.0",
    "transformers_version": "5.15.0",
    "speculators_config": {"algorithm": "dflash", "verifier": {"name_or_path": "someone/target"}},
    "transformer_layer_config": {
        key: value
        for key, value in ZLAB.items()
        if key not in ("architectures", "block_size", "dflash_config", "num_target_layers")
    },
    "draft_vocab_size": 96,
    "target_hidden_size": None,
    "block_size": 8,
    "aux_hidden_state_layer_ids": [2, 4],
    "mask_token_id": 90,
    "sample_from_anchor": False,
    "sliding_window_non_causal": False,
}
SLIDING, FULL = "sliding_attention", "full_attention"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def read(raw: dict[str, Any], **changes: Any) -> StoredDrafter:
    family = family_of({**raw, **changes})
    assert family is dflash.DFLASH
    return dflash.from_json({**raw, **changes}, where="FILE")


def within(**changes: Any) -> dict[str, Any]:
    """z-lab's file with other entries in dflash_config."""
    return {**ZLAB, "dflash_config": {**ZLAB["dflash_config"], **changes}}


def test_both_formats_say_the_same() -> None:
    ours, theirs = read(ZLAB), read(SPECULATORS)
    assert ours.config == theirs.config
    assert ours.config.target_layer_ids == (1, 3)
    assert (ours.num_target_layers, theirs.num_target_layers) == (6, None)
    assert (ours.is_speculators, theirs.is_speculators) == (False, True)


REFUSED: list[tuple[str, Any]] = [
    ("use_swa", True),
    ("swa_window_size", 64),
    ("sample_from_anchor", True),
    ("is_neox_style", False),
    ("rope_is_neox_style", False),
    ("attention_sink_bias", True),
    ("add_swa_attention_sink_bias", True),
    ("value_scale", 0.5),
    ("attention_value_scale", 0.707),
    ("input_embedding_scale", 8.0),
    ("output_multiplier", 2.0),
    ("logit_scale", 0.5),
    ("final_logit_softcapping", 30.0),
    ("draft_vocab_size", 48),
    ("target_hidden_size", 64),
    ("use_aux_hidden_state", False),
    ("markov_rank", 16),
    ("shift_label", True),
    ("projector_type", "domino"),
    ("conv_kernel_size", 2),
    ("selector_rank", 256),
    ("has_embed_tokens", True),
    ("norm_before_fc", True),
    ("eagle_aux_hidden_state_layer_ids", [1, 3]),
    ("drafter_gate", "sigmoid"),
    ("drafter_gate", False),
]
HARMLESS: list[tuple[str, Any]] = [
    ("use_swa", False),
    ("sample_from_anchor", False),
    ("is_neox_style", True),
    ("attention_sink_bias", False),
    ("value_scale", 1.0),
    ("attention_value_scale", 1),
    ("input_embedding_scale", 1.0),
    ("final_logit_softcapping", 0.0),
    ("draft_vocab_size", 96),
    ("target_hidden_size", 32),
    ("use_aux_hidden_state", True),
    ("markov_rank", 0),
    ("projector_type", "dflash"),
    ("eagle_aux_hidden_state_layer_ids", [2, 4]),
    ("attention_dropout", 0.1),
    ("_name_or_path", "someone/drafter"),
    ("auto_map", {"AutoModel": "dflash.DFlashDraftModel"}),
    ("transformers_version", "4.57.1"),
    ("use_cache", False),
    ("bos_token_id", 1),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_what_is_not_computed_is_refused_by_its_key(key: str, value: Any) -> None:
    for raw in ({**ZLAB, key: value}, within(**{key: value}), {**SPECULATORS, key: value}):
        if raw.get("speculators_model_type") and key == "eagle_aux_hidden_state_layer_ids":
            continue
        with pytest.raises(ValueError, match=rf"FILE is not .*\n  {key}: got .*, expected "):
            read(raw)
    if key not in SPECULATORS:
        layers = {**SPECULATORS["transformer_layer_config"], key: value}
        with pytest.raises(ValueError, match=rf"\n  {key}: got "):
            read(SPECULATORS, transformer_layer_config=layers)


@pytest.mark.parametrize(
    ("key", "value"), [*HARMLESS, *((key, None) for key in dict.fromkeys(k for k, _ in REFUSED))]
)
def test_what_changes_nothing_is_read(key: str, value: Any) -> None:
    assert read(ZLAB, **{key: value}).config == read(ZLAB).config
    assert read(within(**{key: value})).config == read(ZLAB).config


def test_the_second_kind_is_refused() -> None:
    message = r"architectures: got \['DFlash2DraftModel'\]"
    for special in (ZLAB["dflash_config"], None):
        with pytest.raises(ValueError, match=message):
            read(ZLAB, architectures=["DFlash2DraftModel"], dflash_config=special)
    with pytest.raises(ValueError, match="got 'dflash2', expected 'dflash'"):
        read(SPECULATORS, speculators_model_type="dflash2")


@pytest.mark.parametrize("switch", [None, True])
def test_layers_slide_where_layer_types_says_so(switch: bool | None) -> None:
    kinds = [SLIDING, FULL]
    config = read(
        ZLAB, layer_types=kinds, sliding_window=128, use_sliding_window=switch, max_window_layers=2
    ).config
    assert (config.layer_types, config.sliding_window) == ((SLIDING, FULL), 128)
    full = read(ZLAB, layer_types=[FULL, FULL], sliding_window=128, use_sliding_window=switch)
    assert full.config == read(ZLAB).config
    layers = {**SPECULATORS["transformer_layer_config"], "layer_types": kinds}
    layers |= {"sliding_window": 128, "use_sliding_window": switch}
    assert read(SPECULATORS, transformer_layer_config=layers).config == config


def test_a_window_that_is_switched_off_is_not_guessed() -> None:
    """z-lab's code would compute the layer without a window, and vLLM refuses the file."""
    off = {"sliding_window": 128, "use_sliding_window": False}
    message = "use_sliding_window: got false, expected true, because layer_types"
    with pytest.raises(ValueError, match=message):
        read(ZLAB, layer_types=[SLIDING, FULL], **off)
    assert read(ZLAB, layer_types=[FULL, FULL], **off).config == read(ZLAB).config


CAUSAL = {"layer_types": [SLIDING, FULL], "sliding_window": 64}


@pytest.mark.parametrize(
    "stated",
    [
        {"is_causal": False},
        {"causal": False},
        within(is_causal=False),
        within(causal=False),
        {"is_causal": False, **within(is_causal=False, causal=False)},
    ],
)
def test_causality_counts_under_both_names_in_both_places(stated: dict[str, Any]) -> None:
    config = read(
        ZLAB,
        **CAUSAL,
        **{key: stated[key] for key in stated if key not in ZLAB},
        dflash_config=stated.get("dflash_config", ZLAB["dflash_config"]),
    ).config
    assert config.is_causal is False and config.reach[0] == (63, 63)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (within(block_size=16), "block_size: got 8 and, in dflash_config, 16; expected one"),
        ({"mask_token_id": 9}, "mask_token_id: got 9 and, in dflash_config, 90; expected one"),
        (within(num_target_layers=5), "num_target_layers: got 6 and, in dflash_config, 5"),
        (within(sliding_window=64), "sliding_window: got 64 in dflash_config, expected it at the"),
        (within(layer_types=[FULL, FULL]), "layer_types: got .* in dflash_config, expected it at"),
        (within(rope_theta=1e6), "rope_theta: got 1000000.0 in dflash_config, expected it at the"),
        ({"qk_norm": False}, "qk_norm: got False at the top level, expected it in dflash_config"),
    ],
)
def test_a_key_counts_where_it_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read({**ZLAB, **changes})


def test_the_same_value_in_both_places_is_harmless() -> None:
    again = within(block_size=8, num_target_layers=6, rms_norm_eps=1e-6, head_dim=16)
    assert read(again, mask_token_id=90).config == read(ZLAB).config
    assert read(ZLAB, block_size=None, dflash_config=within(block_size=8)["dflash_config"]) == read(
        ZLAB
    )


def test_without_layer_types_the_switch_counts() -> None:
    window = {"sliding_window": 16, "max_window_layers": 1}
    assert read(ZLAB, **window).config == read(ZLAB).config
    config = read(ZLAB, **window, use_sliding_window=True).config
    assert (config.layer_types, config.sliding_window) == ((FULL, SLIDING), 16)


def test_other_names_of_the_window_must_agree() -> None:
    sliding = {"layer_types": [SLIDING, FULL], "sliding_window": 64}
    agreed = read({**within(use_swa=True, swa_window_size=64), **sliding})
    assert agreed.config == read(ZLAB, **sliding).config
    with pytest.raises(ValueError, match="swa_window_size: got 32, expected what layer_types"):
        read({**within(use_swa=True, swa_window_size=32), **sliding})


def test_llama3_scaling_is_read() -> None:
    want = Llama3RopeScaling(8.0, 1.0, 4.0, 128)
    assert read(ZLAB, rope_scaling=LLAMA3).config.rope_scaling == want
    moved = {"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 10_000.0}}
    assert read(ZLAB, **moved).config == read(ZLAB, rope_scaling=LLAMA3).config
    assert read(ZLAB, rope_theta=None, rope_parameters={"rope_theta": 7.0}).config.rope_theta == 7


def test_ids_that_are_not_stated_are_those_of_the_servers() -> None:
    special = {"mask_token_id": 90}
    large = read(ZLAB, dflash_config=special, num_target_layers=36)
    assert large.config.target_layer_ids == (1, 33)
    one = read(ZLAB, dflash_config=special, num_target_layers=4, num_hidden_layers=1)
    assert one.config.target_layer_ids == (2,)
    with pytest.raises(ValueError, match="too small for the default spread over 2 layers"):
        read(ZLAB, dflash_config=special, num_target_layers=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": None}, "block_size: got None"),
        ({"layer_types": [FULL, SLIDING]}, "sliding_window: got None, expected a positive"),
        ({"layer_types": [FULL, "linear_attention"]}, "'linear_attention'"),
        ({"layer_types": [FULL]}, "1 entries for 2 layers"),
        ({"layer_types": 3}, "layer_types: got 3, expected a list"),
        ({"is_causal": "yes"}, "is_causal: got .*'yes'"),
        (
            {"is_causal": True, **within(causal=False)},
            "the same under all names",
        ),
        ({"attention_bias": True}, "attention_bias: got true"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type: got 'dynamic'"),
        (within(mask_token_id="x"), "mask_token_id"),
        (within(target_layer_ids="02"), "expected a list of layer ids"),
        ({"block_size": 1}, "must be at least 2"),
    ],
)
def test_what_is_no_drafter_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read({**ZLAB, **changes})


def test_another_model_is_no_drafter() -> None:
    with pytest.raises(ValueError, match="not describe a DFlash"):
        dflash.from_json(
            {**ZLAB, "dflash_config": None, "architectures": ["Qwen3ForCausalLM"]}, where="FILE"
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aux_hidden_state_layer_ids": [0, 3]}, r"target_layer_ids: got \[-1, 2\]"),
        ({"speculators_model_type": "eagle3"}, "got 'eagle3', expected 'dflash'"),
        ({"transformer_layer_config": None}, "num_hidden_layers: got None"),
    ],
)
def test_other_speculators_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(SPECULATORS, **changes)
