"""``jaxspec export``: the weights of a run as a folder that other programs load.

    jaxspec export --workdir runs/full --output my-drafter --dtype bfloat16
    jaxspec export --workdir runs/stopped --output my-drafter --from checkpoint

They come from WORKDIR/export where the run has finished, else from its newest checkpoint. Drafters
are written as z-lab's checkpoints are, or with the configuration of speculators; targets as the
Qwen3 or Llama they are; denoisers with the updates that they learned added up. A run that is still
training is only read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxspec.config import Dtype, LanguageModelConfig, RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """What ``jaxspec export`` takes."""

    workdir: str
    """Folder of the run."""
    output: str
    """Folder to write: new, or an earlier export."""
    format: Literal["zlab", "speculators"] = "zlab"
    """Of a drafter's config.json. zlab: what vLLM, SGLang and their TPU ports load; speculators:
    the format of that library, whose layer ids are one higher."""
    dtype: Dtype = "bfloat16"
    """Of the stored weights."""
    source: Annotated[Literal["auto", "export", "checkpoint"], tyro.conf.arg(name="from")] = "auto"
    """auto: WORKDIR/export where there is one, else the newest checkpoint."""
    target_name: str = ""
    """What servers load the target by (speculators only); "": the folder's name."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """What is written."""

    config: Any
    """`DrafterConfig`, or the shape of a target or denoiser."""
    params: Any
    target_config: LanguageModelConfig | None
    """Of a drafter alone."""
    target_path: str
    tokenizer_folder: Path
    stop_ids: tuple[int, ...]
    step: int | None
    """None: the end of the run."""


def main(argv: Sequence[str]) -> None:
    """Parses the command line and writes the folder."""
    command = tyro.cli(
        ExportCommand,
        args=list(argv),
        prog="jaxspec export",
        description="Write the weights of a run as a folder that other programs load.",
        use_underscores=True,
    )
    export(command)


def export(command: ExportCommand) -> Path:
    """Writes the folder.

    Returns:
      The folder.

    Raises:
      ValueError: no run there, nothing to export yet, a format that does not fit, or an output
        folder that holds other files.
    """
    from jaxspec.checkpoints.config_reader import read_json
    from jaxspec.checkpoints.denoiser import save_denoiser
    from jaxspec.checkpoints.huggingface import save_drafter, save_target
    from jaxspec.checkpoints.speculators import speculators_json
    from jaxspec.provenance import provenance, write_json

    workdir, output = Path(command.workdir).expanduser(), Path(command.output).expanduser()
    run = read_run_config(workdir)
    if command.format != "zlab" and run.training.task != "drafter":
        raise ValueError(
            f"--format {command.format} is for DFlash drafters, and {workdir} holds a "
            f"{run.training.task}: leave it out."
        )
    finished = (workdir / "export" / "config.json").is_file()
    use_export = command.source == "export" or (command.source == "auto" and finished)
    if use_export and output.resolve() == (workdir / "export").resolve():
        raise ValueError(f"{output} is what would be read: name another folder (--output).")
    weights = _exported(workdir, run) if use_export else _from_checkpoint(workdir, run)
    record = {
        **provenance(config=run, seed=run.training.seed),
        "step": run.training.steps if weights.step is None else weights.step,
    }
    if run.training.task == "denoiser":
        save_denoiser(
            output,
            weights.config,
            weights.params,
            dtype=command.dtype,
            tokenizer_folder=weights.tokenizer_folder,
            provenance=record,
        )
    elif weights.target_config is None:
        save_target(
            output,
            weights.config,
            weights.params,
            dtype=command.dtype,
            tokenizer_folder=weights.tokenizer_folder,
            eos_token_ids=weights.stop_ids,
            provenance=record,
        )
    else:
        save_drafter(
            output,
            weights.config,
            weights.params,
            target_config=weights.target_config,
            dtype=command.dtype,
            tokenizer_folder=weights.tokenizer_folder,
            provenance=record,
        )
        if command.format == "speculators":
            name = command.target_name or Path(weights.target_path).name
            document = read_json(output / "config.json")
            write_json(output / "config.json", speculators_json(document, target_name=name))
    kind = run.training.task.capitalize()
    if run.training.task == "drafter":
        kind += f" ({command.format})"
    origin = f"{workdir / 'export'}" if use_export else f"the checkpoint of step {weights.step}"
    print(f"{kind} in {command.dtype} written to {output}, from {origin}.", flush=True)
    return output


def read_run_config(workdir: Path) -> RunConfig:
    """The configuration that a run was started with.

    Raises:
      ValueError: no provenance.json, or one of another version.
    """
    file = workdir / "provenance.json"
    if not file.is_file():
        raise ValueError(
            f"No run in {workdir}: expected the --workdir of train.py, with provenance.json."
        )
    try:
        value = json.loads(file.read_text(encoding="utf-8"))["config"]
        config = _build(RunConfig, value, where="config")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} holds no configuration of a run ({error!r}).") from error
    assert isinstance(config, RunConfig)
    return config


