"""Kill it, start it again: the trace is that of a run which nothing happened to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import train as program
from jaxspec.checkpoints.train_state import TrainCheckpoints
from jaxspec.cli.configuration import run_as_command
from jaxspec.training.loop import train
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.start import Start
from jaxspec.training.state import initial_state
from jaxspec.training.tasks.registry import task_of
from tests.training import runs

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 300


def logged_steps(workdir: Path) -> int:
    """Whole lines of metrics.jsonl."""
    file = workdir / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_sigkill_leaves_no_trace(config_file, finished_run, tmp_path, capsys):
    # Another step each time: the seed is printed, and JAXSPEC_KILL_SEED repeats it.
    seed = int(os.environ.get("JAXSPEC_KILL_SEED", time.time_ns() % 10**6))
    kill_at = random.Random(seed).randrange(2, runs.STEPS - 5)
    print(f"JAXSPEC_KILL_SEED={seed}: killed once step {kill_at} is logged")
    workdir = tmp_path / "run"
    arguments = ["--config", str(config_file), "--workdir", str(workdir)]
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        started = time.monotonic()
        while logged_steps(workdir) < kill_at:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() - started < PATIENCE_SECONDS, output.read_text()
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it had finished before it could be killed"

    assert run_as_command(program.main, arguments) == 0
    # A save waits for the one before it, so by then the first is on disk.
    if kill_at > 2 * runs.CHECKPOINT_EVERY:
        assert "Continuing from step" in capsys.readouterr().out
    assert runs.rows(workdir) == runs.rows(finished_run)
    assert runs.saved_steps(workdir) == runs.saved_steps(finished_run)
    weights = (workdir / "export" / "model.safetensors").read_bytes()
    assert weights == (finished_run / "export" / "model.safetensors").read_bytes()


def restored(workdir, config):
    """What the newest checkpoint of a tiny run holds."""
    transform, _ = make_optimizer(config.optimizer, steps=config.training.steps)
    task = task_of(config).build(config)
    shapes = jax.eval_shape(initial_state(task.init, transform), jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes
    )
    checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=0, read_only=True)
    with contextlib.closing(checkpoints):
        return checkpoints.restore_latest(abstract)


def truncate_biggest_file(folder: Path) -> None:
    biggest = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(biggest, biggest.stat().st_size // 2)


def test_a_truncated_checkpoint_falls_back(run_config, finished_run, copy_of_run, capsys):
    workdir = copy_of_run()
    truncate_biggest_file(workdir / "checkpoints" / "20")
    train(run_config, workdir=workdir)
    printed = capsys.readouterr().out
    assert "Checkpoint 20 cannot be read" in printed
    assert "Continuing from step 16" in printed
    assert runs.rows(workdir) == runs.rows(finished_run)
    assert runs.saved_steps(workdir) == {16, 20}
    assert [entry.name for entry in (workdir / "unreadable").iterdir()] == ["20"], "kept, aside"


def test_a_run_with_muon_continues_as_if_nothing_had_happened(run_config, tmp_path, capsys):
    optimizer = dataclasses.replace(run_config.optimizer, name="muon", weight_decay=0.1)
    short = dataclasses.replace(run_config.training, steps=8)
    config = dataclasses.replace(run_config, optimizer=optimizer, training=short)
    train(config, workdir=tmp_path)
    rows, weights = runs.rows(tmp_path), tmp_path / "export" / "model.safetensors"
    exported = weights.read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    train(config, workdir=tmp_path)
    assert "Continuing from step 4" in capsys.readouterr().out
    assert runs.rows(tmp_path) == rows
    assert weights.read_bytes() == exported


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"name": "muon"}}, r"optimizer.name +muon +adamw"),
        ({"drafter": {"intermediate_size": 40}}, r"drafter.intermediate_size +40 +24"),
        ({"training": {"seed": 5}}, r"training.seed +5 +0"),
        ({"training": {"steps": 10}}, r"training.steps +10 +20"),
        ({"data": {"seed": 5}}, r"data.seed +5 +0"),
    ],
)
def test_checkpoints_of_another_run_are_left_alone(run_config, copy_of_run, changes, message):
    workdir = copy_of_run()
    before = runs.contents(workdir)
    changed = dataclasses.replace(
        run_config,
        **{
            group: dataclasses.replace(getattr(run_config, group), **values)
            for group, values in changes.items()
        },
    )
    with pytest.raises(ValueError, match=message):
        train(changed, workdir=workdir)
    assert runs.contents(workdir) == before


def test_another_architecture_is_one_message_and_status_2(config_file, copy_of_run, capsys):
    workdir = copy_of_run()
    before = runs.contents(workdir)
    arguments = ["--config", str(config_file), "--workdir", str(workdir)]
    changes = ["--drafter.num_layers", "2", "--training.steps", "24", "--accept_changes", "True"]
    assert run_as_command(program.main, [*arguments, *changes]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: The checkpoint at step 20 in ")
    assert "opt_state" not in error, "the moments only repeat the parameters"
    assert "params/layers/attention/q/kernel: got [1, 16, 16], expected [2, 16, 16]" in error
    assert "Traceback" not in error
    assert runs.contents(workdir) == before


@pytest.mark.parametrize("is_new", [False, True])
def test_a_line_of_metrics_is_of_one_segment(tmp_path, is_new):
    """A run that was told to stop saves the steps of an unfinished line."""
    positions = []
    config = {"data": {"batch_size": 8}}
    progress = {
        "loader": {"step": 3, "fingerprint": "a"},
        "record": {"config": config, "segments": [{}]},
        "window": {"loss": [6.0, 3.0]},
    }
    start = Start.at_checkpoint(
        (3, None, progress),
        lambda step, saved: {"config": config, "segments": [{}] * (1 + is_new)},
        pipeline=SimpleNamespace(set_state=positions.append, batch_size=4),
        steps=9,
        workdir=tmp_path,
    )
    assert start.window == ({} if is_new else {"loss": (6.0, 3.0)})
    # Data are read on from the same row, 24, also with another batch size.
    assert positions == [{"step": 3, "rows": 24} if is_new else progress["loader"]]


def test_damage_that_shows_only_in_the_next_step_falls_back(
    run_config, finished_run, copy_of_run, capsys
):
    """Parameters that are finite and whole, as far as digests tell, and give no finite loss."""
    workdir = copy_of_run()
    shutil.rmtree(workdir / "checkpoints" / "20")
    _, state, progress = restored(workdir, run_config)
    shutil.rmtree(workdir / "checkpoints" / "16")
    huge = jax.tree.map(lambda leaf: jax.numpy.full_like(leaf, 1e38), state.params)
    checkpoints = TrainCheckpoints(workdir / "checkpoints", keep=0)
    with contextlib.closing(checkpoints):
        # The state of step 16 under the number of step 12: its position is that of step 16.
        checkpoints.save(12, state, progress=progress)
        checkpoints.save(16, dataclasses.replace(state, params=huge), progress=progress)
    train(run_config, workdir=workdir)
    printed = capsys.readouterr().out
    assert "Checkpoint 16 gives a loss that is not finite. It was moved to" in printed
    assert "Continuing from step 12" in printed
    assert [entry.name for entry in (workdir / "unreadable").iterdir()] == ["16"]
    assert [row["step"] for row in runs.rows(workdir)] == list(range(1, 21))
    assert runs.rows(workdir)[:12] == runs.rows(finished_run)[:12]
    assert all(row["loss"] is not None for row in runs.rows(workdir))
