"""A step that does not end: stacks, a message and an exit status of its own."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from jaxspec.interruption import STALLED
from jaxspec.training import stall
from jaxspec.training.stall import StallWatch

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