def _build(kind: Any, value: Any, *, where: str) -> Any:
    """The inverse of `jaxspec.provenance.jsonable` for the types that configurations have."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(
                f"{where} has settings that this version of jaxspec does not know: "
                f"{', '.join(sorted(unknown))}. Export with the version that trained it."
            )
        return kind(
            **{name: _build(hints[name], v, where=f"{where}.{name}") for name, v in value.items()}
        )
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (kind,) = [argument for argument in arguments if argument is not type(None)]
        return _build(kind, value, where=where)
    if origin is tuple:
        return tuple(_build(arguments[0], item, where=where) for item in value)
    if kind is float and isinstance(value, str):
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[value]
    return value


def _exported(workdir: Path, run: RunConfig) -> Weights:
    from jaxspec.checkpoints.denoiser import load_denoiser
    from jaxspec.checkpoints.folders import target_folder
    from jaxspec.checkpoints.huggingface import load_drafter, load_target, read_config
    from jaxspec.data.tokenizer import Tokenizer

    folder = workdir / "export"
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"No weights in {folder}: train.py writes them at the end of a run. For what is "
            "trained so far: --from checkpoint."
        )
    stop_ids = Tokenizer.load(folder).stop_ids
    if run.training.task == "target":
        config, params = load_target(folder)
        return Weights(config, params, None, "", folder, stop_ids, None)
    if run.training.task == "denoiser":
        denoiser, params = load_denoiser(folder)
        return Weights(denoiser, params, None, "", folder, stop_ids, None)
    target_config = read_config(target_folder(run.target.path))
    drafter, params = load_drafter(folder, target_config=target_config)
    return Weights(drafter, params, target_config, run.target.path, folder, stop_ids, None)


def _unchanged(params: Any) -> Any:
    return params


def _init(model: Any, arguments: Any, key: Any, *, method: str = "__call__") -> Any:
    return model.init(key, arguments, method=method)["params"]


def _from_checkpoint(workdir: Path, run: RunConfig) -> Weights:
    import jax
    import jax.numpy as jnp

    from jaxspec.checkpoints.folders import target_folder
    from jaxspec.checkpoints.huggingface import read_config
    from jaxspec.checkpoints.train_state import TrainCheckpoints
    from jaxspec.data.tokenizer import Tokenizer
    from jaxspec.models.dflash import DFlash
    from jaxspec.models.registry import make_model
    from jaxspec.training.denoiser_setup import check_mask, denoiser_config, denoiser_parts
    from jaxspec.training.optimizer import make_optimizer
    from jaxspec.training.state import TrainState

    if not (workdir / "checkpoints").is_dir():
        raise ValueError(f"No checkpoint in {workdir}: the run has not saved one yet.")
    target_config: LanguageModelConfig | None = None
    whole: Callable[[Any], Any] = _unchanged
    config: Any
    init: Callable[[jax.Array], Any]
    if run.training.task == "target":
        assert run.target.architecture is not None, "a target cannot be trained without"
        own = workdir / "tokenizer"
        tokenizer = Tokenizer.load(
            own if run.data.tokenizer == "train" else run.data.tokenizer or "embedded"
        )
        config = run.target.architecture
        init = functools.partial(_init, make_model(config), jnp.zeros((1, 8), jnp.int32))
    elif run.training.task == "denoiser":
        tokenizer = Tokenizer.load(run.data.tokenizer or target_folder(run.target.path))
        config = check_mask(denoiser_config(run.denoiser), tokenizer)
        parts = denoiser_parts(run, config)
        init, whole = parts.init, parts.whole
    else:
        folder = target_folder(run.target.path)
        target_config = read_config(folder)
        tokenizer = Tokenizer.load(run.data.tokenizer or folder)
        config = run.drafter
        drafter = DFlash(config, target_config.hidden_size)
        width = len(config.target_layer_ids) * target_config.hidden_size
        init = functools.partial(_init, drafter, jnp.zeros((1, 2, width)), method="initialise")
    transform, _ = make_optimizer(run.optimizer, steps=run.training.steps)
    abstract = jax.eval_shape(lambda: TrainState.create(init(jax.random.key(0)), transform))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract
    )
    checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=1, read_only=True)
    try:
        restored = checkpoints.restore_latest(abstract)
    finally:
        checkpoints.close()
    if restored is None:
        raise ValueError(f"No checkpoint in {workdir}: the run has not saved one yet.")
    step, state, _ = restored
    return Weights(
        config,
        whole(state.params),
        target_config,
        run.target.path,
        tokenizer.folder,
        tokenizer.stop_ids,
        step,
    )
