"""The settings that a run was started with, and those it may be continued with."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from jaxspec.cli.settings import setting_names
from jaxspec.config import DiTConfig, LossConfig, OptimizerConfig, RunConfig, TransformerConfig
from jaxspec.provenance import provenance
from jaxspec.training.loop import train
from jaxspec.training.segments import continued_record, differences, own_terms
from jaxspec.training.tasks.settings import MAY_CHANGE

WORKDIR = Path("runs/a")
CONSTANT = OptimizerConfig(schedule="constant", warmup_fraction=0.1)


def record(weights="same", **groups):
    """The record of a run of 100 steps with some settings changed."""
    config = RunConfig(training=dataclasses.replace(RunConfig().training, steps=100))
    for group, values in groups.items():
        changed = (
            dataclasses.replace(getattr(config, group), **values)
            if isinstance(values, dict)
            else values
        )
        config = dataclasses.replace(config, **{group: changed})
    return {
        **provenance(config=config, seed=0),
        "fingerprints": {"target.path": weights},
        "schedule_from_step": 0,
    }


def test_what_may_change_are_settings():
    config = RunConfig()
    config = dataclasses.replace(
        config,
        target=dataclasses.replace(config.target, architecture=TransformerConfig()),
        denoiser=dataclasses.replace(config.denoiser, architecture=DiTConfig()),
    )
    names = set(setting_names(config)) | {"evaluation", "diffusion", "mesh"}
    assert set(MAY_CHANGE) <= names


def test_the_same_settings_keep_the_record_and_note_the_start():
    recorded = record()
    got = continued_record(recorded, record(), step=40, workdir=WORKDIR)
    assert {key: got[key] for key in recorded} == recorded
    assert [start["from_step"] for start in got["resumed"]] == [40]
    again = continued_record(got, record(), step=60, workdir=WORKDIR)
    assert [start["from_step"] for start in again["resumed"]] == [40, 60]
    assert "segments" not in again


@pytest.mark.parametrize(
    "groups",
    [
        {"name": "b"},
        {"mesh": {"fsdp": 2}},
        {"training": {"steps": 100, "log_every": 7, "checkpoint_every": 3, "export": False}},
        {"evaluation": {"prompts": 3}},
        {"denoiser": {"block_size": 9}},  # A drafter's run does not read it.
    ],
)
def test_what_decides_no_weight_may_change(groups):
    recorded = record()
    got = continued_record(recorded, record(**groups), step=40, workdir=WORKDIR)
    assert got["config"] == recorded["config"], "the run keeps the label that it was started with"


def test_another_loss_is_refused_with_a_table():
    uniform = {"decay": None, "focal": 0.0, "chain": 0.0}
    with pytest.raises(ValueError, match="started with other settings") as caught:
        continued_record(record(), record(loss=uniform), step=40, workdir=WORKDIR)
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert ["setting", "got", "recorded"] in lines
    assert ["loss.decay", "None", "10.0"] in lines
    assert ["loss.focal", "0.0", "0.3"] in lines
    assert ["loss.chain", "0.0", "40.0"] in lines
    assert "--accept_changes True" in str(caught.value)


def test_states_of_the_last_layer_from_before_the_final_norm_are_refused():
    """Older records say nothing about them."""
    ids = {"target_layer_ids": (1, 3)}
    older = record(drafter=ids)
    del older["config"]["drafter"]["last_state"]
    message = r"drafter\.last_state.*'?normed'?"
    with pytest.raises(ValueError, match=message):
        continued_record(
            older, record(drafter={**ids, "last_state": "normed"}), step=40, workdir=WORKDIR
        )
    assert "segments" not in continued_record(older, record(drafter=ids), step=40, workdir=WORKDIR)


def test_other_weights_of_the_same_shape_are_refused():
    with pytest.raises(ValueError, match=r"target.path \(weights\) +other +same"):
        continued_record(record(), record("other"), step=40, workdir=WORKDIR)


def test_accepted_changes_are_a_segment():
    recorded = record()
    uniform = record(loss={"focal": 0.0})
    got = continued_record(recorded, uniform, step=40, workdir=WORKDIR, accept_changes=True)
    assert got["config"] == uniform["config"]
    assert [part["from_step"] for part in got["segments"]] == [0, 40]
    assert [part["config"]["loss"]["focal"] for part in got["segments"]] == [0.3, 0.0]
    third = continued_record(got, record(), step=60, workdir=WORKDIR, accept_changes=True)
    assert [part["from_step"] for part in third["segments"]] == [0, 40, 60]
    assert (
        continued_record(third, record(), step=70, workdir=WORKDIR)["segments"]
        == (third["segments"])
    )


def test_more_steps_need_a_word():
    longer = record(training={"steps": 200})
    with pytest.raises(ValueError, match=r"training.steps +200 +100(.|\n)*--restart_schedule True"):
        continued_record(record(), longer, step=100, workdir=WORKDIR)
    got = continued_record(record(), longer, step=100, workdir=WORKDIR, restart_schedule=True)
    assert got["schedule_from_step"] == 100
    assert [part["from_step"] for part in got["segments"]] == [0, 100]
    # The same command again, after a stop: it is the same segment.
    again = continued_record(got, longer, step=150, workdir=WORKDIR, restart_schedule=True)
    assert again["schedule_from_step"] == 100
    assert again["segments"] == got["segments"]


@pytest.mark.parametrize("recorded", [record(), None], ids=["other settings", "no record"])
def test_a_schedule_restarts_with_accepted_changes(recorded):
    uniform = record(loss={"focal": 0.0})
    options = {"workdir": WORKDIR, "accept_changes": True}
    for restart, first in ((True, 40), (False, 0)):
        got = continued_record(recorded, uniform, step=40, restart_schedule=restart, **options)
        assert got["schedule_from_step"] == first


def test_a_schedule_without_a_change_is_not_restarted(tmp_path, run_config):
    with pytest.raises(ValueError, match="has the settings it began with, so there is no schedule"):
        continued_record(record(), record(), step=40, workdir=WORKDIR, restart_schedule=True)
    with pytest.raises(ValueError, match=r"There is no checkpoint in .*, so there is no schedule"):
        train(run_config, workdir=tmp_path / "run", restart_schedule=True)
    assert not (tmp_path / "run").exists()


def test_a_restarted_schedule_accepts_nothing_else():
    longer = record(training={"steps": 200}, loss={"focal": 0.0})
    with pytest.raises(ValueError, match=r"loss\.focal"):
        continued_record(record(), longer, step=100, workdir=WORKDIR, restart_schedule=True)


@pytest.mark.parametrize(("step", "is_allowed"), [(100, True), (20, True), (15, False)])
def test_a_constant_rate_may_go_on_after_the_warm_up(step, is_allowed):
    longer = record(training={"steps": 200}, optimizer=CONSTANT)
    recorded = record(optimizer=CONSTANT)
    if is_allowed:
        got = continued_record(recorded, longer, step=step, workdir=WORKDIR)
        assert got["schedule_from_step"] == 0
        assert len(got["segments"]) == 2
    else:
        with pytest.raises(ValueError, match=r"training\.steps"):
            continued_record(recorded, longer, step=step, workdir=WORKDIR)


def test_a_constant_rate_may_go_on_only_after_a_second_warm_up():
    """A schedule that starts again at step 100 warms up over steps 101 to 110."""
    longer, longest = (
        record(training={"steps": steps}, optimizer=CONSTANT) for steps in (200, 300)
    )
    recorded = continued_record(
        record(optimizer=CONSTANT), longer, step=100, workdir=WORKDIR, restart_schedule=True
    )
    with pytest.raises(ValueError, match=r"training\.steps"):
        continued_record(recorded, longest, step=110, workdir=WORKDIR)
    got = continued_record(recorded, longest, step=120, workdir=WORKDIR)
    assert got["schedule_from_step"] == 100


def test_what_no_step_decides_gets_no_label():
    """A finished run is exported again: nothing was trained with what is accepted now."""
    uniform = record(loss={"focal": 0.0})
    with pytest.raises(ValueError, match="new settings and more steps, add --accept_changes"):
        continued_record(record(), uniform, step=100, workdir=WORKDIR)
    fewer = record(training={"steps": 50})
    for recorded, fresh in ((record(), uniform), (record(), fewer), (None, record())):
        with pytest.raises(ValueError, match=r"has taken 100 steps.*no step is left"):
            continued_record(recorded, fresh, step=100, workdir=WORKDIR, accept_changes=True)
    assert "segments" not in continued_record(record(), record(), step=100, workdir=WORKDIR)


def test_fewer_steps_are_refused():
    with pytest.raises(ValueError, match=r"training.steps +50 +100") as caught:
        continued_record(record(), record(training={"steps": 50}), step=60, workdir=WORKDIR)
    assert "--restart_schedule" not in str(caught.value)


def test_a_checkpoint_without_a_record_continues_only_if_changes_are_accepted():
    with pytest.raises(ValueError, match="did not record"):
        continued_record(None, record(), step=40, workdir=WORKDIR)
    got = continued_record(None, record(), step=40, workdir=WORKDIR, accept_changes=True)
    assert [part["config"] is None for part in got["segments"]] == [True, False]


def test_a_record_of_fewer_settings_has_their_defaults():
    recorded = record()
    del recorded["config"]["optimizer"]["schedule"]
    assert "segments" not in continued_record(recorded, record(), step=40, workdir=WORKDIR)


def test_nested_settings_that_are_absent():
    found = differences({"a": None, "b": {"c": [1]}}, {"a": {"x": 1}, "b": {"c": [1]}})
    assert [(d.setting, d.got, d.recorded) for d in found] == [("a", None, {"x": 1})]


def test_other_texts_under_the_same_settings_are_refused():
    recorded = {**record(), "fingerprints": {"target.path": "same", "data": "old"}}
    fresh = {**record(), "fingerprints": {"target.path": "same", "data": "new"}}
    with pytest.raises(ValueError, match=r"data \(texts or tokenizer\) +new +old"):
        continued_record(recorded, fresh, step=40, workdir=WORKDIR)
    # Where a setting says so already, one line is enough.
    fresh = {**record(data={"seed": 5}), "fingerprints": fresh["fingerprints"]}
    with pytest.raises(ValueError, match=r"data\.seed +5 +0") as caught:
        continued_record(recorded, fresh, step=40, workdir=WORKDIR)
    assert "texts or tokenizer" not in str(caught.value)


def test_another_module_of_a_term_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "own_losses_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("one = 1\n")
    (package / "inner.py").write_text("two = 2\n")
    (tmp_path / "file.py").write_text("three = 3\n")
    names = (package.name, f"{package.name}.inner", str(tmp_path / "file.py"))
    loss = {"extra": tuple(f"{source}:x{n}=0.5" for n, source in enumerate((*names, "sys", "no")))}
    config = dataclasses.replace(RunConfig(), loss=LossConfig(**loss))

    def started():
        importlib.invalidate_caches()
        found = record(loss=loss)
        return {**found, "fingerprints": {**found["fingerprints"], **own_terms(config)}}

    recorded = started()
    assert own_terms(config).keys() == {f"loss.extra {name}" for name in names}
    for name, file in zip(names[:2], ("__init__.py", "inner.py"), strict=True):
        (package / file).write_text("four = 4\n")
        with pytest.raises(ValueError, match=rf"loss\.extra {name} \(code\)"):
            continued_record(recorded, started(), step=40, workdir=WORKDIR)
        recorded = started()
    older = {**recorded, "fingerprints": {"target.path": "same"}}
    assert "segments" not in continued_record(older, started(), step=40, workdir=WORKDIR)


def test_an_older_run_continues_with_the_anchors_that_it_had():
    recorded = record()
    del recorded["config"]["data"]["anchor_sampling"]
    with pytest.raises(ValueError, match=r"data.anchor_sampling +document +row"):
        continued_record(recorded, record(), step=40, workdir=WORKDIR)
    by_row = record(data={"anchor_sampling": "row"})
    assert "segments" not in continued_record(recorded, by_row, step=40, workdir=WORKDIR)
