"""SIGTERM and Ctrl-C: the step is saved, and the program says so with its own exit status."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxspec.interruption import (
    STOPPED_AND_SAVED,
    StopRequests,
    Terminated,
    ending_when_told_to,
    repeating_lost_signals,
)
from jaxspec.training import loop
from jaxspec.training.loop import train
from jaxspec.training.metrics import MetricsLog
from tests.training import runs

BUSY = (
    "import hashlib; from jaxspec.interruption import StopRequests\n"
    "with StopRequests() as stops, stops.noticed_between_steps():\n"
    "    print('busy', flush=True); hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**31 - 1)\n"
)
"""The main thread is inside of a long call, where Python's handlers do not run."""


@pytest.fixture
def stopped_at(monkeypatch):
    """Sends this process a signal once a step is logged."""

    def stop(step, number):
        write = MetricsLog.write

        def stopping(log, done, sums, *, extra):
            if done == step:
                os.kill(os.getpid(), number)
            return write(log, done, sums, extra=extra)

        monkeypatch.setattr(MetricsLog, "write", stopping)

    return stop


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (6, signal.SIGTERM),
        pytest.param(
            *(3, signal.SIGINT),
            marks=pytest.mark.slow("SIGTERM is treated alike, and both ask for the same stop"),
        ),
    ],
)
def test_the_step_is_saved(run_config, finished_run, tmp_path, stopped_at, step, number, capsys):
    before = signal.getsignal(signal.SIGTERM)
    seldom = dataclasses.replace(run_config.training, checkpoint_every=runs.STEPS)
    config = dataclasses.replace(run_config, training=seldom)
    stopped_at(step, number)
    with pytest.raises(SystemExit) as caught:
        train(config, workdir=tmp_path / "run")
    assert caught.value.code == STOPPED_AND_SAVED == 75
    assert signal.getsignal(signal.SIGTERM) is before
    saved = max(runs.saved_steps(tmp_path / "run"))
    assert saved == step + 1, "the signal came before the next step was taken"
    assert f"Stopped: step {saved} is saved in" in capsys.readouterr().out
    train(config, workdir=tmp_path / "run")
    assert runs.rows(tmp_path / "run") == runs.rows(finished_run)
    weights = (tmp_path / "run" / "export" / "model.safetensors").read_bytes()
    assert weights == (finished_run / "export" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_steps_asks_for_a_stop(number):
    with StopRequests() as stops, stops.noticed_between_steps():
        assert not stops.requested
        os.kill(os.getpid(), number)
        assert stops.requested


def test_a_stop_inside_a_window_leaves_no_trace(run_config, tmp_path, monkeypatch):
    """Metrics of the steps since the last line are kept in the checkpoint."""
    settings = dataclasses.replace(
        run_config.training, log_every=4, checkpoint_every=10, export=False
    )
    config = dataclasses.replace(run_config, training=settings)
    train(config, workdir=tmp_path / "whole")
    steps = []

    def preempted(done):
        steps.append(done)
        return done == 6

    monkeypatch.setattr(loop, "_preempted", preempted)
    with pytest.raises(SystemExit):
        train(config, workdir=tmp_path / "stopped")
    train(config, workdir=tmp_path / "stopped")
    assert steps == list(range(1, runs.STEPS + 1))
    assert runs.rows(tmp_path / "stopped") == runs.rows(tmp_path / "whole")


def test_a_signal_before_the_first_step(run_config, tmp_path, monkeypatch, capsys):
    def checked(run, frozen, **options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.PreparedTask, "check_capture", checked)
    with pytest.raises(SystemExit) as caught:
        train(run_config, workdir=tmp_path / "run")
    assert caught.value.code == 75
    assert "SIGTERM: stopped; no step was taken" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_three_quick_presses_end_it_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "busy\n"
        for _ in range(3):
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.wait(timeout=20) == 130
        assert "interrupted: ended at once" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_reach_all_processes_of_a_pod_as_sigterm(number, capsys):
    """There, jax handles SIGTERM, and Python must leave it alone."""
    arrived = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(number))
    heeded = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, which may run this, ignores it.
    try:
        with StopRequests(is_pod=True) as stops, stops.noticed_between_steps():
            os.kill(os.getpid(), number)
            assert arrived == [signal.SIGTERM] and not stops.requested
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, heeded)
    assert "all processes stop after a step" in capsys.readouterr().out


class _Callback:
    """Raises where Python ignores it."""

    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


@pytest.mark.usefixtures("ctrl_c_raises")
@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated])
def test_a_signal_that_is_lost_in_a_callback_is_sent_again(error):
    with ending_when_told_to(), pytest.raises(error), repeating_lost_signals():
        _Callback(error)
        time.sleep(10)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_closed_terminal_ends_other_commands_unless_nohup_ignores_it(handler):
    before = signal.signal(signal.SIGHUP, handler)
    ended = False
    try:
        with ending_when_told_to():
            os.kill(os.getpid(), signal.SIGHUP)
    except Terminated:
        ended = True
    finally:
        left = signal.signal(signal.SIGHUP, before)
    assert ended == (handler is signal.SIG_DFL)
    assert left == handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_closed_terminal_stops_the_run_unless_nohup_ignores_it(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with StopRequests() as stops, stops.noticed_between_steps():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stops.requested == (handler is signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
