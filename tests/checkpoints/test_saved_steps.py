"""A checkpoint that cannot be read now is not damaged: it stays, and nothing older is used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from jaxspec.checkpoints import file_digests, train_state
from jaxspec.checkpoints.saved_steps import RECORD
from jaxspec.checkpoints.train_state import TrainCheckpoints, saved_progress
from jaxspec.interruption import is_outage


def shapes() -> dict:
    return {"params": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding())}


def sharding() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2."""
    checkpoints = TrainCheckpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"params": jnp.full(8, float(step))}, progress={"at": step})
    checkpoints.close()
    return tmp_path / "checkpoints"


def is_not_read(folder: Path, message: str, *, number: int = errno.EIO) -> None:
    """The newest one is not read, for that reason; afterwards it is."""
    before = sorted(file for file in folder.parent.rglob("*"))
    checkpoints = TrainCheckpoints(folder, keep=2)
    with pytest.raises(OSError, match="which does not mean that it is damaged") as caught:
        checkpoints.restore_latest(shapes(), report=pytest.fail)
    checkpoints.close()
    assert message in str(caught.value) and "Checkpoint 2 was not read" in str(caught.value)
    assert caught.value.errno == number and is_outage(caught.value)
    assert sorted(file for file in folder.parent.rglob("*")) == before


def is_read(folder: Path) -> None:
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, state, progress = checkpoints.restore_latest(shapes(), report=pytest.fail)
    checkpoints.close()
    assert (step, progress, float(state["params"][0])) == (2, {"at": 2}, 2.0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_one_failed_read_of_a_file_moves_nothing(folder, monkeypatch, number):
    def refuse(file: Path) -> str:
        raise OSError(number, os.strerror(number), str(file))

    with monkeypatch.context() as failing:
        failing.setattr(file_digests, "_crc32", refuse)
        is_not_read(folder, os.strerror(number), number=number)
        with pytest.raises(OSError, match="Checkpoint 2 was not read"):
            saved_progress(folder)
    is_read(folder)


def test_a_failed_read_of_what_describes_it_moves_nothing(folder, monkeypatch):
    read = Path.read_text

    def refuse(file: Path, **options: str) -> str:
        if file.name == "metadata":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(file, **options)

    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_text", refuse)
        failing.setattr(TrainCheckpoints, "_open", lambda checkpoints: _Manager())
        failing.setattr(train_state, "saved_scores", lambda folder: {})
        is_not_read(folder, "Input/output error")
    is_read(folder)


class _Manager:
    """orbax's, which reads files of its own."""

    def wait_until_finished(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "is_recorded"),
    [
        (ValueError("NOT_FOUND: whatever orbax says of files that are as recorded"), True),
        (ValueError("UNAVAILABLE: 503"), False),
        (ValueError("Error reading: [OS error 5: EIO Input/output error]"), False),
    ],
)
def test_an_error_of_orbax_moves_nothing_where_nothing_is_damaged(
    folder, monkeypatch, error, is_recorded
):
    if not is_recorded:
        (folder / "2" / RECORD).unlink()

    def refuse(manager: ocp.CheckpointManager, *arguments: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as failing:
        failing.setattr(ocp.CheckpointManager, "restore", refuse)
        is_not_read(folder, "Input/output" if "EIO" in str(error) else str(error))
    is_read(folder)


def test_another_process_that_reads_nothing_ends_this_one_at_the_agreement(folder, monkeypatch):
    """A process that ends never answers: the others do not take an older one meanwhile."""

    class Ended(BaseException):
        """What ends a process whose neighbour has ended (`jaxspec.parallel.links`)."""

    def gather(value: object) -> list[object]:
        if isinstance(value, str):
            raise Ended
        return [value, value]

    monkeypatch.setattr(train_state, "gather", gather)
    checkpoints = TrainCheckpoints(folder, keep=2)
    with pytest.raises(Ended):
        checkpoints.restore_latest(shapes(), report=pytest.fail)
    checkpoints.close()
    assert not (folder.parent / "unreadable").exists()
