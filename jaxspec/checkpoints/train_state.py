"""Training checkpoints, saved asynchronously with orbax.

A checkpoint holds all that a run needs to continue: the train state (sharded as on the devices) and
a small JSON with the loader's position, the run's record and the shapes of all leaves. It can be
restored onto any mesh. Once a checkpoint is on disk, a separate thread records the sizes and
digests of its files next to them, so that damage is noticed before anything is used. A run that is
killed before that leaves a checkpoint without a record, which is used unchecked.

>>> checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=2)  # doctest: +SKIP
>>> restored = checkpoints.restore_latest(shapes_with_shardings)  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxspec.checkpoints.file_digests import write_record
from jaxspec.checkpoints.saved_steps import (
    DAMAGED,
    JSON,
    RECORD,
    Unusable,
    check_files,
    first_line,
    not_read,
    read_run,
    saved_steps,
    says_nothing,
)
from jaxspec.checkpoints.shapes import compare_shapes
from jaxspec.files import naming
from jaxspec.interruption import is_outage
from jaxspec.parallel.processes import gather, place
from jaxspec.paths import is_remote
from jaxspec.provenance import jsonable

SCORE = "score"
"""Name of a `Score` in a checkpoint's progress."""


def _save_small_arrays_whole() -> None:
    """Changes how orbax saves arrays that devices hold alike, for all of its users in this process.

    By default it cuts each of them into one part per device, however small it is. Each shape and
    part then takes a program of its own, 100 of them for a tiny drafter.
    """
    with _only_errors():  # It would warn that it has a handler already.
        ocp.type_handlers.register_type_handler(
            jax.Array,
            ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=1 << 20),
            override=True,
        )


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Keeps orbax's warnings from the user."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


_save_small_arrays_whole()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """How a checkpoint did on held-out data."""

    value: float
    """Higher is better."""
    measure: str
    """Fingerprint of what was measured: only scores of one measure compare."""
    text: str
    """For messages: "validation tau 1.93"."""

    @classmethod
    def of(cls, progress: dict[str, Any]) -> Score | None:
        """The score in a checkpoint's progress, if it has one."""
        try:
            found = progress[SCORE]
            value, measure, text = float(found["value"]), found["measure"], found["text"]
        except DAMAGED:
            return None
        return cls(value=value, measure=str(measure), text=str(text))


def saved_scores(folder: Path) -> dict[int, Score]:
    """Step -> score of the checkpoints in a folder that have one."""
    scores = {step: Score.of(progress_at(folder, step)) for step in saved_steps(folder)}
    return {step: score for step, score in scores.items() if score is not None}


def best_step(scores: Mapping[int, Score]) -> int | None:
    """The step with the best score, the latest of several; None without any.

    Scores of another measure than the latest one do not count.

    >>> best_step({4: Score(value=2.0, measure="a", text=""),
    ...            8: Score(value=1.0, measure="a", text="")})
    4
    """
    if not scores:
        return None
    measure = scores[max(scores)].measure
    alike = [step for step in scores if scores[step].measure == measure]
    return max(alike, key=lambda step: (scores[step].value, step))


