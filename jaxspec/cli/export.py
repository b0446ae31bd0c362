"""``jaxspec export``: writes the weights of a run as a folder that other programs load.

    jaxspec export --workdir runs/full --output my-drafter --dtype bfloat16
    jaxspec export --workdir runs/stopped --output my-drafter --from checkpoint

The weights come from WORKDIR/export if the run has finished, otherwise from a checkpoint: the one
that did best on held-out data, if the run measured that, or else the newest. Drafters are written
like z-lab's checkpoints, or with a config.json for speculators, each with a model card (README.md);
targets as models of their family; denoisers with their learned low-rank updates added to the
weights, and as a LLaDA or an SDAR if they started from one. A run that is still training is read
but never changed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxspec.config import Dtype, RunConfig
from jaxspec.files import replaced_folder, try_file, user_path

if TYPE_CHECKING:
    from jaxspec.data.tokenizer import Tokenizer
    from jaxspec.training.tasks.task import Save, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Options of ``jaxspec export``."""

    workdir: str
    """Folder of the run."""
    output: str
    """Folder to write: new, or an earlier export."""
    format: Literal["zlab", "speculators"] = "zlab"
    """Format of a drafter's config.json. zlab: for vLLM, SGLang and tpu-inference; speculators:
    the format of that library, for vLLM."""
    dtype: Dtype = "bfloat16"
    """Type of the stored weights."""
    source: Annotated[Literal["auto", "export", "checkpoint"], tyro.conf.arg(name="from")] = "auto"
    """auto: WORKDIR/export if there is one, otherwise a checkpoint."""
    step: str = ""
    """Which checkpoint: "best" (on held-out data), "last", or its step. "": the best one if the run
    exports that (training.export_best) and has measured it, otherwise the last."""
    target: str = ""
    """Folder of a drafter's target, if it is no longer where the run read it."""
    target_name: str = ""
    """What servers load as the target: its name on the Hub, or a folder; "": the target's folder on
    this machine."""
    results: str = ""
    """Result file of jaxspec (eval.py --output): the accepted lengths of this drafter in it go into
    the model card."""
    record_drafts: bool = True
    """Whether an export from a drafter's checkpoint records some drafts, as that of a finished run
    does: `jaxspec parity` compares them. The target's weights are loaded for this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights, and how to write them."""

    params: Any
    save: Save
    tokenizer: Tokenizer
    record: Mapping[str, Any]
    """The record of the run that trained them, with their "step"."""
    run: RunConfig
    """The settings that they were trained with. The run may have continued with others."""


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
      ValueError: no such run, nothing to export yet, a format that is not for this kind of model,
        or an output folder that holds other files.
    """
    from jaxspec.checkpoints.huggingface import is_exported
    from jaxspec.cli.card_rows import card_rows, check_measured
    from jaxspec.provenance import provenance
    from jaxspec.training.run_record import read_run_config
    from jaxspec.training.tasks.registry import task_of
    from jaxspec.training.tasks.task import check_export_folder

    workdir, output = user_path(command.workdir), user_path(command.output)
    run = _at(command.target, read_run_config(workdir))
    kind = task_of(run)
    if command.target and kind.name != "drafter":
        raise ValueError(
            f"--target is only for drafters, but {workdir} holds a {kind.name}: leave it out."
        )
    if kind.name == "drafter":
        _check_target_is_there(run)
    rewrite = kind.formats.get(command.format)
    if command.format != "zlab" and rewrite is None:
        raise ValueError(
            f"--format {command.format} is only for DFlash drafters, but {workdir} holds a "
            f"{kind.name}: leave it out."
        )
    if command.step and command.source == "export":
        raise ValueError(
            f"--step {command.step} names a checkpoint, but --from export takes {workdir}/export: "
            "leave one of them out."
        )
    results = []
    if command.results:
        results = card_rows(command.results, kind.name, folders=(workdir, output))
    finished = (workdir / "export" / "config.json").is_file() and not command.step
    use_export = command.source == "export" or (command.source == "auto" and finished)
    if use_export and output.resolve() == (workdir / "export").resolve():
        raise ValueError(
            f"--output {output} is the folder that the weights are read from: choose another one."
        )
    # Tried before anything is read. The folder then appears complete.
    try_file(output / "config.json", option="--output")
    check_export_folder(output, run)
    with replaced_folder(output, is_own=is_exported) as temporary:
        weights = (
            _exported(workdir, run, target=command.target)
            if use_export
            else _from_checkpoint(
                workdir,
                run,
                asked=command.step,
                target=command.target,
                records_drafts=command.record_drafts,
            )
        )
        if command.target:
            _check_trained_with(command.target, weights.record)
        check_measured(results, command.results, folders=(workdir, output), record=weights.record)
        whole = temporary / "whole"
        weights.save(
            whole,
            weights.params,
            tokenizer=weights.tokenizer,
            dtype=command.dtype,
            # The record of the run stays as it was written in training.
            provenance={**weights.record, "exported": provenance(config=None, seed=None)},
        )
        lines = []
        if kind.formats:
            lines = _for_servers(
                whole,
                weights.run,
                weights.record,
                tokenizer=weights.tokenizer,
                command=command,
                rewrite=rewrite,
                results=results,
            )
        for file in whole.iterdir():
            file.rename(temporary / file.name)
        whole.rmdir()
    title = kind.name.capitalize() + (f" ({command.format})" if kind.formats else "")
    step = weights.record.get("step")
    origin = f"the checkpoint of step {step}"
    if use_export:
        origin = str(workdir / "export") + (f" (step {step})" if step is not None else "")
    if reason := weights.record.get("chosen"):
        origin += f": {reason}"
    print(f"{title} in {command.dtype} written to {output}, from {origin}.", flush=True)
    for line in lines:
        print(line, flush=True)
    return output


def _check_target_is_there(run: RunConfig) -> None:
    from jaxspec.checkpoints.folders import target_folder

    try:
        target_folder(run.target.path)
    except ValueError as error:
        raise ValueError(f"{error} If it has moved, give its folder as --target.") from error


def _check_trained_with(target: str, record: Mapping[str, Any]) -> None:
    """Refuses a target that the drafter was not trained for."""
    from jaxspec.checkpoints.folders import fingerprint, target_folder

    trained = record.get("fingerprints", {}).get("target.path")
    if trained is not None and fingerprint(target_folder(target)) != trained:
        raise ValueError(
            f"--target {target} holds other weights than those that the drafter was trained with."
        )


def _for_servers(
    folder: Path,
    run: RunConfig,
    record: Mapping[str, Any],
    *,
    tokenizer: Tokenizer,
    command: ExportCommand,
    rewrite: Callable[..., dict[str, Any]] | None,
    results: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Writes a drafter's config.json in the format that was asked for, and its model card.

    Returns:
      Lines to print.

    Raises:
      ValueError: a drafter that servers, or the format, cannot compute.
    """
    from jaxspec.checkpoints.config_reader import read_json
    from jaxspec.checkpoints.families import dflash, servers
    from jaxspec.checkpoints.folders import target_folder
    from jaxspec.cli.model_card import model_card
    from jaxspec.files import write_text
    from jaxspec.provenance import write_json

    document = read_json(folder / "config.json")
    servers.check_servable(document)
    dflash.check_last_state(document, run.drafter)
    source = target_folder(run.target.path)
    target = read_json(source / "config.json")
    name = command.target_name or str(source.resolve())
    warnings = servers.warnings(
        document, format=command.format, target=target, has_template=tokenizer.has_template
    )
    if rewrite is not None:
        architectures = target.get("architectures") or []
        rewritten = rewrite(document, target_name=name, target_architectures=architectures)
        write_json(folder / "config.json", rewritten)
    card = model_card(
        document,
        format=command.format,
        record=record,
        target=name,
        drafter=user_path(command.output).resolve(),
        results=results,
        warnings=warnings,
        has_thinking_mode=tokenizer.reads_thinking_mode,
    )
    write_text(folder / "README.md", card)
    lines = [f"Warning: {line}" for line in warnings]
    if not command.target_name:
        origin = hub_name(target)
        hint = (
            f" Its config.json names {origin}; but that may be the model that it was made from."
            if origin
            else ""
        )
        lines.append(
            f"The export names its target by a folder, {name}. For other machines, give the "
            f"name or folder from which they load it (--target_name).{hint}"
        )
    return lines


