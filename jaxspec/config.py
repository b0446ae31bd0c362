"""The frozen dataclasses a run is made of.

A file in ``configs/`` returns one `RunConfig` from ``get_config()``; every field can be overridden
on the command line (``--training.steps 100``). Nothing here touches jax, so reading a
configuration is instant.

>>> RunConfig(name="demo").training.steps
1000
"""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Literal

from jaxspec.architectures import Context as Context
from jaxspec.architectures import DiTConfig as DiTConfig

Dtype = Literal["float32", "bfloat16"]
LayerType = Literal["full_attention", "sliding_attention"]
"""Hugging Face's names of the kinds of attention layers."""
UNLIMITED = 1 << 30
"""A window that no position reaches past."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_layer_types(layer_types: tuple[str, ...], window: int, num_layers: int) -> None:
    if layer_types:
        unknown = sorted(set(map(str, layer_types)) - set(typing.get_args(LayerType)))
        _require(
            not unknown,
            f"layer_types: got {unknown}, expected 'full_attention' or 'sliding_attention'.",
        )
        _require(
            len(layer_types) == num_layers,
            f"layer_types: got {len(layer_types)} entries for {num_layers} layers.",
        )
    if "sliding_attention" in layer_types:
        _require(
            1 <= window < UNLIMITED,
            f"sliding_window must be from 1 to {UNLIMITED - 1} where layer_types names "
            f"'sliding_attention': got {window}.",
        )
    else:
        _require(
            window == 0,
            f"sliding_window is {window}, but no layer slides: expected 0, or "
            "'sliding_attention' in layer_types.",
        )


def _windows(layer_types: tuple[str, ...], window: int) -> tuple[int, ...]:
    if "sliding_attention" not in layer_types:
        return ()
    return tuple(window if kind == "sliding_attention" else UNLIMITED for kind in layer_types)


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Frequency-dependent position scaling of Llama 3.1 and later."""

    factor: float = 8.0
    """How many times longer the context became."""
    low_freq_factor: float = 1.0
    """Wavelengths above original / this are divided by `factor`."""
    high_freq_factor: float = 4.0
    """Wavelengths below original / this are left alone; between, the two are mixed."""
    original_max_position_embeddings: int = 8192
    """Positions of the model before its context was extended."""


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a causal transformer of the Qwen3 / Llama family.

    Raises:
      ValueError: sizes that cannot work together (for example heads that are no multiple of the
        key/value heads).
    """

    vocab_size: int = 1024
    """Rows of the embedding, padded rows included."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 2
    """Key/value heads; each serves num_heads / num_kv_heads query heads."""
    head_dim: int = 32
    """Width of a head; even, for the rotation."""
    intermediate_size: int = 384
    """Width inside the SwiGLU MLP."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square before its root."""
    rope_theta: float = 10_000.0
    """Base of the rotary wavelengths."""
    rope_scaling: Llama3RopeScaling | None = None
    """Llama 3 position scaling; None: plain RoPE."""
    qk_norm: bool = True
    """Per-head RMS norm of queries and keys before the rotation (Qwen3: yes, Llama: no)."""
    attention_bias: bool = False
    """Biases on the query, key and value projections."""
    layer_types: tuple[LayerType, ...] = ()
    """Kind of each layer; (): full attention in all of them."""
    sliding_window: int = 0
    """Positions that a sliding layer sees, the query's own included; 0: no layer slides. It is a
    mask: a sliding layer keeps its whole cache and takes as long as a full one."""
    tie_embeddings: bool = True
    """Whether the head is the transposed embedding."""
    max_position_embeddings: int = 1024
    """Longest sequence the model is made for."""
    dtype: Dtype = "float32"
    """What matrix products compute in; parameters stay in `param_dtype`."""
    param_dtype: Dtype = "float32"
    """What parameters and optimizer state are stored in."""
    unroll_layers: bool = False
    """Unroll the scan over layers: faster on a CPU, slower to compile."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self) -> None:
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads must be a multiple of num_kv_heads: got {self.num_heads} and "
            f"{self.num_kv_heads}.",
        )
        _require(self.head_dim % 2 == 0, f"head_dim must be even for RoPE: got {self.head_dim}.")
        for field in ("vocab_size", "hidden_size", "num_layers", "intermediate_size"):
            _require(
                getattr(self, field) >= 1,
                f"{field} must be at least 1: got {getattr(self, field)}.",
            )
        _check_layer_types(self.layer_types, self.sliding_window, self.num_layers)

    @property
    def windows(self) -> tuple[int, ...]:
        """Window of each layer, UNLIMITED in full ones; () when no layer slides."""
        return _windows(self.layer_types, self.sliding_window)


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """Shape of a causal transformer of the GPT-2 / GPT-Neo family.

    Raises:
      ValueError: sizes that cannot work together.
    """

    family: Literal["gpt2", "gpt_neo"] = "gpt2"
    """gpt2: queries, keys and values from one projection with biases, scores divided by the root of
    the head width. gpt_neo: three projections without biases, scores as they are, and layers may
    slide."""
    vocab_size: int = 50_257
    """Rows of the embedding, padded rows included."""
    hidden_size: int = 768
    """Width of the residual stream; the heads share it."""
    num_layers: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Heads; each has keys and values of its own."""
    intermediate_size: int = 3072
    """Width inside the MLP."""
    layer_norm_eps: float = 1e-5
    """Added to the variance before its root."""
    layer_types: tuple[LayerType, ...] = ()
    """Kind of each layer; (): full attention in all of them."""
    sliding_window: int = 0
    """Positions that a sliding layer sees, the query's own included; 0: no layer slides."""
    tie_embeddings: bool = True
    """Whether the head is the transposed embedding."""
    max_position_embeddings: int = 1024
    """Rows of the table of positions: no text can be longer."""
    dtype: Dtype = "float32"
    """What matrix products compute in; parameters stay in `param_dtype`."""
    param_dtype: Dtype = "float32"
    """What parameters are stored in."""
    unroll_layers: bool = False
    """Unroll the scan over layers: faster on a CPU, slower to compile."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __post_init__(self) -> None:
        for field in (
            "vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size",
            "max_position_embeddings",
        ):  # fmt: skip
            _require(
                getattr(self, field) >= 1,
                f"{field} must be at least 1: got {getattr(self, field)}.",
            )
        _require(
            self.hidden_size % self.num_heads == 0,
            f"hidden_size must be a multiple of num_heads: got {self.hidden_size} and "
            f"{self.num_heads}.",
        )
        _check_layer_types(self.layer_types, self.sliding_window, self.num_layers)
        _require(
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
        return _windows(self.layer_types, self.sliding_window)


LanguageModelConfig = TransformerConfig | GPT2Config
"""Shape of a target, or of a language model that drafts."""


@dataclasses.dataclass(frozen=True)
class MaskedTransformerConfig(TransformerConfig):
    """Shape of a transformer that fills in masks; its weights are those of a causal one.

    Raises:
      ValueError: a mask outside the vocabulary.
    """

    mask_token_id: int | None = None
    """Id of the mask; None: the last row of the embedding."""
    context: Context = "bidirectional"
    """What clean tokens before a drafted block see; see `DiTConfig`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 <= self.mask_id < self.vocab_size,
            f"mask_token_id must lie in the vocabulary, 0..{self.vocab_size - 1}: got "
            f"{self.mask_token_id}.",
        )

    @property
    def mask_id(self) -> int:
        """Id of the mask."""
        return self.vocab_size - 1 if self.mask_token_id is None else self.mask_token_id


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The model whose output must not change."""

    path: str = "embedded"
    """Folder with config.json, safetensors and tokenizer.json; "embedded" is the one shipped in the
    package; "" when a target is trained from scratch or only shapes are wanted."""
    architecture: TransformerConfig | None = None
    """Shape of the target. Needed to train one; otherwise optional, and checked against `path`."""
    dtype: Dtype = "float32"
    """What the target computes in when it is a drafter's frozen target."""
    enable_thinking: bool | None = None
    """Handed to the chat template, in training, evaluation and regeneration alike: Qwen3 answers
    without a train of thought when it is False. None: the template's own default."""

    @property
    def template_options(self) -> dict[str, bool]:
        """Variables of the chat template."""
        return {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}


