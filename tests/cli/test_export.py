from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxspec.checkpoints.families import servers
from jaxspec.checkpoints.folders import fingerprint
from jaxspec.checkpoints.huggingface import load_drafter, load_target
from jaxspec.checkpoints.train_state import TrainCheckpoints
from jaxspec.cli import export as command
from jaxspec.cli import main as console
from jaxspec.cli.configuration import run_as_command
from jaxspec.config import (
    DenoiserConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.models.dflash import DFlash
from jaxspec.models.registry import make_model
from jaxspec.models.transformer import Transformer
from jaxspec.provenance import provenance, write_json
from jaxspec.training.draft_record import KEY, reference_record
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.run_record import read_run_config
from jaxspec.training.state import TrainState
from jaxspec.training.tasks.registry import task_of
from tests.cli.stopped_runs import exported, rewrite_progress, save_drafter_run, save_run
from tests.training import runs


@pytest.fixture(scope="module")
def drafter_run(tmp_path_factory):
    """See `save_drafter_run`."""
    return save_drafter_run(tmp_path_factory.mktemp("stopped"))


def test_from_the_newest_checkpoint(drafter_run, tmp_path, capsys):
    workdir, params = drafter_run
    before = runs.contents(workdir)
    output = tmp_path / "out"
    arguments = ["export", "--workdir", str(workdir), "--output", str(output)]
    assert run_as_command(console.dispatch, [*arguments, "--dtype", "float32"]) == 0
    assert "Drafter (zlab) in float32 written" in (printed := capsys.readouterr().out)
    assert "from the checkpoint of step 5" in printed
    config, loaded = load_drafter(output, target_config=runs.ARCHITECTURE)
    assert (config.block_size, config.mask_token_id, config.target_layer_ids) == (4, 3, (0, 1))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    record = json.loads((output / "provenance.json").read_text())
    assert record["step"] == 5
    assert (output / "tokenizer.json").is_file()
    assert runs.contents(workdir) == before, "the run is only read"


def test_drafts_are_recorded_as_at_the_end_of_a_run(drafter_run, tmp_path, capsys):
    workdir, params = drafter_run
    config = read_run_config(workdir)
    target, frozen = load_target(config.target.path)
    expected = reference_record(
        params,
        frozen,
        target=make_model(target),
        drafter=DFlash(config.drafter, target.hidden_size),
        tokenizer=Tokenizer.load(config.target.path),
    )
    assert expected["texts"]
    exported(drafter_run, tmp_path / "out")
    assert recorded(tmp_path / "out")[KEY] == json.loads(json.dumps(expected))
    assert "No drafts" not in capsys.readouterr().out
    exported(drafter_run, tmp_path / "out", record_drafts=False)
    assert KEY not in recorded(tmp_path / "out")


@pytest.mark.parametrize("source", ["export", "checkpoint"])
def test_a_target_that_has_moved(drafter_run, tmp_path, source):
    run, old, new = tmp_path / "run", drafter_run[0].parent / "target", tmp_path / "elsewhere"
    shutil.copytree(drafter_run[0], run)
    exported(drafter_run, run / "export")
    old.rename(new)
    try:
        with pytest.raises(ValueError, match="If it has moved, give its folder as --target"):
            exported((run,), tmp_path / "out", source=source)
        exported((run,), tmp_path / "out", source=source, target=str(new))
        other = str(runs.write_target(tmp_path / "other", seed=7))
        with pytest.raises(ValueError, match="other holds other weights than those that the"):
            exported((run,), tmp_path / "out", source=source, target=other)
    finally:
        new.rename(old)
    assert load_drafter(tmp_path / "out", target_config=runs.ARCHITECTURE)[0].block_size == 4
    assert f"| Target | {new} |" in (tmp_path / "out" / "README.md").read_text()


def test_drafts_with_another_target_are_not_recorded(drafter_run, tmp_path, capsys):
    weights = Path(drafter_run[0].parent / "target" / "model.safetensors")
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        exported(drafter_run, tmp_path / "out")
    finally:
        weights.write_bytes(sound)
    assert KEY not in recorded(tmp_path / "out")
    assert "does not say that it was trained with the weights in" in capsys.readouterr().out


def recorded(output: Path) -> dict:
    """provenance.json of an export."""
    return json.loads((output / "provenance.json").read_text())


def test_the_finished_export_is_preferred(drafter_run, tmp_path, capsys):
    workdir, _ = drafter_run
    first = command.export(
        command.ExportCommand(workdir=str(workdir), output=str(tmp_path / "a"), dtype="float32")
    )
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "provenance.json").write_bytes((workdir / "provenance.json").read_bytes())
    first.rename(run / "export")
    second = command.export(command.ExportCommand(workdir=str(run), output=str(tmp_path / "b")))
    assert "from " + str(run / "export") in capsys.readouterr().out
    with pytest.raises(ValueError, match="is the folder that the weights are read from"):
        command.export(command.ExportCommand(workdir=str(run), output=str(run / "export")))
    tensors = load_file(second / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}
    assert json.loads((second / "config.json").read_text())["dtype"] == "bfloat16"


