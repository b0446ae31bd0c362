"""The training loop, the same for every kind of training; read it from top to bottom.

Order: processes and mesh, data and models, comparison with the record, capture check, state or
checkpoint, step, loop, export.

>>> train(RunConfig(name="demo"), workdir="runs/demo")                         # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxspec.checkpoints.train_state import (
    SCORE,
    TrainCheckpoints,
    best_step,
    check_folder,
    progress_at,
    saved_progress,
    saved_scores,
)
from jaxspec.compile_cache import use_compile_cache
from jaxspec.config import RunConfig
from jaxspec.data.pipeline import Pipeline
from jaxspec.files import held
from jaxspec.interruption import STOPPED_AND_SAVED, StopRequests
from jaxspec.losses import LossWeights
from jaxspec.parallel.divisibility import check_models_fit
from jaxspec.parallel.memory import check_rows_fit, check_state_fits, memory_here, memory_used
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.processes import gather, joined
from jaxspec.parallel.rules import Rules, check_batch_size, row_share
from jaxspec.parallel.step import spread
from jaxspec.paths import user_path
from jaxspec.provenance import jsonable, write_json
from jaxspec.training.agreement import check_contents, check_settings, check_workdir
from jaxspec.training.boards import Logging, check_logging, open_boards
from jaxspec.training.metrics import MetricsLog, Sums, add, last_row
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.profiling import Profile
from jaxspec.training.progress import FirstSteps, Reporter
from jaxspec.training.segments import (
    Record,
    continued_record,
    fresh_record,
    nothing_to_restart,
)
from jaxspec.training.stall import StallWatch, waiting_for_others
from jaxspec.training.start import Start
from jaxspec.training.state import initial_state
from jaxspec.training.step import make_body
from jaxspec.training.stepper import Stepper
from jaxspec.training.tasks.registry import task_of
from jaxspec.training.tasks.task import PreparedTask, check_export_folder
from jaxspec.training.utilisation import utilisation
from jaxspec.training.validation import Validation

_AHEAD = 2
"""Steps that are started while an earlier one is computed: enough to keep the devices busy."""


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
      restart_schedule: continue for more steps than the run was started with, or with accepted
        changes: the learning rate warms up and decays again over the steps that are left.

    Returns:
      The last line of metrics.

    Raises:
      ValueError: the configuration has a mistake, or the target fails the capture check (both
        before anything is written); another process trains in the folder; the run was started with
        other settings (with a table of them); or the loss is not finite (with the step, the batch's
        examples and the last good checkpoint).
      SystemExit: 75, after SIGTERM or Ctrl-C: the step has been finished and saved.
    """
    workdir = user_path(workdir)
    check_logging(config.training.logging)
    with contextlib.ExitStack() as stack:
        # 1. Processes, the folder and the mesh.
        stack.enter_context(joined())
        stops = stack.enter_context(StopRequests(is_pod=jax.process_count() > 1))
        options = {"--accept_changes": accept_changes, "--restart_schedule": restart_schedule}
        check_settings(config, options)
        if jax.process_index() == 0:
            check_folder(workdir)
            stack.enter_context(held(workdir, option="--workdir"))
            if config.training.export:
                check_export_folder(workdir / "export", config)
        check_workdir(workdir)
        use_compile_cache(config.training.compile_cache, option="--training.compile_cache")
        mesh = make_mesh(config.mesh)
        check_batch_size(config, mesh)
        computed_as = task_of(config).computed_as(config)
        available = memory_here(mesh.devices.flat)
        check_rows_fit(config, mesh, computed_as=computed_as, available=available)
        share = row_share(mesh, config.data.batch_size)

        # 2. Tokenizer, models and data: everything that can be wrong is checked here.
        run = task_of(config).prepare(config, workdir=workdir, share=share)
        task, config = run.task, run.task.config
        settings = config.training
        task.objective.check()
        check_models_fit(task.models, mesh.shape)

        # 3. A run continues only with the settings that it was started with.
        fresh = fresh_record(run)
        held_out = {} if run.held_out is None else {"validation data": run.held_out.digest}
        check_contents({**fresh["fingerprints"], **held_out})

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
        elif restart_schedule:
            raise ValueError(nothing_to_restart(f"There is no checkpoint in {workdir}"))

        # 4. State and frozen weights, placed on the devices as they are made: no device ever holds
        # all of a sharded model.
        transform, _ = make_optimizer(config.optimizer, steps=settings.steps)
        rules = Rules.of(config.mesh)
        key = jax.random.key(settings.seed)
        create, first_key = initial_state(task.init, transform), jax.random.fold_in(key, 0)
        abstract = jax.eval_shape(create, first_key)
        shardings = rules.shardings(abstract, mesh)
        check_state_fits(abstract, shardings)
        frozen = task.load_frozen(rules.shardings(task.frozen_shapes, mesh))
        run.check_capture(frozen, context=mesh.shape["context"])

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
        stepper = Stepper(
            step,
            frozen=frozen,
            mesh=mesh,
            key=jax.random.fold_in(key, 1),
            weights=LossWeights.from_config(config.loss),
        )
        validation = None
        if run.held_out is not None:
            validation = Validation.of(
                run.held_out,
                task.objective,
                config=config,
                local_rows=run.pipeline.local_rows,
                frozen=frozen,
                mesh=mesh,
                params_shardings=shardings.params,
                fingerprints=fresh["fingerprints"],
            )

        # 6. The newest checkpoint, if there is one; otherwise a fresh state. Then the loop.
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=settings.keep_checkpoints)
        stack.enter_context(contextlib.closing(checkpoints))
        placed = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            shardings,
        )
        has_fallen_back, stall_s = False, settings.stall_timeout
        while True:
            with waiting_for_others("no checkpoint was restored for", limit_s=stall_s):
                restored = checkpoints.restore_latest(placed)
            if restored is None and has_fallen_back:
                raise ValueError(
                    f"There is no earlier checkpoint in {checkpoints.folder}. Start again to train "
                    "from step 0."
                )
            if restored is None:
                state = jax.jit(create, out_shardings=shardings)(first_key)
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
                params, row = _loop(start, stepper, validation, run, checkpoints, stops, workdir)
                break
            except _BrokenStart:
                has_fallen_back = True
                checkpoints.set_aside(start.step, "gives a loss that is not finite")

        # 7. The export: weights that other programs load.
        with waiting_for_others("the last step was not saved and exported for", limit_s=stall_s):
            checkpoints.wait()
            stops.state = f"step {settings.steps} is saved, but the export is not complete"
            if settings.export:
                last = _Exported({**start.record, "step": settings.steps}, params)
                _export(last, frozen, run, checkpoints, placed, workdir)
        return row


