"""Shapes of models: targets, denoisers and drafters. `jaxspec.config` re-exports them.

Nothing here touches jax. The shape of a `Transformer` has a file of its own,
`jaxspec.transformer_shapes`.

>>> DiTConfig().head_dim
64
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from jaxspec.ranges import (
    MOST_HEAD_WIDTH,
    MOST_HEADS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_SLOTS,
    MOST_WIDTH,
    DrafterBlockSize,
    Epsilon,
    Heads,
    Layers,
    NotNegative,
    Positions,
    Positive,
    TokenId,
    Vocabulary,
    Width,
    Window,
    check_ranges,
    whole,
)
from jaxspec.transformer_shapes import UNLIMITED as UNLIMITED
from jaxspec.transformer_shapes import Attention as Attention
from jaxspec.transformer_shapes import Dtype as Dtype
from jaxspec.transformer_shapes import ExpertsConfig as ExpertsConfig
from jaxspec.transformer_shapes import LayerType as LayerType
from jaxspec.transformer_shapes import LinearRopeScaling as LinearRopeScaling
from jaxspec.transformer_shapes import Llama3RopeScaling as Llama3RopeScaling
from jaxspec.transformer_shapes import RopeScaling as RopeScaling
from jaxspec.transformer_shapes import TransformerConfig as TransformerConfig
from jaxspec.transformer_shapes import YarnRopeScaling as YarnRopeScaling
from jaxspec.transformer_shapes import check_layer_types, require, windows_of

Context = Literal["bidirectional", "causal", "block_causal"]


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Shape of a causal transformer of the GPT-2 / GPT-Neo family.

    Raises:
      ValueError: sizes that cannot work together.
    """

    family: Literal["gpt2", "gpt_neo"] = "gpt2"
    """gpt2: one projection with biases gives queries, keys and values, and scores are divided by
    the square root of the head width. gpt_neo: three projections without biases, scores are not
    divided, and layers may slide."""
    vocab_size: Vocabulary = 50_257
    """Rows of the embedding, padded rows included."""
    hidden_size: Width = 768
    """Width of the residual stream; the heads share it."""
    num_layers: Layers = 12
    """Transformer blocks."""
    num_heads: Heads = 12
    """Heads; each has its own keys and values."""
    intermediate_size: Width = 3072
    """Width inside the MLP."""
    layer_norm_eps: Epsilon = 1e-5
    """Added to the variance before its root."""
    layer_types: tuple[LayerType, ...] = ()
    """Kind of each layer; (): full attention in all of them."""
    sliding_window: Window = 0
    """Positions that a sliding layer sees, including the query's own; 0: no layer slides."""
    tie_embeddings: bool = True
    """Whether the head is the transposed embedding."""
    max_position_embeddings: Positions = 1024
    """Rows of the position table: no text can be longer."""
    dtype: Dtype = "float32"
    """What matrix products compute in; parameters stay in `param_dtype`."""
    param_dtype: Dtype = "float32"
    """What parameters are stored in. What is trained is kept in float32."""
    unroll_layers: bool = False
    """Unroll the scan over layers: faster on a CPU, slower to compile."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    attention: Attention = "auto"
    """How a pass over whole texts computes attention; see `TransformerConfig`."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.hidden_size % self.num_heads == 0,
            f"hidden_size must be a multiple of num_heads: got {self.hidden_size} and "
            f"{self.num_heads}.",
        )
        check_layer_types(self.layer_types, self.sliding_window, self.num_layers)
        require(
            self.family == "gpt_neo" or not self.windows,
            "A GPT-2 has no sliding layers: got layer_types with 'sliding_attention', expected "
            "family 'gpt_neo' or full attention in every layer.",
        )

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads: as many as heads."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def windows(self) -> tuple[int, ...]:
        """Window of each layer, UNLIMITED in full ones; () when no layer slides."""
        return windows_of(self.layer_types, self.sliding_window)


