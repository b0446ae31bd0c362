"""A step that does not end: stacks, a message and an exit status of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from jaxspec.checkpoints.train_state import TrainCheckpoints
from jaxspec.interruption import STALLED, progressed
from jaxspec.parallel import processes
from jaxspec.training import loop, stall
from jaxspec.training.stall import StallWatch, waiting_for_others
from jaxspec.training.stepper import Stepper

STALLS = (
    "import time; from jaxspec.training.stall import StallWatch\n"
    "def waiting_for_a_collective(): time.sleep(60)\n"
    "with StallWatch(limit_s=0.5) as watch: waiting_for_a_collective()"
)


def test_a_stalled_run_ends_with_its_stacks():
    done = subprocess.run(
        [sys.executable, "-c", STALLS], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == STALLED == 77
    assert "Stacks of process 0" in done.stderr and "waiting_for_a_collective" in done.stderr
    assert "error: Stalled: no step has ended for 0.5 seconds" in done.stderr


@pytest.mark.parametrize(("limit_s", "moves"), [(0.6, True), (0.0, False)])
def test_a_run_that_moves_or_has_no_limit_goes_on(limit_s, moves, monkeypatch):
    ended = []
    monkeypatch.setattr(stall.StallWatch, "_end", lambda watch: ended.append(watch))
    with StallWatch(limit_s=limit_s) as watch:
        for _ in range(10):
            time.sleep(0.1)
            if moves:
                watch.moved()
    time.sleep(limit_s + 0.1)
    assert not ended


@pytest.mark.parametrize(("processes", "ends"), [(1, False), (2, True)])
def test_what_processes_do_together_is_watched(processes, ends, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(stall.StallWatch, "_end", lambda watch: ended.set())
    with waiting_for_others("no checkpoint was restored for", limit_s=0.1):
        assert ended.wait(10 if ends else 0.5) == ends


@pytest.mark.parametrize("by", ["this process", "another one"])
def test_processes_that_get_on_are_not_stalled(by, monkeypatch):
    ended = threading.Event()
    links = types.SimpleNamespace(tell_progress=lambda: None, on_progress=None)
    monkeypatch.setattr(processes, "_links", links)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(stall.StallWatch, "_end", lambda watch: ended.set())
    with waiting_for_others("no checkpoint was restored for", limit_s=0.6):
        for _ in range(10):
            (progressed if by == "this process" else links.on_progress)()
            assert not ended.wait(0.1)
        assert ended.wait(10), "nothing gets on any more"


def test_other_processes_are_told_of_progress(monkeypatch):
    told = []
    links = types.SimpleNamespace(tell_progress=lambda: told.append(1), on_progress=None)
    monkeypatch.setattr(processes, "_links", links)
    with waiting_for_others("no checkpoint was restored for", limit_s=0.0):
        progressed()
    progressed()
    assert told == [1]


def test_nothing_ends_the_program_after_the_block(monkeypatch):
    """A leftover thread could end a run that had moved on in the meantime."""
    ended = []

    def end(watch):
        time.sleep(0.2)
        ended.append(watch)

    monkeypatch.setattr(stall.StallWatch, "_end", end)
    with StallWatch(limit_s=0.05) as watch:
        time.sleep(0.15)
    assert ended == [watch]
    assert "stall watch" not in {thread.name for thread in threading.enumerate()}


def test_restoring_and_exporting_are_watched(copy_of_run, run_config, monkeypatch):
    """orbax waits for all processes without end, also if one of them has failed."""
    limit = run_config.training.stall_timeout
    now: list[tuple[str, float]] = []
    watched = []

    @contextlib.contextmanager
    def watch(what, *, limit_s):
        now.append((what, limit_s))
        yield
        now.pop()

    def noting(function):
        def call(*arguments, **options):
            watched.append(tuple(now))
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(loop, "waiting_for_others", watch)
    restore = TrainCheckpoints.restore_latest
    monkeypatch.setattr(TrainCheckpoints, "restore_latest", noting(restore))
    monkeypatch.setattr(loop, "_export", noting(loop._export))
    loop.train(run_config, workdir=copy_of_run())
    assert watched == [
        (("no checkpoint was restored for", limit),),
        (("the last step was not saved and exported for", limit),),
    ]


class _Metric:
    """A number that is known once it has been waited for."""

    def __init__(self, value):
        self.value, self.is_known = value, False

    def block_until_ready(self):
        self.is_known = True
        return self

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.value, dtype)


def test_few_steps_wait_for_the_devices(run_config, tmp_path, monkeypatch):
    """A line waits for all steps that were started, and so does a stop: many of them together
    look like a step that does not end, and outlast the time that a SIGTERM leaves."""
    step, started, waiting = Stepper.__call__, [], []

    def noted(stepper, state, batch, rate):
        known = [index for index, metric in enumerate(started) if metric.is_known]
        waiting.append(len(started) - 1 - max(known, default=-1))
        state, metrics = step(stepper, state, batch, rate)
        value, count = metrics["loss"]
        started.append(_Metric(value))
        return state, {**metrics, "loss": (started[-1], count)}

    monkeypatch.setattr(Stepper, "__call__", noted)
    settings = dataclasses.replace(
        run_config.training, log_every=20, checkpoint_every=20, export=False
    )
    loop.train(dataclasses.replace(run_config, training=settings), workdir=tmp_path / "run")
    assert len(waiting) == 20 and max(waiting) == 2
    assert all(metric.is_known for metric in started), "the watch is told of the last ones, too"
