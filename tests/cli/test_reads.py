"""Commands accept the settings that they read, and no others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import eval as eval_script
import train as train_script
from jaxspec.cli import calibrate, evaluate, generate, plan, regenerate, train
from jaxspec.cli.configuration import ConfigCommand, parse_command, run_as_command
from jaxspec.cli.settings import given_names, given_value, is_read, meaning, setting_names
from jaxspec.config import OptimizerConfig, RunConfig, TargetConfig, TransformerConfig
from tests.evals.diffusion_folders import write_model

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, type[ConfigCommand]] = {
    "train.py": train.TrainCommand,
    "eval.py": evaluate.EvalCommand,
    "jaxspec calibrate": calibrate.CalibrateCommand,
    "jaxspec generate": generate.GenerateCommand,
    "jaxspec plan": plan.PlanCommand,
    "jaxspec regenerate": regenerate.RegenerateCommand,
}
QUICKSTART = ("--config", str(ROOT / "configs" / "quickstart.py"))
DENOISER = ("--config", str(ROOT / "configs" / "real_text_mdlm.py"))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_what_is_read_exists(command):
    every = set(setting_names(RunConfig()))
    groups = {name.split(".")[0] for name in every}
    for name in (*command.reads, *command.common):
        assert name in every | groups
    assert [name for name in command.common if not is_read(name, command.reads)] == []


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("eval.py", ["--loss.focal", "9"], "the loss is chosen when a model is trained, by train."),
        (
            "eval.py",
            ["--drafter.block_size", "4"],
            "a drafter's shape is set when it is trained, by train.py. "
            "Did you mean --evaluation.block_size?",
        ),
        ("eval.py", ["--drafter.block-size=4"], "Did you mean --evaluation.block_size?"),
        ("eval.py", ["--denoiser.path", "x"], "train.py reads it, with training.task 'denoiser'."),
        ("eval.py", ["--data.batch_size", "2"], "Did you mean --evaluation.batch_size?"),
        ("eval.py", ["--training.steps", "2"], "train.py reads it."),
        ("eval.py", ["--target.architecture.num_layers", "2"], "is in its folder (--target.path)."),
        ("eval.py", ["--name", "x"], "it only names the run that a config trains."),
        ("train.py", ["--evaluation.verifier", "k_seq"], "eval.py reads it."),
        ("train.py", ["--evaluation.seed", "1"], "Did you mean --data.seed or --training.seed?"),
        ("train.py", ["--diffusion.steps", "1"], "for a target that is a diffusion language model"),
        (
            "train.py",
            ["--denoiser.path", "x"],
            "training.task is 'drafter', and --denoiser.* is for 'denoiser'.",
        ),
        (
            "train.py",
            ["--training.task", "target", "--drafter.num_layers", "2"],
            "training.task is 'target', and --drafter.* is for 'drafter'.",
        ),
        (
            "train.py",
            ["--loss.chain", "0", "--training.task=target"],
            "training.task is 'target', and --loss.* is for 'drafter'.",
        ),
        (
            "train.py",
            [*DENOISER, "--loss.chain", "0"],
            "denoiser.objective is 'elbo', and --loss.* is for 'draft'.",
        ),
        ("train.py", [*DENOISER, "--drafter.num_layers", "2"], "training.task is 'denoiser', and"),
        ("jaxspec plan", ["--training.log_every", "3"], "train.py reads it."),
        ("jaxspec plan", ["--denoiser.path", "x"], "and --denoiser.* is for 'denoiser'."),
        ("jaxspec regenerate", ["--evaluation.temperature", "1"], "Did you mean --temperature?"),
        ("jaxspec calibrate", ["--diffusion.num_drafts", "3"], "eval.py reads it, for a target"),
        ("jaxspec calibrate", ["--evaluation.prompts", "3"], "Did you mean --prompts?"),
    ],
)
def test_settings_that_are_not_read_are_refused(program, arguments, expected):
    with pytest.raises(ValueError) as caught:
        parse_command(COMMANDS[program], [*QUICKSTART, *arguments], program=program)
    message = str(caught.value)
    assert message.startswith(f"{program} does not read --")
    assert expected in message
    assert "\n" not in message


def test_settings_of_a_task_are_read_with_it():
    def parse(*arguments: str) -> RunConfig:
        return parse_command(
            train.TrainCommand, [*arguments, "--workdir", "w"], program="train.py"
        ).run

    run = parse(*DENOISER, "--denoiser.objective", "draft", "--loss.chain", "2")
    assert run.loss.chain == 2.0
    run = parse(*QUICKSTART, "--training.task=denoiser", "--denoiser.block-size=4")
    assert run.denoiser.block_size == 4
    run = parse(*QUICKSTART, "--training.task", "target", "--optimizer.learning_rate", "0.5")
    assert run.optimizer == dataclasses.replace(OptimizerConfig(), learning_rate=0.5, **WARMUP)


WARMUP = {"warmup_fraction": 0.03}


def test_a_single_setting_of_a_group_keeps_the_others_and_their_checks():
    arguments = [*QUICKSTART, "--source", "gsm8k", "--output", "o.json"]
    arguments += ["--evaluation.max_new_tokens"]
    command = calibrate.CalibrateCommand
    run = parse_command(command, [*arguments, "64"], program="jaxspec calibrate").run
    assert (run.evaluation.max_new_tokens, run.evaluation.timing_prompts) == (64, 3)
    assert type(run) is RunConfig
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1: got 0"):
        parse_command(command, [*arguments, "0"], program="jaxspec calibrate")


def test_the_programs_exit_with_2(capsys):
    assert run_as_command(eval_script.main, ["--loss.focal", "9"]) == 2
    assert capsys.readouterr().err.startswith("error: eval.py does not read --loss.focal")
    assert run_as_command(train_script.main, ["--evaluation.verifier", "k_seq"]) == 2
    assert capsys.readouterr().err.startswith("error: train.py does not read --evaluation.verifier")
    assert run_as_command(evaluate.main, ["--loss.focal", "9"]) == 2
    assert capsys.readouterr().err.startswith("error: jaxspec eval does not read --loss.focal")


@pytest.mark.parametrize(
    ("name", "is_diffusion", "expected"),
    [
        ("evaluation.verifier", True, "x is a diffusion language model."),
        ("evaluation.block-size", True, "Did you mean --diffusion.block_length?"),
        ("evaluation.chains", True, "Did you mean --diffusion.num_drafts?"),
        ("diffusion.caching", False, "x generates from left to right."),
        ("diffusion.block_length", False, "Did you mean --evaluation.block_size?"),
    ],
)
def test_settings_for_the_other_kind_of_target_are_refused(name, is_diffusion, expected):
    with pytest.raises(ValueError) as caught:
        evaluate.refuse_other_kind(
            [f"--{name}=3"], "x", program="eval.py", is_diffusion=is_diffusion
        )
    message = str(caught.value)
    said = name.replace("-", "_")
    assert message.startswith(f"eval.py does not read --{said} for this target")
    assert expected in message
    evaluate.refuse_other_kind(
        [f"--{name}=3"], "x", program="eval.py", is_diffusion=not is_diffusion
    )


def test_shared_settings_serve_both_kinds_of_target():
    for is_diffusion in (True, False):
        evaluate.refuse_other_kind(
            ["--evaluation.temperature", "1", "--target.path", "x", "--workdir", "diffusion.steps"],
            "x",
            program="eval.py",
            is_diffusion=is_diffusion,
        )
    every = set(setting_names(RunConfig()))
    tables = (evaluate.DRAFTERS_ONLY, evaluate.DIFFUSION_ONLY)
    names = {name for table in tables for pair in table.items() for name in pair if name}
    assert names <= every


def test_a_diffusion_language_model_is_refused_settings_of_drafters(tmp_path, capsys):
    folder = write_model(tmp_path / "export")
    arguments = ["--config", "configs/quickstart.py", "--target.path", str(folder)]
    arguments += ["--output", str(tmp_path / "o.json"), "--evaluation.verifier", "block"]
    assert run_as_command(eval_script.main, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: eval.py does not read --evaluation.verifier for this target")
    assert not (tmp_path / "o.json").exists()


def test_the_command_line_decides_not_the_config(tmp_path, capsys):
    """A config may hold settings for both kinds; on the command line they are refused."""
    file = tmp_path / "both.py"
    file.write_text(
        "from jaxspec.config import *\n\n\ndef get_config():\n    return RunConfig("
        'diffusion=DiffusionEvaluationConfig(caching="none"))\n'
    )
    arguments = ["--config", str(file), "--output", str(tmp_path / "o.json")]
    assert run_as_command(eval_script.main, arguments) == 2
    assert "No drafters to measure" in capsys.readouterr().err
    assert run_as_command(eval_script.main, [*arguments, "--diffusion.caching", "dual"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: eval.py does not read --diffusion.caching for this target")


def test_names_and_values_are_read_ahead():
    argv = ["--a.b-c=1", "-x", "--d", "--", "--e_f", "2", "word", "--d", "4"]
    assert given_names(argv) == ["a.b_c", "d", "e_f", "d"]
    assert given_value(argv, "a.b_c") == "1"
    assert given_value(argv, "d") == "4"
    assert given_value(argv, "e_f") == "2"
    assert given_value(argv, "g") is None
    assert given_value(["--d"], "d") is None


def test_meanings_are_the_strings_under_the_fields():
    text = "Optimizer steps of the run."
    assert meaning(type(RunConfig().training), "steps") == text
    assert meaning(train.TrainCommand, "config").startswith("Python file whose get_config()")
    assert meaning(RunConfig, "training") == ""
    made = dataclasses.make_dataclass("Made", [("x", int)])
    assert meaning(made, "x") == ""


def test_a_target_with_an_architecture_is_trained_with_its_settings(tmp_path):
    run = RunConfig(target=TargetConfig(architecture=TransformerConfig()))
    assert "target.architecture.num_layers" in set(setting_names(run))