def hub_name(target: Mapping[str, Any]) -> str:
    """The name on the Hub in a target's config.json; "" if there is none.

    It is where the weights were loaded from before they were saved. After a fine-tuning, that is
    another model.

    >>> hub_name({"_name_or_path": "Qwen/Qwen3-4B"})
    'Qwen/Qwen3-4B'
    >>> hub_name({"_name_or_path": "/data/models/qwen"})
    ''
    """
    for key in ("_name_or_path", "name_or_path"):
        name = target.get(key)
        if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            return name
    return ""


def _exported(workdir: Path, run: RunConfig, *, target: str) -> Weights:
    from jaxspec.checkpoints.config_reader import read_json
    from jaxspec.data.tokenizer import Tokenizer
    from jaxspec.training.tasks.registry import task_of

    folder = workdir / "export"
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"No weights in {folder}: train.py writes them at the end of a run. To export the "
            "training so far, use --from checkpoint."
        )
    record = read_json(folder / "provenance.json")
    run = _at(target, _trained_with(record, run))
    params, save = task_of(run).read_export(run, folder)
    return Weights(
        params=params, save=save, tokenizer=Tokenizer.load(folder), record=record, run=run
    )


def _at(target: str, run: RunConfig) -> RunConfig:
    """The settings with the target in this folder; unchanged: ""."""
    if not target:
        return run
    return dataclasses.replace(run, target=dataclasses.replace(run.target, path=target))


def _trained_with(record: Mapping[str, Any], run: RunConfig) -> RunConfig:
    """The settings in the record of weights; those of the run if it has none."""
    from jaxspec.training.run_record import recorded_config

    settings = record.get("config")
    return recorded_config(settings, where="recorded config") if settings else run


