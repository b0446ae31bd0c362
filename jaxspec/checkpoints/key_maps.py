"""Which Hugging Face tensor is which parameter: tables, and nothing that runs on arrays.

Dimension key of the `shape` columns, one layer's worth: V vocabulary, P positions, D width, F mlp
width, C head width, QC query heads x head width, RC key/value heads x head width, 3D queries, keys
and values side by side, MD captured layers x width.
Shapes are those of our parameter; Hugging Face stores linear weights the other way round (out,
in), which is what `transpose` says. Rows with {i} in their name are stacked over layers on axis 0.

>>> [row.path for row in target_rows(TransformerConfig(tie_embeddings=True))][-1]
'final_norm/scale'
"""

from __future__ import annotations

import dataclasses

from jaxspec.config import GPT2Config, LanguageModelConfig


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    """Hugging Face tensor, {i} standing for the layer."""
    path: str
    """Parameter, keys joined by "/"."""
    shape: tuple[str, ...]
    transpose: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds all layers."""
        return "{i}" in self.name


# fmt: off
BLOCK = (
    Row("layers.{i}.input_layernorm.weight", "layers/input_norm/scale", ("D",)),
    Row("layers.{i}.self_attn.q_proj.weight", "layers/attention/q/kernel", ("D", "QC"), True),
    Row("layers.{i}.self_attn.k_proj.weight", "layers/attention/k/kernel", ("D", "RC"), True),
    Row("layers.{i}.self_attn.v_proj.weight", "layers/attention/v/kernel", ("D", "RC"), True),
    Row("layers.{i}.self_attn.o_proj.weight", "layers/attention/o/kernel", ("QC", "D"), True),
    Row("layers.{i}.post_attention_layernorm.weight", "layers/post_norm/scale", ("D",)),
    Row("layers.{i}.mlp.gate_proj.weight", "layers/mlp/gate/kernel", ("D", "F"), True),
    Row("layers.{i}.mlp.up_proj.weight", "layers/mlp/up/kernel", ("D", "F"), True),
    Row("layers.{i}.mlp.down_proj.weight", "layers/mlp/down/kernel", ("F", "D"), True),
)
QK_NORM = (
    Row("layers.{i}.self_attn.q_norm.weight", "layers/attention/q_norm/scale", ("C",)),
    Row("layers.{i}.self_attn.k_norm.weight", "layers/attention/k_norm/scale", ("C",)),
)
ATTENTION_BIAS = (
    Row("layers.{i}.self_attn.q_proj.bias", "layers/attention/q/bias", ("QC",)),
    Row("layers.{i}.self_attn.k_proj.bias", "layers/attention/k/bias", ("RC",)),
    Row("layers.{i}.self_attn.v_proj.bias", "layers/attention/v/bias", ("RC",)),
)
EMBED = (Row("embed_tokens.weight", "embed/embedding", ("V", "D")),)
FINAL_NORM = (Row("norm.weight", "final_norm/scale", ("D",)),)
HEAD = (Row("lm_head.weight", "head/kernel", ("D", "V"), True),)
FEATURES = (
    Row("fc.weight", "fc/kernel", ("MD", "D"), True),
    Row("hidden_norm.weight", "hidden_norm/scale", ("D",)),
)
# GPT-2 keeps its products as we do, (in, out); GPT-Neo as all others.
GPT2_EMBED = (
    Row("wte.weight", "embed/embedding", ("V", "D")),
    Row("wpe.weight", "positions/embedding", ("P", "D")),
)
GPT2_NORMS = (
    Row("h.{i}.ln_1.weight", "layers/input_norm/scale", ("D",)),
    Row("h.{i}.ln_1.bias", "layers/input_norm/bias", ("D",)),
    Row("h.{i}.ln_2.weight", "layers/post_norm/scale", ("D",)),
    Row("h.{i}.ln_2.bias", "layers/post_norm/bias", ("D",)),
    Row("ln_f.weight", "final_norm/scale", ("D",)),
    Row("ln_f.bias", "final_norm/bias", ("D",)),
)
GPT2_BIASES = (
    Row("h.{i}.mlp.c_fc.bias", "layers/mlp/up/bias", ("F",)),
    Row("h.{i}.mlp.c_proj.bias", "layers/mlp/down/bias", ("D",)),
)
GPT2_PRODUCTS = (
    Row("h.{i}.attn.c_attn.weight", "layers/attention/qkv/kernel", ("D", "3D")),
    Row("h.{i}.attn.c_attn.bias", "layers/attention/qkv/bias", ("3D",)),
    Row("h.{i}.attn.c_proj.weight", "layers/attention/o/kernel", ("D", "D")),
    Row("h.{i}.attn.c_proj.bias", "layers/attention/o/bias", ("D",)),
    Row("h.{i}.mlp.c_fc.weight", "layers/mlp/up/kernel", ("D", "F")),
    Row("h.{i}.mlp.c_proj.weight", "layers/mlp/down/kernel", ("F", "D")),
)
GPT_NEO_PRODUCTS = (
    Row("h.{i}.attn.attention.q_proj.weight", "layers/attention/q/kernel", ("D", "D"), True),
    Row("h.{i}.attn.attention.k_proj.weight", "layers/attention/k/kernel", ("D", "D"), True),
    Row("h.{i}.attn.attention.v_proj.weight", "layers/attention/v/kernel", ("D", "D"), True),
    Row("h.{i}.attn.attention.out_proj.weight", "layers/attention/o/kernel", ("D", "D"), True),
    Row("h.{i}.attn.attention.out_proj.bias", "layers/attention/o/bias", ("D",)),
    Row("h.{i}.mlp.c_fc.weight", "layers/mlp/up/kernel", ("D", "F"), True),
    Row("h.{i}.mlp.c_proj.weight", "layers/mlp/down/kernel", ("F", "D"), True),
)
# fmt: on

DFLASH = FEATURES + BLOCK + QK_NORM + FINAL_NORM
"""The drafter as z-lab stores it: no embedding and no head, both are the target's."""

