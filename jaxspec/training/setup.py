"""What a run needs before its first step: data, models, objective, and how to export the result.

Everything that can be wrong in a configuration is looked at here, before anything is written.

>>> task = prepare(RunConfig(name="demo"), workdir=Path("runs/demo"))
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.checkpoints.denoiser import save_denoiser
from jaxspec.checkpoints.folders import target_folder
from jaxspec.checkpoints.huggingface import load_target, read_config, save_drafter, save_target
from jaxspec.config import DiTConfig, GPT2Config, LanguageModelConfig, RunConfig
from jaxspec.data.pipeline import Pipeline, make_pipeline
from jaxspec.data.sources import load_examples
from jaxspec.data.tokenizer import Tokenizer, check_same_tokens
from jaxspec.data.tokenizer_files import has_tokenizer
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.registry import make_model
from jaxspec.parallel.rules import Rules
from jaxspec.provenance import provenance
from jaxspec.training.capture_check import capture_check
from jaxspec.training.denoiser_setup import (
    check_mask,
    denoiser_config,
    denoiser_parts,
    denoiser_source,
)
from jaxspec.training.objectives import (
    DrafterObjective,
    Objective,
    TargetObjective,
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A run, ready to start."""

    title: str
    resolved_config: RunConfig
    """The configuration with everything filled in that was left to the target or the tokenizer."""
    pipeline: Pipeline
    objective: Objective
    init: Callable[[jax.Array], Any]
    """key -> parameters."""
    load_frozen: Callable[[Mesh], Any]
    """The frozen target's parameters on the mesh (nothing, for a target from scratch)."""
    capture_check: Callable[[Any], None]
    keep_tokenizer: Callable[[], None]
    """Puts a tokenizer that was trained for this run into WORKDIR/tokenizer."""
    export: Callable[[Any], None]
    """Writes WORKDIR/export."""
    load_initial: Callable[[Any], Any] | None = None
    """shardings -> the parameters of another run to start from, in place of those of `init`."""


def prepare(config: RunConfig, *, workdir: Path) -> Task:
    """Looks at everything a run needs.

    Raises:
      ValueError: a setting that cannot work, missing data, a tokenizer that does not fit.
    """
    tasks = {"target": _target_task, "drafter": _drafter_task, "denoiser": _denoiser_task}
    return tasks[config.training.task](config, workdir=workdir)


def _target_task(config: RunConfig, *, workdir: Path) -> Task:
    architecture = config.target.architecture
    if architecture is None:
        raise ValueError("Training a target needs target.architecture: give its sizes.")
    tokenizer = _open_tokenizer(config, workdir=workdir)
    _check_vocabulary(tokenizer, architecture)
    pipeline = _open_pipeline(config, tokenizer)
    model = make_model(architecture)

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 8), jnp.int32))["params"]

    def export(params: Any) -> None:
        save_target(
            workdir / "export",
            architecture,
            params,
            dtype=config.training.export_dtype or None,
            tokenizer_folder=tokenizer.folder,
            eos_token_ids=tokenizer.stop_ids,
            provenance=provenance(config=config, seed=config.training.seed),
        )
        print(f"Target written to {workdir / 'export'}", flush=True)

    return Task(
        title="target",
        resolved_config=config,
        pipeline=pipeline,
        objective=TargetObjective(model),
        init=init,
        load_frozen=lambda mesh: {},
        capture_check=lambda frozen: None,
        keep_tokenizer=lambda: _keep_tokenizer(tokenizer, config, workdir=workdir),
        export=export,
    )


