"""What a kind of training says of itself, and what all kinds share.

A run is assembled in three stages, and each needs more than the one before:

- `TaskKind.build(config)`: only shapes, for ``jaxspec plan``. Nothing is loaded.
- `TaskKind.build(config, tokenizer=...)`: checked against the run's models and tokenizer, for
  ``jaxspec export``.
- `TaskKind.prepare(config, workdir=...)`: with data, ready for the first step of
  `jaxspec.training.loop.train`.

>>> from jaxspec.training.tasks.drafter import DRAFTER
>>> task = DRAFTER.build(RunConfig())
>>> sorted(jax.eval_shape(task.init, jax.random.key(0)))
['fc', 'final_norm', 'hidden_norm', 'layers']
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoints.huggingface import is_exported
from jaxspec.config import Dtype, LanguageModelConfig, RunConfig, TargetConfig
from jaxspec.data.pipeline import Pipeline, make_pipeline
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.files import check_replaceable, replaced_folder, user_path
from jaxspec.json_files import read_object
from jaxspec.ops.causal_attention import KERNEL_PLATFORMS, choose_attention
from jaxspec.parallel.divisibility import SplitSizes
from jaxspec.parallel.memory import ComputedAs
from jaxspec.paths import exists
from jaxspec.ranges import MOST_STEPS
from jaxspec.tokenizer_files import TOKENIZER_FILES
from jaxspec.training.data_statistics import data_lines
from jaxspec.training.objectives import Objective
from jaxspec.training.optimizer import schedule_warnings
from jaxspec.training.validation import HeldOut, held_out_warnings, read_held_out

RecordDrafts = Callable[[Any, Any, Tokenizer], Mapping[str, Any]]
"""(model's parameters, frozen parameters, tokenizer) -> what an export's provenance.json adds to
the run's record."""
Init = Callable[[jax.Array], Any]
"""key -> parameters."""


class Save(Protocol):
    """Writes a model's parameters as a folder that other programs load."""

    def __call__(
        self,
        folder: Path,
        params: Any,
        *,
        tokenizer: Tokenizer,
        dtype: Dtype | None,
        provenance: Mapping[str, Any],
    ) -> None:
        """`dtype` None: what the parameters are kept in."""
        ...


def _unchanged(params: Any, frozen: Any) -> Any:
    del frozen
    return params


def _nothing(shardings: Any) -> Any:
    del shardings
    return {}


def _no_check(frozen: Any, tokens_BS: np.ndarray) -> None:
    del frozen, tokens_BS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What one run trains. Nothing is loaded before it is asked for."""

    title: str
    """For the progress bar."""
    config: RunConfig
    """The configuration with everything filled in that was left to the target or the tokenizer."""
    objective: Objective
    init: Init
    """key -> what is trained."""
    save: Save
    """Takes the model's parameters (see `whole`)."""
    models: Mapping[str, SplitSizes]
    """What messages call a model -> what a mesh splits in it."""
    frozen_shapes: Any = dataclasses.field(default_factory=dict)
    """Shapes of the parameters that are read but not trained; {}: there are none."""
    load_frozen: Callable[[Any], Any] = _nothing
    """Shardings of `frozen_shapes` -> those parameters."""
    load_initial: Callable[[Any], Any] | None = None
    """Shardings of what is trained -> weights to start from instead of those of `init`."""
    reads: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """Setting -> the folder whose weights it names."""
    whole: Callable[[Any, Any], Any] = _unchanged
    """(what is trained, frozen parameters) -> the model's parameters: updates of low rank are added
    to their base, which is frozen."""
    adds_to: str = ""
    """The setting in `reads` that names this base; "": `whole` changes nothing, and does not look
    at the frozen parameters."""
    record_drafts: RecordDrafts | None = None
    """None: what is trained drafts nothing that could be compared."""
    capture_check: Callable[[Any, np.ndarray], None] = _no_check
    """(frozen parameters, tokens [B, S]): raises ValueError where hidden states are not captured
    as they should be."""


class Build(Protocol):
    """Makes the task of a run."""

    def __call__(self, config: RunConfig, *, tokenizer: Tokenizer | None = None) -> Task:
        """`tokenizer` None: for shapes only; neither weights nor ids are checked."""
        ...


class OpenTokenizer(Protocol):
    """Opens the tokenizer of a run."""

    def __call__(self, config: RunConfig, *, workdir: Path) -> Tokenizer:
        """Must leave nothing in `workdir`: a mistake may be found after this."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTask:
    """A run that is ready to start."""

    kind: TaskKind
    task: Task
    tokenizer: Tokenizer
    pipeline: Pipeline
    held_out: HeldOut | None = None
    """None: the run does not measure itself on held-out data."""

    def check_capture(self, frozen: Any, *, context: int) -> None:
        """Runs the task's check on one row of the data, the same on every process.

        Args:
          frozen: the frozen parameters, placed.
          context: parts into which a mesh splits a row; of a row that is too long for one device,
            the first part is checked.
        """
        tokens_S = self.pipeline.rows[self.pipeline.row_numbers(0)[0]]["tokens"]
        self.task.capture_check(frozen, tokens_S[None, : len(tokens_S) // context])

    def keep_tokenizer(self, workdir: Path) -> None:
        """Puts a tokenizer that was trained for this run into WORKDIR/tokenizer."""
        kept = kept_tokenizer(workdir)
        if self.task.config.data.tokenizer == "train" and self.tokenizer.folder != kept:
            is_own = TOKENIZER_FILES.__contains__
            with replaced_folder(kept, is_own=is_own, key="tokenizer.json") as whole:
                self.tokenizer.save(whole)

    def is_exported(self, workdir: Path, *, record: Mapping[str, Any]) -> bool:
        """Whether WORKDIR/export is there, complete, and of this run and step.

        Args:
          workdir: the run's folder; an earlier run may have left its export there.
          record: the run's record, with the "step" that it has reached.
        """
        if not exists(workdir / "export" / "config.json"):
            return False
        try:
            found = read_object(workdir / "export" / "provenance.json")
        except ValueError:
            return False
        wanted = {"time": record["time"], "step": record["step"], **self._export_settings}
        return all(found.get(name, "") == value for name, value in wanted.items())

    @property
    def _export_settings(self) -> dict[str, str]:
        """Recorded with the export: those of the run's record are the ones it began with."""
        return {"export_dtype": self.task.config.training.export_dtype}

    def export(self, params: Any, frozen: Any, *, workdir: Path, record: Mapping[str, Any]) -> None:
        """Writes what was trained to WORKDIR/export, with the run's record and some drafts."""
        config, folder = self.task.config, workdir / "export"
        whole = self.task.whole(params, frozen)
        record_drafts = self.task.record_drafts
        drafts = record_drafts(whole, frozen, self.tokenizer) if record_drafts else {}
        self.task.save(
            folder,
            whole,
            tokenizer=self.tokenizer,
            dtype=config.training.export_dtype or None,
            provenance={**record, **drafts, **self._export_settings},
        )
        print(f"{self.kind.name.capitalize()} written to {folder}", flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskKind:
    """One kind of training: an entry of `jaxspec.training.tasks.registry.TASKS`."""

    name: str
    """The value of training.task."""
    open_tokenizer: OpenTokenizer
    build: Build
    read_export: Callable[[RunConfig, Path], tuple[Any, Save]]
    """(configuration, WORKDIR/export) -> the parameters there, and how to write them again. It
    must not need what the run started from, which may be gone."""
    computed_as: Callable[[RunConfig], ComputedAs]
    """The settings that say how its passes compute attention; None: they have their own masks."""
    becomes: Callable[[RunConfig], Literal["target", "diffusion model", "dflash", "drafter"]]
    """What the export of a run is used as, to say what to type next."""
    formats: Mapping[str, Callable[..., dict[str, Any]]] = dataclasses.field(default_factory=dict)
    """Forms of config.json besides the one that `Task.save` writes: name -> function(document of
    that form, target_name=...)."""

    def prepare(
        self, config: RunConfig, *, workdir: Path, share: tuple[int, int] = (0, 1)
    ) -> PreparedTask:
        """Looks at everything a run needs; writes nothing.

        Args:
          config: the run.
          workdir: its folder.
          share: the part of each batch that this process reads, and the number of parts.

        Raises:
          ValueError: a setting that cannot work, missing data, a tokenizer that does not fit.
        """
        tokenizer = self.open_tokenizer(config, workdir=workdir)
        task = self.build(config, tokenizer=tokenizer)
        pipeline = make_pipeline(
            config.data,
            tokenizer,
            process_index=share[0],
            process_count=share[1],
        )
        steps = steps_of(config, rows=len(pipeline.rows))
        training = dataclasses.replace(config.training, steps=steps)
        task = dataclasses.replace(task, config=dataclasses.replace(task.config, training=training))
        held_out = read_held_out(config, tokenizer)
        if jax.process_index() == 0:
            lines = data_lines(pipeline, task.objective, held_out=held_out, steps=steps)
            warnings = held_out_warnings(config, held_out) + schedule_warnings(config.optimizer)
            for line in lines + warnings:
                print(line, flush=True)
        return PreparedTask(
            kind=self, task=task, tokenizer=tokenizer, pipeline=pipeline, held_out=held_out
        )


def steps_of(config: RunConfig, *, rows: int) -> int:
    """The steps of a run: as many as it says, or those of its epochs.

    Args:
      config: the run.
      rows: packed rows of its data.

    Raises:
      ValueError: more steps than a run may have.
    """
    epochs = config.training.epochs
    if not epochs:
        return config.training.steps
    # As typed: 1.1 * 100 / 10 is a little more than 11 in floating point.
    steps = max(1, math.ceil(Fraction(str(epochs)) * rows / config.data.batch_size))
    if steps > MOST_STEPS:
        raise ValueError(
            f"training.epochs is {epochs:g}, which is {steps:,} steps of {rows:,} rows: expected "
            f"at most {MOST_STEPS:,} steps."
        )
    return steps


def check_export_folder(folder: Path, config: RunConfig) -> None:
    """Finds out, before hours of work, whether a run's weights may be written to a folder.

    Raises:
      ValueError: it holds other files, a model that jaxspec did not export, or one that the run
        reads.
    """
    check_replaceable(folder, is_own=is_exported)
    if (folder / "config.json").exists() and not (folder / "provenance.json").exists():
        raise ValueError(
            f"{folder} holds a model without provenance.json: jaxspec did not export it, and it "
            "would be lost. Move it away, or name another folder."
        )
    for setting, path in (
        ("target.path", config.target.path),
        ("drafter.path", config.drafter.path),
        ("denoiser.path", config.denoiser.path),
    ):
        source = user_path(path).resolve()
        if path and folder.resolve() in (source, source / "export"):
            raise ValueError(
                f"{folder} is the folder that {setting} names, and its weights would be replaced: "
                "move it, or write elsewhere."
            )


def kept_tokenizer(workdir: Path) -> Path:
    """Where a run keeps the tokenizer that it trained."""
    return workdir / "tokenizer"


@functools.lru_cache(maxsize=8)
def initialiser(model: Any) -> Init:
    """Makes the parameters of a network that reads tokens; the same function for equal models."""

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 8), jnp.int32))["params"]

    return init


