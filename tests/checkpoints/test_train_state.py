from __future__ import annotations

import gc
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxspec.checkpoints import train_state
from jaxspec.checkpoints.train_state import (
    RECORD,
    TrainCheckpoints,
    check_folder,
    describe,
    saved_progress,
)
from jaxspec.config import TrainingConfig


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


def biggest(folder, step: int) -> Path:
    """The file with most of a step's arrays."""
    files = [f for f in (folder / str(step) / "state").rglob("*") if f.is_file()]
    return max(files, key=lambda f: f.stat().st_size)


def damage(folder, step: int) -> None:
    truncate(biggest(folder, step))


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0xFF
    file.write_bytes(content)


def assert_same(got, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, got) == jax.tree.map(lambda x: x.dtype, expected)


def falls_back_to_step_2(folder: Path) -> list[str]:
    """Restores the newest checkpoint that can be used, which has to be that; what is told."""
    told: list[str] = []
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, state, _ = checkpoints.restore_latest(shapes(make_state()), report=told.append)
    checkpoints.close()
    assert step == 2
    assert_same(state, make_state(2))
    return told


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
    assert re.match(r"Checkpoint 3 cannot be read \(\S+ has \d+ bytes, expected \d+", told[0])
    assert "unreadable" in told[0]
    checkpoints.save(3, make_state(3), progress={})
    checkpoints.close()
    assert steps(folder) == ["2", "3"]
    assert steps(folder.parent / "unreadable") == ["3"]


@pytest.mark.parametrize("reads", [0, 1])
def test_one_that_another_process_cannot_read_is_set_aside(folder, monkeypatch, reads):
    """Another process fails at the newest: before the arrays (0), or at them (1)."""
    asked = []

    def gather(value):
        if not isinstance(value, str):
            return [value, value]
        asked.append(value)
        return [value, "cannot be read (Input/output error)" if len(asked) == reads + 1 else ""]

    monkeypatch.setattr(train_state, "gather", gather)
    told = falls_back_to_step_2(folder)
    assert [text.split(". It")[0] for text in told] == [
        "Checkpoint 3 cannot be read (Input/output error)"
    ]
    assert steps(folder.parent / "unreadable") == ["3"]


def test_each_process_checks_its_share_of_the_files(folder, monkeypatch):
    checked = []
    check = train_state.check_files

    def noted(step, *, share):
        checked.append(share)
        return check(step, share=share)

    monkeypatch.setattr(train_state, "check_files", noted)
    monkeypatch.setattr(train_state, "place", lambda: (1, 3))
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, _, _ = checkpoints.restore_latest(shapes(make_state()), report=pytest.fail)
    checkpoints.close()
    assert (step, checked) == (3, [(1, 3)])


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
def test_a_damaged_one_without_a_record(folder):
    """A run that is killed right after a save has not written it."""
    (folder / "3" / RECORD).unlink()
    for file in (folder / "3").rglob("d/*"):
        truncate(file)
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, state, _ = checkpoints.restore_latest(shapes(make_state()), report=lambda _: None)
    checkpoints.close()
    assert step == 2
    assert_same(state, make_state(2))
    time.sleep(0.2)
    gc.collect()


def test_one_without_a_record_is_used(folder):
    (folder / "3" / RECORD).unlink()
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, state, _ = checkpoints.restore_latest(shapes(make_state()))
    checkpoints.close()
    assert step == 3
    assert_same(state, make_state(3))
    assert not (folder / "3" / RECORD).exists(), "nobody knows whether these are the saved bytes"


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, '{"progress": 1, "shapes": {}}', '{"shapes": {"a": null}}']
)
def test_damaged_json_without_a_record(folder, content):
    (folder / "3" / RECORD).unlink()
    (folder / "3" / "run" / "metadata").write_text(content)
    assert saved_progress(folder) == (2, {"loader": {"step": 2}})
    told = falls_back_to_step_2(folder)
    assert told[0].startswith("Checkpoint 3 cannot be read (")


