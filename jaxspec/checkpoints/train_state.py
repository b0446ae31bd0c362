"""Training checkpoints, saved asynchronously with orbax.

A checkpoint holds all that a run needs to continue: the train state (sharded as on the devices) and
a small JSON with the loader's position, the run's seed and the shapes of all leaves. It is restored
onto the mesh that the run has now, whichever that is. Once a checkpoint is on disk, sizes and
digests of its files are recorded next to them, by a thread of their own, so that damage is noticed
before anything is used. A run that is killed in between leaves a checkpoint without that record,
which is used all the same.

>>> checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=2)  # doctest: +SKIP
>>> restored = checkpoints.restore_latest(shapes_with_shardings)  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxspec.checkpoints.file_digests import find_damage, write_record
from jaxspec.checkpoints.shapes import compare_shapes
from jaxspec.provenance import jsonable

RUN = "run/"
"""Where a step's JSON lies."""
RECORD = f"{RUN}file_digests.json"
"""Sizes and digests of a step's files."""
_SIZES = f"{RUN}file_sizes.json"
"""What older checkpoints have instead: sizes alone."""


class _Unusable(Exception):
    """A checkpoint that cannot be used; the message goes on from "Checkpoint 3 "."""


class TrainCheckpoints:
    """The checkpoints of one run.

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
        self._manager = self._open()
        self._recorder = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._recording: Future[None] | None = None

    def _open(self) -> ocp.CheckpointManager:
        if self._read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep or None,
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

        It first waits for the previous save and its record, by which time old steps have been
        deleted: a record that is written to a step while that is deleted would be left over.

        Args:
          step: number of steps taken.
          state: a tree of arrays.
          progress: what is not an array (loader position, seed, configuration): anything that
            `jsonable` takes, of any size. It is copied.
        """
        self.wait()
        description = {"progress": jsonable(progress), "shapes": describe(state)}
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

    def latest_progress(self) -> tuple[int, dict[str, Any]] | None:
        """Step and `progress` of the newest checkpoint, read without its arrays.

        It takes no time, so that a run of another kind can be refused before its models are loaded.
        It changes nothing and reports nothing: a checkpoint whose JSON is damaged is passed over
        here and set aside by `restore_latest`. That may also find damage in the arrays and return
        an earlier step than this does.

        Returns:
          None if no checkpoint has a JSON that can be read.
        """
        for step in self._steps():
            try:
                self._check_files(step, within=RUN)
                return step, self._read_run(step)["progress"]
            except _Unusable:
                continue
        return None

    def restore_latest(
        self, abstract_state: Any, *, report: Callable[[str], None] = print
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest checkpoint that can be used.

        All of its files must be as they were recorded, its parameters finite, and nothing in it
        may be NaN.

        Args:
          abstract_state: shapes with the shardings that the state is restored to.
          report: called with a message for each checkpoint that cannot be used. That checkpoint is
            set aside (see `set_aside`), and the one before it is tried.

        Returns:
          (step, state, progress), or None if there is no checkpoint.

        Raises:
          ValueError: the checkpoint has another architecture (every differing leaf is named), or
            none of the existing checkpoints can be used.
        """
        steps = self._steps()
        for step in steps:
            try:
                state, progress = self._restore(step, abstract_state)
                return step, state, progress
            except _Unusable as problem:
                self.set_aside(step, str(problem), report=report)
        if steps:
            moved = (
                ""
                if self._read_only
                else f" They were moved to {self._aside()}: start again to train from step 0."
            )
            raise ValueError(f"None of the checkpoints in {self.folder} can be read.{moved}")
        return None

    def set_aside(self, step: int, reason: str, *, report: Callable[[str], None] = print) -> None:
        """Moves a checkpoint to "unreadable", next to the folder (read-only: passes over it).

        After that, `restore_latest` gives the one before it. A training loop calls this, too, when
        damage shows only in use: a loss that is not finite at the first step after a restore.

        >>> checkpoints.set_aside(8, "gives no finite loss")  # doctest: +SKIP
        Checkpoint 8 gives no finite loss; moved to runs/full/unreadable, trying the one before.

        Args:
          step: an existing checkpoint.
          reason: goes on from "Checkpoint 8 ".
          report: called with the message.
        """
        moved = "" if self._read_only else f" moved to {self._aside()},"
        report(f"Checkpoint {step} {reason};{moved} trying the one before.")
        if self._read_only:
            self._passed_over.add(step)
            return
        self.wait()
        self._manager.close()
        if jax.process_index() == 0:
            self._aside().mkdir(exist_ok=True)
            target = self._aside() / str(step)
            number = 1
            while target.exists():
                target, number = self._aside() / f"{step}.{number}", number + 1
            (self.folder / str(step)).rename(target)
        self._manager = self._open()

    def _aside(self) -> Path:
        return self.folder.parent / "unreadable"

    def _steps(self) -> list[int]:
        """All steps, the newest first; files in the place of a step, which block it, included."""
        self.wait()
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        blocked = {int(e.name) for e in entries if _is_step(e.name) and not e.is_dir()}
        return sorted({*self._manager.all_steps(), *blocked} - self._passed_over, reverse=True)

    def _restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """State and progress of a step.

        Raises:
          _Unusable: it is damaged.
          ValueError: it has another architecture.
        """
        self._check_files(step)
        run = self._read_run(step)
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
            state = self._manager.restore(step, args=arguments)["state"]
        except Exception as error:  # orbax raises many kinds for damaged files
            raise _Unusable(f"cannot be read ({_first_line(error)})") from error
        broken = _broken_leaf(state)
        if broken:
            raise _Unusable(f"cannot be used ({broken} is not finite)")
        return state, run["progress"]

    def _check_files(self, step: int, *, within: str = "") -> None:
        """Raises `_Unusable` if files of a step are not as recorded; no record: they pass."""
        folder = self.folder / str(step)
        if not folder.is_dir():
            raise _Unusable("cannot be read (it is no folder)")
        for record in (RECORD, _SIZES):
            if (folder / record).exists():
                damage = find_damage(folder, record, within=within)
                if damage:
                    raise _Unusable(f"cannot be read ({damage})")
                return

    def _read_run(self, step: int) -> dict[str, dict[str, Any]]:
        """What a step holds beside the state: "progress" and "shapes"."""
        try:
            arguments = ocp.args.Composite(run=ocp.args.JsonRestore())
            run = self._manager.restore(step, args=arguments)["run"]
            return {key: dict(run[key]) for key in ("progress", "shapes")}
        except Exception as error:  # orbax raises many kinds for damaged files
            raise _Unusable(f"cannot be read ({_first_line(error)})") from error

    def wait(self) -> None:
        """Blocks until the current save is on disk and its files are recorded."""
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.result()
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the threads."""
        self.wait()
        self._recorder.shutdown()
        self._manager.close()


def saved_progress(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """`TrainCheckpoints.latest_progress` of a folder that may not be there; it is not changed."""
    if not folder.is_dir():
        return None
    with contextlib.closing(TrainCheckpoints(folder, keep=0, read_only=True)) as checkpoints:
        return checkpoints.latest_progress()


def _is_step(name: str) -> bool:
    return name.isdecimal() and name == str(int(name))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def describe(tree: Any) -> dict[str, list[int]]:
    """Path -> shape of every leaf, for messages and comparison."""
    return {path: list(leaf.shape) for path, leaf in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _broken_leaf(state: Any) -> str:
    """Path of the first leaf that no run can go on from; "" if all are sound."""
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
