"""LLaDA and SDAR, two diffusion language models, in their released layouts.

LLaDA's layout is that of GSAI-ML/LLaDA-8B-Base and -Instruct on the Hub: a config.json of model
type "llada", whose field names are OLMo's, and the tensors that `ROWS` lists. SDAR (arXiv
2510.06303) has Qwen3's layers and tensor names, and is block-causal. All differences are reported
at once; nothing is executed, and the models' own Python files are not read.

Letters in shapes: those of `tensors`.

>>> llada_from_json(document, where="config.json")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jaxspec.checkpoints import bounds
from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.checkpoints.families import qwen_llama
from jaxspec.checkpoints.families.family import Family, Layout
from jaxspec.checkpoints.key_maps import Row
from jaxspec.config import Dtype, MaskedTransformerConfig, TransformerConfig
from jaxspec.json_files import shown

MODEL_TYPE, ARCHITECTURE = "llada", "LLaDAModelLM"
SDAR_TYPE = "sdar"
SDAR_MASK_ID, SDAR_BLOCK_LENGTH = 151_669, 4
"""Values of the released SDAR models, for files that do not state them."""

# fmt: off
ROWS = (
    Row("model.transformer.wte.weight", "embed/embedding", ("V", "D")),
    Row("model.transformer.blocks.{i}.attn_norm.weight", "layers/input_norm/scale", ("D",)),
    Row("model.transformer.blocks.{i}.q_proj.weight", "layers/attention/q/kernel",
        ("D", "QC"), True),
    Row("model.transformer.blocks.{i}.k_proj.weight", "layers/attention/k/kernel",
        ("D", "RC"), True),
    Row("model.transformer.blocks.{i}.v_proj.weight", "layers/attention/v/kernel",
        ("D", "RC"), True),
    Row("model.transformer.blocks.{i}.attn_out.weight", "layers/attention/o/kernel",
        ("QC", "D"), True),
    Row("model.transformer.blocks.{i}.ff_norm.weight", "layers/post_norm/scale", ("D",)),
    Row("model.transformer.blocks.{i}.ff_proj.weight", "layers/mlp/gate/kernel", ("D", "F"), True),
    Row("model.transformer.blocks.{i}.up_proj.weight", "layers/mlp/up/kernel", ("D", "F"), True),
    Row("model.transformer.blocks.{i}.ff_out.weight", "layers/mlp/down/kernel", ("F", "D"), True),
    Row("model.transformer.ln_f.weight", "final_norm/scale", ("D",)),
)
HEAD = (Row("model.transformer.ff_out.weight", "head/kernel", ("D", "V"), True),)
# fmt: on
"""`ff_out` names two things: the head and, within a block, the MLP's last projection."""

PLAIN: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False, None),
    "attention_layer_norm": (False, None),
    "block_type": ("llama",),
    "include_bias": (False, None),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False, None),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "scale_logits": (False, None),
}
"""Fields that may only have values that the models here compute; the first one is written."""

FIELDS = {
    "d_model": "hidden_size",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
}
"""config.json -> `TransformerConfig`, integers."""
_LARGEST = {
    "d_model": bounds.WIDTH,
    "n_layers": bounds.LAYERS,
    "n_heads": bounds.HEADS,
    "mlp_hidden_size": bounds.WIDTH,
    "max_sequence_length": bounds.POSITIONS,
}
_LIMITS = {"rms_norm_eps": bounds.EPSILON, "rope_theta": bounds.ROPE_THETA}
NUMBERS = {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0}
"""Names that are the same on both sides, with LLaDA's own defaults."""


def llada_from_json(raw: Mapping[str, Any], *, where: str) -> MaskedTransformerConfig:
    """The configuration of a LLaDA.

    Args:
      raw: the content of config.json; dropout rates and training settings are ignored.
      where: what to call it in messages.

    Raises:
      ValueError: another model type, or fields that are missing or describe no model that can be
        computed here; all at once.
    """
    if raw.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{where}: model_type is {shown(raw.get('model_type'))}, expected {MODEL_TYPE!r}."
        )
    reader = ConfigReader(raw)
    for key, allowed in PLAIN.items():
        reader.one_of(key, allowed)
    fields: dict[str, Any] = {
        ours: reader.integer(key, largest=_LARGEST[key]) for key, ours in FIELDS.items()
    }
    for key, default in NUMBERS.items():
        fields[key] = reader.number(key, default, limits=_LIMITS[key])
    width, heads = fields["hidden_size"], fields["num_heads"]
    reader.head_width("d_model", width, heads=heads)
    if width % heads:
        reader.problems.append(f"d_model: got {width}, expected a multiple of n_heads ({heads})")
    fields["num_kv_heads"] = reader.integer("n_kv_heads", heads, largest=bounds.HEADS)
    # The embedding may have more rows than the vocabulary, to reach a round size.
    fields["vocab_size"] = reader.integer(
        "embedding_size", raw.get("vocab_size"), largest=bounds.VOCABULARY
    )
    # A base model may have no end-of-text token.
    keys = ["mask_token_id"] + ["eos_token_id"] * (raw.get("eos_token_id") is not None)
    ids = {key: reader.integer(key, largest=bounds.VOCABULARY, smallest=0) for key in keys}
    for key, value in ids.items():
        if value >= fields["vocab_size"]:
            reader.problems.append(
                f"{key}: got {value}, expected an id below {fields['vocab_size']}, the rows of the "
                "embedding"
            )
    if not reader.problems and ids["mask_token_id"] == ids.get("eos_token_id"):
        reader.problems.append(
            f"mask_token_id: got {ids['mask_token_id']}, which is also eos_token_id"
        )
    return reader.build(
        MaskedTransformerConfig,
        where=where,
        **fields,
        family="llama",
        head_dim=width // heads,
        qk_norm=False,
        tie_embeddings=reader.flag("weight_tying"),
        mask_token_id=ids["mask_token_id"],
    )