@dataclasses.dataclass(frozen=True)
class _Exported:
    """What is exported."""

    record: Record
    """The run's record, with the "step" that the parameters are of."""
    params: Any


def _export(
    last: _Exported,
    frozen: Any,
    run: PreparedTask,
    checkpoints: TrainCheckpoints,
    placed: Any,
    workdir: Path,
) -> None:
    """Exports the best checkpoint, or the last step if none was measured; nothing if that is done.

    Args:
      last: the end of the run.
      frozen: the parameters that are not trained.
      run: the run.
      checkpoints: its checkpoints.
      placed: shapes of the state, with shardings.
      workdir: its folder.
    """
    chosen, step = last, last.record["step"]
    wants_best = run.task.config.training.export_best and run.held_out is not None
    # Process 0 decides: the others may have read something else.
    record = gather(_best(last.record, checkpoints) if wants_best else None)[0]
    if record is not None:
        if all(gather(run.is_exported(workdir, record=record))):
            return
        if jax.process_index() == 0:
            print(f"Exporting step {record['step']:,} of {step:,}: {record['chosen']}.", flush=True)
        if record["step"] == step:
            chosen = _Exported(record, last.params)
        else:
            try:
                chosen = _Exported(record, checkpoints.restore(record["step"], placed)[1].params)
            except ValueError as problem:
                print(f"{problem} The last step is exported instead.", flush=True)
    if all(gather(run.is_exported(workdir, record=chosen.record))):
        return
    alone = jax.process_count() == 1
    params = jax.device_get(chosen.params) if alone else chosen.params
    run.export(params, frozen, workdir=workdir, record=chosen.record)


def _best(last: Record, checkpoints: TrainCheckpoints) -> Record | None:
    """The record of the checkpoint with the best score; None if none was measured."""
    scores = saved_scores(checkpoints.folder)
    best = best_step(scores)
    if best is None:
        return None
    record = progress_at(checkpoints.folder, best).get("record") or last
    reason = f"its {scores[best].text} is the best of the checkpoints that were measured"
    return dict(jsonable({**record, "step": best, "chosen": reason}))


class _BrokenStart(Exception):
    """The first step after a checkpoint is not finite."""