@dataclasses.dataclass(frozen=True)
class GPTNeoXConfig:
    """Shape of a causal transformer of the GPT-NeoX family; the defaults are those of Pythia-160M.

    Raises:
      ValueError: sizes that cannot work together.
    """

    family: Literal["gpt_neox"] = "gpt_neox"
    """Model type that it is exported as."""
    vocab_size: Vocabulary = 50_304
    """Rows of the embedding, padded rows included."""
    hidden_size: Width = 768
    """Width of the residual stream; the heads share it."""
    num_layers: Layers = 12
    """Transformer blocks."""
    num_heads: Heads = 12
    """Heads; each has its own keys and values."""
    intermediate_size: Width = 3072
    """Width inside the MLP."""
    layer_norm_eps: Epsilon = 1e-5
    """Added to the variance before its root."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Position scaling; None: plain RoPE."""
    rotary_dim: Annotated[int, whole(2, MOST_HEAD_WIDTH)] = 16
    """Channels of a head that are rotated, the first ones; even."""
    parallel_residual: bool = True
    """Whether attention and MLP read the same input; otherwise the MLP reads what attention has
    added to it."""
    attention_bias: bool = True
    """Biases on the projections of attention."""
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    """What the MLP's hidden values go through; "gelu_tanh": GELU in its tanh form."""
    tie_embeddings: bool = False
    """Whether the head is the transposed embedding."""
    max_position_embeddings: Positions = 2048
    """Longest sequence the model is made for."""
    dtype: Dtype = "float32"
    """What matrix products compute in; parameters stay in `param_dtype`."""
    param_dtype: Dtype = "float32"
    """What parameters are stored in. What is trained is kept in float32."""
    unroll_layers: bool = False
    """Unroll the scan over layers: faster on a CPU, slower to compile."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    attention: Attention = "auto"
    """How a pass over whole texts computes attention; see `TransformerConfig`."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.hidden_size % self.num_heads == 0,
            f"hidden_size must be a multiple of num_heads: got {self.hidden_size} and "
            f"{self.num_heads}.",
        )
        require(
            self.rotary_dim % 2 == 0 and self.rotary_dim <= self.head_dim,
            f"rotary_dim must be even and at most the width of a head ({self.head_dim}): got "
            f"{self.rotary_dim}.",
        )

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads: as many as heads."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def windows(self) -> tuple[int, ...]:
        """(): no layer slides."""
        return ()


LanguageModelConfig = TransformerConfig | GPT2Config | GPTNeoXConfig
"""Shape of a target, or of a language model that drafts."""


