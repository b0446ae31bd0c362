"""A whole run: what it writes, and what a second call finds."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import pytest

from jaxspec.checkpoints.huggingface import load_drafter, load_target
from jaxspec.config import DataConfig, RunConfig, TargetConfig, TrainingConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.training.loop import train
from tests.training import runs


def test_a_run_writes_a_line_a_step(finished_run):
    rows = runs.rows(finished_run)
    assert [row["step"] for row in rows] == list(range(1, runs.STEPS + 1))
    for row in rows:
        assert math.isfinite(row["loss"])
        assert row["gradient_norm"] > 0
        assert row["accepted"] >= 0
        assert len(row["accept_at"]) == 3, "a block of 4 has 3 drafted slots"
        assert {"cross_entropy", "first_error_focal", "chain_reward"} <= row.keys()
    first, last = rows[0], rows[-1]
    assert first["learning_rate"] > last["learning_rate"] == 0
    lines = (finished_run / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["tokens_per_s"] > 0 for line in lines)


def test_a_run_says_where_it_comes_from(finished_run, run_config):
    record = json.loads((finished_run / "provenance.json").read_text())
    assert {"command", "config", "commit", "versions", "devices", "seed"} <= record.keys()
    assert record["seed"] == run_config.training.seed
    assert record["devices"]["count"] == jax.device_count()
    drafter = record["config"]["drafter"]
    assert drafter["mask_token_id"] == Tokenizer.load("embedded").mask_id, "filled in"
    assert drafter["target_layer_ids"] == [0, 1]
    assert list((finished_run / "tensorboard").glob("events.*"))


def test_the_newest_checkpoints_stay(finished_run):
    assert runs.saved_steps(finished_run) == {16, 20}


def test_the_export_loads(finished_run, run_config):
    export = finished_run / "export"
    config, params = load_drafter(export, target_config=runs.ARCHITECTURE)
    assert config.block_size == run_config.drafter.block_size
    assert params["fc"]["kernel"].shape == (2 * 16, 16)
    assert Tokenizer.load(export).vocab_size == 1024
    record = json.loads((export / "provenance.json").read_text())
    assert record["config"]["name"] == "tiny"


def test_a_finished_run_stays_as_it_is(copy_of_run, run_config, capsys):
    workdir = copy_of_run()
    before = runs.contents(workdir)
    row = train(run_config, workdir=workdir)
    assert row["step"] == runs.STEPS
    assert f"Going on from step {runs.STEPS}" in capsys.readouterr().out
    after = runs.contents(workdir)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    # The time of writing stands in both records; the board gets a file for every start.
    assert {name for name in changed if not name.startswith("tensorboard/")} <= {
        "provenance.json",
        "export/provenance.json",
    }


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
