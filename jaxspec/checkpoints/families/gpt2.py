"""GPT-2 and GPT-Neo: targets with learned positions.

Letters in shapes: V vocabulary, P positions, D width, 3D queries, keys and values side by side, F
MLP width.

>>> from_json(document, where="gpt2/config.json")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jaxspec.checkpoints import bounds
from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.checkpoints.families.family import Family, Layout
from jaxspec.checkpoints.key_maps import Row, under
from jaxspec.config import Dtype, GPT2Config, LayerType
from jaxspec.json_files import shortened, shown

MODEL_TYPES = {"gpt2": "GPT2LMHeadModel", "gpt_neo": "GPTNeoForCausalLM"}

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")
"""Names of the tanh form of GELU."""
LAYER_NAMES: dict[str, LayerType] = {"global": "full_attention", "local": "sliding_attention"}
"""GPT-Neo's names for the kinds of layers."""
WINDOW = 256
"""What transformers assumes for a GPT-Neo without window_size."""

# fmt: off
# GPT-2 stores its matrices as we do, (in, out); GPT-Neo stores them like all others, (out, in).
EMBED = (
    Row("wte.weight", "embed/embedding", ("V", "D")),
    Row("wpe.weight", "positions/embedding", ("P", "D")),
)
NORMS = (
    Row("h.{i}.ln_1.weight", "layers/input_norm/scale", ("D",)),
    Row("h.{i}.ln_1.bias", "layers/input_norm/bias", ("D",)),
    Row("h.{i}.ln_2.weight", "layers/post_norm/scale", ("D",)),
    Row("h.{i}.ln_2.bias", "layers/post_norm/bias", ("D",)),
    Row("ln_f.weight", "final_norm/scale", ("D",)),
    Row("ln_f.bias", "final_norm/bias", ("D",)),
)
BIASES = (
    Row("h.{i}.mlp.c_fc.bias", "layers/mlp/up/bias", ("F",)),
    Row("h.{i}.mlp.c_proj.bias", "layers/mlp/down/bias", ("D",)),
)
PRODUCTS = (
    Row("h.{i}.attn.c_attn.weight", "layers/attention/qkv/kernel", ("D", "3D")),
    Row("h.{i}.attn.c_attn.bias", "layers/attention/qkv/bias", ("3D",)),
    Row("h.{i}.attn.c_proj.weight", "layers/attention/o/kernel", ("D", "D")),
    Row("h.{i}.attn.c_proj.bias", "layers/attention/o/bias", ("D",)),
    Row("h.{i}.mlp.c_fc.weight", "layers/mlp/up/kernel", ("D", "F")),
    Row("h.{i}.mlp.c_proj.weight", "layers/mlp/down/kernel", ("F", "D")),
)
NEO_PRODUCTS = (
    Row("h.{i}.attn.attention.q_proj.weight", "layers/attention/q/kernel", ("D", "D"), True),
    Row("h.{i}.attn.attention.k_proj.weight", "layers/attention/k/kernel", ("D", "D"), True),
    Row("h.{i}.attn.attention.v_proj.weight", "layers/attention/v/kernel", ("D", "D"), True),
    Row("h.{i}.attn.attention.out_proj.weight", "layers/attention/o/kernel", ("D", "D"), True),
    Row("h.{i}.attn.attention.out_proj.bias", "layers/attention/o/bias", ("D",)),
    Row("h.{i}.mlp.c_fc.weight", "layers/mlp/up/kernel", ("D", "F"), True),
    Row("h.{i}.mlp.c_proj.weight", "layers/mlp/down/kernel", ("F", "D"), True),
)
HEAD = (Row("lm_head.weight", "head/kernel", ("D", "V"), True),)
# fmt: on
TIED_HEAD = HEAD[0].name
PREFIX = "transformer."
"""Prefix of a language model's tensor names; the gpt2 on the Hub was saved without it."""
IGNORED = tuple(
    f"{prefix}h.{{i}}.attn.{name}"
    for prefix in (PREFIX, "")
    for name in ("bias", "masked_bias", "attention.bias", "attention.masked_bias")
)
"""Constants that old checkpoints contain: causal masks."""

