"""Two processes in one folder: the second gets a message, and the first is unharmed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from jaxspec.files import InUse, held
from jaxspec.training.loop import train
from tests.training import runs
from tests.trust.outcomes import PATIENCE_SECONDS, ROOT, Outcomes


def test_a_folder_in_use_is_refused_before_anything_is_read(run_config, copy_of_run):
    workdir = copy_of_run()
    before = runs.contents(workdir)
    with held(workdir, option="--workdir"), pytest.raises(InUse, match=f"process {os.getpid()} on"):
        train(run_config, workdir=workdir)
    assert runs.contents(workdir) == before


def test_20_double_starts_harm_nothing(is_slow, config_file, finished_run, tmp_path):
    """Real processes; each time, the second starts at another moment in the first one's life."""
    if not is_slow:
        pytest.skip("starts 40 programs: run with --slow")
    outcomes = Outcomes("double starts")
    for case in range(20):
        workdir = tmp_path / f"run{case}"
        first = _start(config_file, workdir)
        with contextlib.suppress(subprocess.TimeoutExpired):
            first.wait(timeout=case * 1.0)
        second = _start(config_file, workdir)
        _, refusal = second.communicate(timeout=PATIENCE_SECONDS)
        first.communicate(timeout=PATIENCE_SECONDS)
        is_unharmed = first.returncode == 0 and runs.rows(workdir) == runs.rows(finished_run)
        # If the second came first, or after the end, it did the work or found it done.
        is_clear = second.returncode == 0 or (
            second.returncode == 2
            and refusal.startswith("error: --workdir ")
            and "is in use by process" in refusal
        )
        if not is_unharmed:
            outcomes.add("lost", f"{case}: {first.returncode}")
        else:
            outcomes.add("clean" if is_clear else "traceback", f"{case}: {refusal}")
    outcomes.check()


def _start(config_file, workdir):
    return subprocess.Popen(
        [sys.executable, "train.py", "--config", str(config_file), "--workdir", str(workdir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