@dataclasses.dataclass(frozen=True)
class DrafterConfig:
    """Shape of a DFlash block-diffusion drafter (arXiv 2602.06036).

    Widths default to the target's when left at 0, so that one config serves several targets.

    Raises:
      ValueError: a block of fewer than 2 slots, or layer types that do not fit the layers.
    """

    block_size: int = 16
    """Slots of a block, the anchor (slot 0) included."""
    mask_token_id: int | None = None
    """Id that stands in the slots to be drafted; None: the tokenizer's mask token."""
    target_layer_ids: tuple[int, ...] = ()
    """Target blocks whose outputs are the features; (): DFlash's default spread."""
    num_features: int = 3
    """How many target layers are captured when `target_layer_ids` is empty."""
    num_layers: int = 2
    """Drafter blocks."""
    num_heads: int = 0
    """Query heads; 0: the target's."""
    num_kv_heads: int = 0
    """Key/value heads; 0: the target's."""
    head_dim: int = 0
    """Width of a head; 0: the target's."""
    intermediate_size: int = 0
    """Width inside the SwiGLU MLP; 0: the target's."""
    rms_norm_eps: float = 0.0
    """Added to the mean square before its root; 0: the target's, and 1e-6 where it has none."""
    rope_theta: float = 0.0
    """Base of the rotary wavelengths; 0: the target's, and 10000 where it has none."""
    qk_norm: bool = True
    """Per-head RMS norm of queries and keys before the rotation."""
    layer_types: tuple[LayerType, ...] = ()
    """Kind of each drafter layer; (): full attention in all of them."""
    sliding_window: int = 0
    """Positions that a sliding layer sees, the query's own included; 0: no layer slides."""
    is_causal: bool | None = None
    """Whether a slot sees only the slots of its block up to itself; None: in sliding layers (as in
    z-lab's checkpoints, which say nothing else), and both ways in full ones."""
    dtype: Dtype = "float32"
    """What matrix products compute in."""
    param_dtype: Dtype = "float32"
    """What parameters and optimizer state are stored in."""
    unroll_layers: bool = False
    """Unroll the scan over layers: faster on a CPU, slower to compile."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    chunk_blocks: int = 0
    """Blocks of a row whose attention scores (blocks x slots x heads x context) are held at once in
    training; the backward pass recomputes them. A divisor of `data.anchors`; 0: all blocks."""

    def __post_init__(self) -> None:
        _require(
            self.block_size >= 2,
            f"block_size counts the anchor and must be at least 2: got {self.block_size}.",
        )
        _require(
            self.chunk_blocks >= 0,
            f"drafter.chunk_blocks must be 0 (all) or more: got {self.chunk_blocks}.",
        )
        _check_layer_types(self.layer_types, self.sliding_window, self.num_layers)

    @property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """Positions that a slot of each layer sees (back, ahead); () when every layer sees all."""
        limits = []
        for kind in self.layer_types or ("full_attention",) * self.num_layers:
            slides = kind == "sliding_attention"
            far = self.sliding_window - 1 if slides else UNLIMITED
            causal = slides if self.is_causal is None else self.is_causal
            limits.append((far, 0 if causal else far))
        return () if set(limits) == {(UNLIMITED, UNLIMITED)} else tuple(limits)


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """A masked-diffusion language model that learns to draft (training.task "denoiser").

    SpecDiff (arXiv 2408.05636), SpecDiff-2 (arXiv 2511.00606).

    Raises:
      ValueError: a block of fewer than 2 slots, or LoRA without a model to adapt.
    """

    architecture: DiTConfig | None = None
    """Shape to train from scratch; None: that of `path`."""
    path: str = ""
    """Weights to go on from: a run's folder, an MDLM of the released layout, or a language model of
    the target's family, which learns to see both ways; "": from scratch."""
    num_layers: int = 0
    """Keep only the first so many layers of `path`; 0: all."""
    unroll_layers: bool = False
    """Unroll the scan over the layers of `path`: faster on a CPU, slower to compile."""
    context: Context | None = None
    """What clean tokens before a block see; None: as in `path` or `architecture`. "bidirectional"
    is MDLM; "causal" lets drafting cache them."""
    objective: Literal["elbo", "score_entropy", "draft"] = "elbo"
    """What is learned: the masked tokens of a row under random masks (MDLM's bound on the
    likelihood, or SEDD's score entropy), or the fully masked block behind a prefix with `loss`, as
    drafting meets it."""
    block_size: int = 16
    """Slots of a block with its anchor: what "draft" trains, and any training with causal context.
    Such a row has `data.anchors` blocks; a bidirectional context is read anew for each of them."""
    lora_rank: int = 0
    """Train only low-rank updates of the layers' matrices (LoRA); 0: train every weight."""
    lora_alpha: float = 0.0
    """Updates are scaled by alpha / rank; 0: alpha = 2 rank."""

    def __post_init__(self) -> None:
        _require(
            self.block_size >= 2,
            f"denoiser.block_size counts the anchor and must be at least 2: got {self.block_size}.",
        )
        _require(
            self.lora_rank >= 0 and (self.lora_rank == 0 or bool(self.path)),
            "denoiser.lora_rank must be 0 (no LoRA) or more, and LoRA adapts the model that "
            f"denoiser.path names: got rank {self.lora_rank} and path {self.path!r}.",
        )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss: cross-entropy with decay + focal * first error - chain * reward.

    "Teaching Diffusion to Speculate Left-to-Right", arXiv 2606.11552. The defaults are the
    paper's best; ``LossConfig(decay=None, focal=0, chain=0)`` is its position-uniform baseline.
    """

    decay: float | None = 10.0
    """Scale, in slots, of the positional weights exp(-g / decay); None or inf: all ones."""
    focal: float = 0.3
    """Weight of the first-error focal term."""
    chain: float = 40.0
    """Weight of the chain reward."""
    normalize: Literal["block", "weight"] = "block"
    """"block": sum over a block's slots, mean over blocks (the paper's equation); "weight":
    weighted mean over all slots (what trainers do)."""
    objective: Literal[
        "cross_entropy", "d_pace", "lk", "tv", "forward_kl", "spec_auf", "streak", "detached_streak"
    ] = "cross_entropy"
    """The per-slot term that stands in for cross-entropy; the others are for comparison."""
    chunk_blocks: int = 0
    """Blocks of a row whose logits are held at once; 0: all of them."""

    def __post_init__(self) -> None:
        _require(
            self.decay is None or self.decay > 0,
            f"loss.decay must be positive, inf or None: got {self.decay}.",
        )
        for field in ("focal", "chain"):
            value = getattr(self, field)
            _require(
                math.isfinite(value) and value >= 0,
                f"loss.{field} must be finite and not negative: got {value}.",
            )
        _require(
            self.chunk_blocks >= 0, f"loss.chunk_blocks must be >= 0: got {self.chunk_blocks}."
        )

    @property
    def label(self) -> str:
        """A short name for tables: "uniform", "decay", "decay+focal", "full" and so on."""
        has_decay = self.decay is not None and math.isfinite(self.decay)
        names = [
            name
            for name, present in (
                ("decay", has_decay),
                ("focal", self.focal > 0),
                ("chain", self.chain > 0),
            )
            if present
        ]
        terms = "full" if len(names) == 3 else "+".join(names)
        if self.objective == "cross_entropy":
            return terms or "uniform"
        return f"{self.objective}+{terms}" if terms else self.objective


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how rows are made of it."""

    sources: tuple[str, ...] = ("embedded",)
    """Names of data sets (`jaxspec.data.sources.SOURCES`), or folders of `jaxspec regenerate`."""
    split: str = "train"
    """Split of the sources that is read."""
    raw_dir: str = ""
    """Folder with the original files, for machines without a network; "": the environment variable
    JAXSPEC_RAW_DATA, and without it a download from the public source."""
    data_dir: str = ""
    """Where prepared array_record files are kept; "": JAXSPEC_DATA_DIR, else ~/.cache/jaxspec."""
    tokenizer: str = ""
    """Folder with tokenizer.json; "": the target's own; "embedded": the one shipped in the package;
    "train": train a byte-level BPE of `tokenizer_vocab` tokens on the training text."""
    tokenizer_vocab: int = 2048
    """Tokens of a tokenizer that is trained (tokenizer "train")."""
    sequence_length: int = 256
    """Tokens of a row."""
    batch_size: int = 8
    """Rows of a global step."""
    packing: bool = True
    """Several documents to a row, which never see each other."""
    anchors: int = 16
    """Blocks drafted in each row."""
    loss_on: Literal["response", "all"] = "response"
    """Which tokens are learned: the assistant's, or every token (for a target from scratch)."""
    max_examples: int = 0
    """Read only the first so many examples of each source; 0: all."""
    seed: int = 0
    """Of the order of the examples."""
    embedded_examples: int = 20_000
    """Size of the generated training split of the embedded corpus."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"data.batch_size must be >= 1: got {self.batch_size}.")
        _require(
            self.sequence_length >= 8,
            f"data.sequence_length must be at least 8: got {self.sequence_length}.",
        )
        _require(self.anchors >= 1, f"data.anchors must be >= 1: got {self.anchors}.")
        _require(len(self.sources) >= 1, "data.sources is empty: name at least one data set.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up, cosine decay and global-norm clipping."""

    learning_rate: float = 1e-3
    """Highest learning rate, reached after the warm-up."""
    final_learning_rate: float = 0.0
    """Learning rate at the last step."""
    warmup_fraction: float = 0.015
    """Share of the steps in which the rate rises linearly."""
    b1: float = 0.9
    """Decay of AdamW's mean gradient."""
    b2: float = 0.999
    """Decay of AdamW's mean squared gradient."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0: no clipping."""

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            f"optimizer.learning_rate must be positive: got {self.learning_rate}.",
        )
        _require(
            0 <= self.warmup_fraction < 1,
            f"optimizer.warmup_fraction must be in [0, 1): got {self.warmup_fraction}.",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices by axis; one of them may be -1: what is left."""

    data: int = -1
    """Devices that hold different rows and equal parameters."""
    fsdp: int = 1
    """Devices that hold different rows and share out parameters and optimizer state."""
    tensor: int = 1
    """Devices that share out heads and MLP widths."""
    path: Literal["jit", "shard_map", "pmap"] = "jit"
    """How a step is spread over devices. "shard_map" and "pmap" replicate the parameters and
    split the batch (data axis only)."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    task: Literal["target", "drafter", "denoiser"] = "drafter"
    """Train a drafter on the frozen target, the target itself, or a masked-diffusion language model
    that drafts for it."""
    steps: int = 1000
    """Optimizer steps of the run."""
    gradient_accumulation: int = 1
    """Parts that a batch is split into, one after the other, for each step."""
    seed: int = 0
    """Of the initial parameters and of everything drawn in training."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 250
    """Steps between two checkpoints; the last step always has one."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    capture_tolerance: float = 1e-3
    """Largest difference of log-probabilities that the capture check lets pass."""
    export: bool = True
    """Write DIR/export (safetensors, config.json, tokenizer) at the end."""
    export_dtype: Literal["", "float32", "bfloat16"] = ""
    """What exported weights are stored in; "": what the parameters are kept in."""

    def __post_init__(self) -> None:
        for field in ("steps", "gradient_accumulation", "log_every", "checkpoint_every"):
            _require(
                getattr(self, field) >= 1,
                f"training.{field} must be at least 1: got {getattr(self, field)}.",
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What eval.py runs."""

    benchmarks: tuple[str, ...] = ("embedded/math", "embedded/code", "embedded/chat")
    """Names of the data sets whose prompts are decoded."""
    prompts: int = 40
    """Prompts of each benchmark (fewer if it has fewer)."""
    max_new_tokens: int = 128
    """Longest response."""
    batch_size: int = 8
    """Prompts decoded together when tau is measured."""
    temperature: float = 0.0
    """0: greedy; above: sampling."""
    draft_temperature: float | None = None
    """Temperature of sampled drafts; None: the target's. Whatever it is, outputs are exact; with 0
    the likeliest tokens are drafted and judged as a point mass."""
    top_k: int = 0
    """Only the k likeliest tokens of target and draft are sampled; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that sum to this are sampled (nucleus); 1: all."""
    min_p: float = 0.0
    """Only tokens of at least this share of the likeliest one are sampled; 0: all."""
    verifier: Literal[
        "auto",
        "greedy",
        "token",
        "block",
        "point_mass",
        "tree",
        "recursive",
        "recursive_without_replacement",
        "k_seq",
        "self_selection",
    ] = "auto"
    """"auto": greedy at temperature 0 and token verification above it; "point_mass" for drafts
    that were not sampled, "tree" for trees, "recursive" for chains."""
    tree_nodes: int = 0
    """Decode with the best-first tree of so many nodes instead of one block; 0: no tree."""
    chains: int = 0
    """Decode with so many sampled chains, in one target pass, instead of one block; 0: one block.
    At temperature 0 they need a `draft_temperature`."""
    adaptive_sizes: tuple[int, ...] = ()
    """Sizes that a controller chooses from while decoding, by what was accepted and what a round
    costs: tokens that the target reads in a round (a block; a tree's nodes and its anchor); 1 turns
    drafting off. (): one size."""
    block_size: int = 0
    """Block used in decoding; 0: the drafter's own."""
    denoising_passes: int = 1
    """Passes in which a masked-diffusion drafter fills a block."""
    denoising_order: Literal["ancestral", "first_hitting", "left_to_right"] = "ancestral"
    """Which masks each of these passes fills: random ones at random times (MDLM's reverse process),
    random ones in equal shares, or the leftmost ones."""
    draft_rule: Literal["in_order", "last_pass", "point_mass", "reveal_time"] = "in_order"
    """What the verifier is told of tokens that were filled in at different passes: the distribution
    a token was drawn from, if nothing to its left was filled in later ("in_order"), or if it was in
    the last pass ("last_pass"), or no distribution at all ("point_mass"); a token without one
    counts as certain. "reveal_time", every token's own, is exact only from left to right."""
    max_prompt_tokens: int = 512
    """Longest prompt taken; longer ones are counted and left out."""
    passage_tokens: int = 32
    """Of running text (wikitext2, tinystories), the first so many tokens are the prompt, as they
    are; the target goes on from there."""
    timing_prompts: int = 6
    """Prompts (per benchmark) on which wall-clock speed is measured at batch 1; 0: no timing."""
    timing_repeats: int = 3
    """How often each timing is repeated."""
    seed: int = 0
    """Of sampling and of the bootstrap."""

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"evaluation.temperature must be finite and not negative: got {self.temperature}.",
        )
        _require(self.prompts >= 1, f"evaluation.prompts must be at least 1: got {self.prompts}.")
        _require(
            self.passage_tokens >= 1,
            f"evaluation.passage_tokens must be at least 1: got {self.passage_tokens}.",
        )
        _require(
            self.tree_nodes >= 0,
            f"evaluation.tree_nodes must be 0 (no tree) or more: got {self.tree_nodes}.",
        )
        _require(
            self.chains >= 0,
            f"evaluation.chains must be 0 (one block) or more: got {self.chains}.",
        )
        _require(
            not (self.tree_nodes and self.chains),
            f"A round drafts a best-first tree or sampled chains: got evaluation.tree_nodes "
            f"{self.tree_nodes} and evaluation.chains {self.chains}.",
        )
        draft = self.draft_temperature
        _require(
            draft is None or (math.isfinite(draft) and draft >= 0),
            f"evaluation.draft_temperature must be finite and not negative: got {draft}.",
        )
        _require(
            all(size >= 1 for size in self.adaptive_sizes)
            and len(set(self.adaptive_sizes)) == len(self.adaptive_sizes),
            f"evaluation.adaptive_sizes must differ and be at least 1: got {self.adaptive_sizes}.",
        )
        _require(
            not (self.adaptive_sizes and self.chains),
            "evaluation.adaptive_sizes are for blocks and trees: leave evaluation.chains at 0.",
        )
        _require(
            self.denoising_passes >= 1,
            f"evaluation.denoising_passes must be at least 1: got {self.denoising_passes}.",
        )
        _require(
            self.draft_rule != "reveal_time"
            or self.denoising_order == "left_to_right"
            or self.denoising_passes == 1,
            "evaluation.draft_rule 'reveal_time' would change the target's output: in order "
            f"{self.denoising_order!r} with {self.denoising_passes} passes, what a token was drawn "
            "from tells what stood to its right. Use 'in_order', 'last_pass' or 'point_mass', or "
            "evaluation.denoising_order 'left_to_right'.",
        )
        _require(
            self.draft_rule != "point_mass"
            or self.verifier in ("auto", "point_mass")
            or self.temperature == 0,
            "evaluation.draft_rule 'point_mass' gives the verifier no distributions: got "
            f"evaluation.verifier {self.verifier!r}, expected 'auto' or 'point_mass'.",
        )
        _require(
            self.denoising_passes == 1 or not (self.tree_nodes or self.chains),
            "Trees and chains are drawn from the distributions of one pass: got "
            f"evaluation.denoising_passes {self.denoising_passes}.",
        )
        _require(
            self.max_new_tokens >= 1,
            f"evaluation.max_new_tokens must be at least 1: got {self.max_new_tokens}.",
        )
        _require(
            self.block_size == 0 or self.block_size >= 2,
            "evaluation.block_size counts the anchor and must be at least 2: "
            f"got {self.block_size}.",
        )
        _require(len(self.benchmarks) >= 1, "evaluation.benchmarks is empty: name at least one.")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything a run is made of."""

    name: str = ""
    """Name of the run, for logs."""
    target: TargetConfig = dataclasses.field(default_factory=TargetConfig)
    drafter: DrafterConfig = dataclasses.field(default_factory=DrafterConfig)
    denoiser: DenoiserConfig = dataclasses.field(default_factory=DenoiserConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