def llada_to_json(config: MaskedTransformerConfig, *, eos_id: int, dtype: Dtype) -> dict[str, Any]:
    """config.json of a LLaDA.

    Raises:
      ValueError: layers that LLaDA does not have, or an end-of-text id that is the mask's or out of
        range.
    """
    if not 0 <= eos_id < config.vocab_size or eos_id == config.mask_id:
        raise ValueError(
            f"eos_id must be an id below {config.vocab_size} that is not the mask's "
            f"({config.mask_id}): got {eos_id}."
        )
    llamas = {
        "attention_bias": config.attention_bias,
        "rope_scaling": config.rope_scaling is not None,
        "head_dim": config.head_dim * config.num_heads != config.hidden_size,
    }
    wrong = [*qwen_llama.unlike(config, "llama"), *(name for name, used in llamas.items() if used)]
    if wrong:
        raise ValueError(
            f"LLaDA's config.json cannot describe {', '.join(wrong)} of {config}. Write a model "
            "with Qwen3's or Llama's layers with save_target."
        )
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        **{key: allowed[0] for key, allowed in PLAIN.items()},
        **{key: getattr(config, ours) for key, ours in FIELDS.items()},
        **{key: getattr(config, key) for key in NUMBERS},
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "weight_tying": config.tie_embeddings,
        "mask_token_id": config.mask_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "torch_dtype": dtype,
    }


def llada_layout(config: TransformerConfig, names: Collection[str] = ()) -> Layout:
    """The tensors of a LLaDA; without a head if the embeddings are tied."""
    del names
    return Layout(
        rows=ROWS if config.tie_embeddings else ROWS + HEAD,
        sizes=qwen_llama.sizes(config),
        num_layers=config.num_layers,
    )


def sdar_from_json(raw: Mapping[str, Any], *, where: str) -> MaskedTransformerConfig:
    """The configuration of an SDAR: a Qwen3, and what its file says about blocks."""
    target = qwen_llama.from_json(raw, where=where, family="qwen3")
    reader = ConfigReader(raw)
    mask_id = reader.integer("mask_token_id", SDAR_MASK_ID, largest=bounds.VOCABULARY, smallest=0)
    block_length = reader.integer("block_size", SDAR_BLOCK_LENGTH, largest=bounds.BLOCK)
    reader.raise_problems(where)
    return qwen_llama.masked(
        target,
        where=where,
        mask_token_id=mask_id,
        context="block_causal",
        block_length=block_length,
    )


def trained(config: MaskedTransformerConfig, family: Family, *, dtype: Dtype) -> dict[str, Any]:
    """What training may change in the config.json of a LLaDA or an SDAR.

    Args:
      config: the shape after training.
      family: `LLADA` or `SDAR`.
      dtype: type of the stored weights.
    """
    changed = (
        {"n_layers": config.num_layers}
        if family is LLADA
        else {"num_hidden_layers": config.num_layers, "block_size": config.block_length}
    )
    return {**changed, "torch_dtype": dtype}


LLADA = Family(
    name=MODEL_TYPE,
    role="denoiser",
    recognises=lambda raw: raw.get("model_type") == MODEL_TYPE,
    from_json=llada_from_json,
    to_json=llada_to_json,
    layout=llada_layout,
    architectures=(ARCHITECTURE,),
)
SDAR = Family(
    name=SDAR_TYPE,
    role="denoiser",
    recognises=lambda raw: raw.get("model_type") == SDAR_TYPE,
    from_json=sdar_from_json,
    # jaxspec writes a block-causal transformer with its own entry.
    to_json=qwen_llama.denoiser_to_json,
    layout=qwen_llama.layout,
)
