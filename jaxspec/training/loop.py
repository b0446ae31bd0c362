"""The training loop, the same for every kind of training; read it from top to bottom.

Order: processes and mesh, data and models, capture check, state or checkpoint, step, loop, export.

>>> train(RunConfig(name="demo"), workdir="runs/demo")                         # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxspec.checkpoints.train_state import TrainCheckpoints
from jaxspec.config import RunConfig
from jaxspec.data.pipeline import Pipeline
from jaxspec.losses import LossWeights
from jaxspec.parallel.memory import check_state_fits
from jaxspec.parallel.mesh import initialise_processes, make_mesh
from jaxspec.parallel.rules import Rules, batch_sharding, check_batch_size
from jaxspec.parallel.step import spread
from jaxspec.provenance import provenance, write_json
from jaxspec.training.metrics import MetricsLog, Reporter, Sums, add
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.state import TrainState
from jaxspec.training.step import Hyper, make_body
from jaxspec.training.tasks.registry import task_of


def train(config: RunConfig, *, workdir: str | Path) -> dict[str, Any]:
    """Trains what `config` describes, or continues where `workdir` holds a checkpoint.

    Args:
      config: the run.
      workdir: gets metrics.jsonl, provenance.json, tensorboard/, checkpoints/ and export/.

    Returns:
      The last line of metrics.

    Raises:
      ValueError: a mistake in the configuration or a target that fails the capture check, before
        anything is written; a checkpoint of another run; or a loss that is not finite, with the
        step, the batch's examples and the last good checkpoint.
    """
    settings = config.training

    # 1. Processes and mesh.
    initialise_processes()
    mesh = make_mesh(config.mesh)
    check_batch_size(config, mesh)

    # 2. Tokenizer, models and data: everything that can be wrong is checked here.
    workdir = Path(workdir)
    run = task_of(config).prepare(config, workdir=workdir)
    task, pipeline = run.task, run.pipeline
    task.objective.check()
    rows_here = _local_rows(pipeline)

    # 3. State and frozen weights, placed as they are made: no device holds all of a sharded model.
    transform, rates = make_optimizer(config.optimizer, steps=settings.steps)
    rules = Rules.of(config.mesh)
    key = jax.random.key(settings.seed)

    def create() -> TrainState:
        return TrainState.create(task.init(jax.random.fold_in(key, 0)), transform)

    abstract = jax.eval_shape(create)
    shardings = rules.shardings(abstract, mesh)
    check_state_fits(abstract, shardings)
    frozen = task.load_frozen(rules.shardings(task.frozen_shapes, mesh))
    frozen_shardings = jax.tree.map(lambda leaf: leaf.sharding, frozen)
    run.check_capture(frozen)

    with contextlib.ExitStack() as open_files:
        # 4. The newest checkpoint, if there is one; otherwise a fresh state.
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=settings.keep_checkpoints)
        open_files.enter_context(contextlib.closing(checkpoints))
        restored = checkpoints.restore_latest(
            jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                abstract,
                shardings,
            )
        )
        if restored is None:
            first_step = 0
            state = jax.jit(create, out_shardings=shardings)()
            if task.load_initial is not None:
                state = dataclasses.replace(state, params=task.load_initial(shardings.params))
        else:
            first_step, state, progress = restored
            if progress["seed"] != settings.seed:
                raise ValueError(
                    f"The checkpoint in {workdir} was made with training.seed {progress['seed']}, "
                    f"but this run has {settings.seed}. Use the same seed, or another --workdir."
                )
            if first_step > settings.steps:
                raise ValueError(
                    f"The checkpoint in {workdir} is at step {first_step}, but training.steps is "
                    f"{settings.steps}. Use at least {first_step} steps, or another --workdir."
                )
            pipeline.set_state(progress["loader"])
            print(f"Continuing from step {first_step} in {workdir}.", flush=True)
        if jax.process_index() == 0:
            run.keep_tokenizer(workdir)
            record = provenance(config=task.config, seed=settings.seed)
            write_json(workdir / "provenance.json", record)

        # 5. One compiled step: the frozen target's pass, the loss, the gradient and the update.
        step = spread(
            make_body(
                task.objective,
                transform,
                gradient_accumulation=settings.gradient_accumulation,
            ),
            mesh=mesh,
            path=config.mesh.path,
            state_shardings=shardings,
            frozen_shardings=frozen_shardings,
        )
        weights = LossWeights.from_config(config.loss)
        base_key = jax.random.fold_in(key, 1)

        # 6. The loop. Metrics stay on the devices until a line is written, so the host runs ahead.
        log = MetricsLog(workdir, first_step=first_step) if jax.process_index() == 0 else None
        row: dict[str, Any] = {}
        if log is not None:
            open_files.enter_context(contextlib.closing(log))
            row = log.last_row
        window: list[Sums] = []
        tokens, started = 0, time.monotonic()
        with Reporter(steps=settings.steps, first_step=first_step, title=task.title) as reporter:
            for index in range(first_step, settings.steps):
                batch = next(pipeline)
                tokens += int((batch["segments"] > 0).sum()) * jax.process_count()
                state, metrics = step(
                    state,
                    frozen,
                    _global_batch({**batch, "rows": rows_here}, mesh),
                    Hyper(jnp.float32(rates[index]), base_key, weights),
                )
                window.append(metrics)
                done = index + 1
                last = done == settings.steps
                save = last or done % settings.checkpoint_every == 0
                stop = _preempted(done)
                # Windows end at checkpoints too: a run that continues from one has the same lines.
                if done % settings.log_every == 0 or save or stop:
                    bad_step = int(state.bad_step)
                    sums = add(jax.device_get(window))
                    now = time.monotonic()
                    if log is not None:
                        extra = {
                            "learning_rate": float(rates[index]),
                            "tokens_per_s": tokens / (now - started),
                        }
                        row = log.write(done, sums, extra=extra)
                        reporter.update(row)
                    if bad_step >= 0:
                        checkpoints.wait()
                        raise ValueError(_diverged(bad_step, pipeline, checkpoints, config))
                    window, tokens, started = [], 0, now
                if save or stop:
                    progress = {"loader": pipeline.get_state(), "seed": settings.seed}
                    if checkpoints.latest_step() != done:
                        checkpoints.save(done, state, progress=progress)
                if stop:
                    raise SystemExit(f"The platform stopped the run at step {done}; it is saved.")

        # 7. The export: weights that other programs load.
        checkpoints.wait()
        if settings.export:
            alone = jax.process_count() == 1
            run.export(jax.device_get(state.params) if alone else state.params, workdir=workdir)
        return row


def _preempted(step: int) -> bool:
    """Whether the platform takes its machines back; all processes of a pod agree on the step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def _local_rows(pipeline: Pipeline) -> np.ndarray:
    """The rows that this process reads, by their numbers in the global batch."""
    count = pipeline.batch_size // jax.process_count()
    return np.arange(count, dtype=np.int32) + count * jax.process_index()


def _global_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, values)
        for name, values in batch.items()
    }


def _diverged(
    bad_step: int, pipeline: Pipeline, checkpoints: TrainCheckpoints, config: RunConfig
) -> str:
    """The message for a loss or gradient that is not finite; `bad_step` counts from 0."""
    latest = checkpoints.latest_step()
    examples = sorted({name for row in pipeline.example_ids(bad_step) for name in row})
    shown = ", ".join(examples[:12]) + (" ..." if len(examples) > 12 else "")
    kept = f"step {latest} in {checkpoints.folder}" if latest is not None else "none was saved yet"
    return (
        f"Loss or gradient is not finite at step {bad_step + 1}; the parameters are still those "
        f"before it. Batch: {shown}. Last good checkpoint: {kept}. Try a lower "
        f"optimizer.learning_rate (now {config.optimizer.learning_rate:g}) or a smaller "
        f"optimizer.clip_norm (now {config.optimizer.clip_norm:g})."
    )
