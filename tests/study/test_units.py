from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jaxspec.cli.config_files import returned_config
from jaxspec.cli.configuration import ConfigCommand, load_config, parse_command
from jaxspec.cli.evaluate import EvalCommand
from jaxspec.cli.regenerate import RegenerateCommand
from jaxspec.cli.shipped_configs import shipped
from jaxspec.cli.study import is_read_by
from jaxspec.cli.train import TrainCommand
from jaxspec.config import RunConfig
from jaxspec.study.declaration import (
    StudyAnswers,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
)
from jaxspec.study.records import settings_of
from jaxspec.study.units import arguments, units_of
from tests.study.tiny import STUDY

COMMANDS: dict[str, type[ConfigCommand]] = {
    "train": TrainCommand,
    "regenerate": RegenerateCommand,
    "eval": EvalCommand,
}


def units(study=STUDY, *, configs=None, **changes):
    return units_of(
        study,
        configs=configs or {"run": RunConfig()},
        folder=Path("folder"),
        is_read=is_read_by,
        **changes,
    )


def test_a_drafter_is_measured_before_the_next_one_is_trained():
    study = dataclasses.replace(STUDY, losses=(STUDY.losses[0], StudyLoss("full", seeds=(0,))))
    assert [unit.name for unit in units(study)] == [
        "drafters/small/uniform-seed0",
        "evaluations/small/block/uniform-seed0",
        "drafters/small/full-seed0",
        "evaluations/small/block/full-seed0",
        "drafters/small/uniform-seed1",
        "evaluations/small/block/uniform-seed1",
    ]


def test_commands_are_those_that_one_would_type():
    train, evaluate, *_ = units(changes={"training.steps": 5, "evaluation.prompts": 3})
    assert " ".join(train.command) == (
        "train --config run --workdir folder/drafters/small/uniform-seed0 --training.steps 5 "
        "--loss.decay None --loss.focal 0.0 --loss.chain 0.0 --training.seed 0 --data.seed 0"
    )
    assert " ".join(evaluate.command) == (
        "eval --config run --workdir folder/drafters/small/uniform-seed0 "
        "--references folder/references/small "
        "--output folder/evaluations/small/block/uniform-seed0.json --evaluation.prompts 3 "
        "--evaluation.benchmarks embedded/math --evaluation.timing_prompts 0"
    )
    assert evaluate.needs == (train.name,)
    assert train.config.loss.label == "uniform"
    assert not evaluate.measures_speed


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluation.timing_prompts": 2},
        {"evaluation.strategy": "auto"},
        {"evaluation.adaptive_sizes": (2, 4)},
    ],
)
def test_what_is_timed_measures_speed(settings):
    decoding = StudyDecoding("d", {"evaluation.timing_prompts": 0, **settings})
    found = units(dataclasses.replace(STUDY, decodings=(decoding,)))
    assert {unit.kind for unit in found if unit.measures_speed} == {"evaluation"}


def test_a_row_without_training_is_measured_once():
    study = dataclasses.replace(
        STUDY, losses=(STUDY.losses[0], StudyLoss("look-up", untrained="ngram")), seeds=(3, 4)
    )
    found = units(study)
    assert [unit.name for unit in found] == [
        "drafters/small/uniform-seed3",
        "evaluations/small/block/uniform-seed3",
        "evaluations/small/block/look-up-seed3",
        "drafters/small/uniform-seed4",
        "evaluations/small/block/uniform-seed4",
    ]
    look_up = found[2]
    assert "--drafters ngram" in " ".join(look_up.command)
    assert "--workdir" not in look_up.command and look_up.needs == ()
    assert "drafters" in settings_of(look_up)["options"]


def test_a_row_without_training_has_no_settings_of_one():
    with pytest.raises(ValueError, match="look-up needs no training"):
        dataclasses.replace(
            STUDY, losses=(StudyLoss("look-up", {"loss.focal": 0.0}, untrained="ngram"),)
        )


