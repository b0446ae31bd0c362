"""A mistake is reported in one clear message, before anything is written."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import train as program
from jaxspec.cli.configuration import run_as_command
from jaxspec.data.pipeline import make_pipeline
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.training.loop import train
from tests.training import runs

ROOT = Path(__file__).parent.parent.parent


def changed(config, **groups):
    """The configuration with some settings changed."""
    return dataclasses.replace(
        config,
        **{
            group: dataclasses.replace(getattr(config, group), **values)
            for group, values in groups.items()
        },
    )


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """Where nothing must appear."""
    monkeypatch.delenv("JAXSPEC_RAW_DATA", raising=False)
    monkeypatch.setenv("JAXSPEC_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "run"


MISTAKES = {
    "mask id outside the embedding": (
        {"drafter": {"mask_token_id": 1024}},
        "mask_token_id is 1024, but the target's embedding has 1024 rows",
    ),
    "negative mask id": (
        {"drafter": {"mask_token_id": -1}},
        "must be at least 0: got -1",
    ),
    "target layer out of range": (
        {"drafter": {"target_layer_ids": (0, 2)}},
        r"Target layer ids must lie in 0\.\.1 .*got \[2\]",
    ),
    "a block longer than the target's positions": (
        {"drafter": {"block_size": 257}},
        "block_size is 257, but the target has only 256 positions",
    ),
    "heads that do not divide": (
        {"drafter": {"num_heads": 3, "num_kv_heads": 2}},
        "num_heads must be a multiple of drafter.num_kv_heads: got 3 and 2",
    ),
    "a frozen target computed again": (
        {"target": {"remat": True}},
        "target.remat is True, but this run does not train the target",
    ),
    "chunks of tokens for blocks": (
        {"training": {"chunk_tokens": 8}},
        "training.chunk_tokens is 8, but .* set loss.chunk_blocks",
    ),
    "chunks that do not divide": ({"drafter": {"chunk_blocks": 3}}, "must divide the 4 blocks"),
    "more features than layers": (
        {"drafter": {"target_layer_ids": (), "num_features": 2}},
        "from 1 to 1.*got 2",
    ),
    "unknown objective": ({"loss": {"objective": "streek"}}, "Did you mean 'streak'"),
    "unknown extra term": (
        {"loss": {"extra": ("absent.py:f=1",)}},
        "'absent.py:f': there is no file",
    ),
    "rows that do not divide": (
        {"data": {"batch_size": 12}},
        "batch_size is 12, which must be a multiple of 8",
    ),
    "parts that do not divide": (
        {"training": {"gradient_accumulation": 3}},
        "must be a multiple of 24: mesh.data 8 x mesh.fsdp 1 x 3 accumulated parts",
    ),
    "rows that no machine holds": (
        {"data": {"sequence_length": 1 << 30}},
        r"of 1073741824 tokens \(data.sequence_length\) takes at least 512.0 GiB",
    ),
    "a model that no machine holds": (
        {"drafter": {"intermediate_size": 1 << 22, "num_layers": 4000}},
        "Parameters and optimizer state take at least .* GiB on each device, which has",
    ),
    "missing data folder": (
        {"data": {"sources": ("gsm8k",), "raw_dir": "nowhere"}},
        "Raw data not found: looked for gsm8k/train.jsonl.*https://.*data.raw_dir",
    ),
    "unknown data set": (
        {"data": {"sources": ("gsm9k",)}},
        "Unknown data set 'gsm9k'.*jaxspec regenerate",
    ),
    "data for evaluation": (
        {"data": {"sources": ("math500",)}},
        "for evaluation only, never for training",
    ),
    "a tokenizer of its own": (
        {"data": {"tokenizer": "train"}},
        "needs the tokenizer of its target",
    ),
    "missing target": ({"target": {"path": "nowhere"}}, "no config.json in nowhere"),
    "another target": (
        {"target": {"architecture": dataclasses.replace(runs.ARCHITECTURE, hidden_size=32)}},
        "hidden_size: got 16, expected 32",
    ),
    "no architecture": (
        {"training": {"task": "target"}, "target": {"path": ""}},
        "Training a target needs target.architecture",
    ),
    "an architecture that no family has": (
        {
            "training": {"task": "target"},
            "target": {
                "path": "",
                "architecture": dataclasses.replace(
                    runs.ARCHITECTURE, family="llama", qk_norm=True
                ),
            },
        },
        "qk_norm: got True, expected False",
    ),
    "devices that are not there": ({"mesh": {"data": 3}}, "needs 3 devices, but there are 8"),
    "a mesh that does not divide the models": (
        {"mesh": {"data": 1, "tensor": 8}},
        r"The target cannot be spread over this mesh:\n  mesh.tensor is 8, which does not divide "
        r"its \d+ query heads(.|\n)*The drafter cannot be",
    ),
    "a path that replicates": (
        {"mesh": {"path": "pmap", "fsdp": 2}},
        'Use mesh.path="jit" for fsdp, context and tensor',
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_nothing_is_written(run_config, workdir, changes, message):
    with pytest.raises(ValueError, match=message):
        train(changed(run_config, **changes), workdir=workdir)
    assert not workdir.exists()


def test_a_tokenizer_beyond_the_embedding_leaves_nothing(run_config, workdir):
    """It is found only after the tokenizer was trained."""
    small = dataclasses.replace(runs.ARCHITECTURE, vocab_size=280)
    config = changed(
        run_config,
        training={"task": "target"},
        target={"path": "", "architecture": small},
        data={"tokenizer": "train", "tokenizer_vocab": 300},
    )
    with pytest.raises(ValueError, match="300 ids, but the target's embedding only 280 rows"):
        train(config, workdir=workdir)
    assert not workdir.exists()


def test_broken_weights_are_refused(run_config, workdir, tmp_path):
    target = runs.write_target(tmp_path / "target")
    tensors = load_file(target / "model.safetensors")
    name = "model.norm.weight"
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"16 of 16 values of model\.norm\.weight"):
        train(changed(run_config, target={"path": str(target)}), workdir=workdir)
    assert not workdir.exists()


def test_divergence_names_step_batch_and_checkpoint(run_config, copy_of_run):
    """A finished run continues with a rate that overflows: its first update ruins the next loss."""
    workdir = copy_of_run()
    before = {name: runs.contents(workdir / name) for name in ("checkpoints", "export")}
    config = changed(
        run_config,
        training={"steps": runs.STEPS + 8},
        optimizer={"learning_rate": 1e38},
    )
    with pytest.raises(ValueError) as caught:
        train(config, workdir=workdir, accept_changes=True)
    message = str(caught.value)
    assert f"not finite at step {runs.STEPS + 2};" in message
    assert f"Last good checkpoint: step {runs.STEPS} in " in message
    assert "Try a lower optimizer.learning_rate (now 1e+38)" in message
    pipeline = make_pipeline(config.data, Tokenizer.load(config.target.path))
    batch = {name for row in pipeline.example_ids(runs.STEPS + 1) for name in row}
    assert batch
    assert all(name in message for name in batch)
    assert {name: runs.contents(workdir / name) for name in before} == before
    # The lines of the bad steps stay readable, and a new start drops them.
    assert [row["step"] for row in runs.rows(workdir)][-2:] == [21, 22]
    assert runs.rows(workdir)[-1]["loss"] is None


def test_divergence_before_any_checkpoint(run_config, workdir):
    config = changed(run_config, optimizer={"learning_rate": 1e38, "warmup_fraction": 0.0})
    with pytest.raises(ValueError, match=r"not finite at step 2;.*checkpoint: none was saved yet"):
        train(config, workdir=workdir)
    assert not list((workdir / "checkpoints").iterdir())
    assert not (workdir / "export").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainng.steps", "3"], "error: Unknown setting --trainng.steps. Did you mean --tr"),
        (["--drafter.block_size", "1"], "error: drafter.block_size must be at least 2"),
        (["--drafter.mask_token_id", "5000"], "error: drafter.mask_token_id is 5000, but"),
        (["--data.sources", "gsm8k", "--data.raw_dir", "nowhere"], "error: Raw data not found"),
    ],
)
def test_the_command_says_it_in_one_message(config_file, workdir, capsys, arguments, message):
    line = ["--config", str(config_file), "--workdir", str(workdir), *arguments]
    assert run_as_command(program.main, line) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert "Traceback" not in error
    assert not workdir.exists()


def test_the_program_exits_with_2(config_file, workdir):
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "train.py"), "--config", str(config_file)),
            *("--workdir", str(workdir), "--drafter.target_layer_ids", "0", "7"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: Target layer ids must lie in 0..1")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not workdir.exists()