def test_speculators_count_layers_from_one(drafter_run, tmp_path):
    workdir, params = drafter_run
    output = command.export(
        command.ExportCommand(
            workdir=str(workdir),
            output=str(tmp_path / "out"),
            format="speculators",
            dtype="float32",
            target_name="someone/target",
        )
    )
    document = json.loads((output / "config.json").read_text())
    assert document["speculators_model_type"] == "dflash"
    assert document["aux_hidden_state_layer_ids"] == [1, 2]
    assert document["speculators_config"]["verifier"]["name_or_path"] == "someone/target"
    assert document["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 3
    config, loaded = load_drafter(output, target_config=runs.ARCHITECTURE)
    assert config.target_layer_ids == (0, 1)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_the_verifier_is_the_target_of_the_run(drafter_run, tmp_path, capsys):
    target = drafter_run[0].parent / "target"
    verifier = exported(drafter_run, tmp_path / "a", format="speculators")["speculators_config"][
        "verifier"
    ]
    assert verifier == {"architectures": ["Qwen3ForCausalLM"], "name_or_path": str(target)}
    assert "For other machines, give the name" in capsys.readouterr().out
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "_name_or_path": "some/model"}))
    try:
        document = exported(drafter_run, tmp_path / "b", format="speculators")
    finally:
        (target / "config.json").write_text(json.dumps(config))
    # A fine-tuned model names the one that it was made from.
    assert document["speculators_config"]["verifier"]["name_or_path"] == str(target)
    assert "config.json names some/model; but that may be the model" in capsys.readouterr().out
    named = exported(drafter_run, tmp_path / "c", format="speculators", target_name="some/model")
    assert named["speculators_config"]["verifier"]["name_or_path"] == "some/model"
    assert "For other machines" not in capsys.readouterr().out


def test_low_rank_updates_are_added_only_to_the_weights_of_their_training(tmp_path):
    base = runs.write_target(tmp_path / "base")
    config = RunConfig(
        target=TargetConfig(path=str(base)),
        denoiser=DenoiserConfig(path=str(base), lora_rank=2, objective="llada"),
        training=TrainingConfig(task="denoiser"),
    )
    task = task_of(config).build(config)
    record = provenance(config=config, seed=0)
    record["fingerprints"] = {"denoiser.path": fingerprint(base)}
    transform, _ = make_optimizer(config.optimizer, steps=config.training.steps)
    state = TrainState.create(task.init(jax.random.key(0)), transform)
    checkpoints = TrainCheckpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.save(3, state, progress={"record": record})
    checkpoints.close()
    write_json(tmp_path / "run" / "provenance.json", record)
    arguments = {"workdir": str(tmp_path / "run"), "output": str(tmp_path / "out")}
    command.export(command.ExportCommand(**arguments))
    shutil.rmtree(base)
    runs.write_target(base, seed=7)
    with pytest.raises(ValueError, match=r"other weights than those .* \(denoiser\.path\)"):
        command.export(command.ExportCommand(**arguments))


def test_a_drafter_without_norms_is_for_no_server(drafter_run, tmp_path):
    workdir, _ = drafter_run
    config = read_run_config(workdir)
    config = dataclasses.replace(config, drafter=dataclasses.replace(config.drafter, qk_norm=False))
    shape = runs.ARCHITECTURE
    features = np.zeros((1, 2, 2 * shape.hidden_size), np.float32)
    save_run(tmp_path / "run", config, DFlash(config.drafter, shape.hidden_size), features)
    for format in ("zlab", "speculators"):
        with pytest.raises(ValueError, match="qk_norm: got false, expected true"):
            exported((tmp_path / "run", None), tmp_path / "out", format=format)
        assert not (tmp_path / "out").exists()


