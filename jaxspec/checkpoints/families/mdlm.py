"""MDLM, the released masked-diffusion language model (a DiT).

The layout is that of kuleshov-group/mdlm-owt on the Hub: a config.json of model type "mdlm", and
the tensors that `ROWS` lists. All differences are reported at once; nothing is executed, and the
model's own Python files are not read.

Letters in shapes: V vocabulary, D width, 2D, 3D, 6D multiples of it, F MLP width, Z width of the
noise conditioning; "waves" are the cosines and sines that embed the noise.

>>> config = from_json({"model_type": "mdlm", "vocab_size": 6, "hidden_dim": 8, "n_blocks": 1,
...                     "n_heads": 2, "cond_dim": 4, "model_length": 16}, where="config.json")
>>> layout(config).tensor_shapes["backbone.output_layer.linear.weight"]
(6, 8)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, get_args

from jaxspec.checkpoints import bounds
from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.checkpoints.families.family import Family, Layout
from jaxspec.checkpoints.key_maps import Row
from jaxspec.config import Context, DiTConfig, Dtype
from jaxspec.json_files import shown
from jaxspec.models.dit import FREQUENCIES

MODEL_TYPE, ARCHITECTURE = "mdlm", "MDLM"

# fmt: off
ROWS = (
    Row("backbone.vocab_embed.embedding", "embed/embedding", ("V", "D")),
    Row("backbone.sigma_map.mlp.0.weight", "noise/in/kernel", ("waves", "Z"), True),
    Row("backbone.sigma_map.mlp.0.bias", "noise/in/bias", ("Z",)),
    Row("backbone.sigma_map.mlp.2.weight", "noise/out/kernel", ("Z", "Z"), True),
    Row("backbone.sigma_map.mlp.2.bias", "noise/out/bias", ("Z",)),
    Row("backbone.blocks.{i}.norm1.weight", "layers/norm_1/scale", ("D",)),
    Row("backbone.blocks.{i}.attn_qkv.weight", "layers/qkv/kernel", ("D", "3D"), True),
    Row("backbone.blocks.{i}.attn_out.weight", "layers/o/kernel", ("D", "D"), True),
    Row("backbone.blocks.{i}.norm2.weight", "layers/norm_2/scale", ("D",)),
    Row("backbone.blocks.{i}.mlp.0.weight", "layers/up/kernel", ("D", "F"), True),
    Row("backbone.blocks.{i}.mlp.0.bias", "layers/up/bias", ("F",)),
    Row("backbone.blocks.{i}.mlp.2.weight", "layers/down/kernel", ("F", "D"), True),
    Row("backbone.blocks.{i}.mlp.2.bias", "layers/down/bias", ("D",)),
    Row("backbone.blocks.{i}.adaLN_modulation.weight", "layers/modulation/kernel",
        ("Z", "6D"), True),
    Row("backbone.blocks.{i}.adaLN_modulation.bias", "layers/modulation/bias", ("6D",)),
    Row("backbone.output_layer.norm_final.weight", "final_norm/scale", ("D",)),
    Row("backbone.output_layer.adaLN_modulation.weight", "final_modulation/kernel",
        ("Z", "2D"), True),
    Row("backbone.output_layer.adaLN_modulation.bias", "final_modulation/bias", ("2D",)),
    Row("backbone.output_layer.linear.weight", "head/kernel", ("D", "V"), True),
    Row("backbone.output_layer.linear.bias", "head/bias", ("V",)),
)
# fmt: on
"""Columns of qkv: queries, then keys, then values; within each, head by head. Chunks of the
modulation: shift, scale and gate of the attention, then of the MLP. Those of the final modulation:
shift and scale of the head."""

IGNORED = ("backbone.rotary_emb.inv_freq",)
"""A constant that is stored with the weights."""

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_dim": "hidden_size",
    "n_blocks": "num_layers",
    "n_heads": "num_heads",
    "cond_dim": "conditioning_size",
    "model_length": "max_position_embeddings",
}
"""config.json -> `DiTConfig`, integers."""
_LARGEST = {
    "vocab_size": bounds.VOCABULARY,
    "hidden_dim": bounds.WIDTH,
    "n_blocks": bounds.LAYERS,
    "n_heads": bounds.HEADS,
    "cond_dim": bounds.WIDTH,
    "model_length": bounds.POSITIONS,
}


def from_json(raw: Mapping[str, Any], *, where: str) -> DiTConfig:
    """The configuration of an MDLM.

    Args:
      raw: the content of config.json; `dropout` is ignored. `mask_token_id` and `context` are
        jaxspec's own fields; released folders lack them.
      where: what to call it in messages.

    Raises:
      ValueError: another model type, or fields that are missing or describe no model; all at once.
    """
    if raw.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{where}: model_type is {shown(raw.get('model_type'))}, expected {MODEL_TYPE!r}."
        )
    reader = ConfigReader(raw)
    fields: dict[str, Any] = {
        ours: reader.integer(key, largest=_LARGEST[key]) for key, ours in FIELDS.items()
    }
    reader.head_width("hidden_dim", fields["hidden_size"], heads=fields["num_heads"])
    fields["time_conditioning"] = reader.flag("time_conditioning")
    fields["context"] = reader.one_of("context", get_args(Context))
    if raw.get("mask_token_id") is not None:
        fields["mask_token_id"] = reader.integer(
            "mask_token_id", largest=bounds.VOCABULARY, smallest=0
        )
    return reader.build(DiTConfig, where=where, **fields)


def to_json(config: DiTConfig, *, dtype: Dtype) -> dict[str, Any]:
    """config.json of an MDLM."""
    return {
        "architectures": [ARCHITECTURE],
        "context": config.context,
        "dropout": 0.0,
        "mask_token_id": config.mask_token_id,
        "model_type": MODEL_TYPE,
        "time_conditioning": config.time_conditioning,
        "torch_dtype": dtype,
        **{key: getattr(config, ours) for key, ours in FIELDS.items()},
    }


def sizes(config: DiTConfig) -> dict[str, int]:
    """What the letters in shapes mean."""
    width = config.hidden_size
    return {
        "V": config.vocab_size,
        "D": width,
        "2D": 2 * width,
        "3D": 3 * width,
        "6D": 6 * width,
        "F": config.intermediate_size,
        "Z": config.conditioning_size,
        "waves": FREQUENCIES,
    }


def layout(config: DiTConfig, names: Collection[str] = ()) -> Layout:
    """The tensors of an MDLM."""
    del names
    return Layout(rows=ROWS, sizes=sizes(config), num_layers=config.num_layers, ignored=IGNORED)


MDLM = Family(
    name=MODEL_TYPE,
    role="denoiser",
    recognises=lambda raw: raw.get("model_type") == MODEL_TYPE,
    from_json=from_json,
    to_json=to_json,
    layout=layout,
    architectures=(ARCHITECTURE,),
)