def test_a_target_is_trained_and_answers_first():
    target = StudyTarget(
        "own",
        config="quickstart",
        settings={"target.dtype": "bfloat16"},
        train="embedded_target",
        train_settings={"training.steps": 7},
        answers=StudyAnswers(("gsm8k", "my/file.jsonl"), {"temperature": 0.0}),
    )
    study = dataclasses.replace(STUDY, targets=(target,), seeds=(0,))
    configs = {name: load_config(name) for name in ("quickstart", "embedded_target")}
    found = units(study, configs=configs)
    trained, first, second, drafter, evaluation, *_ = found
    assert " ".join(trained.command) == (
        "train --config embedded_target --workdir folder/targets/own --training.steps 7"
    )
    assert " ".join(first.command) == (
        "regenerate --config quickstart --source gsm8k --temperature 0.0 --target.dtype bfloat16 "
        "--target.path folder/targets/own/export --output folder/answers/own/gsm8k"
    )
    assert second.name == "answers/own/my_file.jsonl"
    assert first.needs == (trained.name,)
    assert drafter.needs == (trained.name, first.name, second.name)
    assert "--data.sources folder/answers/own/gsm8k folder/answers/own/my_file.jsonl" in " ".join(
        drafter.command
    )
    assert "--target.path folder/targets/own/export" in " ".join(evaluation.command)
    # What is compared does not depend on where the folder is.
    assert drafter.config.target.path == "targets/own"
    assert drafter.config.data.sources == ("answers/own/gsm8k", "answers/own/my_file.jsonl")
    for each in found:
        program, *words = each.command
        parse_command(COMMANDS[program], words, program=program)


MAKES_ITS_OWN = StudyTarget(
    "own", config="run", train="run", answers=StudyAnswers(("gsm8k",), {"temperature": 0.0})
)


def test_a_row_may_learn_other_text_than_the_answers():
    losses = (StudyLoss("answers"), StudyLoss("plain", {"data.sources": ("my.jsonl",)}))
    study = dataclasses.replace(STUDY, targets=(MAKES_ITS_OWN,), losses=losses, seeds=(0,))
    _, answers, usual, _, other, _ = units(study)
    assert usual.config.data.sources == ("answers/own/gsm8k",)
    assert answers.name in usual.needs
    assert other.config.data.sources == ("my.jsonl",)
    assert " ".join(other.command).count("--data.sources") == 1
    assert "--data.sources my.jsonl" in " ".join(other.command)
    assert other.needs == ("targets/own",)


@pytest.mark.parametrize("name", ["data.sources", "target.path"])
def test_settings_that_the_study_makes_itself_are_refused(name):
    value = ("a.jsonl",) if name == "data.sources" else "folder"
    study = dataclasses.replace(STUDY, targets=(MAKES_ITS_OWN,))
    with pytest.raises(ValueError, match=rf"^--{name} is given, but study\.targets: own "):
        units(study, changes={name: value})
    target = dataclasses.replace(MAKES_ITS_OWN, settings={name: value})
    with pytest.raises(ValueError, match=rf"^study\.targets: own: settings sets {name}, but "):
        units(dataclasses.replace(study, targets=(target,)))
    # What the study does not make may be set.
    target = dataclasses.replace(target, train="", answers=None)
    train = units(dataclasses.replace(study, targets=(target,)))[0]
    assert f"--{name} " in " ".join(train.command)


@pytest.mark.parametrize("name", ["source", "output", "target.path"])
def test_options_of_answers_that_the_study_gives_are_refused(name):
    target = dataclasses.replace(MAKES_ITS_OWN, answers=StudyAnswers(("gsm8k",), {name: "x"}))
    with pytest.raises(ValueError, match=rf"own: answers\.options sets {name}, which the study"):
        units(dataclasses.replace(STUDY, targets=(target,)))


def test_answers_of_two_data_sets_are_not_in_one_folder():
    target = dataclasses.replace(MAKES_ITS_OWN, answers=StudyAnswers(("d/x.jsonl", "d_x.jsonl")))
    with pytest.raises(ValueError, match=r"one folder, answers/own/d_x\.jsonl: rename one"):
        units(dataclasses.replace(STUDY, targets=(target,)))


def test_typed_settings_reach_the_targets_that_read_them():
    denoiser = StudyTarget("denoiser", config="denoiser")
    study = dataclasses.replace(
        STUDY, targets=(*STUDY.targets, denoiser), losses=(StudyLoss("a"),), seeds=(0,)
    )
    configs = {"run": RunConfig(), "denoiser": load_config("real_text_mdlm_draft")}
    found = units(study, configs=configs, changes={"denoiser.lora_rank": 4})
    given = {unit.target for unit in found if "--denoiser.lora_rank" in unit.command}
    assert given == {"denoiser"}


EPOCHS, STEPS = {"training.epochs": 3.0}, {"training.steps": 5}