def test_states_from_before_the_final_norm_are_not_exported(drafter_run, tmp_path):
    """As an earlier version recorded it: nothing about the last layer."""
    message = r"before the target's final norm[\s\S]*train it again"
    workdir = shutil.copytree(drafter_run[0], tmp_path / "run")
    record = json.loads((workdir / "provenance.json").read_text())
    del record["config"]["drafter"]["last_state"]
    (workdir / "provenance.json").write_text(json.dumps(record))
    rewrite_progress(workdir, 5, record=record)
    for format in ("zlab", "speculators"):
        with pytest.raises(ValueError, match=message):
            exported((workdir, None), tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()

    whole = tmp_path / "whole"
    exported(drafter_run, whole)
    assert load_drafter(whole, target_config=runs.ARCHITECTURE)[0].last_state == "normed"
    (whole / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        load_drafter(whole, target_config=runs.ARCHITECTURE)


SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("kinds", "causal", "format", "servers_named"),
    [
        ([FULL, FULL], None, "zlab", []),
        ([FULL, FULL], False, "zlab", []),
        ([FULL, FULL], True, "zlab", ["SGLang", "tpu-inference"]),
        ([SLIDING, SLIDING], None, "zlab", ["tpu-inference", "tpu-inference"]),
        ([SLIDING, SLIDING], False, "zlab", ["tpu-inference", "SGLang"]),
        ([SLIDING, FULL], None, "zlab", ["tpu-inference", "vLLM", "tpu-inference"]),
        (
            [SLIDING, FULL],
            None,
            "speculators",
            ["tpu-inference", "vLLM", "speculators", "vLLM", "tpu-inference"],
        ),
    ],
)
def test_servers_that_compute_something_else_are_named(kinds, causal, format, servers_named):
    document = {
        "layer_types": kinds,
        "is_causal": causal,
        "num_target_layers": 6,
        "dflash_config": {"target_layer_ids": [1, 3]},
    }
    lines = servers.warnings(document, format=format, target={"model_type": "qwen3"})
    assert [line.split()[0] for line in lines] == servers_named
    base = servers.warnings(
        document, format=format, target={"model_type": "qwen3"}, has_template=False
    )
    assert base[:-1] == lines and "no chat template" in base[-1]
    assert ("z-lab's script stops" in base[-1]) == (format == "zlab")
    scaled = servers.warnings(document, format=format, target={"model_type": "gemma3_text"})
    assert [line.split()[0] for line in scaled] == [*servers_named, "SGLang"]
    document["dflash_config"]["target_layer_ids"] = [1, 5]
    more = servers.warnings(document, format="speculators", target={"model_type": "gpt2"})
    assert any("last layer is captured" in line for line in more)
    assert any("no embedding in a gpt2" in line for line in more)
    more = servers.warnings(document, format="speculators", target={"model_type": "gpt_neox"})
    assert any("no embedding in a gpt_neox" in line for line in more)
    assert any("--model-impl transformers" in line for line in more)


def test_a_target_from_its_checkpoint(tmp_path):
    architecture = TransformerConfig(
        vocab_size=1024, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24, tie_embeddings=False,
    )  # fmt: skip
    config = RunConfig(target=TargetConfig(path="", architecture=architecture))
    config = dataclasses.replace(
        config, training=dataclasses.replace(config.training, task="target")
    )
    params = save_run(
        tmp_path / "run", config, Transformer(architecture), np.zeros((1, 4), np.int32), steps=(2,)
    )
    call = {"workdir": str(tmp_path / "run"), "output": str(tmp_path / "out")}
    command.export(command.ExportCommand(**call, dtype="float32"))
    loaded_config, loaded = load_target(tmp_path / "out")
    assert loaded_config == architecture
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    with pytest.raises(ValueError, match="is only for DFlash drafters"):
        command.export(command.ExportCommand(**call, format="speculators"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No run in .*expected the --workdir"),
        ("{}", "holds no configuration"),
        ('{"config": null}', "holds no configuration"),
        ('{"config": {"steps": 1}}', "does not know: steps"),
        ("nonsense", "provenance.json is not JSON"),
        ("{}", "holds no configuration"),
    ],
)
def test_what_is_no_run(tmp_path, content, message):
    if content is not None:
        (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        command.export(command.ExportCommand(workdir=str(tmp_path), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_a_version_without_records(drafter_run, tmp_path):
    workdir = shutil.copytree(drafter_run[0], tmp_path / "run")
    for step in (workdir / "checkpoints").iterdir():
        file = step / "run" / "metadata"
        described = json.loads(file.read_text())
        del described["progress"]["record"]
        file.write_text(json.dumps(described))
        (step / "run" / "file_digests.json").unlink()
    call = {"workdir": str(workdir), "output": str(tmp_path / "out")}
    command.export(command.ExportCommand(**call))
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["step"] == 5
    assert record["config"] == json.loads((workdir / "provenance.json").read_text())["config"]


def test_nothing_to_export_yet(drafter_run, tmp_path):
    workdir, _ = drafter_run
    call = {"workdir": str(tmp_path), "output": str(tmp_path / "out")}
    (tmp_path / "provenance.json").write_bytes((workdir / "provenance.json").read_bytes())
    with pytest.raises(ValueError, match="has not saved one yet"):
        command.export(command.ExportCommand(**call))
    with pytest.raises(ValueError, match="--from checkpoint"):
        command.export(command.ExportCommand(**call, source="export"))
    assert [file.name for file in tmp_path.iterdir()] == ["provenance.json"]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an export, not a run: give the folder above it"):
        command.export(command.ExportCommand(**call))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/proc/out", "--output /proc/out/config.json cannot be written to"),
        (
            "{tmp}/file/out",
            r"--output .*file/out/config.json cannot be written to: a file is there, where",
        ),
        ("{tmp}/file", r"--output .*file/config.json cannot be written to: .*file"),
        ("{tmp}/model", r"model holds a model without provenance.json"),
        ("{tmp}/full", r"full holds other files, .*\['mine.txt'\]"),
    ],
)
def test_the_place_is_tried_before_weights_are_read(
    drafter_run, tmp_path, monkeypatch, place, message
):
    workdir, _ = drafter_run
    monkeypatch.setattr(command, "_from_checkpoint", lambda *_: pytest.fail("read the weights"))
    (tmp_path / "file").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    shutil.copytree(workdir.parent / "target", tmp_path / "model")
    before = runs.contents(tmp_path)
    output = place.format(tmp=tmp_path)
    with pytest.raises(ValueError, match=message):
        command.export(command.ExportCommand(workdir=str(workdir), output=output))
    assert runs.contents(tmp_path) == before


def test_an_export_that_fails_at_its_end_leaves_the_earlier_one(drafter_run, tmp_path, monkeypatch):
    workdir, _ = drafter_run
    call = {"workdir": str(workdir), "output": str(tmp_path / "out")}
    command.export(command.ExportCommand(**call))
    before = runs.contents(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxspec.provenance.write_json", fail)
    with pytest.raises(OSError, match="No space left"):
        command.export(command.ExportCommand(**call, format="speculators"))
    assert runs.contents(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    monkeypatch.undo()
    command.export(command.ExportCommand(**call, format="speculators"))
    assert "speculators_config" in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.fixture
def scored_run(drafter_run, tmp_path):
    """A copy of the stopped run whose checkpoints were measured; the first one is the best."""
    workdir = Path(shutil.copytree(drafter_run[0], tmp_path / "scored"))
    for step, value in ((3, 2.5), (5, 2.0)):
        score = {"value": value, "measure": "m", "text": f"validation tau {value}"}
        rewrite_progress(workdir, step, score=score)
    return workdir


@pytest.mark.parametrize(
    ("options", "step"),
    [((), 3), (("--step", "best"), 3), (("--step", "last"), 5), (("--step", "5"), 5)],
)
def test_the_best_checkpoint_or_the_one_that_is_named(scored_run, tmp_path, capsys, options, step):
    output = tmp_path / "out"
    arguments = ["export", "--workdir", str(scored_run), "--output", str(output)]
    assert run_as_command(console.dispatch, [*arguments, *options]) == 0
    printed = capsys.readouterr().out
    assert f"from the checkpoint of step {step}" in printed
    assert ("validation tau 2.5 is the best" in printed) == (step == 3)
    assert json.loads((output / "provenance.json").read_text())["step"] == step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--step", "4"), "No checkpoint of step 4"),
        (("--step", "newest"), "--step must be best, last or the step"),
        (("--step", "5", "--from", "export"), "leave one of them out"),
    ],
)
def test_steps_that_are_not_there(scored_run, tmp_path, capsys, options, message):
    arguments = ["export", "--workdir", str(scored_run), "--output", str(tmp_path / "out")]
    assert run_as_command(console.dispatch, [*arguments, *options]) == 2
    assert message in capsys.readouterr().err


def test_no_checkpoint_was_measured(drafter_run, tmp_path, capsys):
    arguments = ["export", "--workdir", str(drafter_run[0]), "--output", str(tmp_path / "out")]
    assert run_as_command(console.dispatch, [*arguments, "--step", "best"]) == 2
    assert "none of the checkpoints" in capsys.readouterr().err