def _chosen_step(folder: Path, asked: str, *, export_best: bool) -> tuple[int | None, str]:
    """The checkpoint to take (None: the newest that can be used), and why.

    Raises:
      ValueError: `asked` is neither "best", "last" nor a step, or there is no best one.
    """
    from jaxspec.checkpoints.train_state import best_step, saved_scores

    if asked.isdecimal():
        return int(asked), ""
    if asked not in ("", "best", "last"):
        raise ValueError(f"--step must be best, last or the step of a checkpoint: got {asked!r}.")
    if asked == "last" or not (asked or export_best):
        return None, ""
    scores = saved_scores(folder)
    best = best_step(scores)
    if best is None:
        if asked:
            raise ValueError(
                f"--step best: none of the checkpoints in {folder} was measured on held-out data "
                "(see data.validation). Use --step last, or name a step."
            )
        return None, ""
    return best, f"its {scores[best].text} is the best of the checkpoints that were measured"


def _from_checkpoint(
    workdir: Path, run: RunConfig, *, asked: str, target: str, records_drafts: bool
) -> Weights:
    import jax

    from jaxspec.checkpoints.config_reader import read_json
    from jaxspec.checkpoints.train_state import TrainCheckpoints
    from jaxspec.training.optimizer import make_optimizer
    from jaxspec.training.state import initial_state
    from jaxspec.training.tasks.registry import task_of
    from jaxspec.training.tasks.task import kept_tokenizer

    if not (workdir / "checkpoints").is_dir():
        if (workdir / "config.json").is_file():
            raise ValueError(
                f"--workdir {workdir} is an export, not a run: give the folder above it."
            )
        raise ValueError(f"No checkpoint in {workdir}: the run has not saved one yet.")
    wants_best = run.training.export_best and run.training.validate_every != 0
    chosen, reason = _chosen_step(workdir / "checkpoints", asked, export_best=wants_best)

    def built(run: RunConfig) -> tuple[Task, Tokenizer]:
        if run.data.tokenizer == "train":  # The run has already trained it; read that one.
            data = dataclasses.replace(run.data, tokenizer=str(kept_tokenizer(workdir)))
            run = dataclasses.replace(run, data=data)
        tokenizer = task_of(run).open_tokenizer(run, workdir=workdir)
        return task_of(run).build(run, tokenizer=tokenizer), tokenizer

    task, tokenizer = built(run)
    transform, _ = make_optimizer(run.optimizer, steps=run.training.steps)
    abstract = jax.eval_shape(initial_state(task.init, transform), jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract
    )
    checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=1, read_only=True)
    try:
        restored = (
            checkpoints.restore_latest(abstract)
            if chosen is None
            else checkpoints.restore(chosen, abstract)
        )
    finally:
        checkpoints.close()
    if restored is None:
        raise ValueError(f"No checkpoint in {workdir}: the run has not saved one yet.")
    step, state, progress = restored
    # Checkpoints of older versions have none.
    record = progress.get("record") or read_json(workdir / "provenance.json")
    record = {**record, "step": step, **({"chosen": reason} if reason else {})}
    if (own := _at(target, _trained_with(record, run))) != run:
        run = own
        task, tokenizer = built(run)
    _check_base(task, record)
    whole = _whole(task, state.params)
    del restored, state  # The optimizer's part is twice the size of the weights.
    if records_drafts:
        record = {**record, **_drafts(task, whole, tokenizer, record)}
    return Weights(params=whole, save=task.save, tokenizer=tokenizer, record=record, run=run)


def _check_base(task: Task, record: Mapping[str, Any]) -> None:
    """Updates of low rank are only added to the weights that they were learned for."""
    from jaxspec.checkpoints.folders import fingerprint

    if not task.adds_to:
        return
    folder = task.reads[task.adds_to]
    trained = record.get("fingerprints", {}).get(task.adds_to)
    if trained is not None and fingerprint(folder) != trained:
        raise ValueError(
            f"The run learned updates of low rank for other weights than those that are now in "
            f"{folder} ({task.adds_to}): put the weights back that it started from."
        )


def _drafts(
    task: Task, params: Any, tokenizer: Tokenizer, record: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What the weights draft with the target of their training; {} if that is not there."""
    from jaxspec.checkpoints.folders import fingerprint

    if task.record_drafts is None:
        return {}
    folder = task.reads["target.path"]
    if fingerprint(folder) != record.get("fingerprints", {}).get("target.path"):
        print(
            f"No drafts are recorded: the run does not say that it was trained with the weights in "
            f"{folder}. jaxspec parity then sees fewer mistakes.",
            flush=True,
        )
        return {}
    return task.record_drafts(params, _frozen(task), tokenizer)


def _whole(task: Task, params: Any) -> Any:
    """The parameters of the model, with the base of updates of low rank."""
    return task.whole(params, _frozen(task) if task.adds_to else {})


def _frozen(task: Task) -> Any:
    """What a run reads and does not train, on the first device."""
    import jax

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return task.load_frozen(jax.tree.map(lambda _: device, task.frozen_shapes))