@pytest.mark.parametrize(
    ("of_target", "typed", "of_row", "words", "length"),
    [
        (EPOCHS, STEPS, {}, "--training.steps 5", (5, 0.0)),
        (EPOCHS, {}, STEPS, "--training.steps 5", (5, 0.0)),
        (STEPS, EPOCHS, {}, "--training.epochs 3.0", (1000, 3.0)),
        (STEPS, {}, EPOCHS, "--training.epochs 3.0", (1000, 3.0)),
        (EPOCHS, STEPS, {"training.epochs": 2.0}, "--training.epochs 2.0", (1000, 2.0)),
        (EPOCHS, STEPS, {"training.epochs": 0.0}, "--training.steps 5", (5, 0.0)),
        (EPOCHS, {}, {"training.epochs": 0.0}, "--training.epochs 0.0", (1000, 0.0)),
        ({}, STEPS, {}, "--training.steps 5", (5, 0.0)),
        ({}, {}, {}, "", (1000, 1.0)),
    ],
)
def test_of_steps_and_epochs_the_later_place_counts(of_target, typed, of_row, words, length):
    """As in `jaxspec train`, which refuses both; the config says one epoch."""
    usual = RunConfig()
    config = dataclasses.replace(usual, training=dataclasses.replace(usual.training, epochs=1.0))
    target = StudyTarget(
        "a", config="run", train="run", settings=of_target, train_settings=of_target
    )
    study = dataclasses.replace(STUDY, targets=(target,), losses=(StudyLoss("b", of_row),))
    trained = [u for u in units(study, configs={"run": config}, changes=typed) if not u.decoding]
    assert {unit.kind for unit in trained} == {"target", "drafter"}
    for unit in trained:
        line = " ".join(unit.command)
        assert not {"--training.steps", "--training.epochs"} <= {*unit.command}, line
        if unit.kind == "drafter":
            assert words in line
            assert (unit.config.training.steps, unit.config.training.epochs) == length


def test_steps_and_epochs_in_one_place_are_refused():
    row = StudyLoss("both", {**STEPS, **EPOCHS})
    with pytest.raises(ValueError, match=r"got training\.steps 5 and training\.epochs 3\.0"):
        units(dataclasses.replace(STUDY, losses=(row,)))


def test_the_benchmarks_of_a_target_are_its_own():
    target = StudyTarget("other", config="run", settings={"evaluation.benchmarks": ("mbpp",)})
    study = dataclasses.replace(STUDY, targets=(*STUDY.targets, target))
    found = {u.target: u.config.evaluation.benchmarks for u in units(study) if u.decoding}
    assert found == {"small": ("embedded/math",), "other": ("mbpp",)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"losses": (StudyLoss("a", {"denoiser.path": "x"}),)},
            "study.losses: a sets denoiser.path, which jaxspec train does not read",
        ),
        (
            {"losses": (StudyLoss("a", {"training.export": False}),)},
            "a on small sets training.export to False",
        ),
        (
            {"decodings": (StudyDecoding("d", {"evaluation.promts": 1}),)},
            "d on small: There is no setting evaluation.promts",
        ),
    ],
)
def test_settings_that_no_unit_takes(changes, message):
    with pytest.raises(ValueError, match=message):
        units(dataclasses.replace(STUDY, **changes))


def test_typed_seeds_are_refused_and_typed_benchmarks_win():
    with pytest.raises(ValueError, match=r"--training\.seed cannot be set: change study\.seeds"):
        units(changes={"training.seed": 7})
    study = dataclasses.replace(STUDY, benchmarks=("gsm8k",))
    for changes, expected in (({}, ("gsm8k",)), ({"evaluation.benchmarks": ("mbpp",)}, ("mbpp",))):
        evaluations = [u for u in units(study, changes=changes) if u.kind == "evaluation"]
        assert {each.config.evaluation.benchmarks for each in evaluations} == {expected}


def test_values_are_typed_as_the_commands_take_them():
    words = arguments({"a": None, "b": True, "c": ("x y", "z"), "d": 0.5, "e": ""})
    assert words == ("--a", "None", "--b", "True", "--c", "x y", "z", "--d", "0.5", "--e", "")


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("study_")])
def test_the_shipped_studies_give_commands_that_are_accepted(name):
    study = returned_config(name, StudyConfig)
    configs = {target.config: load_config(target.config) for target in study.targets}
    found = units(study, configs=configs)
    # Every row, and every way of decoding, once.
    for unit in found:
        if unit.seed != 0 or (unit.kind == "evaluation" and unit.loss != study.base_loss):
            continue
        program, *words = unit.command
        command = parse_command(COMMANDS[program], words, program=program)
        groups = ("loss", "training") if program == "train" else ("evaluation",)
        for group in groups:
            assert getattr(command.run, group) == getattr(unit.config, group), unit.name
