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
from jaxspec.config import DataConfig, OptimizerConfig, RunConfig, TargetConfig, TrainingConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.training.loop import train
from jaxspec.training.tasks.target import TARGET
from jaxspec.training.tasks.task import PreparedTask
from tests.training import runs

OTHER_SHAPE = dataclasses.replace(runs.ARCHITECTURE, intermediate_size=32)


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


def test_a_target_is_trained_further(target_from_scratch, tmp_path):
    """With the weights and the tokenizer of the first run: it begins where that has ended."""
    first = dataclasses.replace(
        target_from_scratch,
        training=dataclasses.replace(
            target_from_scratch.training, steps=20, log_every=20, checkpoint_every=20
        ),
        optimizer=OptimizerConfig(learning_rate=0.02),
    )
    train(first, workdir=tmp_path / "first")
    export = tmp_path / "first" / "export"
    further = dataclasses.replace(
        first,
        target=TargetConfig(path=str(export)),
        data=dataclasses.replace(first.data, tokenizer=""),
        training=dataclasses.replace(first.training, steps=2, log_every=1, checkpoint_every=2),
        optimizer=OptimizerConfig(learning_rate=1e-6),
    )
    workdir = tmp_path / "further"
    train(further, workdir=workdir)
    ended = runs.rows(tmp_path / "first")[-1]["loss"]
    assert ended < 0.9 * math.log(1024), "it has learned something"
    begun = runs.rows(workdir)[0]["loss"]
    assert begun < ended + 0.2, "not from scratch"
    _, before = load_target(export)
    _, after = load_target(workdir / "export")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), before, after)
    assert Tokenizer.load(workdir / "export").vocabulary() == Tokenizer.load(export).vocabulary()
    for changes, message in (
        ({"data": first.data}, "leave data.tokenizer empty"),
        ({"target": TargetConfig(path=str(export), architecture=OTHER_SHAPE)}, "is not that of"),
    ):
        with pytest.raises(ValueError, match=message):
            train(dataclasses.replace(further, **changes), workdir=tmp_path / "refused")


def test_the_template_has_the_runs_options(target_from_scratch, tmp_path):
    """Evaluation and regeneration give them too."""
    target = TargetConfig(path="embedded", enable_thinking=False)
    data = dataclasses.replace(target_from_scratch.data, tokenizer="")
    config = dataclasses.replace(target_from_scratch, target=target, data=data)
    tokenizer = TARGET.open_tokenizer(config, workdir=tmp_path)
    assert tokenizer.template_options == target.template_options == {"enable_thinking": False}


def test_what_is_trained_is_float32_whatever_the_architecture_says(target_from_scratch):
    """As in the configurations of released models, whose weights are bfloat16."""
    stored = dataclasses.replace(runs.ARCHITECTURE, param_dtype="bfloat16")
    for tokenizer in (None, Tokenizer.load("embedded")):
        task = TARGET.build(
            dataclasses.replace(target_from_scratch, target=TargetConfig("", architecture=stored)),
            tokenizer=tokenizer,
        )
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}


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
