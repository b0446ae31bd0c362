"""The shape of a `jaxspec.models.transformer.Transformer`.

Families of models differ in the fields of `TransformerConfig`; which family has which is in
`jaxspec.checkpoints.families.kinds`. Nothing here touches jax.

>>> config = TransformerConfig(num_layers=3, nope_layers=(1,))
>>> config.rotations
('full', 'none', 'full')
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Literal

from jaxspec.ranges import (
    MOST_EXPERTS,
    MOST_HEAD_WIDTH,
    MOST_LAYERS,
    MOST_POSITIONS,
    Epsilon,
    Heads,
    HeadWidth,
    Layers,
    NotNegative,
    Positions,
    Positive,
    Vocabulary,
    Width,
    Window,
    check_ranges,
    whole,
)

Dtype = Literal["float32", "bfloat16"]
Attention = Literal["auto", "plain", "chunked", "cudnn", "splash"]
"""How a causal pass over a whole text computes attention (`jaxspec.ops.causal_attention`)."""
LayerType = Literal["full_attention", "sliding_attention"]
"""Hugging Face's names for the kinds of attention layers."""
Rotation = Literal["full", "sliding", "none"]
"""Which rotary wavelengths a layer has: those of full layers, those of sliding ones, or none."""
Family = Literal[
    "", "qwen3", "llama", "qwen2", "mistral", "qwen3_moe", "gemma3_text", "smollm3", "olmo2", "phi3"
]  # fmt: skip
UNLIMITED = MOST_POSITIONS
"""A window that no position reaches past."""


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_layer_types(layer_types: tuple[str, ...], window: int, num_layers: int) -> None:
    """Raises ValueError unless the kinds of layers and their window fit the number of layers."""
    if layer_types:
        unknown = sorted(set(map(str, layer_types)) - set(typing.get_args(LayerType)))
        require(
            not unknown,
            f"layer_types: got {unknown}, expected 'full_attention' or 'sliding_attention'.",
        )
        require(
            len(layer_types) == num_layers,
            f"layer_types: got {len(layer_types)} entries for {num_layers} layers.",
        )
    if "sliding_attention" in layer_types:
        require(
            1 <= window < UNLIMITED,
            f"sliding_window must be from 1 to {UNLIMITED - 1} where layer_types names "
            f"'sliding_attention': got {window}.",
        )
    else:
        require(
            window == 0,
            f"sliding_window is {window}, but no layer slides: expected 0, or "
            "'sliding_attention' in layer_types.",
        )


def windows_of(layer_types: tuple[str, ...], window: int) -> tuple[int, ...]:
    """Window of each layer, UNLIMITED in full ones; () when no layer slides."""
    if "sliding_attention" not in layer_types:
        return ()
    return tuple(window if kind == "sliding_attention" else UNLIMITED for kind in layer_types)


def _check_layer_ids(name: str, ids: tuple[int, ...], num_layers: int) -> None:
    require(
        list(ids) == sorted(set(ids)) and all(0 <= i < num_layers for i in ids),
        f"{name} must be ids of layers from 0 to {num_layers - 1} in increasing order: got "
        f"{list(ids)}.",
    )


