"""Weights & Biases is a package that need not be there; a small one stands in for it."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from jaxspec.training.boards import check_logging, open_boards
from jaxspec.training.metrics import MetricsLog

_WANDB = """
import json, pathlib

FOLDER = pathlib.Path({folder!r})


class Run:
    def log(self, numbers, *, step):
        with (FOLDER / "logged.jsonl").open("a") as file:
            file.write(json.dumps({{"step": step, **numbers}}) + "\\n")

    def finish(self):
        (FOLDER / "finished").touch()


def init(**settings):
    if (FOLDER / "no-login").exists():
        raise RuntimeError("api_key not configured")
    with (FOLDER / "started.jsonl").open("a") as file:
        file.write(json.dumps(settings) + "\\n")
    return Run()
"""
RECORD = {"config": {"name": "demo", "loss": {"focal": 0.3}}}


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The folder in which the stand-in writes what it was told."""
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "wandb.py").write_text(_WANDB.format(folder=str(folder)))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("wandb", None)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(workdir, *, logging, first_step, steps):
    boards = open_boards(logging, workdir, first_step=first_step, record=RECORD)
    log = MetricsLog(workdir, first_step=first_step, boards=boards)
    for step in steps:
        log.write(step, {"loss": (6.0, 2.0), "at": ([1.0, 0.0], [2.0, 0.0])}, extra={})
    log.close()


def test_every_number_is_logged_under_its_step(wandb, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    check_logging("both")
    write(workdir, logging="both", first_step=0, steps=(1, 2))
    (start,) = lines(wandb / "started.jsonl")
    assert (start["name"], start["project"], start["resume"]) == ("demo", "jaxspec", "allow")
    assert start["config"] == RECORD["config"]
    assert lines(wandb / "logged.jsonl") == [
        {"step": step, "loss": 3.0, "at/01": 0.5} for step in (1, 2)
    ]
    assert (wandb / "finished").exists()
    assert list((workdir / "tensorboard").glob("events.*"))


def test_a_run_that_continues_stays_one_run(wandb, tmp_path):
    for first_step in (0, 2):
        write(tmp_path, logging="wandb", first_step=first_step, steps=(first_step + 1,))
    first, second = lines(wandb / "started.jsonl")
    assert first["id"] == second["id"]
    assert not (tmp_path / "tensorboard").exists()


def test_what_the_service_says_is_one_message(wandb, tmp_path):
    (wandb / "no-login").touch()
    with pytest.raises(ValueError, match=r"api_key not configured.*WANDB_MODE=offline"):
        open_boards("wandb", tmp_path, first_step=0, record=RECORD)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for logging in ("wandb", "both"):
        with pytest.raises(ValueError, match="pip install wandb"):
            check_logging(logging)
    check_logging("tensorboard")
    check_logging("none")
