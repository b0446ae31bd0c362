"""A run that is killed or stopped anywhere and started again equals an undisturbed one.

tests/training/test_resume.py kills one run in every test run; this file has the other kills.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.training import runs
from tests.trust.outcomes import PATIENCE_SECONDS, ROOT, Outcomes, run

KILLS = 24


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_24_kills_leave_no_trace(number, is_slow, config_file, finished_run, tmp_path):
    if not is_slow:
        pytest.skip("starts 48 programs: run with --slow")
    seed = int(os.environ.get("JAXSPEC_KILL_SEED", time.time_ns() % 10**6))
    print(f"JAXSPEC_KILL_SEED={seed}")
    draw = random.Random(seed)
    outcomes = Outcomes(f"kills by {number.name}")
    for case in range(KILLS):
        workdir = tmp_path / f"run{case}"
        arguments = ["train.py", "--config", str(config_file), "--workdir", str(workdir)]
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # From the first import to the export.
        moment = draw.uniform(0.0, 14.0)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, error = process.communicate(timeout=PATIENCE_SECONDS)
        name = f"{moment:.2f} s, status {process.returncode}"
        if "Traceback" in error and process.returncode not in (-number, 130):
            outcomes.add("traceback", f"{name}: {error}")
            continue
        ended = run(arguments)
        if ended.outcome != "clean" or ended.status != 0:
            outcomes.add(ended.outcome if ended.outcome != "clean" else "lost", ended.err)
            continue
        weights = (workdir / "export" / "model.safetensors").read_bytes()
        is_same = (
            runs.rows(workdir) == runs.rows(finished_run)
            and weights == (finished_run / "export" / "model.safetensors").read_bytes()
        )
        outcomes.add("clean" if is_same else "silent", name)
    outcomes.check()