def test_an_older_one_has_sizes_alone(folder):
    for step in ("2", "3"):
        recorded = json.loads((folder / step / RECORD).read_text())
        sizes = {name: entry["bytes"] for name, entry in recorded.items()}
        (folder / step / "run" / "file_sizes.json").write_text(json.dumps(sizes))
        (folder / step / RECORD).unlink()
    damage(folder, 3)
    told = falls_back_to_step_2(folder)
    assert re.match(r"Checkpoint 3 cannot be read \(\S+ has \d+ bytes, expected \d+", told[0])


def test_one_changed_byte_is_noticed(folder):
    file = biggest(folder, 3)
    flip(file, file.stat().st_size // 2)
    told = falls_back_to_step_2(folder)
    name = file.relative_to(folder / "3")
    assert told[0].startswith(f"Checkpoint 3 cannot be read ({name} has changed: its CRC-32 is ")
    assert "\n" not in told[0]


@pytest.mark.parametrize("keep", [0, 2])
def test_none_is_deleted_where_all_are_kept(tmp_path, keep):
    checkpoints = TrainCheckpoints(tmp_path / "checkpoints", keep=keep)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, make_state(step), progress={})
    checkpoints.close()
    assert steps(checkpoints.folder) == (["1", "2", "3", "4"] if keep == 0 else ["3", "4"])


def test_fewer_than_none_cannot_be_kept():
    with pytest.raises(
        ValueError, match=r"keep_checkpoints must be 0 \(keep all\) or more: got -1"
    ):
        TrainingConfig(keep_checkpoints=-1)


@pytest.mark.parametrize(
    ("leaf", "value"), [("params", np.nan), ("params", np.inf), ("opt_state", np.nan)]
)
def test_one_with_numbers_that_are_not_finite_is_set_aside(folder, leaf, value):
    broken = make_state(4)
    broken[leaf] = jax.tree.map(lambda array: array.at[0, 1].set(value), broken[leaf])
    told: list[str] = []
    checkpoints = TrainCheckpoints(folder, keep=2)
    checkpoints.save(4, broken, progress={})
    step, state, _ = checkpoints.restore_latest(shapes(make_state()), report=told.append)
    checkpoints.close()
    assert step == 3
    assert_same(state, make_state(3))
    assert re.match(rf"Checkpoint 4 cannot be used \({leaf}/\S+ is not finite\)\. It was ", told[0])


def test_second_moments_may_overflow(folder):
    """An uninterrupted run goes on from them."""
    state = make_state(4)
    state["opt_state"] = jax.tree.map(lambda array: array.at[0, 1].set(np.inf), state["opt_state"])
    checkpoints = TrainCheckpoints(folder, keep=2)
    checkpoints.save(4, state, progress={})
    step, got, _ = checkpoints.restore_latest(shapes(make_state()))
    checkpoints.close()
    assert step == 4
    assert_same(got, state)


def test_a_loop_sets_one_aside(folder):
    """Damage that shows only in use."""
    told: list[str] = []
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, _, _ = checkpoints.restore_latest(shapes(make_state()))
    checkpoints.set_aside(step, "gives a loss that is not finite", report=told.append)
    assert checkpoints.latest_step() == 2
    step, state, _ = checkpoints.restore_latest(shapes(make_state()))
    assert step == 2
    assert_same(state, make_state(2))
    checkpoints.set_aside(2, "gives a loss that is not finite", report=told.append)
    assert checkpoints.restore_latest(shapes(make_state())) is None
    checkpoints.close()
    assert told[0].startswith("Checkpoint 3 gives a loss that is not finite. It was moved to ")
    assert steps(folder.parent / "unreadable") == ["2", "3"]


def test_one_that_cannot_be_moved_is_one_message(folder):
    damage(folder, 3)
    (folder.parent / "unreadable").write_text("a file in the folder's place")
    checkpoints = TrainCheckpoints(folder, keep=2)
    with pytest.raises(ValueError, match=r"Checkpoint 3 in .* cannot be moved to .*unreadable"):
        checkpoints.restore_latest(shapes(make_state()), report=pytest.fail)
    checkpoints.close()
    assert steps(folder) == ["2", "3"]


def test_read_only_passes_over_one(folder):
    checkpoints = TrainCheckpoints(folder, keep=2, read_only=True)
    checkpoints.set_aside(3, "gives a loss that is not finite", report=lambda _: None)
    step, _, _ = checkpoints.restore_latest(shapes(make_state()))
    checkpoints.close()
    assert step == 2
    assert steps(folder) == ["2", "3"]