def check_attention(config: RunConfig, architecture: LanguageModelConfig) -> None:
    """Refuses a kernel for attention that a model's type or heads do not fit, on any device.

    Whether the devices are those of the kernel is checked by
    `jaxspec.parallel.memory.check_rows_fit`. Both come before weights are read.

    Raises:
      ValueError: says what does not fit.
    """
    setting = architecture.attention
    if config.mesh.context == 1 and setting in KERNEL_PLATFORMS:  # Parts of rows have none.
        choose_attention(
            setting,
            platform=KERNEL_PLATFORMS[setting],
            dtype=architecture.dtype,
            head_dim=architecture.head_dim,
            length=config.data.sequence_length,
        )


def check_no_token_chunks(config: RunConfig) -> None:
    """Raises ValueError if logits are to be computed by chunks of tokens: drafts have blocks."""
    if config.training.chunk_tokens:
        raise ValueError(
            f"training.chunk_tokens is {config.training.chunk_tokens}, but a run that learns to "
            "draft computes logits by blocks: leave it out, and set loss.chunk_blocks."
        )


def check_frozen(target: TargetConfig) -> None:
    """Raises ValueError if layers are to be computed again of a target that is not trained."""
    if target.remat:
        raise ValueError(
            "target.remat is True, but this run does not train the target, so that it keeps no "
            "activations: leave it out. For what is trained, there are drafter.remat and "
            "denoiser.remat."
        )


def check_vocabulary(tokenizer: Tokenizer, target: LanguageModelConfig) -> None:
    """Raises ValueError where the target has no embedding for some of the tokenizer's ids."""
    if not tokenizer.fit_to(target.vocab_size):
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} ids, but the target's embedding only "
            f"{target.vocab_size} rows: ids beyond it would be clamped silently. Use the "
            "target's own tokenizer, or a larger target.architecture.vocab_size."
        )
