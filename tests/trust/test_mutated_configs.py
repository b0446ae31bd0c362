"""Mutated config.json files of every family: refused, or read exactly as they say."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxspec.checkpoints.families import dflash, speculators
from jaxspec.checkpoints.families.registry import FAMILIES, open_folder, target_family
from jaxspec.checkpoints.shapes import compare_shapes, nest_paths
from jaxspec.config import (
    DiTConfig,
    DrafterConfig,
    GPT2Config,
    Llama3RopeScaling,
    MaskedTransformerConfig,
    TransformerConfig,
)
from jaxspec.models.dflash import DFlash
from jaxspec.models.registry import make_denoiser, make_model
from tests.trust.mutations import SECONDS, SEED, damaged
from tests.trust.outcomes import Outcomes, is_one_message

FAST, SLOW = 120, 800
DAMAGED_FILES = 0.1
"""Part of the cases in which the file is damaged as a whole."""

Document = dict[str, Any]
Key = tuple[str | int, ...]

SIZES = dict(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=48,
)  # fmt: skip
QWEN3 = TransformerConfig(family="qwen3", **SIZES, layer_types=("full_attention",) * 2)
SLIDING = dataclasses.replace(
    QWEN3, layer_types=("full_attention", "sliding_attention"), sliding_window=8
)
LLAMA = TransformerConfig(
    family="llama", **SIZES, qk_norm=False, attention_bias=True, rope_scaling=Llama3RopeScaling()
)
DRAFTER = DrafterConfig(
    block_size=8, mask_token_id=3, target_layer_ids=(0, 1), num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, intermediate_size=48, rms_norm_eps=1e-6, rope_theta=1e4,
)  # fmt: skip


SHAPE = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=64, hidden_act="silu", tie_word_embeddings=False,
)  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
PUBLISHED: dict[str, Document] = {
    "qwen2": {**GROUPED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "mistral": {**GROUPED, "head_dim": 8, "sliding_window": 8},
    "qwen3_moe": {
        **GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "decoder_sparse_step": 1, "norm_topk_prob": True,
    },
    "gemma3_text": {
        **GROUPED, "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": None,
        "sliding_window": 8, "sliding_window_pattern": 2, "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 8,
    },
    "smollm3": {**GROUPED, "no_rope_layers": [1, 0], "mlp_bias": False},
    "olmo2": {**GROUPED, "attention_bias": False},
    "phi3": {**GROUPED, "partial_rotary_factor": 0.5, "sliding_window": 8, "embd_pdrop": 0.0},
    "gpt_neox": {
        **SHAPE, "rotary_pct": 0.25, "rotary_emb_base": 10000, "layer_norm_eps": 1e-5,
        "hidden_act": "gelu", "use_parallel_residual": True,
    },
}  # fmt: skip
"""Families as others publish them: model_type -> the other entries."""
SCALINGS: dict[str, Document] = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "linear": {"rope_type": "linear", "factor": 2.0},
}
DERIVED = (
    *("num_hidden_layers", "sliding_window_pattern", "max_window_layers", "decoder_sparse_step"),
    *("rotary_pct", "head_dim", "hidden_size", "num_attention_heads", "factor"),
)
"""Entries from which those families compute other fields than their own."""


def documents() -> dict[str, Document]:
    """A config.json of each family, and of each spelling of a drafter."""
    plain = {"mlp_bias": False, "partial_rotary_factor": 1.0, "quantization_config": None}
    options: Any = {"dtype": "float32", "special_ids": {"eos_token_id": [1, 2]}}

    def target(config: Any) -> Document:
        return target_family(config).to_json(config, **options)

    masked = MaskedTransformerConfig(**dataclasses.asdict(QWEN3), mask_token_id=3)
    llada = MaskedTransformerConfig(
        **{**SIZES, "num_kv_heads": 4}, family="llama", qk_norm=False, mask_token_id=3
    )
    drafter = dflash.to_json(DRAFTER, target_config=QWEN3, dtype="float32")
    slides = dataclasses.replace(DRAFTER, layer_types=("sliding_attention",) * 2, sliding_window=8)
    return {
        "qwen3": {**target(QWEN3), **plain},
        "qwen3, sliding": target(SLIDING),
        "llama": {**target(LLAMA), **plain},
        "gpt2": target(GPT2Config(vocab_size=64, hidden_size=32, num_layers=2, num_heads=4)),
        "gpt_neo": target(
            GPT2Config(
                family="gpt_neo", vocab_size=64, hidden_size=32, num_layers=2, num_heads=4,
                layer_types=("full_attention", "sliding_attention"), sliding_window=8,
            )
        ),
        "llada": FAMILIES["llada"].to_json(llada, eos_id=1, dtype="float32"),
        "sdar": {**target(QWEN3), "model_type": "sdar", "mask_token_id": 3, "block_size": 4},
        "mdlm": FAMILIES["mdlm"].to_json(
            DiTConfig(vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, mask_token_id=3),
            dtype="float32",
        ),
        "denoiser": FAMILIES["denoiser"].to_json(masked, **options),
        **{name: {"model_type": name, **entries} for name, entries in PUBLISHED.items()},
        **{
            f"llama, {name}": {"model_type": "llama", **GROUPED, "rope_scaling": scaling}
            for name, scaling in SCALINGS.items()
        },
        "dflash, z-lab": drafter,
        "dflash, speculators": speculators.from_zlab(
            dflash.to_json(slides, target_config=QWEN3, dtype="float32"),
            target_name="x",
            target_architectures=["Qwen3ForCausalLM"],
        ),
    }  # fmt: skip


def deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


REMOVED, OVERFLOW = "(removed)", "(1e999)"
VALUES: dict[str, Any] = {
    "removed": REMOVED,
    "null": None,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "1e999": OVERFLOW,
    "minus one": -1,
    "negative": -0.5,
    "zero": 0,
    "a half": 0.5,
    "seven": 7,
    "many": 4096,
    "a million": 2**20,
    "too many": 10**12,
    "10**400": 10**400,
    "digits": "8",
    "text": "x",
    "long text": "x\n" * 100_000,
    "no list": [],
    "list": [1],
    "lists": [[["global"], 10**12]],
    "no object": {},
    "object": {"rope_theta": "x", "mask_token_id": -1},
    "true": True,
    "false": False,
    "nested": deep(300),
}
"""What a value is replaced by."""

MEANINGS: Mapping[str, Callable[[Any], Any]] = {
    "aux_hidden_state_layer_ids": lambda ids: (
        [each - 1 for each in ids] if isinstance(ids, list) else ids - 1
    ),
    "sliding_window_non_causal": lambda value: not value,
}
"""Keys whose values are not those of a field."""


def keys(value: Any, *, place: Key = ()) -> Iterator[Key]:
    """Places of all values in a document."""
    entries: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for key, each in entries:
        yield (*place, key)
        yield from keys(each, place=(*place, key))


def replaced(document: Document, place: Key, value: Any) -> Document:
    changed = copy.deepcopy(document)
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    if value is REMOVED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return changed


def fields(description: Any, *, prefix: str = "") -> dict[str, Any]:
    """All fields of a configuration, those of nested configurations included."""
    found = {}
    for field in dataclasses.fields(description):
        value = getattr(description, field.name)
        if dataclasses.is_dataclass(value):
            found |= fields(value, prefix=f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def says(key: Key, value: Any, got: Any) -> bool:
    """Whether a field's value is the file's value under a key."""
    stated = value
    for each in key:
        stated = MEANINGS.get(str(each), lambda same: same)(stated)
    if isinstance(got, tuple):
        # A list or one entry of it.
        return list(got) == stated or stated in got
    if isinstance(stated, list):
        return bool(got == len(stated))
    return bool(got == stated) and isinstance(got, bool) == isinstance(stated, bool)


def is_told(key: Key, value: Any, *, got: Any, base: Any) -> bool:
    """Whether the file states everything that differs from the original configuration."""
    if value is REMOVED or value in (None, {}):
        return True  # A default, or what it leaves out.
    if type(got) is not type(base):
        return False
    before, after = fields(base), fields(got)
    return before.keys() == after.keys() and all(
        says(key, value, after[name]) for name in after if after[name] != before[name]
    )


@functools.cache
def fits(description: Any, family: str) -> bool:
    """Whether the model can be built, and has the parameters that the family's table lists."""
    key = jax.random.key(0)
    if isinstance(description, dflash.StoredDrafter):
        config = description.config
        drafter = DFlash(config, description.hidden_size)
        features = len(config.target_layer_ids) * description.hidden_size
        shapes = jax.eval_shape(
            lambda: drafter.init(key, jnp.zeros((1, 2, features)), method="initialise")
        )
    else:
        is_denoiser = FAMILIES[family].role == "denoiser"
        model = make_denoiser(description) if is_denoiser else make_model(description)
        shapes = jax.eval_shape(lambda: model.init(key, jnp.zeros((1, 4), jnp.int32)))
    expected = FAMILIES[family].layout(description, ()).parameter_shapes
    return not compare_shapes(nest_paths(expected), shapes["params"])


