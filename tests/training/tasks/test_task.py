"""What holds for every kind of training."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import pytest

from jaxspec.config import (
    DataConfig,
    DenoiserConfig,
    DiTConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
)
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


@pytest.mark.parametrize(("epochs", "steps"), [(1.1, 11), (1.0, 10), (1.01, 11), (0.3, 3)])
def test_epochs_are_steps_as_typed(epochs, steps):
    """1.1 * 100 / 10 is 11.000000000000002 in floating point."""
    config = RunConfig(
        data=DataConfig(batch_size=10), training=TrainingConfig(task="drafter", epochs=epochs)
    )
    assert steps_of(config, rows=100) == steps


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
