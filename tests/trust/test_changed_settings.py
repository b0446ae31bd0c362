"""A run that is started again with other settings is refused, and is not changed."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors import safe_open

import train as program
from jaxspec.cli.configuration import run_as_command
from tests.training import runs
from tests.trust.outcomes import Outcomes

CHANGED = {
    "--loss.decay": ["None"],
    "--loss.focal": ["0"],
    "--loss.chain": ["0"],
    "--loss.objective": ["d_pace"],
    "--loss.normalize": ["weight"],
    "--optimizer.learning_rate": ["4e-2"],
    "--optimizer.clip_norm": ["0.5"],
    "--optimizer.weight_decay": ["0.1"],
    "--optimizer.warmup_fraction": ["0.5"],
    "--data.anchors": ["8"],
    "--data.seed": ["3"],
    "--data.max_examples": ["30"],
    "--data.batch_size": ["16"],
    "--drafter.rope_theta": ["500"],
    "--drafter.block_size": ["5"],
    "--drafter.target_layer_ids": ["1"],
    "--drafter.num_layers": ["2"],
    "--target.dtype": ["bfloat16"],
    "--training.seed": ["3"],
    "--training.steps": ["40"],
}
FREE = {
    "--name": ["other"],
    "--training.log_every": ["3"],
    "--training.checkpoint_every": ["7"],
    "--training.keep_checkpoints": ["5"],
    "--training.export_dtype": ["bfloat16"],
    "--training.stall_timeout": ["60"],
    "--training.profile": ["1"],
    "--mesh.fsdp": ["2"],
}


@pytest.fixture(scope="module", params=["finished", "stopped"])
def before(request, finished_run, tmp_path_factory):
    """A run, and the same run as if it had been killed after its checkpoint at step 16."""
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    shutil.copytree(finished_run, workdir)
    if request.param == "stopped":
        shutil.rmtree(workdir / "checkpoints" / "20")
        shutil.rmtree(workdir / "export")
    return workdir


def start(config_file, workdir, *changes):
    """The status of train.py."""
    return run_as_command(
        program.main, ["--config", str(config_file), "--workdir", str(workdir), *changes]
    )


def test_every_changed_setting_is_refused(before, config_file, capsys):
    outcomes = Outcomes("changed settings")
    contents = runs.contents(before)
    for setting, value in CHANGED.items():
        capsys.readouterr()
        status = start(config_file, before, setting, *value)
        error = capsys.readouterr().err
        is_named = status == 2 and setting.removeprefix("--") in error and "recorded" in error
        if runs.contents(before) != contents:
            outcomes.add("lost", setting)
        else:
            outcomes.add("clean" if is_named else "silent", setting)
    outcomes.check()


def test_other_weights_of_the_same_shape_are_refused(before, config_file, tmp_path, capsys):
    other = runs.write_target(tmp_path / "other", seed=1)
    contents = runs.contents(before)
    assert start(config_file, before, "--target.path", str(other)) == 2
    assert "target.path (weights)" in capsys.readouterr().err
    assert runs.contents(before) == contents


def test_another_version_of_a_loss_term_is_refused(run_config, config_file, tmp_path, capsys):
    term, workdir = tmp_path / "mine.py", tmp_path / "run"
    term.write_text(
        "def mine(slots, *, mask_NG, weights_G):\n    return -slots.log_p_NG.sum(), mask_NG.sum()\n"
    )
    extra = ["--loss.extra", f"{term}:mine=0.5", "--training.steps", "4"]
    assert start(config_file, workdir, *extra) == 0
    term.write_text(term.read_text() + "# Changed.\n")
    contents = runs.contents(workdir)
    assert start(config_file, workdir, *extra) == 2
    assert f"loss.extra {term} (code)" in capsys.readouterr().err
    assert runs.contents(workdir) == contents


def test_the_same_weights_elsewhere_are_welcome(copy_of_run, run_config, config_file, tmp_path):
    moved = shutil.copytree(run_config.target.path, tmp_path / "moved")
    assert start(config_file, copy_of_run(), "--target.path", str(moved)) == 0


def test_what_may_change_changes_nothing_of_a_finished_run(copy_of_run, config_file):
    workdir = copy_of_run()
    contents = runs.contents(workdir)
    export_dtype = "--training.export_dtype"
    free = {setting: value for setting, value in FREE.items() if setting != export_dtype}
    changes = [word for setting, value in free.items() for word in (setting, *value)]
    assert start(config_file, workdir, *changes) == 0
    assert runs.contents(workdir) == contents
    # Except that the weights are written anew, in the type that is asked for, once.
    written = []
    for _ in range(2):
        assert start(config_file, workdir, export_dtype, "bfloat16") == 0
        file = workdir / "export" / "model.safetensors"
        with safe_open(file, "np") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
        written.append(file.stat().st_ino)
    assert written[0] == written[1]


def test_a_run_without_its_checkpoints_is_trained_and_exported_anew(copy_of_run, config_file):
    """What the first run left in export/ is not taken for the second one's."""
    workdir = copy_of_run()
    before = (workdir / "export" / "model.safetensors").read_bytes()
    shutil.rmtree(workdir / "checkpoints")
    assert start(config_file, workdir, "--loss.focal", "0", "--loss.chain", "0") == 0
    record = json.loads((workdir / "export" / "provenance.json").read_text())
    assert record["config"]["loss"]["focal"] == 0
    assert (workdir / "export" / "model.safetensors").read_bytes() != before