def opened(folder: Path, *, key: Key) -> tuple[Any, str]:
    """The configuration and its family; a refusal with too little information is an error."""
    try:
        stored = open_folder(folder)
        return stored.description, stored.family.name
    except ValueError as error:
        names = [str(folder / "config.json"), *(str(each) for each in key if each != "")]
        assert is_one_message(str(error)) and any(name in str(error) for name in names), error
        raise


def test_mutated_configurations_are_refused_or_mean_what_they_say(
    tmp_path: Path, is_slow: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    originals = documents()
    bases = {}
    for name, document in originals.items():
        (tmp_path / "config.json").write_text(json.dumps(document))
        bases[name], family = opened(tmp_path, key=())
        assert family == name.split(",")[0] and fits(bases[name], family)

    outcomes = Outcomes(f"mutated config.json (seed {SEED})")
    for number in range(SLOW if is_slow else FAST):
        at = random.Random(f"{SEED} {number}")
        name = at.choice(sorted(originals))
        document, key, value = originals[name], (), None
        if at.random() < DAMAGED_FILES:
            what, content = damaged(json.dumps(document).encode(), at=at)
        else:
            key, what = at.choice(list(keys(document))), at.choice(sorted(VALUES))
            value = VALUES[what]
            text = json.dumps(replaced(document, key, value))
            content = text.replace(f'"{OVERFLOW}"', "1e999").encode()
        (tmp_path / "config.json").write_bytes(content)
        case = f"{number}: {name}, {'.'.join(map(str, key))}: {what}"
        start = time.monotonic()

        def read_and_build(key: Key = key) -> tuple[Any, bool]:
            description, family = opened(tmp_path, key=key)
            return description, fits(description, family)

        result = outcomes.attempt(case, read_and_build)
        if time.monotonic() - start > SECONDS:
            outcomes.add("hang", case)
        elif result is not None:
            description, is_whole = result
            if key:
                is_derived = name in (*PUBLISHED, "llama, yarn") and not {*key}.isdisjoint(DERIVED)
                is_whole = is_whole and (
                    is_derived or is_told(key, value, got=description, base=bases[name])
                )
            outcomes.add("clean" if is_whole else "silent", f"{case}: {description}")
    with capsys.disabled():
        outcomes.check()
