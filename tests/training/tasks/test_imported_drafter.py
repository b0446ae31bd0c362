"""Training starts from a drafter in a folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxspec.checkpoints.huggingface import load_drafter
from jaxspec.cli.export import ExportCommand, export
from jaxspec.config import DrafterConfig, RunConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.training.loop import train
from jaxspec.training.tasks.registry import task_of
from jaxspec.training.validation import LOSS
from tests.training import runs


def changed(config: RunConfig, **groups) -> RunConfig:
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in groups.items()
        },
    )


@pytest.fixture(scope="module")
def first(run_config, tmp_path_factory) -> tuple[RunConfig, Path]:
    """A run with a validation part, and its folder."""
    config = changed(
        run_config,
        data={"validation": 0.3},
        training={"steps": 8, "checkpoint_every": 8, "validation_batches": 2},
    )
    workdir = tmp_path_factory.mktemp("first") / "run"
    train(config, workdir=workdir)
    return config, workdir


def from_it(config: RunConfig, folder: Path, **groups) -> RunConfig:
    """A run that starts from a drafter; it says nothing about its shape."""
    own = dataclasses.replace(config, drafter=DrafterConfig(path=str(folder), unroll_layers=True))
    return changed(own, **groups)


def test_drafters_are_not_trained_in_bfloat16(run_config):
    config = changed(run_config, drafter={"param_dtype": "bfloat16"})
    with pytest.raises(ValueError, match=r"param_dtype is 'bfloat16', but .* set drafter\.dtype"):
        task_of(config).build(config, tokenizer=Tokenizer.load("embedded"))


@pytest.mark.parametrize("form", ["zlab", "speculators"])
def test_shape_and_weights_are_the_drafters(first, tmp_path, form):
    config, workdir = first
    folder = tmp_path / "drafter"
    export(ExportCommand(workdir=str(workdir), output=str(folder), format=form, dtype="float32"))
    task = task_of(config).build(from_it(config, folder), tokenizer=Tokenizer.load("embedded"))
    drafter = task.config.drafter
    assert (drafter.block_size, drafter.num_layers, drafter.target_layer_ids) == (4, 1, (0, 1))
    assert drafter.unroll_layers, "how it is computed is the run's own"
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    loaded = task.load_initial(None)
    assert jax.tree.map(np.shape, loaded) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    _, stored = load_drafter(workdir / "export", target_config=runs.ARCHITECTURE)
    jax.tree.map(np.testing.assert_array_equal, loaded, stored)


@pytest.fixture(scope="module")
def second(first, tmp_path_factory) -> tuple[Path, Path]:
    """A folder with the first run's drafter, and the folder of a run that has started from it."""
    config, workdir = first
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(workdir / "export", folder / "drafter")
    train(from_it(config, folder / "drafter"), workdir=folder / "run")
    return folder / "drafter", folder / "run"


def test_it_begins_with_the_loss_that_the_drafter_had(first, second, tmp_path):
    config, workdir = first
    drafter, on = second
    before = runs.rows(workdir)[-1][LOSS]
    still = changed(
        from_it(config, drafter), optimizer={"learning_rate": 1e-12}, training={"steps": 1}
    )
    train(still, workdir=tmp_path / "still")
    assert runs.rows(tmp_path / "still")[0][LOSS] == pytest.approx(before, rel=1e-6)
    assert runs.rows(on)[-1][LOSS] < before - 0.01, "it keeps learning"
    record = json.loads((on / "provenance.json").read_text())
    assert set(record["fingerprints"]) == {"target.path", "drafter.path", "data"}
    assert record["config"]["drafter"]["block_size"] == 4


def test_changed_weights_are_refused_and_a_moved_folder_is_not(first, second, tmp_path):
    config, _ = first
    drafter, on = second
    moved = Path(shutil.copytree(drafter, tmp_path / "moved"))
    workdir = Path(shutil.copytree(on, tmp_path / "run"))
    train(from_it(config, moved), workdir=workdir)
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"drafter\.path \(weights\)"):
        train(from_it(config, moved), workdir=workdir)


def test_settings_that_contradict_the_drafter_are_refused(first, tmp_path):
    config, workdir = first
    asked = from_it(config, workdir, drafter={"num_layers": 3, "num_heads": 4})
    with pytest.raises(ValueError, match="shape differs") as caught:
        train(asked, workdir=tmp_path / "run")
    assert "drafter.num_layers: got 3, but the drafter has 1" in str(caught.value)
    assert "drafter.num_heads: got 4, but the drafter has 2" in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_training_goes_on_with_longer_blocks(first, tmp_path):
    config, workdir = first
    tokenizer = Tokenizer.load("embedded")
    asked = from_it(config, workdir, drafter={"block_size": 8})
    task = task_of(config).build(asked, tokenizer=tokenizer)
    assert task.objective.drafter.config.block_size == 8
    task.save(
        tmp_path / "export",
        task.load_initial(None),
        tokenizer=tokenizer,
        dtype="float32",
        provenance={},
    )
    (longer, weights), (shorter, before) = (
        load_drafter(folder / "export", target_config=runs.ARCHITECTURE)
        for folder in (tmp_path, workdir)
    )
    assert (shorter.block_size, longer.block_size) == (4, 8)
    assert longer == dataclasses.replace(shorter, block_size=8)
    jax.tree.map(np.testing.assert_array_equal, weights, before)


def test_the_drafter_is_not_replaced_by_what_is_trained(first):
    config, workdir = first
    with pytest.raises(ValueError, match=r"drafter\.path names"):
        train(from_it(config, workdir), workdir=workdir)


def test_no_drafter(run_config, tmp_path):
    config = from_it(run_config, tmp_path / "nothing")
    with pytest.raises(ValueError, match="nothing"):
        train(config, workdir=tmp_path / "run")
