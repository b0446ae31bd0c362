"""The command line of training, from its options to what it prints at the end."""

from __future__ import annotations

import importlib.util
import json

import pytest

import train as program
from jaxspec.cli.configuration import run_as_command
from tests.training import runs


@pytest.fixture
def start(config_file, tmp_path):
    """Runs train.py on the tiny config; returns its status."""

    def run(*options: str) -> int:
        arguments = ["--config", str(config_file), "--workdir", str(tmp_path / "run")]
        return run_as_command(program.main, [*arguments, *options])

    return run


def test_epochs_become_steps(start, tmp_path, capsys):
    assert start("--training.epochs", "0.5", "--logging", "none") == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    training = record["config"]["training"]
    rows = runs.rows(tmp_path / "run")
    assert training["epochs"] == 0.5
    assert training["steps"] == len(rows)
    assert rows[-1]["epoch"] == pytest.approx(0.5, abs=1 / (2 * len(rows)) + 1e-9)
    assert f"{len(rows)} steps are 0." in printed
    assert "Next:\n  python eval.py --config " in printed
    assert not (tmp_path / "run" / "tensorboard").exists()
    # The same command again, or as many steps. More epochs are more steps.
    for options in (["--training.epochs", "0.5"], ["--training.steps", str(len(rows))]):
        assert start(*options) == 0
        assert "is finished" in capsys.readouterr().out
    assert start("--training.epochs", "1") == 2
    assert "training.steps" in capsys.readouterr().err
    assert start("--training.epochs", "1", "--restart_schedule", "True") == 0
    assert len(runs.rows(tmp_path / "run")) == 2 * len(rows)


def test_steps_and_epochs_are_one_too_many(start, capsys):
    assert start("--training.epochs", "1", "--training.steps", "3") == 2
    assert "in steps or in epochs" in capsys.readouterr().err


def test_steps_on_the_command_line_replace_epochs_of_the_config(config_file, tmp_path, capsys):
    text = config_file.read_text().replace("log_every=1", "log_every=1, epochs=3.0")
    config = tmp_path / "epochs.py"
    config.write_text(text)
    arguments = ["--config", str(config), "--workdir", str(tmp_path / "run")]
    assert run_as_command(program.main, [*arguments, "--training.steps", "2"]) == 0
    assert [row["step"] for row in runs.rows(tmp_path / "run")] == [1, 2]


def test_weights_and_biases_without_the_package(start, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "wandb" else found(name, *rest),
    )
    assert start("--logging", "wandb") == 2
    captured = capsys.readouterr()
    assert "pip install wandb" in captured.err
    assert captured.out == "", "nothing was loaded"
    assert not (tmp_path / "run").exists()