# Features that the models here do not have, with the only value that is accepted for each.
_PLAIN = {
    "add_cross_attention": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
}


def from_json(raw: Mapping[str, Any], *, where: str) -> GPT2Config:
    """The configuration of a target whose model_type is one of `MODEL_TYPES`.

    Args:
      raw: the content of config.json.
      where: what to call it in messages.

    Raises:
      ValueError: features that the models here do not have; all at once.
    """
    family = raw["model_type"]
    reader = ConfigReader(raw)
    activation = raw.get("activation_function", ACTIVATIONS[0])
    if activation not in ACTIVATIONS:
        reader.problems.append(
            f"activation_function: got {shown(activation)}, expected "
            f"{' or '.join(map(repr, ACTIVATIONS))}"
        )
    for key, only in _PLAIN.items():
        if raw.get(key, only) is not only:
            reader.problems.append(f"{key}: got {shown(raw[key])}, expected {str(only).lower()}")
    if raw.get("quantization_config"):
        reader.problems.append("quantization_config: expected none; use the unquantised weights")
    read = _gpt2_sizes if family == "gpt2" else _gpt_neo_sizes
    dtype = reader.stored_dtype()
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": reader.integer("vocab_size", largest=bounds.VOCABULARY),
        **read(reader),
        "layer_norm_eps": reader.number("layer_norm_epsilon", 1e-5, limits=bounds.EPSILON),
        # Tied unless the file says otherwise: files of these families seldom say.
        "tie_embeddings": raw.get("tie_word_embeddings") is None
        or reader.flag("tie_word_embeddings"),
        "dtype": dtype,
        "param_dtype": dtype,
    }
    if fields["hidden_size"] % fields["num_heads"]:
        width, heads = ("n_embd", "n_head") if family == "gpt2" else ("hidden_size", "num_heads")
        reader.problems.append(
            f"{width}: got {fields['hidden_size']}, expected a multiple of {heads} "
            f"({fields['num_heads']})"
        )
    return reader.build(GPT2Config, where=where, **fields)


def _gpt2_sizes(reader: ConfigReader) -> dict[str, Any]:
    width = reader.integer("n_embd", largest=bounds.WIDTH)
    return {
        "hidden_size": width,
        "num_layers": reader.integer("n_layer", largest=bounds.LAYERS),
        "num_heads": reader.integer("n_head", largest=bounds.HEADS),
        "intermediate_size": reader.integer("n_inner", 4 * width, largest=4 * bounds.WIDTH),
        "max_position_embeddings": reader.integer("n_positions", 1024, largest=bounds.POSITIONS),
    }


def _gpt_neo_sizes(reader: ConfigReader) -> dict[str, Any]:
    width = reader.integer("hidden_size", largest=bounds.WIDTH)
    num_layers = reader.integer("num_layers", largest=bounds.LAYERS)
    kinds = _layer_kinds(reader, num_layers)
    window = reader.integer("window_size", WINDOW, largest=bounds.POSITIONS)
    slides = "sliding_attention" in kinds
    return {
        "hidden_size": width,
        "num_layers": num_layers,
        "num_heads": reader.integer("num_heads", largest=bounds.HEADS),
        "intermediate_size": reader.integer(
            "intermediate_size", 4 * width, largest=4 * bounds.WIDTH
        ),
        "max_position_embeddings": reader.integer(
            "max_position_embeddings", 2048, largest=bounds.POSITIONS
        ),
        "layer_types": kinds if slides else (),
        "sliding_window": window if slides else 0,
    }