def _drafter_task(config: RunConfig, *, workdir: Path) -> Task:
    folder = target_folder(config.target.path)
    architecture = dataclasses.replace(
        read_config(folder), dtype=config.target.dtype, param_dtype=config.target.dtype
    )
    _check_architecture(config.target.architecture, architecture, folder)
    if config.data.tokenizer == "train":
        raise ValueError(
            'data.tokenizer is "train", but a drafter needs the tokenizer of its target, whose ids '
            "it drafts: leave data.tokenizer empty."
        )
    tokenizer = Tokenizer.load(
        config.data.tokenizer or folder, template_options=config.target.template_options
    )
    _check_vocabulary(tokenizer, architecture)
    _check_positions(config, architecture)
    drafter_config = resolve_config(
        config.drafter, target=architecture, mask_token_id=tokenizer.mask_id
    )
    # Runtime choices of the configuration's architecture hold for the frozen target as well.
    if config.target.architecture is not None:
        architecture = dataclasses.replace(
            architecture, unroll_layers=config.target.architecture.unroll_layers
        )
    pipeline = _open_pipeline(config, tokenizer)
    target = make_model(architecture)
    drafter = DFlash(drafter_config, architecture.hidden_size)
    layer_ids = drafter_config.target_layer_ids

    def init(key: jax.Array) -> Any:
        features_BSE = jnp.zeros((1, 2, len(layer_ids) * architecture.hidden_size))
        return drafter.init(key, features_BSE, method="initialise")["params"]

    def load_frozen(mesh: Mesh) -> Any:
        shapes = jax.eval_shape(
            lambda: target.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
        )
        rules = Rules() if config.mesh.path == "jit" else Rules(None, None, None, None, None)
        _, params = load_target(
            folder, dtype=config.target.dtype, shardings=rules.shardings(shapes, mesh)
        )
        return params

    def check(frozen: Any) -> None:
        # One row, the same on every process.
        tokens_BS = pipeline.rows[pipeline.row_numbers(0)[0]]["tokens"][None]
        difference = capture_check(
            target,
            frozen,
            tokens_BS,
            layer_ids=layer_ids,
            tolerance=config.training.capture_tolerance,
        )
        if jax.process_index() == 0:
            print(
                f"Capture check passed: log-probabilities rebuilt from the captured states differ "
                f"by at most {difference:.1e}.",
                flush=True,
            )

    def export(params: Any) -> None:
        save_drafter(
            workdir / "export",
            drafter_config,
            params,
            target_config=architecture,
            dtype=config.training.export_dtype or None,
            tokenizer_folder=tokenizer.folder,
            provenance=provenance(config=resolved, seed=config.training.seed),
        )
        print(f"Drafter written to {workdir / 'export'}", flush=True)

    resolved = dataclasses.replace(config, drafter=drafter_config)
    return Task(
        title=f"drafter ({config.loss.label})",
        resolved_config=resolved,
        pipeline=pipeline,
        objective=DrafterObjective(
            target=target, drafter=drafter, loss=config.loss, anchors=config.data.anchors
        ),
        init=init,
        load_frozen=load_frozen,
        capture_check=check,
        keep_tokenizer=lambda: None,
        export=export,
    )


def _denoiser_task(config: RunConfig, *, workdir: Path) -> Task:
    settings = config.denoiser
    tokenizer = Tokenizer.load(
        config.data.tokenizer or target_folder(config.target.path),
        template_options=config.target.template_options,
    )
    source = denoiser_source(settings)
    if source is not None and has_tokenizer(source):
        check_same_tokens(Tokenizer.load(source), tokenizer, name=str(source))
    architecture = check_mask(denoiser_config(settings), tokenizer)
    parts = denoiser_parts(config, architecture)
    pipeline = _open_pipeline(config, tokenizer)

    def load_frozen(mesh: Mesh) -> Any:
        if not parts.frozen_shapes:
            return {}
        rules = Rules() if config.mesh.path == "jit" else Rules(None, None, None, None, None)
        return parts.load(rules.shardings(parts.frozen_shapes, mesh))

    def export(params: Any) -> None:
        save_denoiser(
            workdir / "export",
            architecture,
            parts.whole(params),
            dtype=config.training.export_dtype or None,
            tokenizer_folder=tokenizer.folder,
            provenance=provenance(config=resolved, seed=config.training.seed),
        )
        print(f"Denoiser written to {workdir / 'export'}", flush=True)

    resolved = config
    if isinstance(architecture, DiTConfig):
        resolved = dataclasses.replace(
            config, denoiser=dataclasses.replace(settings, architecture=architecture)
        )
    what = config.loss.label if settings.objective == "draft" else settings.objective
    return Task(
        title=f"denoiser ({what})",
        resolved_config=resolved,
        pipeline=pipeline,
        objective=parts.objective,
        init=parts.init,
        load_frozen=load_frozen,
        capture_check=lambda frozen: None,
        keep_tokenizer=lambda: None,
        export=export,
        load_initial=parts.load if source is not None and not parts.frozen_shapes else None,
    )


