"""Which steps are traced, and what is left in the run's folder."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import pytest

from jaxspec.training.loop import train
from jaxspec.training.metrics import last_row
from jaxspec.training.profiling import Profile


@pytest.fixture
def traced(monkeypatch):
    """What happens, in order: "begin", the steps, "end"."""
    happened = []

    @contextlib.contextmanager
    def trace(folder):
        happened.append("begin")
        yield
        happened.append("end")

    monkeypatch.setattr(jax.profiler, "trace", trace)
    return happened


@pytest.mark.parametrize(
    ("first", "last", "steps", "expected"),
    [
        (0, 6, 2, [0, 1, "begin", 2, 3, "end", 4, 5]),
        (4, 9, 3, [4, 5, "begin", 6, 7, 8, "end"]),
        (0, 3, 2, ["begin", 0, 1, "end", 2]),
        (0, 2, 9, ["begin", 0, 1, "end"]),
        (0, 3, 0, [0, 1, 2]),
    ],
)
def test_the_steps_after_the_first_ones_are_traced(traced, tmp_path, first, last, steps, expected):
    with Profile(tmp_path, steps=steps, first_step=first, last_step=last) as profile:
        for step in range(first, last):
            profile.before(step)
            traced.append(step)
            assert profile.after(step + 1, {}) == (traced[-1] == "end")
    assert traced == expected


def test_a_run_that_stops_closes_its_trace(traced, tmp_path):
    with Profile(tmp_path, steps=5, first_step=0, last_step=20) as profile:
        for step in range(4):
            profile.before(step)
    assert traced == ["begin", "end"]


def test_other_processes_trace_nothing(traced):
    with Profile(None, steps=5, first_step=0, last_step=20) as profile:
        for step in range(20):
            profile.before(step)
            assert not profile.after(step + 1, {})
    assert traced == []


def test_a_run_leaves_a_trace(run_config, tmp_path, capsys):
    settings = dataclasses.replace(run_config.training, steps=4, profile=1, export=False)
    train(dataclasses.replace(run_config, training=settings), workdir=tmp_path / "run")
    assert [*(tmp_path / "run" / "profile").rglob("*.xplane.pb")]
    assert "A trace of the steps before this one is in" in capsys.readouterr().out
    row = last_row(tmp_path / "run")
    assert row["seconds_per_step"] > 0 and row["memory_bytes"] > 2**20
    assert "mfu" not in row, "the peak of these devices is not known"