@dataclasses.dataclass
class _NewestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints, and the best one."""

    newest: int
    scores: dict[int, Score]

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: ocp.checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """See orbax; `checkpoints` are in the order of their steps."""
        del context
        steps = [info.step for info in checkpoints]
        there = {step: self.scores[step] for step in steps if step in self.scores}
        kept = {*steps[-self.newest :], best_step(there)}
        return [step in kept for step in steps]


class TrainCheckpoints:
    """The checkpoints of one run.

    A checkpoint whose progress says how it did on held-out data (`SCORE`) may be kept for that: the
    best one stays besides the newest.

    Args:
      folder: where they are kept, one subfolder per step.
      keep: how many of the newest to keep; 0: all.
      read_only: never change the folder: another process may be saving to it.
    """

    def __init__(self, folder: Path, *, keep: int, read_only: bool = False) -> None:
        self.folder = folder.absolute()
        self._keep = keep
        self._read_only = read_only
        self._passed_over: set[int] = set()
        self._scores = {} if read_only else saved_scores(self.folder)
        self._manager = self._open()
        self._recorder = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._recording: Future[None] | None = None

    def _open(self) -> ocp.CheckpointManager:
        if self._read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
            with _only_errors():  # It would warn that the folder is read-only.
                return ocp.CheckpointManager(self.folder, options=options)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(self._keep, self._scores) if self._keep else None,
            enable_async_checkpointing=True,
            # Leftovers of a run that was killed while saving.
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, *, progress: dict[str, Any]) -> None:
        """Starts to save; returns as soon as the devices can go on computing.

        It first waits for the previous save and its record. By then, old steps have been deleted: a
        record written to a step that is being deleted would be left over.

        Args:
          step: number of steps taken.
          state: a tree of arrays.
          progress: everything that is not an array (loader position, record, metrics): anything
            that `jsonable` takes, of any size. It is copied.
        """
        self.wait()
        description = {"progress": jsonable(progress), "shapes": describe(state)}
        self._scores.pop(step, None)  # Of a checkpoint of this step that was set aside.
        if score := Score.of(progress):
            self._scores[step] = score
        with naming(self.folder):
            is_saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(description)
                ),
            )
        if is_saved and jax.process_index() == 0:
            self._recording = self._recorder.submit(self._record, step)

    def _record(self, step: int) -> None:
        self._manager.wait_until_finished()
        write_record(self.folder / str(step), RECORD)

    def restore_latest(
        self, abstract_state: Any, *, report: Callable[[str], None] = print
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest checkpoint that can be used.

        All of its files must be as recorded, its parameters must be finite, and nothing in it may
        be NaN. Where several processes train, all of them take the same checkpoint: one that a
        single process cannot read is not used.

        Args:
          abstract_state: shapes with the shardings that the state is restored to.
          report: called with a message for each checkpoint that cannot be used. That checkpoint is
            set aside (see `set_aside`), and the previous one is tried.

        Returns:
          (step, state, progress), or None if there is no checkpoint.

        Raises:
          ValueError: the checkpoint has another architecture (every differing leaf is named), or
            none of the existing checkpoints can be used.
          OSError: the newest one cannot be read now, although nothing says that it is damaged.
            Nothing is set aside then.
        """
        self.wait()
        there = gather(saved_steps(self.folder))[0]
        steps = [step for step in there if step not in self._passed_over]
        for step in steps:
            try:
                state, progress = self._restore(step, abstract_state)
                return step, state, progress
            except Unusable as problem:
                self.set_aside(step, str(problem), report=report)
        if steps:
            moved = (
                ""
                if self._read_only
                else f" They were moved to {self._aside()}. Start again to train from step 0."
            )
            raise ValueError(f"None of the checkpoints in {self.folder} can be read.{moved}")
        return None

    def restore(self, step: int, abstract_state: Any) -> tuple[int, Any, dict[str, Any]]:
        """One checkpoint, checked like the newest; nothing is set aside.

        Args:
          step: its step.
          abstract_state: shapes with the shardings that the state is restored to.

        Raises:
          ValueError: there is no such checkpoint, it is damaged, or it has another architecture.
          OSError: it cannot be read now.
        """
        self.wait()
        if step not in saved_steps(self.folder):
            found = ", ".join(map(str, sorted(saved_steps(self.folder)))) or "none"
            raise ValueError(f"No checkpoint of step {step} in {self.folder}: there are {found}.")
        try:
            state, progress = self._restore(step, abstract_state)
        except Unusable as problem:
            raise ValueError(f"Checkpoint {step} in {self.folder} {problem}.") from problem
        return step, state, progress

    def set_aside(self, step: int, reason: str, *, report: Callable[[str], None] = print) -> None:
        """Moves a checkpoint to "unreadable", next to the folder (read-only: passes over it).

        After that, `restore_latest` gives the previous one. A training loop also calls this when
        damage shows only in use: a loss that is not finite at the first step after a restore.

        >>> checkpoints.set_aside(8, "gives a loss that is not finite")  # doctest: +SKIP
        Checkpoint 8 gives a loss that is not finite. It was moved to runs/full/unreadable; trying \
the previous checkpoint.

        Args:
          step: an existing checkpoint.
          reason: continues "Checkpoint 8 ".
          report: called with the message.

        Raises:
          ValueError: it cannot be moved.
        """
        if self._read_only:
            self._passed_over.add(step)
            report(f"Checkpoint {step} {reason}; trying the previous checkpoint.")
            return
        self.wait()
        self._manager.close()
        if jax.process_index() == 0:
            self._move_aside(step, reason)
        gather(None)  # The others open the folder after that.
        self._manager = self._open()
        report(
            f"Checkpoint {step} {reason}. It was moved to {self._aside()}; trying the previous "
            "checkpoint."
        )

    def _move_aside(self, step: int, reason: str) -> None:
        target = self._aside() / str(step)
        number = 1
        while target.exists():
            target, number = self._aside() / f"{step}.{number}", number + 1
        try:
            self._aside().mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
        except OSError as error:
            if is_outage(error):
                raise
            raise ValueError(
                f"Checkpoint {step} in {self.folder} {reason}, and it cannot be moved to {target}: "
                f"{error.strerror}. Change its permissions, or move it away yourself."
            ) from error

    def _aside(self) -> Path:
        return self.folder.parent / "unreadable"

    def _restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """State and progress of a step. Each process checks its share of the files.

        Raises:
          Unusable: it is damaged.
          ValueError: it has another architecture.
          OSError: it cannot be read now. This may happen on one process alone: the others end, too.
        """
        folder, problem, run, is_as_saved = self.folder / str(step), "", {}, False
        try:
            is_as_saved = check_files(folder, share=place())
            run = read_run(folder)
        except Unusable as found:
            problem = str(found)
        _check_everywhere(problem)
        differences = compare_shapes(describe(abstract_state), run["shapes"])
        # Optimizer moments repeat the parameters' shapes: if parameters differ, name only them.
        differences = [d for d in differences if d.startswith("params/")] or differences
        if differences:
            raise ValueError(
                f"The checkpoint at step {step} in {self.folder} belongs to another "
                "architecture or optimizer. Use the configuration that made it, or another "
                "--workdir. Differing leaves:\n  " + "\n  ".join(differences)
            )
        try:
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
            with naming(folder):
                state = self._manager.restore(step, args=arguments)["state"]
        except Exception as error:  # orbax raises many kinds for damaged files
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise  # The checkpoint may be whole.
            if is_as_saved or says_nothing(error):
                raise not_read(folder, error) from error
            problem = f"cannot be read ({first_line(error)})"
        _check_everywhere(problem)
        broken = _broken_leaf(state)
        if broken:
            raise Unusable(f"cannot be used ({broken} is not finite)")
        return state, run["progress"]

    def wait(self) -> None:
        """Waits until the current save is on disk and its files are recorded."""
        recording, self._recording = self._recording, None
        with naming(self.folder):
            if recording is not None:
                recording.result()
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the threads."""
        self.wait()
        self._recorder.shutdown()
        self._manager.close()


def check_folder(folder: Path) -> None:
    """Finds out, before hours of work, whether checkpoints in a folder could be read again.

    orbax searches with a pattern that the path is part of, and hands the path on as UTF-8.

    Raises:
      ValueError: a path with characters that patterns use, or that UTF-8 does not have.
    """
    path = str(folder.absolute())
    if is_remote(folder) and not path.startswith("gs://"):
        raise ValueError(
            f"Checkpoints cannot be kept in {path}: expected a folder on this machine, or "
            "gs://BUCKET/FOLDER."
        )
    wrong = sorted({char for char in path if char in "*?[]\\" or "\ud800" <= char <= "\udfff"})
    if wrong:
        raise ValueError(
            f"Checkpoints in {path!a} could not be read again, because of {''.join(wrong)!a} in "
            "the path: name another folder."
        )


def saved_progress(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and `progress` of the newest checkpoint, read without its arrays.

    This is fast, so that a run with other settings can be refused before its models are loaded. It
    changes nothing and prints nothing: a checkpoint whose JSON is damaged is skipped, and
    `TrainCheckpoints.restore_latest` later sets it aside. That function also finds damage in the
    arrays, and then returns an earlier step than this one.

    Args:
      folder: of `TrainCheckpoints`; need not exist.

    Returns:
      None if there is no checkpoint whose JSON is whole.

    Raises:
      OSError: one cannot be read now.
    """
    for step in saved_steps(folder):
        try:
            check_files(folder / str(step), within=JSON)
            return step, read_run(folder / str(step))["progress"]
        except Unusable:
            continue
    return None


def progress_at(folder: Path, step: int) -> dict[str, Any]:
    """`progress` of one checkpoint, read without its arrays; {} if that is damaged.

    Raises:
      OSError: it cannot be read now.
    """
    try:
        return read_run(folder / str(step))["progress"]
    except Unusable:
        return {}


def _check_everywhere(problem: str) -> None:
    """Raises `Unusable` on every process if one of them has a problem ("": it has none)."""
    found = next((said for said in gather(problem) if said), "")
    if found:
        raise Unusable(found)


def describe(tree: Any) -> dict[str, list[int]]:
    """Path -> shape of every leaf, for messages and comparison."""
    return {path: list(leaf.shape) for path, leaf in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _broken_leaf(state: Any) -> str:
    """Path of the first leaf that no run can continue from; "" if all are sound."""
    floats = {
        path: leaf
        for path, leaf in _leaves(state).items()
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    is_sound = jax.device_get(jax.jit(_sound)(floats))
    return next((path for path in floats if not is_sound[path]), "")


def _sound(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Path -> whether a leaf is finite; the optimizer's second moments may overflow."""
    return {
        path: jnp.isfinite(leaf).all() if path.startswith("params/") else ~jnp.isnan(leaf).any()
        for path, leaf in leaves.items()
    }