def _open_tokenizer(config: RunConfig, *, workdir: Path) -> Tokenizer:
    """The tokenizer of a target from scratch; one that is trained stays out of `workdir` for now.

    A mistake that is found later must leave nothing behind (see `Task.keep_tokenizer`).
    """
    choice = config.data.tokenizer or "embedded"
    if choice != "train":
        return Tokenizer.load(choice)
    kept = _kept_tokenizer(workdir)
    if (kept / "tokenizer.json").is_file():
        return Tokenizer.load(kept)
    texts = [
        content
        for source in config.data.sources
        for example in load_examples(source, split=config.data.split, data=config.data)
        for _, content in example.turns
    ]
    print(f"Training a tokenizer of {config.data.tokenizer_vocab} tokens.", flush=True)
    folder = tempfile.mkdtemp(prefix="jaxspec-tokenizer-")
    try:
        tokenizer = Tokenizer.train(texts, vocab_size=config.data.tokenizer_vocab, folder=folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(tokenizer, shutil.rmtree, folder, ignore_errors=True)
    return tokenizer


def _keep_tokenizer(tokenizer: Tokenizer, config: RunConfig, *, workdir: Path) -> None:
    if config.data.tokenizer == "train" and tokenizer.folder != _kept_tokenizer(workdir):
        tokenizer.save(_kept_tokenizer(workdir))


def _kept_tokenizer(workdir: Path) -> Path:
    return workdir / "tokenizer"


def _open_pipeline(config: RunConfig, tokenizer: Tokenizer) -> Pipeline:
    pipeline = make_pipeline(
        config.data,
        tokenizer,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if jax.process_index() == 0:
        print(f"Data: {pipeline.statistics.summary}", flush=True)
    return pipeline


def _check_vocabulary(tokenizer: Tokenizer, architecture: LanguageModelConfig) -> None:
    if tokenizer.vocab_size > architecture.vocab_size:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} ids, but the target's embedding only "
            f"{architecture.vocab_size} rows: ids beyond it would be clamped silently. Use the "
            "target's own tokenizer, or a larger target.architecture.vocab_size."
        )


def _check_positions(config: RunConfig, architecture: LanguageModelConfig) -> None:
    """A table of positions ends; rotary positions do not."""
    rows = architecture.max_position_embeddings
    if isinstance(architecture, GPT2Config) and config.data.sequence_length > rows:
        raise ValueError(
            f"data.sequence_length is {config.data.sequence_length}, but the target has learned "
            f"{rows} positions and no others: choose a data.sequence_length of at most {rows}."
        )


def _check_architecture(
    expected: LanguageModelConfig | None, got: LanguageModelConfig, folder: Path
) -> None:
    """Compares what decides shapes and mathematics; compute settings may differ."""
    if expected is None:
        return
    if type(got) is not type(expected):
        raise ValueError(
            f"The target in {folder} is of another family than target.architecture: got a "
            f"{type(got).__name__}, expected a {type(expected).__name__}. Leave "
            "target.architecture out."
        )
    runtime = ("dtype", "param_dtype", "unroll_layers", "remat", "max_position_embeddings")
    wrong = [
        f"{field.name}: got {getattr(got, field.name)}, expected {getattr(expected, field.name)}"
        for field in dataclasses.fields(got)
        if field.name not in runtime and getattr(got, field.name) != getattr(expected, field.name)
    ]
    if wrong:
        raise ValueError(
            f"The target in {folder} is not that of target.architecture:\n  " + "\n  ".join(wrong)
        )
