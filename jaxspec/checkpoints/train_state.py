"""Training checkpoints, saved asynchronously with orbax.

A checkpoint holds all that a run needs to continue: the train state (sharded as on the devices) and
a small JSON with the loader's position, the run's seed and the shapes of all leaves. It is restored
onto the mesh that the run has now, whichever that is. Once a checkpoint is on disk, the sizes of
its files are recorded next to them, so that a truncated file is detected before anything is read.

>>> checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=2)  # doctest: +SKIP
>>> restored = checkpoints.restore_latest(shapes_with_shardings)  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxspec.checkpoints.shapes import compare_shapes
from jaxspec.provenance import write_json

_SIZES = Path("run") / "file_sizes.json"


class TrainCheckpoints:
    """The checkpoints of one run.

    Args:
      folder: where they are kept, one subfolder per step.
      keep: how many of the newest to keep.
      read_only: never change the folder: another process may be saving to it.
    """

    def __init__(self, folder: Path, *, keep: int, read_only: bool = False) -> None:
        self.folder = folder.absolute()
        self._keep = keep
        self._read_only = read_only
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        if self._read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
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

        It first waits for the previous save, by which time old steps have been deleted: recording
        the file sizes of a step while it is being deleted would leave a remnant of it.

        Args:
          step: number of steps taken.
          state: a tree of arrays.
          progress: what is not an array (loader position, seed): anything that JSON can hold.
        """
        self.wait()
        description = {"progress": progress, "shapes": describe(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(description)
            ),
        )

    def restore_latest(
        self, abstract_state: Any, *, report: Callable[[str], None] = print
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read.

        Args:
          abstract_state: shapes with the shardings that the state is restored to.
          report: called with a message for each checkpoint that cannot be read. That checkpoint is
            moved to "unreadable" next to the folder (unless read-only), and the one before it is
            tried.

        Returns:
          (step, state, progress), or None if there is no checkpoint.

        Raises:
          ValueError: the checkpoint has another architecture (every differing leaf is named), or
            none of the existing checkpoints can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            damage = self._damage(step)
            if damage:
                self._set_aside(step, damage, report)
                continue
            try:
                run = self._manager.restore(
                    step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
                )
                description = run["run"]
                saved_shapes, progress = description["shapes"], description["progress"]
            except Exception as error:  # orbax raises many kinds for damaged files
                self._set_aside(step, _first_line(error), report)
                continue
            differences = compare_shapes(describe(abstract_state), saved_shapes)
            # Optimizer moments repeat the parameters' shapes: if parameters differ, name only them.
            differences = [d for d in differences if d.startswith("params/")] or differences
            if differences:
                raise ValueError(
                    f"The checkpoint at step {step} in {self.folder} belongs to another "
                    "architecture or optimizer. Use the configuration that made it, or another "
                    "--workdir. Differing leaves:\n  " + "\n  ".join(differences)
                )
            try:
                composite = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)),
                )
                return step, composite["state"], progress
            except Exception as error:
                self._set_aside(step, _first_line(error), report)
        if steps:
            moved = (
                ""
                if self._read_only
                else f" They were moved to {self.folder.parent / 'unreadable'}: start again to "
                "train from step 0."
            )
            raise ValueError(f"None of the checkpoints in {self.folder} can be read.{moved}")
        return None

    def _note_sizes(self) -> None:
        """Records the file sizes of every step that has reached the disk since the last call."""
        if self._read_only or jax.process_index() != 0:
            return
        for step in ocp.utils.checkpoint_steps(self.folder):
            folder = self.folder / str(step)
            if not (folder / _SIZES).exists():
                files = [file for file in folder.rglob("*") if file.is_file()]
                sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
                write_json(folder / _SIZES, sizes)

    def _damage(self, step: int) -> str:
        """What is wrong with the files of a step; "": they are whole, or no sizes were recorded."""
        folder = self.folder / str(step)
        if not (folder / _SIZES).is_file():
            return ""
        try:
            sizes = json.loads((folder / _SIZES).read_text(encoding="utf-8"))
        except ValueError:
            return f"{_SIZES} is not JSON"
        for name, size in sizes.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes and should have {size}"
        return ""

    def _set_aside(self, step: int, reason: str, report: Callable[[str], None]) -> None:
        aside = self.folder.parent / "unreadable"
        moved = "" if self._read_only else f" moved to {aside},"
        report(f"Checkpoint {step} cannot be read ({reason});{moved} trying the one before.")
        if self._read_only:
            return
        self._manager.wait_until_finished()
        self._manager.close()
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            target = aside / str(step)
            number = 1
            while target.exists():
                target, number = aside / f"{step}.{number}", number + 1
            (self.folder / str(step)).rename(target)
        self._manager = self._open()

    def set_aside(self, step: int, reason: str) -> None:
        """Moves a checkpoint aside."""
        self._set_aside(step, reason, print)

    def wait(self) -> None:
        """Blocks until the current save is on disk and the sizes of its files are recorded."""
        self._manager.wait_until_finished()
        self._note_sizes()

    def close(self) -> None:
        """Waits, then releases the threads."""
        self.wait()
        self._manager.close()


def saved_progress(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and progress of the newest checkpoint; None: there is none, or it cannot be read."""
    if not folder.is_dir():
        return None
    checkpoints = TrainCheckpoints(folder, keep=1, read_only=True)
    try:
        step = checkpoints.latest_step()
        if step is None or checkpoints._damage(step):
            return None
        run = checkpoints._manager.restore(
            step, args=ocp.args.Composite(run=ocp.args.JsonRestore())
        )
        return step, run["run"]["progress"]
    finally:
        checkpoints.close()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def describe(tree: Any) -> dict[str, list[int]]:
    """Path -> shape of every leaf, for messages and comparison."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
        for path, leaf in leaves
    }
