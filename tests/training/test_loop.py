"""A whole run: what it writes, and what a second call finds."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np

from jaxspec.checkpoints.huggingface import load_drafter
from jaxspec.config import MeshConfig
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


def test_a_run_whose_rows_are_split_has_the_same_trace(finished_run, run_config, tmp_path):
    settings = dataclasses.replace(run_config.training, checkpoint_every=runs.STEPS, export=False)
    config = dataclasses.replace(run_config, mesh=MeshConfig(data=2, context=4), training=settings)
    train(config, workdir=tmp_path / "run")
    got, expected = runs.rows(tmp_path / "run"), runs.rows(finished_run)
    assert [row["step"] for row in got] == [row["step"] for row in expected]
    for name in ("loss", "gradient_norm", "cross_entropy"):
        values = [[row[name] for row in trace] for trace in (got, expected)]
        np.testing.assert_allclose(*values, rtol=1e-5, err_msg=name)


def test_a_finished_run_stays_as_it_is(copy_of_run, run_config, capsys):
    workdir = copy_of_run()
    before = runs.contents(workdir)
    row = train(run_config, workdir=workdir)
    assert row["step"] == runs.STEPS
    assert f"is finished: all {runs.STEPS} steps are done" in capsys.readouterr().out
    assert runs.contents(workdir) == before
