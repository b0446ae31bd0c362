"""scripts/setup_venv.sh with a stand-in for Python that writes down what it is asked to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

STAND_IN = """#!/usr/bin/env bash
case "$1 ${2:-}" in
  "-c "*) exit "${OLD_PYTHON:-0}" ;;
  "--version "*) echo "Python 3.99" ;;
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "venv" >>"$LOG" ;;
  "-m pip") echo "$*" >>"$LOG"; exit "${PIP_FAILS:-0}" ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """Runs the script in a copy of the project; returns the run and the calls it made."""
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup_venv.sh", project / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        (project / name).write_text(name, encoding="utf-8")
    python = tmp_path / "python-stand-in"
    python.write_text(STAND_IN, encoding="utf-8")
    python.chmod(0o755)
    log = tmp_path / "log"

    def run(*arguments: str, **environment: str):
        log.write_text("", encoding="utf-8")
        done = subprocess.run(
            ["bash", project / "scripts" / "setup_venv.sh", *arguments],
            env={**os.environ, "PYTHON": str(python), "LOG": str(log), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, log.read_text(encoding="utf-8").splitlines()

    run.project = project
    return run


def test_first_run_makes_the_environment_and_the_second_does_nothing(setup):
    done, calls = setup()
    assert done.returncode == 0, done.stderr
    assert calls[0] == "venv"
    assert "--constraint constraints.txt --editable ." in calls[1]
    assert calls[1].endswith("--editable .")
    done, calls = setup()
    assert (done.returncode, done.stdout, calls) == (0, "", [])


def test_extras_are_added_once_and_include_the_runtime(setup):
    setup()
    _, calls = setup("test,dev")
    assert len(calls) == 1, "the environment itself is kept"
    assert calls[0].endswith("--editable .[test,dev]")
    assert setup("test,dev")[1] == []
    assert setup()[1] == []


def test_extras_first_is_enough_for_the_runtime(setup):
    setup("test,dev")
    assert setup()[1] == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_again(setup, name):
    setup("test,dev")
    (setup.project / name).write_text("changed", encoding="utf-8")
    assert len(setup()[1]) == 1
    assert len(setup("test,dev")[1]) == 1, "the extras of the old files do not count"
    assert setup()[1] == setup("test,dev")[1] == []


def test_failed_installation_is_tried_again(setup):
    done, _ = setup(PIP_FAILS="1")
    assert done.returncode == 1
    assert "pip failed" in done.stderr
    assert len(setup()[1]) == 1


def test_old_python_is_refused(setup):
    done, calls = setup(OLD_PYTHON="1")
    assert (done.returncode, calls) == (1, [])
    assert "is not a working Python 3.11 or newer" in done.stderr
    assert not (setup.project / ".venv").exists()


def test_broken_environment_is_not_removed(setup):
    (setup.project / ".venv" / "bin").mkdir(parents=True)
    (setup.project / ".venv" / "keep").write_text("mine", encoding="utf-8")
    done, calls = setup()
    assert (done.returncode, calls) == (1, [])
    assert "move it away" in done.stderr
    assert (setup.project / ".venv" / "keep").is_file()