def test_what_no_step_decided_is_not_exported(copy_of_run, config_file, capsys):
    workdir = copy_of_run()
    shutil.rmtree(workdir / "export")
    contents = runs.contents(workdir)
    assert start(config_file, workdir, "--loss.focal", "0", "--accept_changes", "True") == 2
    assert "no step is left" in capsys.readouterr().err
    assert runs.contents(workdir) == contents
    assert start(config_file, workdir) == 0
    record = json.loads((workdir / "export" / "provenance.json").read_text())
    assert record["config"]["loss"]["focal"] == 0.3


@pytest.mark.parametrize("record", ["", "{}"])
def test_a_target_is_not_replaced_by_what_is_trained_on_it(
    run_config, config_file, tmp_path, capsys, record
):
    target = shutil.copytree(run_config.target.path, tmp_path / "run" / "export")
    if record:  # As if jaxspec had trained it.
        (target / "provenance.json").write_text(record)
    contents = runs.contents(tmp_path)
    assert start(config_file, tmp_path / "run", "--target.path", str(target)) == 2
    error = capsys.readouterr().err
    assert "jaxspec did not export it" in error or "that target.path names" in error
    assert runs.contents(tmp_path) == contents


def test_accepted_changes_are_recorded_with_the_weights(copy_of_run, config_file, capsys):
    """A finished run is continued with the uniform loss: everything that it leaves says so."""
    workdir = copy_of_run()
    uniform = ["--loss.decay", "None", "--loss.focal", "0", "--loss.chain", "0"]
    longer = ["--training.steps", "24", "--restart_schedule", "True"]
    assert start(config_file, workdir, *uniform, *longer) == 2
    assert start(config_file, workdir, *uniform, *longer, "--accept_changes", "True") == 0
    for folder in (workdir, workdir / "export"):
        record = json.loads((folder / "provenance.json").read_text())
        assert [part["from_step"] for part in record["segments"]] == [0, 20]
        assert [part["config"]["loss"]["focal"] for part in record["segments"]] == [0.3, 0.0]
        assert record["schedule_from_step"] == 20
    assert record["step"] == 24
    rows = runs.rows(workdir)
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert max(row["learning_rate"] for row in rows[20:]) == rows[0]["learning_rate"]
    # Once more: nothing is left to do, and the first settings no longer apply.
    contents = runs.contents(workdir)
    assert start(config_file, workdir, *uniform, "--training.steps", "24") == 0
    assert start(config_file, workdir) == 2
    assert runs.contents(workdir) == contents