def _layer_kinds(reader: ConfigReader, num_layers: int) -> tuple[LayerType, ...]:
    """attention_types: pairs of a list of kinds and a count of repeats; () if it cannot be read.

    attention_layers is the same list, written out by transformers, which does not read it back.
    """
    pairs = reader.raw.get("attention_types")
    pairs = [[["global", "local"], 12]] if pairs is None else pairs
    names: list[str] = []
    try:
        for kinds, count in pairs:
            if len(names) + len(kinds) * count > bounds.LAYERS:
                raise ValueError(f"more than {bounds.LAYERS} layers")
            names += [*map(str, kinds)] * count
        unknown = sorted(set(names) - set(LAYER_NAMES))
    except (TypeError, ValueError):
        names, unknown = [], [pairs if isinstance(pairs, str) else shown(pairs)]
    if unknown:
        reader.problems.append(
            f"attention_types: got {shortened(', '.join(unknown))}, expected pairs: a list of "
            "'global' and 'local', and a count"
        )
        return ()
    if len(names) != num_layers:
        reader.problems.append(
            f"attention_types: got {len(names)} entries for {num_layers} layers (num_layers)"
        )
    return tuple(LAYER_NAMES[name] for name in names)


def to_json(config: GPT2Config, *, dtype: Dtype, special_ids: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a target, which transformers reads as one of `MODEL_TYPES`.

    Args:
      config: its shape.
      dtype: type of the stored weights.
      special_ids: bos_token_id, eos_token_id, pad_token_id where known.
    """
    common = {
        "activation_function": ACTIVATIONS[0],
        "architectures": [MODEL_TYPES[config.family]],
        # Written even if unknown: otherwise transformers would fall back on GPT-2's 50256.
        "bos_token_id": special_ids.get("bos_token_id"),
        "dtype": dtype,
        "eos_token_id": special_ids.get("eos_token_id"),
        "initializer_range": 0.02,
        "layer_norm_epsilon": config.layer_norm_eps,
        "model_type": config.family,
        "pad_token_id": special_ids.get("pad_token_id"),
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if config.family == "gpt2":
        return {
            **common,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "n_embd": config.hidden_size,
            "n_head": config.num_heads,
            "n_inner": config.intermediate_size,
            "n_layer": config.num_layers,
            "n_positions": config.max_position_embeddings,
            "resid_pdrop": 0.0,
        }
    names = {kind: name for name, kind in LAYER_NAMES.items()}
    kinds = [names[kind] for kind in config.layer_types] or ["global"] * config.num_layers
    return {
        **common,
        "attention_dropout": 0.0,
        "attention_types": [[kinds, 1]],
        "embed_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "resid_dropout": 0.0,
        "window_size": config.sliding_window or WINDOW,
    }


def layout(config: GPT2Config, names: Collection[str] = ()) -> Layout:
    """The tensors of a target; when a folder is read, they have its prefix."""
    products = PRODUCTS if config.family == "gpt2" else NEO_PRODUCTS
    prefix = "" if EMBED[0].name in names else PREFIX
    rows = under(prefix, EMBED + products + BIASES + NORMS)
    width = config.hidden_size
    return Layout(
        rows=rows if config.tie_embeddings else rows + HEAD,
        sizes={
            "V": config.vocab_size,
            "P": config.max_position_embeddings,
            "D": width,
            "3D": 3 * width,
            "F": config.intermediate_size,
        },
        num_layers=config.num_layers,
        tied_head=TIED_HEAD if config.tie_embeddings else "",
        ignored=IGNORED,
    )


def _target(family: str, architecture: str) -> Family:
    return Family(
        name=family,
        role="target",
        recognises=lambda raw: raw.get("model_type") == family,
        from_json=from_json,
        to_json=to_json,
        layout=layout,
        architectures=(architecture,),
        tokenizer_class="GPT2Tokenizer",
    )


TARGETS = tuple(_target(family, architecture) for family, architecture in MODEL_TYPES.items())
