"""jaxspec calibrate: a graph that fits, the same every time, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jaxspec.cli import main as console
from jaxspec.cli.calibrate import CalibrateCommand, calibrate
from jaxspec.cli.configuration import run_as_command
from jaxspec.config import RunConfig, TargetConfig
from jaxspec.decoding.diffusion.draft_graph import load_graph
from jaxspec.evals.diffusion.runner import evaluate_diffusion
from tests.evals.diffusion_folders import DIFFUSION, EVALUATION, run_config, write_model

PROMPTS, BUDGET = 3, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "export")


@pytest.fixture
def call(folder, tmp_path):
    """Calibrates with small settings; returns the file and what was said."""

    def run(name="graph.json", **changes):
        settings = {
            "source": "embedded/math",
            "output": str(tmp_path / name),
            "run": run_config(folder),
            "prompts": PROMPTS,
            "budget": BUDGET,
            "tokens": 16,
            **changes,
        }
        said: list[str] = []
        return calibrate(CalibrateCommand(**settings), echo=said.append), said

    return run


def test_the_graph_says_where_it_is_from_and_decodes(call, folder, tmp_path):
    file, said = call()
    assert said[0].startswith("1 prompts  ") and said[2].startswith("3 prompts  ")
    assert "3 nodes, up to " in said[-1] and "--diffusion.graph" in said[-1]
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    graph = load_graph(file)
    assert graph.size == BUDGET
    assert (graph.settings["unmasking"], graph.settings["steps"]) == ("scheduled", "4")
    assert graph.settings["block_length"] == "4" and len(graph.settings["model"]) == 16
    assert sorted(path.name for path in file.parent.iterdir()) == ["graph.json", "graph.png"]
    record = graph.provenance["calibration"]
    assert (record["source"], record["split"], record["responses"]) == ("embedded/math", "train", 3)
    assert len(record["node_counts"]) == BUDGET and min(record["node_counts"]) > 0
    assert graph.provenance["config"]["diffusion"]["caching"] == "dual"
    assert json.loads(file.read_text())["provenance"]["seed"] == 0

    settings = dataclasses.replace(DIFFUSION, graph=str(file), drafts=())
    untimed = dataclasses.replace(EVALUATION, timing_prompts=0)
    config = run_config(folder, diffusion=settings, evaluation=untimed)
    out = evaluate_diffusion(config, output=tmp_path / "out.json", echo=lambda line: None)
    assert [row["identical_share"] for row in out["results"]] == [1.0, 1.0]
    other = dataclasses.replace(settings, steps=2)
    with pytest.raises(ValueError, match=r"steps: got '2', expected '4'"):
        evaluate_diffusion(
            run_config(folder, diffusion=other, evaluation=untimed), output=tmp_path / "x.json"
        )


def test_the_same_command_gives_the_same_graph(call):
    first, second = load_graph(call("a.json")[0]), load_graph(call("b.json")[0])
    assert first == second and first.settings == second.settings
    untold = [{**graph.provenance, "time": ""} for graph in (first, second)]
    assert untold[0] == untold[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 0}, "--prompts must be at least 1"),
        ({"budget": 0}, "--budget must be at least 1"),
        ({"depth": -1}, "--depth must be at least 1"),
        ({"budget": 10**9}, "--budget must be at most 1,024"),
        ({"positions": 10**12}, "--positions must be at most 4,096"),
        ({"tokens": 2**70}, "--tokens must be at most 128"),
        ({"output": "/proc/graph.json"}, "--output /proc/graph.json cannot be written to"),
        ({"source": "gsm9k"}, "Unknown data set 'gsm9k'"),
        ({"source": "humaneval"}, "for evaluation only"),
        ({"run": RunConfig(target=TargetConfig(path="embedded"))}, "goes from left to right"),
    ],
)
def test_mistakes_write_nothing(call, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_no_json_file(call, tmp_path):
    with pytest.raises(ValueError, match=r"must be a \.json file"):
        call("graph.png")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        call("folder.json")
    (tmp_path / "graph.png").mkdir()
    with pytest.raises(ValueError, match=r"The picture next to --output .*graph\.png is a folder"):
        call("graph.json")


def test_prompts_that_are_too_long_are_found_before_weights_are_read(call, folder, monkeypatch):
    def read(*_, **__):
        raise AssertionError("no weights may be read")

    monkeypatch.setattr("jaxspec.evals.opening.load_params", read)
    short = dataclasses.replace(EVALUATION, max_prompt_tokens=5)
    with pytest.raises(ValueError, match=r"^embedded/math: No prompts to decode: all 3 are longer"):
        call(run=run_config(folder, evaluation=short))


def test_nothing_to_draft_is_said(call, folder):
    """All at once: no step follows another."""
    # In two steps, one does, but it ends the block: there is no pass to be saved.
    for steps in (1, 2):
        at_once = dataclasses.replace(DIFFUSION, steps=steps)
        with pytest.raises(ValueError, match="Nothing to draft: in 3 responses"):
            call(run=run_config(folder, diffusion=at_once))


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        run_as_command(console.dispatch, ["calibrate", "--help"])
    assert ended.value.code == 0
    assert "--budget" in capsys.readouterr().out
