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
from typing import Literal

from jaxspec.architectures import UNLIMITED as UNLIMITED
from jaxspec.architectures import Context as Context
from jaxspec.architectures import DiTConfig as DiTConfig
from jaxspec.architectures import DrafterConfig as DrafterConfig
from jaxspec.architectures import Dtype as Dtype
from jaxspec.architectures import GPT2Config as GPT2Config
from jaxspec.architectures import LanguageModelConfig as LanguageModelConfig
from jaxspec.architectures import LayerType as LayerType
from jaxspec.architectures import Llama3RopeScaling as Llama3RopeScaling
from jaxspec.architectures import MaskedTransformerConfig as MaskedTransformerConfig
from jaxspec.architectures import TransformerConfig as TransformerConfig
from jaxspec.architectures import require


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The model whose output must not change."""

    path: str = "embedded"
    """Folder with config.json, safetensors and tokenizer.json; "embedded" is the one shipped in the
    package; "" when a target is trained from scratch or only shapes are wanted."""
    architecture: TransformerConfig | None = None
    """Shape of the target. Needed to train one; otherwise optional, and checked against `path`."""
    dtype: Dtype = "float32"
    """What the target's weights are held and computed in, wherever it is frozen: in a drafter's
    training, eval.py, calibrate and regenerate. "bfloat16" takes half the memory."""
    enable_thinking: bool | None = None
    """Handed to the chat template, in training, evaluation and regeneration alike: Qwen3 answers
    without a train of thought when it is False. None: the template's own default."""

    @property
    def template_options(self) -> dict[str, bool]:
        """Variables of the chat template."""
        return {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """A masked-diffusion language model that is trained (training.task "denoiser").

    It drafts for a target (SpecDiff, arXiv 2408.05636; SpecDiff-2, arXiv 2511.00606), or answers by
    itself (LLaDA, arXiv 2502.09992; SDAR, arXiv 2510.06303).

    Raises:
      ValueError: a block of fewer than 2 slots, or LoRA without a model to adapt.
    """

    architecture: DiTConfig | None = None
    """Shape to train from scratch; None: that of `path`."""
    path: str = ""
    """Weights to go on from: a run's folder, an MDLM of the released layout, or a language model of
    the target's family, which learns to see both ways ("embedded": the one in the package); "":
    from scratch."""
    num_layers: int = 0
    """Keep only the first so many layers of `path`; 0: all."""
    unroll_layers: bool = False
    """Unroll the scan over the layers of `path`: faster on a CPU, slower to compile."""
    context: Context | None = None
    """What clean tokens before a block see; None: as in `path` or `architecture`. "bidirectional"
    is MDLM; "causal" lets drafting cache them; "block_causal" (SDAR) is a diffusion language model
    whose blocks of `block_size` tokens see themselves and what is before them."""
    objective: Literal["elbo", "score_entropy", "llada", "draft"] = "elbo"
    """What is learned: the masked tokens of a row under random masks (MDLM's bound on the
    likelihood, SEDD's score entropy, or LLaDA's mean over each row's answer), or the fully masked
    block behind a prefix with `loss`, as drafting meets it."""
    block_size: int = 16
    """Slots of a block with its anchor: what "draft" trains, and any training with causal context.
    Such a row has `data.anchors` blocks; a bidirectional context is read anew for each of them.
    With a block-causal context a row is cut into blocks of so many tokens, none of them anchors."""
    lora_rank: int = 0
    """Train only low-rank updates of the layers' matrices (LoRA); 0: train every weight."""
    lora_alpha: float = 0.0
    """Updates are scaled by alpha / rank; 0: alpha = 2 rank."""

    def __post_init__(self) -> None:
        require(
            self.block_size >= 2,
            f"denoiser.block_size counts the anchor and must be at least 2: got {self.block_size}.",
        )
        require(
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
        require(
            self.decay is None or self.decay > 0,
            f"loss.decay must be positive, inf or None: got {self.decay}.",
        )
        for field in ("focal", "chain"):
            value = getattr(self, field)
            require(
                math.isfinite(value) and value >= 0,
                f"loss.{field} must be finite and not negative: got {value}.",
            )
        require(self.chunk_blocks >= 0, f"loss.chunk_blocks must be >= 0: got {self.chunk_blocks}.")

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
    fill_rows: bool = False
    """Fill a row behind its document with end-of-text tokens that are learned, as LLaDA learns to
    stop; only without packing."""
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
        require(self.batch_size >= 1, f"data.batch_size must be >= 1: got {self.batch_size}.")
        require(
            self.sequence_length >= 8,
            f"data.sequence_length must be at least 8: got {self.sequence_length}.",
        )
        require(self.anchors >= 1, f"data.anchors must be >= 1: got {self.anchors}.")
        require(len(self.sources) >= 1, "data.sources is empty: name at least one data set.")
        require(
            not (self.fill_rows and self.packing),
            "data.fill_rows fills rows behind their only document: set data.packing to False.",
        )


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
        require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            f"optimizer.learning_rate must be positive: got {self.learning_rate}.",
        )
        require(
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
    that drafts for it or answers by itself."""
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
            require(
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
    verifier: str = "auto"
    """A rejection rule (`jaxspec.verify.rules.RULES`), or "auto": "greedy" at temperature 0 and
    "token" above it; "point_mass" for drafts that were not sampled, "tree" for trees, "recursive"
    for chains."""
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
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"evaluation.temperature must be finite and not negative: got {self.temperature}.",
        )
        require(
            self.timing_repeats >= 1,
            f"evaluation.timing_repeats must be at least 1: got {self.timing_repeats}.",
        )
        require(self.prompts >= 1, f"evaluation.prompts must be at least 1: got {self.prompts}.")
        require(
            self.passage_tokens >= 1,
            f"evaluation.passage_tokens must be at least 1: got {self.passage_tokens}.",
        )
        require(
            self.tree_nodes >= 0,
            f"evaluation.tree_nodes must be 0 (no tree) or more: got {self.tree_nodes}.",
        )
        require(
            self.chains >= 0,
            f"evaluation.chains must be 0 (one block) or more: got {self.chains}.",
        )
        require(
            not (self.tree_nodes and self.chains),
            f"A round drafts a best-first tree or sampled chains: got evaluation.tree_nodes "
            f"{self.tree_nodes} and evaluation.chains {self.chains}.",
        )
        draft = self.draft_temperature
        require(
            draft is None or (math.isfinite(draft) and draft >= 0),
            f"evaluation.draft_temperature must be finite and not negative: got {draft}.",
        )
        require(
            all(size >= 1 for size in self.adaptive_sizes)
            and len(set(self.adaptive_sizes)) == len(self.adaptive_sizes),
            f"evaluation.adaptive_sizes must differ and be at least 1: got {self.adaptive_sizes}.",
        )
        require(
            not (self.adaptive_sizes and self.chains),
            "evaluation.adaptive_sizes are for blocks and trees: leave evaluation.chains at 0.",
        )
        require(
            self.denoising_passes >= 1,
            f"evaluation.denoising_passes must be at least 1: got {self.denoising_passes}.",
        )
        require(
            self.draft_rule != "reveal_time"
            or self.denoising_order == "left_to_right"
            or self.denoising_passes == 1,
            "evaluation.draft_rule 'reveal_time' would change the target's output: in order "
            f"{self.denoising_order!r} with {self.denoising_passes} passes, what a token was drawn "
            "from tells what stood to its right. Use 'in_order', 'last_pass' or 'point_mass', or "
            "evaluation.denoising_order 'left_to_right'.",
        )
        require(
            self.draft_rule != "point_mass"
            or self.verifier in ("auto", "point_mass")
            or self.temperature == 0,
            "evaluation.draft_rule 'point_mass' gives the verifier no distributions: got "
            f"evaluation.verifier {self.verifier!r}, expected 'auto' or 'point_mass'.",
        )
        require(
            self.denoising_passes == 1 or not (self.tree_nodes or self.chains),
            "Trees and chains are drawn from the distributions of one pass: got "
            f"evaluation.denoising_passes {self.denoising_passes}.",
        )
        require(
            self.max_new_tokens >= 1,
            f"evaluation.max_new_tokens must be at least 1: got {self.max_new_tokens}.",
        )
        require(
            self.block_size == 0 or self.block_size >= 2,
            "evaluation.block_size counts the anchor and must be at least 2: "
            f"got {self.block_size}.",
        )
        require(len(self.benchmarks) >= 1, "evaluation.benchmarks is empty: name at least one.")


@dataclasses.dataclass(frozen=True)
class DiffusionEvaluationConfig:
    """How a target that is a diffusion language model is decoded, by eval.py and calibrate.

    What is asked, the length of a response (`max_new_tokens`), temperature, batch and seed are
    those of `EvaluationConfig`.
    """

    block_length: int = 0
    """Tokens of a block; blocks are filled from left to right. 0: those that the model was trained
    with (SDAR: 4), or 32."""
    unmasking: str = "scheduled"
    """Which masks a step reveals (`jaxspec.decoding.diffusion.unmasking.UNMASKING`): an equal share
    of the block ("scheduled", LLaDA), all of enough confidence ("threshold"), or as many as can be
    revealed together at a bounded risk ("factor", Fast-dLLM)."""
    steps: int = 0
    """Steps in which "scheduled" fills a block; 0: one for each token."""
    threshold: float = 0.9
    """Confidence that "threshold" asks for."""
    factor: float = 1.0
    """Risk of "factor"; near 0: one token a step."""
    caching: Literal["none", "prefix", "dual"] = "dual"
    """Keys and values that are kept within a block: none, those before it, or all but its own."""
    block_causal: bool = False
    """Whether a token sees only its own block and those before it. A model that was trained so (the
    context "block_causal") always does."""
    guidance: float = 0.0
    """Strength of classifier-free guidance; 0: none."""
    drafts: tuple[Literal["ssd", "freedave", "star"], ...] = ("ssd",)
    """Graphs that need no calibration, a row of the table each: the likeliest tokens at the
    likeliest positions one by one (SSD), a step's share at a time (FreeDave), or each alone."""
    num_drafts: tuple[int, ...] = (3,)
    """Sizes of these graphs (D, drafted states), a row of the table each; 0 is plain decoding."""
    graph: str = ""
    """File of `jaxspec calibrate`; its first `num_drafts` nodes are rows of the table as well.
    "": none."""
    kept_drafts: int = 0
    """So many of a calibrated graph's nodes are drafted in a pass, the most promising ones (D*),
    and the whole graph is one row; 0: no choice."""
    layout: Literal["mask", "batch"] = "mask"
    """How drafted states are read: appended under a mask, or as rows of the batch. Either keeps the
    output with the dual cache and with block-causal models; else only "batch" does."""

    def __post_init__(self) -> None:
        require(
            self.block_length >= 0,
            f"diffusion.block_length must be 0 (the model's own) or more: got {self.block_length}.",
        )
        require(
            self.steps >= 0 and (not self.block_length or self.steps <= self.block_length),
            "diffusion.steps are those of a block, from 1 to diffusion.block_length "
            f"({self.block_length}), or 0: got {self.steps}.",
        )
        require(
            not self.steps or self.unmasking == "scheduled",
            f"diffusion.steps goes with diffusion.unmasking scheduled, not {self.unmasking}: leave "
            "it at 0.",
        )
        require(
            0 < self.threshold <= 1,
            f"diffusion.threshold must lie in (0, 1]: got {self.threshold}.",
        )
        require(self.factor > 0, f"diffusion.factor must be positive: got {self.factor}.")
        require(
            math.isfinite(self.guidance) and self.guidance >= 0,
            f"diffusion.guidance must be 0 (off) or positive: got {self.guidance}.",
        )
        require(
            min(self.num_drafts, default=0) >= 0,
            f"diffusion.num_drafts must be 0 or more: got {self.num_drafts}.",
        )
        require(
            self.kept_drafts >= 0,
            f"diffusion.kept_drafts must be 0 or more: got {self.kept_drafts}.",
        )
        require(
            not self.kept_drafts or bool(self.graph),
            "diffusion.kept_drafts chooses among the nodes of a calibrated graph: name one with "
            "diffusion.graph.",
        )


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
    diffusion: DiffusionEvaluationConfig = dataclasses.field(
        default_factory=DiffusionEvaluationConfig
    )
