"""What is printed after a run can be typed."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from jaxspec.checkpoints.families import qwen_llama
from jaxspec.cli.configuration import parse_command
from jaxspec.cli.evaluate import EvalCommand
from jaxspec.cli.generate import GenerateCommand
from jaxspec.cli.next_commands import next_commands
from jaxspec.config import (
    DenoiserConfig,
    RunConfig,
    TargetConfig,
    TrainingConfig,
    TransformerConfig,
)

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def lines(run: RunConfig, *argv: str, program: str = "train.py", workdir: str = "runs/a b"):
    printed = next_commands(
        run, config=QUICKSTART, workdir=workdir, argv=list(argv), program=program
    )
    first, *commands = printed.splitlines()
    assert first == "Next:"
    return [shlex.split(command) for command in commands]


@pytest.mark.parametrize("program", ["train.py", "jaxspec train"])
def test_after_a_drafter(program):
    run = RunConfig(target=TargetConfig(path="/models/my target"))
    argv = ["--target.path", "/models/my target", "--loss.focal", "0"]
    evaluate, generate, parity, export = lines(run, *argv, program=program)
    assert evaluate[:2] == (["python", "eval.py"] if program == "train.py" else ["jaxspec", "eval"])
    command = parse_command(EvalCommand, evaluate[2:], program="eval.py")
    assert command.workdir == ("runs/a b",)
    assert command.run.target.path == "/models/my target"
    assert generate[:4] == ["jaxspec", "generate", "--target.path", "/models/my target"]
    assert parity[2:] == ["--target", "/models/my target", "--drafter", "runs/a b/export"]
    assert export[:4] == ["jaxspec", "export", "--workdir", "runs/a b"]


def test_after_a_block_causal_denoiser(tmp_path):
    """It drafts for nobody, whatever it learned, and wherever its context comes from."""
    shape = TransformerConfig(hidden_size=16, num_layers=1)
    document = qwen_llama.to_json(shape, dtype="float32", special_ids={})
    document |= {"model_type": "sdar", "mask_token_id": 3}
    (tmp_path / "config.json").write_text(json.dumps(document))
    for settings in (
        DenoiserConfig(context="block_causal"),
        DenoiserConfig(path=str(tmp_path), objective="score_entropy"),
    ):
        run = RunConfig(training=TrainingConfig(task="denoiser"), denoiser=settings)
        first, *_ = lines(run)
        assert first[-4:-2] == ["--target.path", "runs/a b/export"]


def test_the_target_of_the_configuration_is_named_where_it_is_not_given():
    target = TargetConfig(path="/models/t", dtype="bfloat16", enable_thinking=False)
    evaluate, generate, parity, _ = lines(RunConfig(target=target))
    assert "--target.path" not in evaluate
    command = parse_command(GenerateCommand, generate[2:], program="jaxspec generate")
    assert command.run.target == target
    assert parity[2:4] == ["--target", "/models/t"]
    assert parity[-2:] == ["--enable_thinking", "False"]


@pytest.mark.parametrize(
    ("task", "objective", "expected"),
    [
        ("target", "elbo", ["jaxspec", "generate", "--target.path", "runs/a b/export"]),
        ("denoiser", "llada", ["python", "eval.py", "--config", QUICKSTART, "--target.path"]),
        ("denoiser", "draft", ["python", "eval.py", "--config", QUICKSTART, "--workdir"]),
    ],
)
def test_after_other_models(task, objective, expected):
    run = dataclasses.replace(
        RunConfig(),
        training=TrainingConfig(task=task),
        denoiser=DenoiserConfig(objective=objective),
    )
    first, *_, last = lines(run)
    assert first[: len(expected)] == expected
    assert last[:2] == ["jaxspec", "export"]