@dataclasses.dataclass(frozen=True)
class MaskedTransformerConfig(TransformerConfig):
    """Shape of a transformer that fills in masks; its weights are those of a causal one.

    Raises:
      ValueError: a mask outside the vocabulary, or a block length that does not fit the context.
    """

    mask_token_id: TokenId | None = None
    """Id of the mask; None: the last row of the embedding."""
    context: Context = "bidirectional"
    """What clean tokens before a drafted block see; see `DiTConfig`. "block_causal": their own
    block and all earlier ones (SDAR)."""
    block_length: Annotated[int, whole(0, MOST_SLOTS)] = 0
    """Tokens per block with a block-causal context; 0 otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.mask_id < self.vocab_size,
            f"mask_token_id must lie in the vocabulary, 0..{self.vocab_size - 1}: got "
            f"{self.mask_token_id}.",
        )
        require(
            (self.block_length > 0) == (self.context == "block_causal"),
            "block_length must be positive with context 'block_causal', and 0 with any other: got "
            f"{self.block_length} and {self.context!r}.",
        )

    @property
    def mask_id(self) -> int:
        """Id of the mask."""
        return self.vocab_size - 1 if self.mask_token_id is None else self.mask_token_id


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Shape of MDLM's diffusion transformer; the defaults are those of the released model.

    Raises:
      ValueError: a width that does not give every head the same even width, or sizes below 1.
    """

    vocab_size: Vocabulary = 50_258
    """Rows of the embedding, including the mask's (the last one in the released model)."""
    hidden_size: Width = 768
    """Width of the residual stream."""
    num_layers: Layers = 12
    """Transformer blocks."""
    num_heads: Heads = 12
    """Attention heads; each is hidden_size / num_heads wide."""
    conditioning_size: Width = 128
    """Width of the embedded noise, from which every layer's modulation is computed."""
    time_conditioning: bool = False
    """Whether the model sees the noise. If not, it is given 0, as the released model was."""
    max_position_embeddings: Positions = 1024
    """Longest sequence the model is made for."""
    mask_token_id: TokenId | None = None
    """Id of the mask; None: the last row of the embedding, as in the released model."""
    context: Context = "bidirectional"
    """What clean tokens before a drafted block see: everything, including the block's masks, as in
    MDLM ("bidirectional"), or only earlier tokens, as in block diffusion with blocks of one token
    ("causal"). A causal context never changes, so drafting caches its keys and values and reads
    only the block."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products compute in; parameters stay in `param_dtype`."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """What parameters are stored in. What is trained is kept in float32."""
    unroll_layers: bool = False
    """Unroll the scan over layers: faster on a CPU, slower to compile."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.context != "block_causal",
            "context 'block_causal' is only for transformers, not for a DiT.",
        )
        if self.mask_token_id is not None and not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(
                f"mask_token_id must lie in the vocabulary, 0..{self.vocab_size - 1}: got "
                f"{self.mask_token_id}."
            )
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                "hidden_size must give every head the same even width, for RoPE: got hidden_size "
                f"{self.hidden_size} for {self.num_heads} heads."
            )

    @property
    def mask_id(self) -> int:
        """Id of the mask."""
        return self.vocab_size - 1 if self.mask_token_id is None else self.mask_token_id

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads: every query head has its own keys and values."""
        return self.num_heads

    @property
    def intermediate_size(self) -> int:
        """Width inside the MLP."""
        return 4 * self.hidden_size


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """Shape of a DFlash block-diffusion drafter (arXiv 2602.06036).

    Widths default to the target's when left at 0, so that one config serves several targets.

    Raises:
      ValueError: a block of fewer than 2 slots, or layer types that do not fit the layers.
    """

    path: str = ""
    """Drafter to start training from, which decides the shape: a run's folder, or one in the format
    of z-lab or speculators; "": random weights."""
    block_size: DrafterBlockSize = 0
    """Slots of a block, including the anchor (slot 0); 0: as many as in the drafter to start from,
    or else 16. No weight depends on it, so training may go on with longer blocks."""
    mask_token_id: TokenId | None = None
    """Id that fills the slots to be drafted; None: the tokenizer's mask token."""
    target_layer_ids: tuple[Annotated[int, whole(0, MOST_LAYERS)], ...] = ()
    """Target layers whose outputs are the features; (): DFlash's default spread."""
    num_features: Layers = 3
    """How many target layers are captured if `target_layer_ids` is empty."""
    last_state: Literal["", "normed"] = ""
    """Leave it empty. jaxspec sets it to "normed" if the target's last layer is captured, whose
    output is then taken after the final norm, as servers see it."""
    num_layers: Layers = 2
    """Layers of the drafter."""
    num_heads: Annotated[int, whole(0, MOST_HEADS)] = 0
    """Query heads; 0: the target's."""
    num_kv_heads: Annotated[int, whole(0, MOST_HEADS)] = 0
    """Key/value heads; 0: the target's."""
    head_dim: Annotated[int, whole(0, MOST_HEAD_WIDTH)] = 0
    """Width of a head; 0: the target's."""
    intermediate_size: Annotated[int, whole(0, MOST_WIDTH)] = 0
    """Width inside the SwiGLU MLP; 0: the target's."""
    rms_norm_eps: Epsilon = 0.0
    """Added to the mean square before its root; 0: the target's, or 1e-6 if it has none."""
    rope_theta: NotNegative = 0.0
    """Base of the rotary wavelengths; 0: the target's, or 10000 if it has none."""
    rope_scaling: Llama3RopeScaling | None = None
    """Llama 3 position scaling; None: plain RoPE, whatever the target has."""
    qk_norm: bool = True
    """Per-head RMS norm of queries and keys before the rotation."""
    layer_types: tuple[LayerType, ...] = ()
    """Kind of each drafter layer; (): full attention in all of them."""
    sliding_window: Window = 0
    """Positions that a sliding layer sees, including the query's own; 0: no layer slides."""
    is_causal: bool | None = None
    """Whether a slot sees only itself and earlier slots of its block; None: yes in sliding layers
    (as in z-lab's checkpoints, which say nothing else), no in full ones."""
    dtype: Dtype = "float32"
    """What matrix products compute in."""
    param_dtype: Dtype = "float32"
    """What parameters are stored in. What is trained is kept in float32."""
    unroll_layers: bool = False
    """Unroll the scan over layers: faster on a CPU, slower to compile."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    remat_policy: Literal["nothing_saveable", "dots_with_no_batch_dims_saveable"] = (
        "nothing_saveable"
    )
    """What `remat` keeps of a layer, by its name in `jax.checkpoint_policies`: "nothing_saveable":
    only its input; "dots_with_no_batch_dims_saveable": also what its projections give, so that of
    the matrix products only those of attention are computed again."""
    chunk_blocks: Annotated[int, whole(0, MOST_POSITIONS)] | None = None
    """How many blocks of a row have their attention scores (blocks x slots x heads x context) in
    memory at once in training; the backward pass recomputes them. It must divide `data.anchors`; 0:
    all blocks; None: all where their scores are few, otherwise as many as take 16 MiB of a row on a
    GPU or TPU, and 256 MiB on a CPU, where chunks save no time."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="drafter.")
        require(
            self.block_size != 1,
            "drafter.block_size must be at least 2, as it includes the anchor: got 1.",
        )
        check_layer_types(self.layer_types, self.sliding_window, self.num_layers)

    @property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """How far a slot sees (back, ahead) in each layer; () when every layer sees everything."""
        limits = []
        for kind in self.layer_types or ("full_attention",) * self.num_layers:
            slides = kind == "sliding_attention"
            far = self.sliding_window - 1 if slides else UNLIMITED
            causal = slides if self.is_causal is None else self.is_causal
            limits.append((far, 0 if causal else far))
        return () if set(limits) == {(UNLIMITED, UNLIMITED)} else tuple(limits)
