"""The frozen dataclasses that configure a run.

A file in ``configs/`` returns one `RunConfig` from ``get_config()``. On the command line, each
field that a command reads can be overridden by name (``--training.steps 100``), and --help prints
the strings below the fields. Nothing here touches jax, so reading a configuration takes no time.

>>> RunConfig(name="demo").training.steps
1000
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from jaxspec.architectures import UNLIMITED as UNLIMITED
from jaxspec.architectures import Attention as Attention
from jaxspec.architectures import Context as Context
from jaxspec.architectures import DiTConfig as DiTConfig
from jaxspec.architectures import DrafterConfig as DrafterConfig
from jaxspec.architectures import Dtype as Dtype
from jaxspec.architectures import ExpertsConfig as ExpertsConfig
from jaxspec.architectures import GPT2Config as GPT2Config
from jaxspec.architectures import GPTNeoXConfig as GPTNeoXConfig
from jaxspec.architectures import LanguageModelConfig as LanguageModelConfig
from jaxspec.architectures import LayerType as LayerType
from jaxspec.architectures import LinearRopeScaling as LinearRopeScaling
from jaxspec.architectures import Llama3RopeScaling as Llama3RopeScaling
from jaxspec.architectures import MaskedTransformerConfig as MaskedTransformerConfig
from jaxspec.architectures import RopeScaling as RopeScaling
from jaxspec.architectures import TransformerConfig as TransformerConfig
from jaxspec.architectures import YarnRopeScaling as YarnRopeScaling
from jaxspec.architectures import require
from jaxspec.evaluation_settings import DiffusionEvaluationConfig as DiffusionEvaluationConfig
from jaxspec.evaluation_settings import EvaluationConfig as EvaluationConfig
from jaxspec.evaluation_settings import Suppress as Suppress
from jaxspec.ranges import (
    MOST_DEVICES,
    MOST_EXAMPLES,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_ROWS,
    MOST_STEPS,
    MOST_WIDTH,
    BlockSize,
    Epsilon,
    NotNegative,
    Positive,
    Range,
    Seed,
    Vocabulary,
    check_ranges,
    fraction,
    whole,
)

MOST_GENERATED = 10**7
"""The most examples that the embedded corpus generates."""

AnchorSampling = Literal["document", "row"]
Steps = Annotated[int, whole(1, MOST_STEPS)]
Blocks = Annotated[int, whole(0, MOST_POSITIONS)]
Decay = Annotated[float, Range(0.0, math.inf, "positive, inf or None", "", without=(0.0,))]
Axis = Annotated[
    int, Range(-1, MOST_DEVICES, "positive, or -1", f"at most {MOST_DEVICES:,}", without=(0,))
]


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The model whose output must not change."""

    path: str = "embedded"
    """Folder with config.json, safetensors and tokenizer.json; "embedded": the small target in the
    package; "": none, to train one from scratch or to plan from shapes. With training.task
    "target", training starts from its weights."""
    architecture: TransformerConfig | None = None
    """Shape of the target. Needed to train one from scratch; otherwise optional, and compared with
    that of `path`. Its dtype, attention and remat count like those of the target: what was given,
    and not the default."""
    dtype: Dtype = "float32"
    """Type of the target's computations, and of a frozen one's weights. "bfloat16" takes half the
    memory."""
    attention: Attention = "auto"
    """How the target computes attention over whole texts, in training and for prompts: "plain",
    "chunked" or by a kernel, "cudnn" (GPU) or "splash" (TPU); "auto": what is fastest for the
    devices, the type and the length."""
    remat: bool = False
    """With training.task "target": recompute each layer in the backward pass instead of keeping its
    activations."""
    enable_thinking: bool | None = None
    """Passed to the chat template in training, evaluation and regeneration. False: Qwen3 answers
    without thinking aloud first. None: the template's default."""

    @property
    def template_options(self) -> dict[str, bool]:
        """Variables for the chat template."""
        return {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """A masked-diffusion language model to train (training.task "denoiser").

    It drafts for a target (SpecDiff, arXiv 2408.05636; SpecDiff-2, arXiv 2511.00606), or answers on
    its own (LLaDA, arXiv 2502.09992; SDAR, arXiv 2510.06303).

    Raises:
      ValueError: a block of fewer than 2 slots, or LoRA or layers to keep without a model that has
        them.
    """

    architecture: DiTConfig | None = None
    """Shape to train from scratch; None: the shape of `path`."""
    path: str = ""
    """Weights to start from: a run's folder, a released MDLM, LLaDA or SDAR, or a language model of
    the target's family, which learns to see both ways ("embedded": the one in the package); "":
    start from scratch."""
    num_layers: Annotated[int, whole(0, MOST_LAYERS)] = 0
    """Keep only the first N layers of `path`; 0: all of them."""
    unroll_layers: bool = False
    """Unroll the scan over the layers: faster on a CPU, slower to compile. As in `architecture`."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations, of which
    attention scores (tokens x tokens x heads) are the most. As in `architecture`."""
    dtype: Literal["", "float32", "bfloat16"] = ""
    """What matrix products compute in; "": what `architecture` says, or else what the weights of
    `path` are stored in. What is trained is float32."""
    context: Context | None = None
    """What the clean tokens before a block see; None: as in `path` or `architecture`.
    "bidirectional": everything, as in MDLM; "causal": only earlier tokens, so that drafting can
    cache them; "block_causal" (SDAR): their own block of `block_size` tokens and all earlier ones,
    for a model that answers on its own."""
    objective: Literal["elbo", "score_entropy", "llada", "draft"] = "elbo"
    """What is learned. Random masks over a row: "elbo" (MDLM's bound on the likelihood),
    "score_entropy" (SEDD) or "llada" (a mean over each row's answer). A fully masked block after a
    prefix, as in drafting, with the settings of `loss`: "draft"."""
    block_size: BlockSize = 16
    """Slots of a block, including its anchor, for objective "draft" and for causal context. A row
    then has `data.anchors` blocks; a bidirectional context is read again for each of them. With
    block-causal context, a row is cut into blocks of this many tokens, and there are no anchors."""
    lora_rank: Annotated[int, whole(0, MOST_WIDTH)] = 0
    """Train only updates of this rank to the layers' matrices (LoRA); 0: train every weight."""
    lora_alpha: NotNegative = 0.0
    """alpha: these updates are scaled by alpha / rank; 0: alpha = 2 * rank."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="denoiser.")
        require(
            self.lora_rank == 0 or bool(self.path),
            "LoRA needs a model to adapt (denoiser.path): got denoiser.lora_rank "
            f"{self.lora_rank} and path {self.path!r}.",
        )
        require(
            self.num_layers == 0 or bool(self.path),
            "denoiser.num_layers keeps layers of a model (denoiser.path): got denoiser.num_layers "
            f"{self.num_layers} and path {self.path!r}. From scratch, set "
            "denoiser.architecture.num_layers.",
        )


@dataclasses.dataclass(frozen=True)
class ExtraTerm:
    """One parsed entry of `LossConfig.extra`."""

    source: str
    """Module or Python file that defines the term; "": jaxspec."""
    name: str
    """Name of the term in `source`, and in tables and logs."""
    weight: float
    """Factor of the term."""

    @classmethod
    def parse(cls, entry: str) -> ExtraTerm:
        """Reads "NAME=WEIGHT", "MODULE:NAME=WEIGHT" or "FILE.py:NAME=WEIGHT".

        Raises:
          ValueError: a malformed entry, or a weight that is negative or not finite.
        """
        reference, _, number = entry.rpartition("=")
        source, separator, name = reference.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        require(
            name.isidentifier()
            and bool(source) == bool(separator)
            and math.isfinite(weight)
            and weight >= 0,
            "loss.extra takes NAME=WEIGHT, MODULE:NAME=WEIGHT or FILE.py:NAME=WEIGHT with a finite "
            f"weight that is not negative: got {entry!r}.",
        )
        return cls(source=source, name=name, weight=weight)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss: objective with decay + focal * first error - chain * reward + extra.

    "Teaching Diffusion to Speculate Left-to-Right", arXiv 2606.11552. The defaults are the
    paper's best; ``LossConfig(decay=None, focal=0, chain=0)`` is its position-uniform baseline.

    Raises:
      ValueError: a decay or weight outside its range, or a malformed entry of `extra`.
    """

    decay: Decay | None = 10.0
    """Scale, in slots, of the positional weights: slot k = 1, 2, ... counts exp(-(k - 1) / decay);
    None or inf: all ones."""
    focal: NotNegative = 0.3
    """Weight of the first-error focal term."""
    chain: NotNegative = 40.0
    """Weight of the chain reward."""
    normalize: Literal["block", "weight"] = "block"
    """"block": sum over the slots of a block, then mean over blocks (the paper's equation);
    "weight": weighted mean over all slots (what trainers do)."""
    objective: str = "cross_entropy"
    """The per-slot loss that the other terms are added to, by its name in
    `jaxspec.losses.OBJECTIVES`. All except cross-entropy are there for comparison."""
    extra: tuple[str, ...] = ()
    """More terms with their weights: NAME=WEIGHT for an objective or a term of `jaxspec.losses`,
    such as "forward_kl=0.5"; MODULE:NAME=WEIGHT or FILE.py:NAME=WEIGHT for your own function (see
    `jaxspec.losses.terms`)."""
    chunk_blocks: Blocks = 0
    """How many blocks of a row have their logits in memory at once; 0: all of them."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="loss.")
        require(
            not isinstance(self.extra, str),
            f"loss.extra must be a list of entries, one per term: got the text {self.extra!r}.",
        )
        names = [term.name for term in self.extra_terms]
        require(
            len(names) == len(set(names)),
            f"loss.extra names a term twice: got {', '.join(names)}. Give each term once.",
        )

    @property
    def extra_terms(self) -> tuple[ExtraTerm, ...]:
        """The entries of `extra`."""
        return tuple(ExtraTerm.parse(entry) for entry in self.extra)

    @property
    def runs_own_code(self) -> bool:
        """Whether a term of the user's own is part of it."""
        return any(term.source for term in self.extra_terms)

    @property
    def label(self) -> str:
        """A short name for tables: "uniform", "decay", "decay+focal", "full", "full+mine"."""
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
        if len(names) == 3:
            names = ["full"]
        if self.objective != "cross_entropy":
            names = [self.objective, *names]
        extra = [term.name for term in self.extra_terms if term.weight > 0]
        return "+".join([*(names or ["uniform"]), *extra])


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is made into rows."""

    sources: tuple[str, ...] = ("embedded",)
    """Names of data sets (`jaxspec.data.sources.SOURCES`), folders written by `jaxspec import-data`
    or `jaxspec regenerate`, or your own files of conversations (JSONL, JSON, Parquet, text)."""
    split: str = "train"
    """Split to read."""
    raw_dir: str = ""
    """Folder with the original files, for machines without a network; "": the environment variable
    JAXSPEC_RAW_DATA, or else a download from the public source."""
    data_dir: str = ""
    """Where prepared array_record files are kept; "": JAXSPEC_DATA_DIR, or else
    ~/.cache/jaxspec."""
    tokenizer: str = ""
    """Folder with tokenizer.json; "": the target's; "embedded": the one in the package; "train":
    train a byte-level BPE of `tokenizer_vocab` tokens on the training text."""
    tokenizer_vocab: Vocabulary = 2048
    """Size of the tokenizer to train (tokenizer "train")."""
    sequence_length: Annotated[int, whole(8, MOST_POSITIONS)] = 256
    """Tokens per row."""
    batch_size: Annotated[int, whole(1, MOST_ROWS)] = 8
    """Rows per step, over all devices."""
    packing: bool = True
    """Put several documents into a row; they never see each other."""
    fill_rows: bool = False
    """Fill the rest of each row, after its document, with end-of-text tokens that are learned too:
    this is how LLaDA learns to stop. Only without packing."""
    anchors: Annotated[int, whole(1, MOST_ROWS)] = 16
    """Blocks to draft per row."""
    anchor_sampling: AnchorSampling = "document"
    """How the blocks of a row are spread over its documents. "document": in proportion to their
    tokens, and at least one each, so that a short answer gets its share whatever lies next to it;
    "row": uniformly over all learned tokens of the row."""
    loss_on: Literal["response", "all"] = "response"
    """Which tokens are learned: the assistant's, or all of them (for a target from scratch)."""
    max_examples: Annotated[int, whole(0, MOST_EXAMPLES)] = 0
    """Read only the first N examples of each source; 0: all of them."""
    validation: Annotated[float, fraction(one=False)] = 0.0
    """Share of the conversations that is kept out of training and measured. A folder with a
    validation part of its own (`jaxspec import-data`) keeps that."""
    seed: Seed = 0
    """Seed for the order of the examples."""
    embedded_examples: Annotated[int, whole(1, MOST_GENERATED)] = 20_000
    """Examples to generate for the training split of the embedded corpus."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="data.")
        require(len(self.sources) >= 1, "data.sources is empty: name at least one data set.")
        require(
            not (self.fill_rows and self.packing),
            "data.fill_rows needs rows of one document each: set data.packing to False.",
        )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, with linear warm-up, cosine decay and clipping by the global norm."""

    name: Literal["adamw", "muon"] = "adamw"
    """"muon": orthogonalised updates of the layers' matrices, as large as AdamW's would be; AdamW
    for embedding, head, norms and biases."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: a cosine decay to `final_learning_rate`, or the constant peak rate.
    A run with a constant rate can be continued for more steps."""
    learning_rate: Positive = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    final_learning_rate: NotNegative = 0.0
    """Learning rate at the last step, with `schedule` "cosine"."""
    warmup_fraction: Annotated[float, fraction(one=False)] = 0.015
    """Fraction of the steps over which the learning rate rises linearly."""
    b1: Annotated[float, fraction(one=False)] = 0.9
    """Decay of AdamW's running mean of the gradient."""
    b2: Annotated[float, fraction(one=False)] = 0.999
    """Decay of AdamW's running mean of the squared gradient."""
    eps: Epsilon = 1e-8
    """Added to the denominator of AdamW, and to that of Muon."""
    momentum: Annotated[float, fraction(one=False)] = 0.95
    """Decay of Muon's running mean of the gradient."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay of matrices, with either."""
    clip_norm: NotNegative = 1.0
    """Largest global norm that a gradient may have; 0: no clipping."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="optimizer.")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one axis may be -1: all devices that are left."""

    data: Axis = -1
    """Devices that split the rows and each hold all parameters; -1: all that are left, or 1 if
    another axis takes them."""
    fsdp: Axis = 1
    """Devices that split the rows, the parameters and the optimizer state."""
    context: Axis = 1
    """Devices that split the tokens of a row, where a row does not fit on one: for training a
    drafter."""
    tensor: Axis = 1
    """Devices that split attention heads and MLP widths."""
    path: Literal["jit", "shard_map", "pmap"] = "jit"
    """How a step is spread over devices. "shard_map" and "pmap" replicate the parameters and
    split the batch (data axis only)."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="mesh.")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What to train, and for how long."""

    task: Literal["target", "drafter", "denoiser"] = "drafter"
    """What to train: a drafter on the frozen target, the target itself, or a masked-diffusion
    language model (a denoiser) that drafts for it or answers on its own."""
    steps: Steps = 1000
    """Optimizer steps of the run."""
    epochs: NotNegative = 0.0
    """Passes over the data, instead of `steps`; 0: `steps` counts."""
    gradient_accumulation: Annotated[int, whole(1, MOST_ROWS)] = 1
    """Parts that each batch is split into; they are computed one after the other."""
    chunk_tokens: Blocks = 0
    """Tokens of a row whose logits are in memory at once, for a target or a denoiser that learns
    from random masks; 0: all of them. Chunks compute the head's product once more. (For drafts:
    `loss.chunk_blocks`.)"""
    seed: Seed = 0
    """Seed for the initial parameters and for everything drawn in training."""
    log_every: Steps = 20
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: Steps = 250
    """Steps between two checkpoints; the last step always gets one."""
    keep_checkpoints: Annotated[int, whole(0, MOST_STEPS, words="0 (keep all) or more")] = 2
    """How many of the newest checkpoints to keep, besides the best one; 0: all of them."""
    validate_every: Annotated[int, whole(0, MOST_STEPS, words="0 (never) or more")] | None = None
    """Steps between two measurements on held-out data, besides those at checkpoints; None: only at
    checkpoints; 0: never. There must be held-out data: see `data.validation`."""
    validation_batches: Annotated[int, whole(1, MOST_STEPS)] = 8
    """How many batches of held-out data are measured, always the same ones."""
    logging: Literal["tensorboard", "wandb", "both", "none"] = "tensorboard"
    """Where metrics go besides metrics.jsonl; "wandb" needs that package. Short: --logging."""
    capture_tolerance: NotNegative | None = None
    """Largest difference in log-probability that the capture check accepts. None: 0.001 for a
    target in float32, 0.5 in bfloat16."""
    export: bool = True
    """Write WORKDIR/export (safetensors, config.json, tokenizer) at the end."""
    export_best: bool = True
    """Export the checkpoint that did best on held-out data (simulated tau, or else the loss), which
    is kept besides the newest ones. False, or without held-out data: the last one."""
    export_dtype: Literal["", "float32", "bfloat16"] = ""
    """Type of the exported weights; "": the type of the parameters."""
    stall_timeout: NotNegative = 1800.0
    """Seconds after which a step that does not end is given up: the stacks of all processes go to
    stderr, and the exit status is 77. With several processes, also a restore or an export in which
    none of them has read, written or sent anything for so long. 0: never."""
    profile: Annotated[int, whole(0, MOST_STEPS, words="0 (none) or more")] = 0
    """Steps of this start that are traced into WORKDIR/profile, for TensorBoard. Short:
    --profile."""
    compile_cache: str | None = None
    """Folder or bucket (gs://) that keeps compiled programs; "none": nowhere. None: what
    JAX_COMPILATION_CACHE_DIR says, or else ~/.cache/jaxspec/programs, if that can be written to."""

    def __post_init__(self) -> None:
        check_ranges(self, prefix="training.")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

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
