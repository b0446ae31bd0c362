"""A tiny target folder and a finished run on it, made once for all tests of a process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxspec.config import RunConfig
from jaxspec.training.loop import train
from tests.training import runs


@pytest.fixture(scope="session")
def config_file(tmp_path_factory) -> Path:
    """A config file for train.py, with its target."""
    folder = tmp_path_factory.mktemp("tiny_target")
    target = runs.write_target(folder / "target")
    return runs.write_config(folder / "tiny.py", target=target)


@pytest.fixture(scope="session")
def run_config(config_file) -> RunConfig:
    """The same run, read."""
    return runs.read_config(config_file)


@pytest.fixture(scope="session")
def finished_run(run_config, tmp_path_factory) -> Path:
    """The folder of a run that nothing interrupted. Not to be changed: see `copy_of_run`."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(run_config, workdir=workdir)
    return workdir


@pytest.fixture
def copy_of_run(finished_run, tmp_path) -> Callable[[], Path]:
    """Makes copies of the finished run that may be changed."""

    def copy() -> Path:
        number = len(list(tmp_path.glob("copy*")))
        return Path(shutil.copytree(finished_run, tmp_path / f"copy{number}"))

    return copy
