from __future__ import annotations

import gc
import os
import re
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxspec.checkpoints.train_state import TrainCheckpoints, describe


def make_state(step: int = 0, width: int = 16) -> dict:
    kernel = jnp.arange(8 * width, dtype=jnp.float32).reshape(8, width) + step
    return {
        "step": jnp.int32(step),
        "params": {"fc": {"kernel": kernel}},
        "opt_state": {"mu": {"fc": {"kernel": jnp.full((8, width), step, jnp.bfloat16)}}},
    }


def shapes(state: dict, sharding=None) -> dict:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding if leaf.ndim else leaf.sharding
        ),
        state,
    )


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 1, 2 and 3, of which two are kept."""
    checkpoints = TrainCheckpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.latest_step() is None
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), progress={"loader": {"step": step}})
    checkpoints.close()
    return tmp_path / "checkpoints"


def steps(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def truncate(file) -> None:
    os.truncate(file, file.stat().st_size // 2)


def damage(folder, step: int) -> None:
    files = [f for f in (folder / str(step)).rglob("*") if f.is_file()]
    truncate(max(files, key=lambda f: f.stat().st_size))


def assert_same(got, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, got) == jax.tree.map(lambda x: x.dtype, expected)


def test_the_newest_comes_back(folder):
    assert steps(folder) == ["2", "3"]
    checkpoints = TrainCheckpoints(folder, keep=2)
    assert checkpoints.latest_step() == 3
    step, state, progress = checkpoints.restore_latest(shapes(make_state()))
    checkpoints.close()
    assert (step, progress) == (3, {"loader": {"step": 3}})
    assert_same(state, make_state(3))


def test_one_that_is_slowly_deleted_stays_deleted(tmp_path, monkeypatch):
    remove, emptied = os.rmdir, threading.Semaphore(0)

    def slowly(path, **options):
        if os.fspath(path).endswith("checkpoints/1"):  # its files are gone, its folder not yet
            emptied.release()
            time.sleep(0.3)
        remove(path, **options)

    checkpoints = TrainCheckpoints(tmp_path / "checkpoints", keep=1)
    monkeypatch.setattr(os, "rmdir", slowly)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), progress={})
    assert emptied.acquire(timeout=60)
    checkpoints.save(3, make_state(3), progress={})
    checkpoints.close()
    assert steps(checkpoints.folder) == ["3"]


def test_it_comes_back_onto_other_devices(folder):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
    split = NamedSharding(mesh, PartitionSpec("x"))
    checkpoints = TrainCheckpoints(folder, keep=2)
    _, state, _ = checkpoints.restore_latest(shapes(make_state(), split))
    checkpoints.close()
    assert state["params"]["fc"]["kernel"].sharding == split
    assert_same(state, make_state(3))


def test_a_damaged_one_is_set_aside(folder):
    damage(folder, 3)
    told: list[str] = []
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, state, _ = checkpoints.restore_latest(shapes(make_state()), report=told.append)
    assert step == 2
    assert_same(state, make_state(2))
    assert len(told) == 1
    assert re.match(r"Checkpoint 3 cannot be read \(\S+ has \d+ bytes and should have \d+", told[0])
    assert "unreadable" in told[0]
    checkpoints.save(3, make_state(3), progress={})
    checkpoints.close()
    assert steps(folder) == ["2", "3"]
    assert steps(folder.parent / "unreadable") == ["3"]


def test_every_truncated_or_missing_file_is_noticed(folder):
    files = [f.relative_to(folder) for f in (folder / "3").rglob("*") if f.stat().st_size]
    files = [file for file in files if (folder / file).is_file()]
    assert len(files) > 10
    copy = folder.parent / "copy"
    for file in files:
        shutil.copytree(folder, copy)
        truncate(copy / file) if file != files[0] else (copy / file).unlink()
        checkpoints = TrainCheckpoints(copy, keep=2, read_only=True)
        step, state, _ = checkpoints.restore_latest(shapes(make_state()), report=lambda _: None)
        checkpoints.close()
        assert step == 2, f"{file} was cut"
        assert_same(state, make_state(2))
        shutil.rmtree(copy)


# tensorstore calls back into an event loop that orbax closes at the first failed read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_one_without_noted_sizes(folder):
    """A run that is killed right after a save has not noted them."""
    (folder / "3" / "run" / "file_sizes.json").unlink()
    for file in (folder / "3").rglob("d/*"):
        truncate(file)
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, state, _ = checkpoints.restore_latest(shapes(make_state()), report=lambda _: None)
    checkpoints.close()
    assert step == 2
    assert_same(state, make_state(2))
    time.sleep(0.2)
    gc.collect()


def test_none_is_readable(folder):
    damage(folder, 2)
    damage(folder, 3)
    checkpoints = TrainCheckpoints(folder, keep=2)
    with pytest.raises(ValueError, match=r"None of the checkpoints.*unreadable.*train from step 0"):
        checkpoints.restore_latest(shapes(make_state()), report=lambda _: None)
    checkpoints.close()
    assert steps(folder) == []
    assert steps(folder.parent / "unreadable") == ["2", "3"]


def test_read_only_leaves_everything(folder):
    damage(folder, 3)
    half_saved = folder / "4.orbax-checkpoint-tmp"
    half_saved.mkdir()
    told: list[str] = []
    checkpoints = TrainCheckpoints(folder, keep=2, read_only=True)
    step, _, _ = checkpoints.restore_latest(shapes(make_state()), report=told.append)
    checkpoints.close()
    assert step == 2
    assert "moved" not in told[0]
    assert steps(folder) == ["2", "3", "4.orbax-checkpoint-tmp"]


def test_another_architecture_is_told_leaf_by_leaf(folder):
    checkpoints = TrainCheckpoints(folder, keep=2)
    with pytest.raises(ValueError) as caught:
        checkpoints.restore_latest(shapes(make_state(width=24)))
    checkpoints.close()
    message = str(caught.value)
    assert "step 3" in message
    assert message.endswith("\n  params/fc/kernel: got [8, 16], expected [8, 24]")
    assert steps(folder) == ["2", "3"]


def test_what_a_killed_save_left_does_not_matter(folder):
    half_saved = folder / "4.orbax-checkpoint-tmp"
    (half_saved / "state").mkdir(parents=True)
    (half_saved / "state" / "d").write_bytes(b"half")
    checkpoints = TrainCheckpoints(folder, keep=2)
    assert checkpoints.latest_step() == 3
    checkpoints.save(4, make_state(4), progress={})
    checkpoints.close()
    assert steps(folder) == ["3", "4"]


def test_describe_names_leaves():
    assert describe({"a": {"b": jnp.zeros((2, 3))}}) == {"a/b": [2, 3]}
