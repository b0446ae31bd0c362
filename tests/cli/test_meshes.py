"""eval.py and jaxspec generate on several devices: the figures and the text of one device."""

import dataclasses
import io
import json

import pytest

import eval as eval_script
import jaxspec
from jaxspec.cli import main as console
from jaxspec.cli.configuration import parse_command, run_as_command
from jaxspec.cli.evaluate import EvalCommand
from jaxspec.cli.generate import GenerateCommand
from jaxspec.config import MeshConfig
from jaxspec.evals.report import read_json
from tests.evals import diffusion_folders, drafter_folders
from tests.evals.drafter_folders import WIDE

PROMPT = "What is 12 + 30?"
TIMES = ("_per_s", "_ms", "_s", "speedup", "speedup_ci95", "rest_ms", "pass_ratio")
"""Endings of fields that depend on the clock."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return drafter_folders.write_folders(tmp_path_factory.mktemp("meshes"), **WIDE)


def evaluated(output, *arguments):
    """The rows of eval.py without times, its record, and the text of its report."""
    line = ["--config", "quickstart", "--output", str(output)]
    line += ["--evaluation.benchmarks", "embedded/math", "--evaluation.prompts", "6"]
    line += ["--evaluation.max_new_tokens", "12", "--evaluation.batch_size", "4"]
    line += ["--evaluation.timing_repeats", "1"]
    assert run_as_command(eval_script.main, [*line, *map(str, arguments)]) == 0
    record, rows = read_json(output)
    untimed = [
        {
            name: value
            for name, value in row.items()
            if not name.endswith(TIMES) and name != "below_break_even"
        }
        for row in rows
    ]
    return untimed, record, output.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("data", "tensor", "timed", "kinds"),
    [
        pytest.param(
            *("1", "8", "0", "dflash,ngram,none"),
            marks=pytest.mark.slow("both axes, and answers on tensor alone, cover it"),
            id="tensor",
        ),
        pytest.param("4", "2", "1", "dflash,none", id="both, timed"),
    ],
)
def test_an_evaluation_has_the_figures_of_one_device(folders, tmp_path, data, tensor, timed, kinds):
    target, drafters = folders
    asked = ["--target.path", target, "--workdir", drafters[0], "--drafters", kinds]
    asked += ["--evaluation.timing_prompts", timed]
    alone, record, _ = evaluated(tmp_path / "alone.json", *asked)
    assert "mesh" not in record["devices"]
    spread = ["--mesh.data", data, "--mesh.tensor", tensor]
    rows, record, report = evaluated(tmp_path / "spread.json", *asked, *spread)
    assert rows == alone
    assert [row["mismatched_prompts"] for row in rows] == [0] * len(kinds.split(","))
    assert (rows[0]["timed_prompts"] is not None) == (timed == "1")
    assert record["devices"]["mesh"] == {"data": int(data), "fsdp": 1, "tensor": int(tensor)}
    assert f"8 devices (mesh: data {data}, fsdp 1, tensor {tensor})" in report


def test_a_diffusion_evaluation_has_the_figures_of_one_device(tmp_path):
    folder = diffusion_folders.write_model(tmp_path / "export", **WIDE)
    asked = ["--target.path", folder, "--diffusion.block_length", 4, "--diffusion.num_drafts", 2]
    asked += ["--evaluation.timing_prompts", 0]
    alone, _, _ = evaluated(tmp_path / "alone.json", *asked)
    spread = ["--mesh.data", 4, "--mesh.tensor", 2]
    rows, record, report = evaluated(tmp_path / "spread.json", *asked, *spread)
    assert rows == alone and len(rows) > 1
    assert record["devices"]["mesh"]["tensor"] == 2
    assert "8 devices (mesh: data 4" in report


def test_a_mesh_that_does_not_fit_is_one_message(folders, tmp_path, capsys):
    target, drafters = folders
    line = ["--config", "quickstart", "--output", str(tmp_path / "o.json"), "--workdir"]
    line += [str(drafters[0]), "--target.path", str(target)]
    for arguments, message in (
        (["--mesh.tensor", "3"], "mesh.tensor is 3, which does not divide its 8 query heads"),
        (["--mesh.tensor", "16"], "mesh.tensor is 16, which takes 16 devices, but this process"),
        (
            ["--mesh.data", "3", "--evaluation.batch_size", "8"],
            "mesh.data is 3, which does not divide the 8 prompts that are decoded together: set "
            "mesh.data to 1, 2, 4 or 8, or evaluation.batch_size to a multiple of 3.",
        ),
    ):
        assert run_as_command(eval_script.main, [*line, *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "o.json").exists()


def test_an_evaluation_is_for_one_process(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    line = ["--config", "quickstart", "--output", str(tmp_path / "o.json")]
    assert run_as_command(eval_script.main, [*line, "--drafters", "ngram"]) == 2
    assert "the devices of one process: got 2 processes" in capsys.readouterr().err


def test_the_mesh_of_a_config_is_that_of_its_training():
    line = ["--config", "qwen3_4b", "--output", "o.json"]
    assert parse_command(EvalCommand, line, program="eval.py").run.mesh == MeshConfig()
    run = parse_command(EvalCommand, [*line, "--mesh.tensor", "4"], program="eval.py").run
    assert run.mesh == MeshConfig(tensor=4)


def test_generate_spreads_the_target_alone(folders, capsys, monkeypatch):
    target, (drafter, _) = folders
    monkeypatch.setattr("sys.stdin", io.StringIO())
    line = ["generate", "--target.path", str(target), "--drafter", str(drafter), "--json"]
    line += ["--prompt", PROMPT, "--max_new_tokens", "12"]
    answers = []
    for arguments in ([], ["--mesh.tensor", "8"]):
        assert run_as_command(console.dispatch, [*line, *arguments]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    alone, spread = answers
    assert spread["text"] == alone["text"]
    assert spread["devices"]["mesh"] == {"data": 1, "fsdp": 1, "tensor": 8}
    assert "mesh" not in alone["devices"]
    with pytest.raises(ValueError, match=r"one at a time, so only --mesh\.tensor spreads the work"):
        parse_command(GenerateCommand, ["--mesh.data", "2"], program="jaxspec generate")


def test_the_python_way(folders):
    target, (drafter, _) = folders
    found = []
    for tensor in (1, 8):
        opened = jaxspec.open_target(target, tensor=tensor)
        ours = jaxspec.open_drafter(drafter, target=opened)
        answer = jaxspec.generate(opened, PROMPT, drafter=ours, max_new_tokens=12)
        rounds = [dataclasses.replace(each, seconds=0) for each in answer.rounds]
        found.append((answer.tokens, rounds))
    assert found[0] == found[1]
