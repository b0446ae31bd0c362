"""Held-out data: what is measured, that training does not notice, and what is kept and exported."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxspec.checkpoints.huggingface import load_drafter
from jaxspec.config import DenoiserConfig, DrafterConfig, LossConfig, MeshConfig, RunConfig
from jaxspec.data.example_files import write_examples
from jaxspec.data.examples import Example
from jaxspec.data.packing import Documents, pack
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.data.validation import is_validation
from jaxspec.losses import LossWeights
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import Rules
from jaxspec.training import validation as validation_module
from jaxspec.training.loop import train
from jaxspec.training.tasks.registry import task_of
from jaxspec.training.validation import (
    LOSS,
    TAU,
    HeldOut,
    Validation,
    held_out_warnings,
    measure_name,
    read_held_out,
)
from tests.training import runs, tiny

_CONFIG = RunConfig(loss=tiny.LOSS)


def changed(config, **groups):
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in groups.items()
        },
    )


@pytest.fixture(scope="module")
def held_out_config(run_config):
    """The tiny run with a validation part."""
    return changed(
        run_config,
        data={"validation": 0.3},
        training={"steps": 12, "validate_every": 3, "validation_batches": 2},
    )


@pytest.fixture(scope="module")
def moves() -> list[str]:
    """What the batches that are measured in the run of `validated` say to the stall watch."""
    return []


@pytest.fixture(scope="module")
def validated(held_out_config, moves, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("validated") / "run"
    original = Validation.measure

    def counted(self, params, *, moved):
        def told():
            moves.append("batch")
            moved()

        return original(self, params, moved=told)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Validation, "measure", counted)
        train(held_out_config, workdir=workdir)
    return workdir


def weights_of(workdir):
    return (workdir / "export" / "model.safetensors").read_bytes()


def test_training_does_not_notice(held_out_config, validated, tmp_path, capsys):
    config = changed(held_out_config, training={"validate_every": 0})
    train(config, workdir=tmp_path / "run")
    assert "validation" not in capsys.readouterr().out
    measured = {row["step"]: row for row in runs.rows(validated)}
    for row in runs.rows(tmp_path / "run"):
        assert row == {
            name: value
            for name, value in measured[row["step"]].items()
            if not name.startswith("validation_")
        }
    last = changed(held_out_config, training={"export_best": False})
    train(last, workdir=validated)  # Only the export differs.
    assert weights_of(validated) == weights_of(tmp_path / "run")
    train(held_out_config, workdir=validated)


def test_it_is_measured_at_checkpoints_and_in_between(validated):
    rows = runs.rows(validated)
    measured = [row["step"] for row in rows if TAU in row]
    assert measured == [3, 4, 6, 8, 9, 12], "every 3 steps, and at the checkpoints 4, 8 and 12"
    for row in rows:
        if TAU in row:
            assert row[TAU] == 1 + row["validation_accepted"] >= 1
            assert np.isfinite(row[LOSS]) and len(row["validation_accept_at"]) == 3


def test_a_run_that_continues_measures_the_same(held_out_config, validated, tmp_path, monkeypatch):
    steps = 0
    original = Validation.measure

    def stopping(self, params, **options):
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return original(self, params, **options)

    monkeypatch.setattr(Validation, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(held_out_config, workdir=tmp_path / "run")
    train(held_out_config, workdir=tmp_path / "run")
    assert runs.rows(tmp_path / "run") == runs.rows(validated)
    assert weights_of(tmp_path / "run") == weights_of(validated)


def test_the_best_checkpoint_is_kept_and_exported(held_out_config, tmp_path, monkeypatch, capsys):
    """Step 4 is made the best of 20."""
    config = changed(
        held_out_config, training={"steps": 20, "validate_every": None, "keep_checkpoints": 2}
    )
    original = Validation.measure
    taus = iter([2.0, 1.5, 1.7, 1.2, 1.9])
    seen = []

    def measure(self, params, **options):
        seen.append(jax.device_get(params["fc"]["kernel"]))
        return {**original(self, params, **options), TAU: next(taus)}

    monkeypatch.setattr(Validation, "measure", measure)
    workdir = tmp_path / "run"
    train(config, workdir=workdir)
    assert runs.saved_steps(workdir) == {4, 16, 20}
    assert "Exporting step 4 of 20: its validation tau 2.000 is the best" in capsys.readouterr().out
    _, params = load_drafter(workdir / "export", target_config=runs.ARCHITECTURE)
    np.testing.assert_array_equal(params["fc"]["kernel"], seen[0])
    record = json.loads((workdir / "export" / "provenance.json").read_text())
    assert record["step"] == 4 and "validation tau 2.000" in record["chosen"]
    before = runs.contents(workdir)
    train(config, workdir=workdir)
    assert runs.contents(workdir) == before
    # The last one on request, and where nothing is measured any more.
    for setting in ({"export_best": False}, {"validate_every": 0}):
        shutil.rmtree(workdir / "export")
        train(changed(config, training=setting), workdir=workdir)
        record = json.loads((workdir / "export" / "provenance.json").read_text())
        assert record["step"] == 20 and "chosen" not in record


def test_a_damaged_best_checkpoint_gives_way_to_the_last(
    held_out_config, validated, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(validated, workdir)
    metadata = workdir / "checkpoints" / "8" / "run" / "metadata"
    document = json.loads(metadata.read_text())
    document["progress"]["score"]["value"] = 9.0
    metadata.write_text(json.dumps(document))  # Its digest is no longer the recorded one.
    shutil.rmtree(workdir / "export")
    train(held_out_config, workdir=workdir)
    printed = capsys.readouterr().out
    assert "Exporting step 8 of 12" in printed
    assert "The last step is exported instead." in printed
    record = json.loads((workdir / "export" / "provenance.json").read_text())
    assert record["step"] == 12


def documents(count):
    rng = np.random.default_rng(1)
    return Documents.from_list(
        [(rng.integers(4, 64, 20), np.arange(20) >= 8) for _ in range(count)]
    )


@pytest.mark.parametrize(
    ("mesh_config", "parts"),
    [
        pytest.param(
            *(MeshConfig(), 1), marks=pytest.mark.slow("parts, and fsdp on this path, cover it")
        ),
        (MeshConfig(), 2),
        (MeshConfig(data=1, fsdp=2), 1),
        (MeshConfig(path="shard_map"), 2),
        (MeshConfig(path="pmap"), 1),
    ],
    ids=["jit", "parts", "fsdp", "shard_map", "pmap"],
)
def test_all_paths_measure_the_same(mesh_config, parts, monkeypatch):
    """Six rows in batches of 4: the second one is filled with empty rows."""
    read = []
    join = validation_module.global_batch
    monkeypatch.setattr(
        validation_module,
        "global_batch",
        lambda batch, mesh: read.append(batch["rows"].tolist()) or join(batch, mesh),
    )
    held_out = HeldOut(rows=pack(documents(6), sequence_length=24), digest="")
    assert len(held_out.rows) == 6
    mesh = make_mesh(mesh_config, devices=jax.devices()[:2])
    objective = tiny.objective()
    config = changed(
        _CONFIG,
        mesh=dataclasses.asdict(mesh_config),
        data={"batch_size": 4},
        training={"validation_batches": 5, "gradient_accumulation": parts},
    )
    params = tiny.drafter_params()
    rules = Rules.of(mesh_config)
    shardings = rules.shardings(params, mesh)
    target = tiny.target_params()
    frozen = jax.device_put(target, rules.shardings(target, mesh))
    validation = Validation.of(
        held_out,
        objective,
        config=config,
        local_rows=np.arange(4),
        frozen=frozen,
        mesh=mesh,
        params_shardings=shardings,
        fingerprints={},
    )
    assert [batch["rows"].tolist() for batch in validation.batches] == [[0, 1, 2, 3]] * 2
    assert not validation.batches[1]["segments"][2:].any()
    row = validation.measure(jax.device_put(params, shardings))
    # As many rows at a time as a training step reads: no others are known to fit.
    assert read == [list(range(part, 4, parts)) for _ in range(2) for part in range(parts)]
    # The slow form: every row alone, and one loss of all of them.
    total, weights = {}, LossWeights.from_config(config.loss)
    measure = jax.jit(objective)
    for number, batch in enumerate(validation.batches):
        key = jax.random.fold_in(jax.random.key(0), number)
        for index in range(4):
            one = {name: value[index : index + 1] for name, value in batch.items()}
            terms, _ = measure(params, target, one, key, weights)
            for name, (value, count) in terms.items():
                old = total.get(name, (0.0, 0.0))
                total[name] = (old[0] + float(value), old[1] + float(count))
    expected = float(objective.total(total, weights))
    assert row[LOSS] == pytest.approx(expected, rel=1e-5)


def test_scores_are_compared_where_they_measure_the_same():
    def name(**groups):
        config = RunConfig(**groups)
        return measure_name(config, texts="a1", batches=2, fingerprints={"target": "b2"})

    assert name(loss=LossConfig(chunk_blocks=8)) == name(), "the same loss, computed otherwise"
    assert name(drafter=DrafterConfig(remat=True)) == name(), "and the same drafter"
    others = [
        name(loss=LossConfig(focal=0.1)),
        name(denoiser=DenoiserConfig(objective="llada")),
        name(denoiser=DenoiserConfig(block_size=4)),
        name(denoiser=DenoiserConfig(context="causal")),
        name(drafter=DrafterConfig(block_size=4)),
        # The best step is exported with the settings of the run's end.
        name(drafter=DrafterConfig(rope_theta=77.0)),
    ]
    assert len({name(), *others}) == 1 + len(others)


def test_a_long_measurement_is_no_stall(validated, moves):
    """Each of its batches says that the run moves on."""
    measured = sum(TAU in row for row in runs.rows(validated))
    assert len(moves) >= measured > 0


def test_a_run_in_which_nothing_is_held_out_says_so(tmp_path):
    """As of answers to the training part of an import: the share that it took out is gone."""
    examples = [
        Example(str(n), (("user", f"What is {n}?"), ("assistant", "So.")), "own") for n in range(99)
    ]
    rest = [example for example in examples if not is_validation(example, 0.1)]
    write_examples(tmp_path / "answers", rest, manifest={"split": "train"})
    tokenizer = Tokenizer.load("embedded")

    def said(share, *, every=None):
        data = {"sources": (str(tmp_path / "answers"),), "validation": share}
        config = changed(_CONFIG, data=data, training={"validate_every": every})
        return held_out_warnings(config, read_held_out(config, tokenizer))

    (line,) = said(0.1)
    assert "nothing is held out" in line and "the last step is exported" in line
    assert "None of the prompts is chosen by data.validation 0.1" in line
    assert "larger share" in line and said(0.3) == []
    assert said(0.0) == said(0.1, every=0) == []
    (line,) = said(0.0, every=5)
    assert "training.validate_every is 5, but data.validation is 0" in line
    write_examples(tmp_path / "answers" / "validation", [], manifest={"split": "validation"})
    (line,) = said(0.0)
    assert "The validation part of the data is empty" in line


def test_a_held_out_part_with_nothing_to_learn_says_what_to_set(tmp_path):
    folder = tmp_path / "data"
    for part, question in ((".", "Why?"), ("validation", "Why? " * 40)):
        example = Example("0", (("user", question), ("assistant", "So.")), "own")
        split = "validation" if part == "validation" else "train"
        write_examples(folder / part, [example], manifest={"split": split})
    data = {"sources": (str(folder),), "sequence_length": 16}
    config = changed(RunConfig(), data=data)
    message = (
        r"The held-out part of the data .* None of the 1 documents .*data\.validation.*"
        r"data\.sequence_length.*--training\.validate_every 0"
    )
    with pytest.raises(ValueError, match=message) as caught:
        read_held_out(config, Tokenizer.load("embedded"))
    assert "training source" not in str(caught.value)
    assert read_held_out(changed(config, training={"validate_every": 0}), None) is None


def test_what_is_not_held_out_is_said_before_the_first_step(run_config, tmp_path, capsys):
    config = changed(run_config, data={"validation": 1e-12})
    assert task_of(config).prepare(config, workdir=tmp_path / "run").held_out is None
    assert "Warning: nothing is held out" in capsys.readouterr().out