OUTPUT_BIAS = "model.layers.{i}.self_attn.o_proj.bias"
"""Transformers gives this bias to every model with `attention_bias`; our layers have none. It is
written as zeros, and a folder in which it is not zero is refused."""

TIED_HEAD = "lm_head.weight"
"""Some folders with tied embeddings store the head a second time; it must equal the embedding."""

IGNORED = (
    "model.layers.{i}.self_attn.rotary_emb.inv_freq",
    *(
        f"{prefix}h.{{i}}.attn.{name}"
        for prefix in ("transformer.", "")
        for name in ("bias", "masked_bias", "attention.bias", "attention.masked_bias")
    ),
)
"""Constants that old checkpoints carry along: wavelengths, causal masks."""

GPT2_PREFIX = "transformer."
"""What the names of a language model's tensors begin with; the Hub's gpt2 was saved without."""

IGNORED_SPECULATORS = ("embed_tokens.weight", "lm_head.weight", "verifier_norm.weight",
                       "verifier_lm_head.weight")  # fmt: skip
"""The target's own tensors, which the speculators format may keep beside a drafter's."""


def _under(prefix: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(dataclasses.replace(row, name=prefix + row.name) for row in rows)


LLAMA = _under("model.", EMBED + BLOCK + FINAL_NORM)
LLAMA_BIAS = _under("model.", ATTENTION_BIAS)
QWEN3 = _under("model.", EMBED + BLOCK + QK_NORM + FINAL_NORM)


def target_rows(config: LanguageModelConfig, *, gpt2_prefix: str = GPT2_PREFIX) -> tuple[Row, ...]:
    """The table of a target, its embedding first: Qwen3's with query/key norms, Llama's without.

    The names of GPT-2's and GPT-Neo's tensors begin with `gpt2_prefix`.
    """
    if isinstance(config, GPT2Config):
        products = GPT2_PRODUCTS if config.family == "gpt2" else GPT_NEO_PRODUCTS
        rows = _under(gpt2_prefix, GPT2_EMBED + products + GPT2_BIASES + GPT2_NORMS)
        return rows if config.tie_embeddings else rows + HEAD
    rows = QWEN3 if config.qk_norm else LLAMA
    if config.attention_bias:
        rows = rows + LLAMA_BIAS
    return rows if config.tie_embeddings else rows[:1] + HEAD + rows[1:]


def drafter_rows(*, qk_norm: bool = True) -> tuple[Row, ...]:
    """The table of a DFlash drafter."""
    return DFLASH if qk_norm else FEATURES + BLOCK + FINAL_NORM


def target_sizes(config: LanguageModelConfig) -> dict[str, int]:
    """What the letters of the shapes mean for a target."""
    return {
        "P": config.max_position_embeddings,
        "3D": 3 * config.hidden_size,
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "C": config.head_dim,
        "QC": config.num_heads * config.head_dim,
        "RC": config.num_kv_heads * config.head_dim,
    }


def parameter_shapes(
    rows: tuple[Row, ...], sizes: dict[str, int], *, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by path, stacked ones with their layer axis."""
    return {
        row.path: ((num_layers,) if row.stacked else ()) + tuple(sizes[d] for d in row.shape)
        for row in rows
    }


def tensor_shapes(
    rows: tuple[Row, ...], sizes: dict[str, int], *, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """Shape of each Hugging Face tensor by name, layers filled in."""
    shapes = {}
    for row in rows:
        shape = tuple(sizes[d] for d in row.shape)
        for name in tensor_names(row.name, num_layers=num_layers):
            shapes[name] = shape[::-1] if row.transpose else shape
    return shapes


def tensor_names(pattern: str, *, num_layers: int) -> list[str]:
    """A pattern with its layers filled in; one name when it has no {i}."""
    if "{i}" not in pattern:
        return [pattern]
    return [pattern.replace("{i}", str(i)) for i in range(num_layers)]
