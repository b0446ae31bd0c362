"""What holds for every kind of training."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest

from jaxspec.checkpoints.families.gpt2 import to_json
from jaxspec.config import (
    DataConfig,
    DenoiserConfig,
    DiTConfig,
    GPT2Config,
    RunConfig,
    TargetConfig,
    TrainingConfig,
)
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.training.tasks.registry import task_of
from jaxspec.training.tasks.task import steps_of
from tests.training import runs

PACKAGE = Path(__file__).parents[3] / "jaxspec"


def run(task: str) -> RunConfig:
    """Shapes alone: there is no folder to read."""
    config = RunConfig(
        target=TargetConfig(path="", architecture=runs.ARCHITECTURE),
        denoiser=DenoiserConfig(architecture=DiTConfig(vocab_size=64, hidden_size=16, num_heads=2)),
    )
    drafter = dataclasses.replace(config.drafter, target_layer_ids=(0, 1))
    training = dataclasses.replace(config.training, task=task)
    return dataclasses.replace(config, drafter=drafter, training=training)


@pytest.mark.parametrize("name", ["target", "drafter", "denoiser"])
def test_shapes_need_no_weights_tokenizer_or_data(name):
    task = task_of(run(name)).build(run(name))
    trained = jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))
    assert trained and all(leaf.dtype == "float32" for leaf in trained)
    assert bool(task.frozen_shapes) == (name == "drafter")
    assert task.title.startswith(name)


@pytest.mark.parametrize("task", ["target", "drafter"])
def test_what_was_given_of_a_target_counts_wherever_it_was_given(task):
    config = run(task)

    def shape(**changes):
        of_shape = {name[2:]: value for name, value in changes.items() if name[:2] == "a_"}
        own = {name: value for name, value in changes.items() if name[:2] != "a_"}
        architecture = dataclasses.replace(runs.ARCHITECTURE, **of_shape)
        target = dataclasses.replace(config.target, architecture=architecture, **own)
        changed = dataclasses.replace(config, target=target)
        computed_as = task_of(changed).computed_as(changed)
        objective = task_of(changed).build(changed).objective
        found = (objective.model if task == "target" else objective.target).config
        assert (computed_as.dtype, computed_as.attention) == (found.dtype, found.attention)
        return found.dtype, found.attention

    assert shape() == ("float32", "auto")
    assert shape(dtype="bfloat16", a_attention="plain") == ("bfloat16", "plain")
    assert shape(a_dtype="bfloat16", attention="plain") == ("bfloat16", "plain")
    both = {"attention": "chunked", "a_attention": "chunked"}
    assert shape(dtype="bfloat16", a_dtype="bfloat16", **both) == ("bfloat16", "chunked")
    with pytest.raises(ValueError, match=r"is 'plain', but target\.architecture\.attention is"):
        shape(attention="plain", a_attention="chunked")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plan_computes_a_target_in_a_folder_as_training_does(dtype):
    """The embedded target is stored in bfloat16."""
    config = RunConfig(target=TargetConfig(dtype=dtype), training=TrainingConfig(task="target"))
    planned, trained = (
        task_of(config).build(config, tokenizer=tokenizer).objective.model.config
        for tokenizer in (None, Tokenizer.load("embedded"))
    )
    assert planned == trained
    assert (trained.dtype, trained.param_dtype) == (dtype, "float32")


@pytest.mark.parametrize("task", ["target", "drafter"])
def test_rows_longer_than_a_table_of_positions_are_refused(task, tmp_path):
    shape = GPT2Config(
        vocab_size=1024, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=64
    )
    folder = tmp_path / "gpt2"
    folder.mkdir()
    document = to_json(shape, dtype="float32", special_ids={})
    (folder / "config.json").write_text(json.dumps(document))
    config = dataclasses.replace(run(task), target=TargetConfig(path=str(folder)))
    for length in (64, 65):
        data = dataclasses.replace(config.data, sequence_length=length)
        config = dataclasses.replace(config, data=data)
        if length == 64:
            task_of(config).build(config)
        else:
            with pytest.raises(ValueError, match="is 65, but the target has learned 64 positions"):
                task_of(config).build(config)


@pytest.mark.parametrize("task", ["target", "drafter"])
def test_a_kernel_that_does_not_fit_the_heads_is_refused_from_shapes(task):
    shape = dataclasses.replace(runs.ARCHITECTURE, head_dim=12)
    target = TargetConfig(path="", architecture=shape, dtype="bfloat16", attention="cudnn")
    config = dataclasses.replace(run(task), target=target)
    with pytest.raises(ValueError, match="heads of a multiple of 8 up to 128, and these have 12"):
        task_of(config).build(config)


def test_a_target_that_learns_from_odd_rows_has_no_cudnn():
    target = TargetConfig(
        path="", architecture=runs.ARCHITECTURE, dtype="bfloat16", attention="cudnn"
    )
    config = dataclasses.replace(run("target"), target=target)
    task_of(config).build(config)
    odd = dataclasses.replace(config, data=dataclasses.replace(config.data, sequence_length=33))
    with pytest.raises(ValueError, match=r"sequence_length is 33, but cudnn .* even lengths only"):
        task_of(odd).build(odd)


@pytest.mark.parametrize(("epochs", "steps"), [(1.1, 11), (1.0, 10), (1.01, 11), (0.3, 3)])
def test_epochs_are_steps_as_typed(epochs, steps):
    """1.1 * 100 / 10 is 11.000000000000002 in floating point."""
    config = RunConfig(
        data=DataConfig(batch_size=10), training=TrainingConfig(task="drafter", epochs=epochs)
    )
    assert steps_of(config, rows=100) == steps


@pytest.mark.parametrize("name", ["target", "drafter"])
def test_the_settings_of_a_task_make_it_again(name):
    """Of a config whose architecture is also one to train; a frozen target keeps no activations."""
    config = run(name)
    architecture = dataclasses.replace(runs.ARCHITECTURE, remat=True)
    config = dataclasses.replace(
        config, target=dataclasses.replace(config.target, architecture=architecture)
    )
    once = task_of(config).build(config)
    assert task_of(once.config).build(once.config).config == once.config


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"is 'nope': expected one of .*\bdrafter\b"):
        task_of(run("nope"))


def test_nothing_else_asks_for_the_kind():
    """Code that depends on `training.task` belongs in a task."""
    question = re.compile(r"\.task\s*(==|!=|in\b|not\b)|\[\w+(\.\w+)*\.task\]|match .*\.task\b")
    found = [
        str(file.relative_to(PACKAGE))
        for file in sorted(PACKAGE.rglob("*.py"))
        if question.search(file.read_text(encoding="utf-8"))
    ]
    assert found == []
