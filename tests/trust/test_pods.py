"""Several real processes train as one: the same trace, stopped, killed and continued together."""

from __future__ import annotations

import math
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from jaxspec.checkpoints.denoiser import load_denoiser
from jaxspec.interruption import PROCESS_LOST, STALLED, STOPPED_AND_SAVED
from jaxspec.training.loop import train
from tests.training import runs
from tests.trust.pods import Pod

TOLERANCE = 1e-5
KILLED = -signal.SIGKILL
ABORTED = -signal.SIGABRT
"""jax's own end of a program whose process 0 is gone; it may come before ours."""
WITHIN_S = 30.0


def assert_same_trace(workdir, other):
    """Every line of metrics.jsonl is the same, but for rounding."""
    rows, others = runs.rows(workdir), runs.rows(other)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, expected in zip(rows, others, strict=True):
        assert row.keys() == expected.keys()
        for name, value in row.items():
            both = (
                (value, expected[name]) if isinstance(value, list) else ([value], [expected[name]])
            )
            for a, b in zip(*both, strict=True):
                same = a is b is None or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
                assert same, (row["step"], name, a, b)


@pytest.fixture
def arguments(config_file, tmp_path):
    """Of train.py, for a run in `tmp_path`."""
    return ["--config", str(config_file), "--workdir", str(tmp_path / "run")]


@pytest.fixture
def start(arguments, tmp_path):
    """Starts so many processes, which leave nothing behind."""
    pods = []

    def start_pod(count, *more):
        pods.append(Pod([*arguments, *more], count=count, logs=tmp_path / f"logs{len(pods)}"))
        return pods[-1]

    yield start_pod
    for pod in pods:
        pod.__exit__()


def stop(pod, *, victim, after):
    """SIGTERM to one process: all of them save the same step and say so with their status."""
    pod.wait_for(after)
    pod.send(victim, signal.SIGTERM)
    assert pod.statuses() == [STOPPED_AND_SAVED] * len(pod.processes), pod.said(0)
    assert "Stopped: step " in pod.said(0)


def test_sigterm_to_one_of_two_processes_and_one_process_continues(
    start, run_config, finished_run, tmp_path
):
    pod = start(2)
    stop(pod, victim=1, after="Compiling the step")
    assert "step " not in pod.said(1).replace("step=", ""), "only process 0 prints"
    saved = max(runs.saved_steps(tmp_path / "run"))
    train(run_config, workdir=tmp_path / "run")
    assert saved < runs.STEPS
    assert_same_trace(tmp_path / "run", finished_run)


def test_each_of_four_processes_is_killed_in_turn(is_slow, start, finished_run, tmp_path):
    if not is_slow:
        pytest.skip("five starts of four processes take minutes: --slow")
    for victim, after in enumerate((3, 7, 11, 15)):
        pod = start(4)
        pod.wait_for(f"step {after}/")
        pod.send(victim, signal.SIGKILL)
        killed, statuses = time.monotonic(), pod.statuses(within_s=WITHIN_S)
        print(f"process {victim} killed: {statuses} within {time.monotonic() - killed:.1f} s")
        assert statuses.pop(victim) == KILLED
        assert set(statuses) <= {PROCESS_LOST, *([ABORTED] if victim == 0 else [])}
        for index in set(range(4)) - {victim}:
            assert f"because process {victim} on " in pod.said(index) or victim == 0
    assert start(4).statuses() == [0, 0, 0, 0]
    assert_same_trace(tmp_path / "run", finished_run)


def test_four_processes_then_one_then_two(is_slow, start, finished_run, tmp_path):
    if not is_slow:
        pytest.skip("three starts of several processes take minutes: --slow")
    stop(start(4), victim=3, after="Compiling the step")
    stop(start(1), victim=0, after="Compiling the step")
    assert start(2).statuses() == [0, 0]
    assert_same_trace(tmp_path / "run", finished_run)


@pytest.mark.parametrize("axis", ["fsdp", "context"])
def test_two_processes_that_split_the_model_or_rows(axis, is_slow, start, finished_run, tmp_path):
    if not is_slow:
        pytest.skip("it takes a minute: --slow")
    assert start(2, "--mesh.data", "1", f"--mesh.{axis}", "2").statuses() == [0, 0]
    assert_same_trace(tmp_path / "run", finished_run)


def test_two_processes_export_updates_of_low_rank(is_slow, start, run_config, tmp_path):
    """At the end of a run, and again from its last checkpoint, of which each checks its files."""
    if not is_slow:
        pytest.skip("it takes a minute: --slow")
    exports = []
    for _ in range(2):
        pod = start(
            2,
            *("--mesh.data", "1", "--mesh.fsdp", "2", "--training.task", "denoiser"),
            *("--denoiser.path", str(run_config.target.path), "--denoiser.lora_rank", "2"),
            *("--denoiser.objective", "llada", "--training.steps", "2"),
        )
        assert pod.statuses() == [0, 0], pod.said(0)
        exports.append(load_denoiser(tmp_path / "run" / "export")[1])
        shutil.rmtree(tmp_path / "run" / "export")
    jax.tree.map(np.testing.assert_array_equal, *exports)


def test_a_step_that_does_not_end_shows_the_stacks(is_slow, start):
    if not is_slow:
        pytest.skip("it waits for a stalled step: --slow")
    pod = start(2, "--training.stall_timeout", "10")
    pod.wait_for("step 3/")
    pod.send(1, signal.SIGSTOP)
    # A process that is stopped does not answer jax either, which then aborts the other.
    assert pod.processes[0].wait(60) in (STALLED, ABORTED)
    assert "Stacks of process 0" in pod.said(0) and "loop.py" in pod.said(0)
    assert "Stalled: no step has ended for 10 seconds" in pod.said(0)
    pod.send(1, signal.SIGCONT)
    assert pod.processes[1].wait(60) in (STALLED, PROCESS_LOST, ABORTED)


def test_hosts_with_other_settings(is_slow, arguments, tmp_path):
    if not is_slow:
        pytest.skip("it takes half a minute: --slow")
    with Pod(arguments, count=2, logs=tmp_path / "logs", last=["--loss.focal", "0"]) as pod:
        assert pod.statuses() == [2, 2]
        for index in range(2):
            assert "loss.focal: 0.0 for process 1 on" in pod.said(index)
    assert not (tmp_path / "run").exists()