@dataclasses.dataclass(frozen=True)
class LinearRopeScaling:
    """Positions divided by a factor (Chen et al. 2023, arXiv 2306.15595)."""

    factor: Positive = 1.0
    """How many times longer the context became."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="rope_scaling.")


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Frequency-dependent position scaling of Llama 3.1 and later."""

    factor: Positive = 8.0
    """How many times longer the context became."""
    low_freq_factor: Positive = 1.0
    """Wavelengths above original / this are divided by `factor`."""
    high_freq_factor: Positive = 4.0
    """Wavelengths below original / this are left alone; between, the two are mixed."""
    original_max_position_embeddings: Positions = 8192
    """Positions of the model before its context was extended."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="rope_scaling.")


@dataclasses.dataclass(frozen=True)
class YarnRopeScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): long wavelengths stretched, scores sharpened."""

    factor: Positive = 4.0
    """How many times longer the context became."""
    attention_factor: Positive = 1.0
    """What the rotated channels of queries and keys are multiplied by."""
    beta_fast: Positive = 32.0
    """Channels that turn more often than this within the original context are left alone."""
    beta_slow: Positive = 1.0
    """Channels that turn less often than this have their positions divided by `factor`; between,
    the two are mixed."""
    truncate: bool = True
    """Whether the range between is widened to whole channels."""
    original_max_position_embeddings: Positions = 32_768
    """Positions of the model before its context was extended."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="rope_scaling.")


RopeScaling = LinearRopeScaling | Llama3RopeScaling | YarnRopeScaling


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts in place of the MLP (Shazeer et al. 2017, arXiv 1701.06538).

    Raises:
      ValueError: more experts for a token than there are.
    """

    num_experts: Annotated[int, whole(1, MOST_EXPERTS)] = 128
    """MLPs of a layer."""
    per_token: Annotated[int, whole(1, MOST_EXPERTS)] = 8
    """How many of them, the likeliest ones, read a token."""
    width: Width = 768
    """Width inside an expert."""
    renormalise: bool = False
    """Whether the chosen experts' probabilities are divided by their sum."""
    dense_layers: tuple[Annotated[int, whole(0, MOST_LAYERS)], ...] = ()
    """Layers that have an MLP of the usual width instead."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="experts.")
        require(
            self.per_token <= self.num_experts,
            f"experts.per_token must be at most experts.num_experts ({self.num_experts}): got "
            f"{self.per_token}.",
        )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a causal transformer: Qwen, Llama and their relatives.

    Raises:
      ValueError: sizes that do not fit together (for example, a number of heads that is not a
        multiple of the number of key/value heads).
    """

    family: Family = dataclasses.field(default="", compare=False)
    """Model type that it is exported as; "": Qwen3 with `qk_norm`, Llama without. It does not
    change any computation, so it is ignored when shapes are compared."""
    vocab_size: Vocabulary = 1024
    """Rows of the embedding, padded rows included."""
    hidden_size: Width = 128
    """Width of the residual stream."""
    num_layers: Layers = 4
    """Transformer blocks."""
    num_heads: Heads = 4
    """Query heads."""
    num_kv_heads: Heads = 2
    """Key/value heads; each serves num_heads / num_kv_heads query heads."""
    head_dim: HeadWidth = 32
    """Width of a head; even, for the rotation."""
    intermediate_size: Width = 384
    """Width inside the gated MLP."""
    rms_norm_eps: Epsilon = 1e-6
    """Added to the mean square before its root."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Position scaling; None: plain RoPE."""
    qk_norm: bool = True
    """RMS norm of queries and keys before the rotation (Qwen3: yes, Llama: no)."""
    attention_bias: bool = False
    """Biases on the query, key and value projections."""
    layer_types: tuple[LayerType, ...] = ()
    """Kind of each layer; (): full attention in all of them."""
    sliding_window: Window = 0
    """Positions that a sliding layer sees, including the query's own; 0: no layer slides. This is
    only a mask: a sliding layer keeps its whole cache and takes as long as a full one."""
    tie_embeddings: bool = True
    """Whether the head is the transposed embedding."""
    max_position_embeddings: Positions = 1024
    """Longest sequence the model is made for."""
    norms: Literal["before", "after", "around"] = "before"
    """Where attention and MLP have their norms: before them (Llama), after them (OLMo 2) or both
    (Gemma 3). The residual stream itself is normed only before the head."""
    norm_offset: bool = False
    """Whether norms multiply by 1 + scale instead of scale (Gemma)."""
    qk_norm_whole: bool = False
    """Whether `qk_norm` is over a whole projection (OLMo 2) instead of each head."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """What the gate of the MLP goes through; "gelu_tanh": GELU in its tanh form (Gemma)."""
    scale_embeddings: bool = False
    """Whether the model multiplies embeddings by the root of `hidden_size` (Gemma). What drafters
    get are the rows as stored."""
    query_pre_attn_scalar: NotNegative = 0.0
    """Scores are divided by the root of this; 0: of `head_dim`."""
    logit_softcap: NotNegative = 0.0
    """Logits become c tanh(logits / c) with this c; 0: they stay."""
    sliding_rope_theta: NotNegative = 0.0
    """Base of the rotary wavelengths in sliding layers, where `rope_scaling` then does not count
    (Gemma 3); 0: all layers have the same wavelengths."""
    rotary_dim: Annotated[int, whole(0, MOST_HEAD_WIDTH)] = 0
    """Channels of a head that are rotated, the first ones; even; 0: all of them."""
    nope_layers: tuple[Annotated[int, whole(0, MOST_LAYERS)], ...] = ()
    """Layers without rotation (SmolLM3)."""
    fused_projections: bool = False
    """Whether one matrix gives queries, keys and values, and one gate and up (Phi-3)."""
    experts: ExpertsConfig | None = None
    """Mixture of experts in place of the MLP; None: none."""
    dtype: Dtype = "float32"
    """What matrix products compute in; parameters stay in `param_dtype`."""
    param_dtype: Dtype = "float32"
    """What parameters are stored in. What is trained is kept in float32."""
    unroll_layers: bool = False
    """Unroll the scan over layers: faster on a CPU, slower to compile."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    attention: Attention = "auto"
    """How a pass over whole texts computes attention: "plain" (all scores in memory), "chunked"
    (the scores of a few queries at a time), or by a kernel, "cudnn" (GPU) or "splash" (TPU);
    "auto": the kernel in bfloat16, otherwise "plain" for short texts, "chunked" for long ones."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads must be a multiple of num_kv_heads: got {self.num_heads} and "
            f"{self.num_kv_heads}.",
        )
        require(self.head_dim % 2 == 0, f"head_dim must be even for RoPE: got {self.head_dim}.")
        require(
            self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim,
            f"rotary_dim must be even and at most head_dim ({self.head_dim}): got "
            f"{self.rotary_dim}.",
        )
        check_layer_types(self.layer_types, self.sliding_window, self.num_layers)
        _check_layer_ids("nope_layers", self.nope_layers, self.num_layers)
        if self.experts is not None:
            _check_layer_ids("experts.dense_layers", self.experts.dense_layers, self.num_layers)

    @property
    def windows(self) -> tuple[int, ...]:
        """Window of each layer, UNLIMITED in full ones; () when no layer slides."""
        return windows_of(self.layer_types, self.sliding_window)

    @property
    def rotations(self) -> tuple[Rotation, ...]:
        """Which rotary wavelengths each layer has."""
        kinds = self.layer_types or ("full_attention",) * self.num_layers
        own = self.sliding_rope_theta > 0
        return tuple(
            "none" if i in self.nope_layers
            else "sliding" if own and kind == "sliding_attention"
            else "full"
            for i, kind in enumerate(kinds)
        )  # fmt: skip

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Layers with an MLP instead of experts."""
        return tuple(range(self.num_layers)) if self.experts is None else self.experts.dense_layers
