"""The training loop, the same for every kind of training; read it from top to bottom.

Order: processes and mesh, data and models, comparison with the record, capture check, state or
checkpoint, step, loop, export.

>>> train(RunConfig(name="demo"), workdir="runs/demo")                         # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxspec.checkpoints.train_state import TrainCheckpoints, check_folder, saved_progress
from jaxspec.config import RunConfig
from jaxspec.data.pipeline import Pipeline
from jaxspec.files import held
from jaxspec.interruption import STOPPED_AND_SAVED, StopRequests
from jaxspec.losses import LossWeights
from jaxspec.parallel.memory import check_state_fits
from jaxspec.parallel.mesh import initialise_processes, make_mesh
from jaxspec.parallel.rules import Rules, check_batch_size, global_batch
from jaxspec.parallel.step import spread
from jaxspec.provenance import jsonable, write_json
from jaxspec.training.metrics import MetricsLog, Reporter, Sums, add, last_row
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.segments import Record, continued_record, fresh_record
from jaxspec.training.start import Start
from jaxspec.training.state import TrainState
from jaxspec.training.step import Hyper, make_body
from jaxspec.training.tasks.registry import task_of
from jaxspec.training.tasks.task import PreparedTask, check_export_folder


def train(
    config: RunConfig,
    *,
    workdir: str | Path,
    accept_changes: bool = False,
    restart_schedule: bool = False,
) -> dict[str, Any]:
    """Trains what `config` describes, or continues where `workdir` holds a checkpoint.

    Args:
      config: the run.
      workdir: gets metrics.jsonl, provenance.json, tensorboard/, checkpoints/ and export/.
      accept_changes: continue although settings or the target's weights differ from those that the
        run was started with; provenance.json then lists the parts as segments.
      restart_schedule: continue for more steps than the run was started with: the learning rate
        warms up and decays again over the steps that are left.

    Returns:
      The last line of metrics.

    Raises:
      ValueError: the configuration has a mistake, or the target fails the capture check (both
        before anything is written); another process trains in the folder; the run was started with
        other settings (with a table of them); or the loss is not finite (with the step, the batch's
        examples and the last good checkpoint).
      SystemExit: 75, after SIGTERM or Ctrl-C: the step has been finished and saved.
    """
    settings, workdir = config.training, Path(workdir)
    with contextlib.ExitStack() as stack:
        # 1. Processes, the folder and the mesh.
        initialise_processes()
        stops = stack.enter_context(StopRequests(is_enabled=jax.process_count() == 1))
        if jax.process_index() == 0:
            check_folder(workdir)
            stack.enter_context(held(workdir, option="--workdir"))
            if settings.export:
                check_export_folder(workdir / "export", config)
        mesh = make_mesh(config.mesh)
        check_batch_size(config, mesh)

        # 2. Tokenizer, models and data: everything that can be wrong is checked here.
        run = task_of(config).prepare(config, workdir=workdir)
        task = run.task
        task.objective.check()

        # 3. A run continues only with the settings that it was started with.
        fresh = fresh_record(run)

        def record_at(step: int, progress: dict[str, Any]) -> Record:
            return continued_record(
                progress.get("record"),
                fresh,
                step=step,
                workdir=workdir,
                accept_changes=accept_changes,
                restart_schedule=restart_schedule,
            )

        if saved := saved_progress(workdir / "checkpoints"):
            record_at(*saved)

        # 4. State and frozen weights, placed on the devices as they are made: no device ever holds
        # all of a sharded model.
        transform, _ = make_optimizer(config.optimizer, steps=settings.steps)
        rules = Rules.of(config.mesh)
        key = jax.random.key(settings.seed)

        def create() -> TrainState:
            return TrainState.create(task.init(jax.random.fold_in(key, 0)), transform)

        abstract = jax.eval_shape(create)
        shardings = rules.shardings(abstract, mesh)
        check_state_fits(abstract, shardings)
        frozen = task.load_frozen(rules.shardings(task.frozen_shapes, mesh))
        run.check_capture(frozen)

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
            frozen_shardings=jax.tree.map(lambda leaf: leaf.sharding, frozen),
        )
        weights = LossWeights.from_config(config.loss)
        base_key = jax.random.fold_in(key, 1)

        def take_step(
            state: TrainState, batch: dict[str, np.ndarray], rate: np.float32
        ) -> tuple[TrainState, Sums]:
            hyper = Hyper(jnp.float32(rate), base_key, weights)
            stepped: tuple[TrainState, Sums] = step(state, frozen, global_batch(batch, mesh), hyper)
            return stepped

        # 6. The newest checkpoint, if there is one; otherwise a fresh state. Then the loop.
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=settings.keep_checkpoints)
        stack.enter_context(contextlib.closing(checkpoints))
        has_fallen_back = False
        while True:
            restored = checkpoints.restore_latest(
                jax.tree.map(
                    lambda leaf, sharding: jax.ShapeDtypeStruct(
                        leaf.shape, leaf.dtype, sharding=sharding
                    ),
                    abstract,
                    shardings,
                )
            )
            if restored is None and has_fallen_back:
                raise ValueError(
                    f"There is no earlier checkpoint in {checkpoints.folder}. Start again to train "
                    "from step 0."
                )
            if restored is None:
                state = jax.jit(create, out_shardings=shardings)()
                if task.load_initial is not None:
                    state = dataclasses.replace(state, params=task.load_initial(shardings.params))
                start = Start(state=state, record=fresh)
            else:
                start = Start.at_checkpoint(
                    restored,
                    record_at,
                    pipeline=run.pipeline,
                    steps=settings.steps,
                    workdir=workdir,
                )
            if has_fallen_back:  # If this one gives no finite loss either, the run diverges.
                start = dataclasses.replace(start, may_be_damaged=False)
            try:
                params, row = _loop(start, take_step, run, checkpoints, stops, config, workdir)
                break
            except _BrokenStart:
                has_fallen_back = True
                checkpoints.set_aside(start.step, "gives a loss that is not finite")

        # 7. The export: weights that other programs load.
        checkpoints.wait()
        stops.state = f"step {settings.steps} is saved, but the export is not complete"
        record = {**start.record, "step": settings.steps}
        if settings.export and not run.is_exported(workdir, record=record):
            alone = jax.process_count() == 1
            whole = jax.device_get(params) if alone else params
            run.export(whole, frozen, workdir=workdir, record=record)
        return row


class _BrokenStart(Exception):
    """The first step after a checkpoint is not finite."""


def _loop(
    start: Start,
    take_step: Callable[[TrainState, dict[str, np.ndarray], np.float32], tuple[TrainState, Sums]],
    run: PreparedTask,
    checkpoints: TrainCheckpoints,
    stops: StopRequests,
    config: RunConfig,
    workdir: Path,
) -> tuple[Any, dict[str, Any]]:
    """Takes the remaining steps.

    Metrics stay on the devices until a line is written, so that the host can run ahead.

    Returns:
      (parameters, the last line of metrics).
    """
    settings, pipeline, state = config.training, run.pipeline, start.state
    if start.step == settings.steps:
        return state.params, last_row(workdir)
    is_first = jax.process_index() == 0
    if is_first:
        run.keep_tokenizer(workdir)
        if not start.is_new_segment:
            write_json(workdir / "provenance.json", start.record)
    _, rates = make_optimizer(
        config.optimizer, steps=settings.steps, schedule_from=start.record["schedule_from_step"]
    )
    row: dict[str, Any] = {}
    window: list[Sums] = [start.window]
    tokens, started = 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        log = MetricsLog(workdir, first_step=start.step) if is_first else None
        if log is not None:
            stack.enter_context(contextlib.closing(log))
        reporter = stack.enter_context(
            Reporter(steps=settings.steps, first_step=start.step, title=run.task.title)
        )
        stack.enter_context(stops.noticed_between_steps())
        for index in range(start.step, settings.steps):
            batch = next(pipeline)
            tokens += int((batch["segments"] > 0).sum()) * jax.process_count()
            state, metrics = take_step(state, {**batch, "rows": pipeline.local_rows}, rates[index])
            window.append(metrics)
            done = index + 1
            # Windows end at checkpoints too: a run that continues from one has the same lines.
            save = done == settings.steps or done % settings.checkpoint_every == 0
            line = save or done % settings.log_every == 0
            stop = stops.requested or _preempted(done)
            if line or stop:
                bad_step = int(state.bad_step)
                window = [add(jax.device_get(window))]
                if start.may_be_damaged and bad_step == start.step:
                    raise _BrokenStart
            if line or (stop and bad_step >= 0):
                now = time.monotonic()
                if log is not None:
                    extra = {
                        "learning_rate": float(rates[index]),
                        "tokens_per_s": tokens / (now - started),
                    }
                    row = log.write(done, window[0], extra=extra)
                    reporter.update(row)
                if bad_step >= 0:
                    checkpoints.wait()
                    raise ValueError(_diverged(bad_step, pipeline, checkpoints, config))
                window, tokens, started = [], 0, now
            if save or stop:
                progress = {
                    "loader": pipeline.get_state(),
                    "record": start.record,
                    "window": jsonable(add(window)),
                }
                checkpoints.save(done, state, progress=progress)
                if start.is_new_segment and is_first:
                    checkpoints.wait()
                    write_json(workdir / "provenance.json", start.record)
            if stop:
                checkpoints.wait()
                print(
                    f"Stopped: step {done} is saved in {workdir}. The same command continues from "
                    "there.",
                    flush=True,
                )
                raise SystemExit(STOPPED_AND_SAVED)
    return state.params, row


def _preempted(step: int) -> bool:
    """Whether the platform is reclaiming its machines; all processes of a pod agree on the step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


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
