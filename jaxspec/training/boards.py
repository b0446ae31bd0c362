"""Programs that draw curves of a run: TensorBoard, and Weights & Biases where it is installed.

What they show is what metrics.jsonl holds; `training.logging` chooses them.

>>> check_logging("none")
>>> list(open_boards("none", Path("runs/a"), first_step=0, record={}))
[]
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from jaxspec.files import replaced_file
from jaxspec.growing_file import UPLOAD_S
from jaxspec.paths import copy_file, is_remote

Logging = Literal["tensorboard", "wandb", "both", "none"]
"""Values of training.logging."""
_RUN_ID = "wandb_run_id"
"""File in WORKDIR."""


class Board(Protocol):
    """Shows the numbers of a run."""

    def show(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds what was measured at a step."""
        ...

    def close(self) -> None:
        """Flushes everything."""
        ...


def check_logging(logging: str) -> None:
    """Finds out, before anything is loaded, whether the programs are there.

    Raises:
      ValueError: Weights & Biases is asked for, and its package is not installed.
    """
    if logging in ("wandb", "both") and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"training.logging is {logging!r}, but the package wandb is not installed: pip install "
            'wandb, or choose "tensorboard" or "none". metrics.jsonl is written in any case.'
        )


def open_boards(
    logging: str, workdir: Path, *, first_step: int, record: Mapping[str, Any]
) -> list[Board]:
    """The boards of a run.

    Args:
      logging: training.logging.
      workdir: the run's folder.
      first_step: steps already taken.
      record: the run's record, with its settings.

    Raises:
      ValueError: Weights & Biases cannot be started.
    """
    boards: list[Board] = []
    if logging in ("tensorboard", "both"):
        boards.append(TensorBoard(workdir, first_step=first_step))
    if logging in ("wandb", "both"):
        boards.append(WeightsAndBiases(workdir, record=record))
    return boards


class TensorBoard:
    """Event files in WORKDIR/tensorboard.

    For a bucket, they are written on this machine, and uploaded now and then and at the end.
    """

    def __init__(self, workdir: Path, *, first_step: int) -> None:
        import tensorboardX

        self._folder = workdir / "tensorboard"
        self._spool = tempfile.TemporaryDirectory() if is_remote(workdir) else None
        self._uploaded_at = time.monotonic()
        self._writer = tensorboardX.SummaryWriter(
            str(self._spool.name if self._spool else self._folder),
            purge_step=first_step + 1,
            write_to_disk=True,
        )

    def show(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Board`."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        if time.monotonic() - self._uploaded_at >= UPLOAD_S:
            self._writer.flush()
            self._upload()

    def close(self) -> None:
        """See `Board`."""
        self._writer.close()
        self._upload()
        if self._spool is not None:
            self._spool.cleanup()

    def _upload(self) -> None:
        if self._spool is not None:
            for file in Path(self._spool.name).iterdir():
                copy_file(file, self._folder / file.name)
        self._uploaded_at = time.monotonic()


class WeightsAndBiases:
    """A run at Weights & Biases, with the settings of its record.

    Its id is kept in WORKDIR, so that a run which continues stays one run there. What the service
    already has of a step stays as it is; the same step has the same numbers again.
    """

    def __init__(self, workdir: Path, *, record: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        kept = workdir / _RUN_ID
        if not kept.is_file():
            with replaced_file(kept) as temporary:
                temporary.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
        settings = record.get("config") or {}
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "jaxspec"),
                name=settings.get("name") or workdir.name,
                id=kept.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=tempfile.mkdtemp() if is_remote(workdir) else str(workdir),
                config=settings,
            )
        except Exception as error:  # It raises its own kinds: no login, no network, no such team.
            raise ValueError(
                f"Weights & Biases cannot be started: {error}. Log in (wandb login), set "
                "WANDB_MODE=offline, or choose another training.logging."
            ) from error

    def show(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Board`."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """See `Board`."""
        self._run.finish()