def _loop(
    start: Start,
    stepper: Stepper,
    validation: Validation | None,
    run: PreparedTask,
    checkpoints: TrainCheckpoints,
    stops: StopRequests,
    workdir: Path,
) -> tuple[Any, dict[str, Any]]:
    """Takes the remaining steps.

    Metrics stay on the devices until a line is written. The host runs ahead of the devices by
    `_AHEAD` steps at most: a stop has to wait for all that were started.

    Returns:
      (parameters, the last line of metrics).
    """
    config, pipeline, state = run.task.config, run.pipeline, start.state
    settings = config.training
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
    with contextlib.ExitStack() as stack:
        log = _metrics_log(workdir, start, settings.logging) if is_first else None
        if log is not None:
            stack.enter_context(contextlib.closing(log))
        reporter = stack.enter_context(
            Reporter(
                steps=settings.steps,
                first_step=start.step,
                title=run.task.title,
                is_silent=not is_first,
            )
        )
        stack.enter_context(stops.noticed_between_steps())
        with reporter.compiling():
            first = {**pipeline.batch(start.step), "rows": pipeline.local_rows}
            needs = stepper.compile(state, first, rates[start.step])
        if needs is not None:
            reporter.say(needs.summary)
        first_steps = FirstSteps(left=settings.steps - start.step, say=reporter.say)
        clock, parts = _Clock(start.step), pipeline.batch_size // len(pipeline.local_rows)
        watch = stack.enter_context(StallWatch(limit_s=settings.stall_timeout))
        profile = stack.enter_context(
            Profile(
                workdir / "profile" if is_first else None,
                steps=settings.profile,
                first_step=start.step,
                last_step=settings.steps,
            )
        )
        for index in range(start.step, settings.steps):
            watch.moved()
            profile.before(index)
            batch = next(pipeline)
            clock.tokens += int((batch["segments"] > 0).sum()) * parts
            state, metrics = stepper(state, {**batch, "rows": pipeline.local_rows}, rates[index])
            first_steps.after(metrics)
            window.append(metrics)
            if len(window) > _AHEAD:
                jax.block_until_ready(window[-1 - _AHEAD])
            done = index + 1
            if profile.after(done, metrics):
                reporter.say(f"A trace of the steps before this one is in {workdir / 'profile'}.")
            # Windows end at checkpoints too: a run that continues from one has the same lines.
            save = done == settings.steps or done % settings.checkpoint_every == 0
            measures = validation is not None and (save or validation.is_due(done))
            line = save or measures or done % settings.log_every == 0
            stop = stops.requested or _preempted(done)
            score = None
            if line or stop:
                for metrics in window[-_AHEAD:]:
                    jax.block_until_ready(metrics)
                    watch.moved()
                bad_step = int(state.bad_step)
                window = [add(jax.device_get(window))]
                if start.may_be_damaged and bad_step == start.step:
                    raise _BrokenStart
            if line or (stop and bad_step >= 0):
                seconds_per_step = clock.seconds_per_step(done)
                extra: dict[str, Any] = {
                    "learning_rate": float(rates[index]),
                    "epoch": pipeline.epochs_at(done),
                    "tokens_per_s": clock.tokens_per_s,
                    "seconds_per_step": seconds_per_step,
                    "memory_bytes": memory_used(),
                }
                reached = stepper.needs and utilisation(stepper.needs, seconds=seconds_per_step)
                if reached is not None:
                    extra["mfu"] = reached
                if validation is not None and measures and bad_step < 0:
                    measured = validation.measure(state.params, moved=watch.moved)
                    score = validation.score(measured)
                    extra |= measured
                if log is not None:
                    row = log.write(done, window[0], extra=extra)
                    reporter.update(row, seconds_per_step=seconds_per_step)
                if bad_step >= 0:
                    checkpoints.wait()
                    raise ValueError(_diverged(bad_step, pipeline, checkpoints, config))
                window, clock = [], _Clock(done)
            if save or stop:
                progress = {
                    "loader": pipeline.get_state(),
                    "record": start.record,
                    "window": jsonable(add(window)),
                    SCORE: jsonable(score),
                }
                if log is not None:
                    log.flush()  # A run that continues from the checkpoint needs every line.
                watch.moved()
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


def _metrics_log(workdir: Path, start: Start, logging: Logging) -> MetricsLog:
    boards = open_boards(logging, workdir, first_step=start.step, record=start.record)
    return MetricsLog(workdir, first_step=start.step, boards=boards)


class _Clock:
    """Speed since a line was written; what is measured on held-out data is left out."""

    def __init__(self, step: int) -> None:
        self._step, self._started = step, time.monotonic()
        self.tokens = 0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / (time.monotonic() - self._started)

    def seconds_per_step(self, step: int) -> float:
        return (time.monotonic() - self._started) / (step - self._step)


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
