"""Runs that were stopped: checkpoints and a record, but no export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from jaxspec.checkpoints.file_digests import write_record
from jaxspec.checkpoints.folders import fingerprint
from jaxspec.checkpoints.train_state import RECORD, TrainCheckpoints
from jaxspec.cli import export as command
from jaxspec.config import DrafterConfig, RunConfig, TargetConfig
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.provenance import provenance, write_json
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.state import TrainState
from tests.training import runs


def save_run(workdir: Path, config: RunConfig, model, *arguments, steps=(3, 5)) -> dict:
    """What a run that was stopped leaves; returns the parameters of its last checkpoint."""
    transform, _ = make_optimizer(config.optimizer, steps=config.training.steps)
    method = "initialise" if isinstance(model, DFlash) else "__call__"
    record = provenance(config=config, seed=0)
    if config.target.path:
        weights = fingerprint(Path(config.target.path))
        record["fingerprints"] = {"target.path": weights}
    checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=2)
    for step in steps:
        init = jax.jit(lambda key: model.init(key, *arguments, method=method)["params"])
        params = init(jax.random.key(step))
        checkpoints.save(step, TrainState.create(params, transform), progress={"record": record})
    checkpoints.close()
    write_json(workdir / "provenance.json", record)
    return jax.device_get(params)


def save_drafter_run(folder: Path) -> tuple[Path, dict]:
    """(workdir, parameters) of a drafter's run that never wrote its export."""
    config = RunConfig(
        target=TargetConfig(path=str(runs.write_target(folder / "target"))),
        drafter=resolve_config(
            DrafterConfig(block_size=4, target_layer_ids=(0, 1), num_layers=1),
            target=runs.ARCHITECTURE,
            mask_token_id=3,
        ),
        loss=dataclasses.replace(RunConfig().loss, decay=float("inf")),
    )
    model = DFlash(config.drafter, runs.ARCHITECTURE.hidden_size)
    features = np.zeros((1, 2, 2 * runs.ARCHITECTURE.hidden_size), np.float32)
    return folder / "run", save_run(folder / "run", config, model, features)


def rewrite_progress(workdir: Path, step: int, **progress) -> None:
    """Changes what a checkpoint holds besides arrays."""
    metadata = workdir / "checkpoints" / str(step) / "run" / "metadata"
    document = json.loads(metadata.read_text())
    document["progress"] |= progress
    metadata.write_text(json.dumps(document))
    write_record(workdir / "checkpoints" / str(step), RECORD)


def exported(drafter_run, output: Path, **options) -> dict:
    """config.json of an export of the drafter."""
    call = command.ExportCommand(workdir=str(drafter_run[0]), output=str(output), **options)
    command.export(call)
    return json.loads((output / "config.json").read_text())