def test_progress_is_read_without_the_arrays(folder):
    config = {
        "sources": [f"source {n}" for n in range(20_000)],
        "deep": {"a": {"b": [{"c": None}]}},
    }
    checkpoints = TrainCheckpoints(folder, keep=2)
    checkpoints.save(4, make_state(4), progress={"config": config})
    config["sources"].clear()  # what is saved does not change any more
    checkpoints.close()
    shutil.rmtree(folder / "4" / "state")
    before = steps(folder)

    step, progress = saved_progress(folder)
    assert step == 4
    assert len(progress["config"]["sources"]) == 20_000
    assert progress["config"]["deep"] == {"a": {"b": [{"c": None}]}}
    flip(folder / "4" / "run" / "metadata", 40)
    assert saved_progress(folder) == (3, {"loader": {"step": 3}})
    (folder / "3" / "run" / "metadata").unlink()
    assert saved_progress(folder) is None
    assert steps(folder) == before


@pytest.mark.parametrize("name", ["a[1]", "a\\b", "a?", "\udcff"])
def test_a_folder_whose_checkpoints_could_not_be_read(tmp_path, name):
    with pytest.raises(ValueError, match="could not be read again, because of") as caught:
        check_folder(tmp_path / name)
    assert str(caught.value).isascii()
    check_folder(tmp_path / "é {b} %20")


def test_there_is_no_progress_before_the_first_save(tmp_path):
    assert saved_progress(tmp_path / "checkpoints") is None
    assert list(tmp_path.iterdir()) == []


def nothing_but_the_folder(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def a_file_instead(step: Path) -> None:
    shutil.rmtree(step)
    step.write_text("not a checkpoint")


def a_folder_instead_of_a_file(step: Path) -> None:
    (step / "run" / "metadata").unlink()
    (step / "run" / "metadata").mkdir()


def a_folder_instead_of_the_record(step: Path) -> None:
    (step / RECORD).unlink()
    (step / RECORD).mkdir()


def a_record_of(text: str):
    def write(step: Path) -> None:
        (step / RECORD).write_text(text)

    return write


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (nothing_but_the_folder, "cannot be read"),
        (a_file_instead, "cannot be read (it is not a folder)"),
        (a_folder_instead_of_a_file, "cannot be read (run/metadata is missing)"),
        (a_folder_instead_of_the_record, f"cannot be read ({RECORD} cannot be read: Is a dir"),
        (a_record_of(""), f"cannot be read ({RECORD} is damaged)"),
        (a_record_of("{}"), f"cannot be read ({RECORD} is damaged)"),
        (a_record_of("[" * 100_000), f"cannot be read ({RECORD} is damaged)"),
        (a_record_of('{"../../secret": 3}'), f"cannot be read ({RECORD} is damaged)"),
        (a_record_of('{"/etc/passwd": 3}'), f"cannot be read ({RECORD} is damaged)"),
        (a_record_of('{"run/metadata": {"bytes": 3}}'), f"cannot be read ({RECORD} is damaged)"),
    ],
)
def test_whatever_is_in_its_place(folder, break_it, message):
    break_it(folder / "3")
    told: list[str] = []
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, state, _ = checkpoints.restore_latest(shapes(make_state()), report=told.append)
    assert step == 2
    assert_same(state, make_state(2))
    assert len(told) == 1
    assert told[0].startswith(f"Checkpoint 3 {message}")
    checkpoints.save(3, make_state(3), progress={})  # its place is free
    checkpoints.close()
    assert steps(folder) == ["2", "3"]
    assert steps(folder.parent / "unreadable") == ["3"]


def test_strangers_in_the_folder_do_not_matter(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "3" / "notes.txt").write_text("mine")
    for name in ("3.bak", "-5", "0003", "0004", "old"):
        (folder / name).mkdir()
    before = steps(folder)
    checkpoints = TrainCheckpoints(folder, keep=2)
    step, state, _ = checkpoints.restore_latest(shapes(make_state()), report=pytest.fail)
    checkpoints.close()
    assert step == 3
    assert_same(state, make_state(3))
    assert steps(folder) == before


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
