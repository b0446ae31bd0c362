"""A target that is trained from scratch, and its tokenizer."""

from __future__ import annotations

import dataclasses
import math
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxspec.checkpoints.huggingface import load_target
from jaxspec.cli import export as command
from jaxspec.config import DataConfig, RunConfig, TargetConfig, TrainingConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.training.loop import train
from jaxspec.training.tasks.target import TARGET
from jaxspec.training.tasks.task import PreparedTask
from tests.training import runs


@pytest.fixture
def target_from_scratch(tmp_path) -> RunConfig:
    """A target that is trained with a tokenizer of its own, two devices to a row of the mesh."""
    return RunConfig(
        name="scratch",
        target=TargetConfig(path="", architecture=runs.ARCHITECTURE),
        data=DataConfig(
            sources=("embedded/chat",),
            embedded_examples=24,
            tokenizer="train",
            tokenizer_vocab=300,
            loss_on="all",
            sequence_length=96,
            batch_size=16,
            data_dir=str(tmp_path / "data"),
        ),
        training=TrainingConfig(
            task="target", steps=3, log_every=2, checkpoint_every=3, gradient_accumulation=2
        ),
    )


def test_a_target_from_scratch(target_from_scratch, tmp_path):
    workdir = tmp_path / "run"
    row = train(target_from_scratch, workdir=workdir)
    rows = runs.rows(workdir)
    assert [row["step"] for row in rows] == [2, 3], "every second step, and the last"
    assert row["loss"] == pytest.approx(math.log(1024), abs=0.5)
    config, params = load_target(workdir / "export")
    assert config == dataclasses.replace(runs.ARCHITECTURE)
    assert params["embed"]["embedding"].shape == (1024, 16)
    own = Tokenizer.load(workdir / "tokenizer")
    assert own.vocab_size == 300
    assert Tokenizer.load(workdir / "export").encode("to be") == own.encode("to be")
    assert train(target_from_scratch, workdir=workdir)["step"] == 3, "with the kept tokenizer"
    check_export_of_the_checkpoint(workdir, tmp_path / "copy")


def check_export_of_the_checkpoint(workdir, output):
    """With the tokenizer that the run trained, which is read and never trained again."""
    call = command.ExportCommand(
        workdir=str(workdir), output=str(output), dtype="float32", source="checkpoint"
    )
    command.export(call)
    config, params = load_target(workdir / "export")
    again, loaded = load_target(output)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert Tokenizer.load(output).vocabulary() == Tokenizer.load(workdir / "tokenizer").vocabulary()
    shutil.rmtree(workdir / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer"):
        command.export(call)


def test_a_trained_tokenizer_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    config = RunConfig(data=DataConfig(tokenizer="train"))
    run = PreparedTask(
        kind=TARGET,
        task=SimpleNamespace(config=config),
        tokenizer=Tokenizer.load("embedded"),
        pipeline=None,
    )
    copied = []

    def stopping(source, target):
        if copied:
            raise KeyboardInterrupt
        copied.append(shutil.copyfile(source, target))

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("jaxspec.data.tokenizer.copy_file", stopping)
        run.keep_tokenizer(tmp_path)
    assert copied and not list(tmp_path.iterdir())
    run.keep_tokenizer(tmp_path)
    kept = Tokenizer.load(tmp_path / "tokenizer")
    assert kept.vocabulary() == run.tokenizer.vocabulary()
