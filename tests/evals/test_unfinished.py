"""Which evaluations may be continued: what they measure, and on which machine, must be equal."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from jaxspec.config import RunConfig, TargetConfig
from jaxspec.data.sources import load_examples
from jaxspec.data.tokenizer import EMBEDDED_FOLDER
from jaxspec.decoding.diffusion.draft_graph import chain, save_graph, star
from jaxspec.evals.diffusion.runner import evaluate_diffusion
from jaxspec.evals.speculative.runner import evaluate
from jaxspec.evals.unfinished import ENDING, held_output
from jaxspec.provenance import provenance
from tests.evals import diffusion_folders
from tests.evals.drafter_folders import SETTINGS, write_folders


class Killed(BaseException):
    """The end of a process, simulated in this one."""


def kill_after_a_row(line: str) -> None:
    """Takes the lines that an evaluation prints."""
    if ": tau " in line or "passes per response" in line:
        raise Killed


def kill_after_a_timed_row(line: str) -> None:
    """The same where speed is measured: its line is a row's last."""
    if " measured; tau " in line:
        raise Killed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(target, drafters)"""
    return write_folders(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The same names and shapes, with other weights."""
    return write_folders(tmp_path_factory.mktemp("others"), seed=5)


def config_of(target, **changes):
    dtype = changes.pop("dtype", "float32")
    evaluation = dataclasses.replace(SETTINGS, **{"timing_prompts": 0, **changes})
    return RunConfig(target=TargetConfig(path=str(target), dtype=dtype), evaluation=evaluation)


@pytest.fixture(scope="module")
def kept(folders, tmp_path_factory):
    """The file of an evaluation that was killed after its first row."""
    output = tmp_path_factory.mktemp("kept") / "results.json"
    with pytest.raises(Killed):
        evaluate(config_of(folders[0]), workdirs=folders[1], output=output, echo=kill_after_a_row)
    return output.with_suffix(ENDING)


def refusal(kept, tmp_path, config, workdirs):
    """The differences in the refusal of another evaluation, which does not change the file."""
    file = tmp_path / kept.name
    shutil.copy(kept, file)
    with pytest.raises(ValueError, match=r"rows of another evaluation \(1 finished\):") as raised:
        evaluate(config, workdirs=workdirs, output=tmp_path / "results.json", echo=print)
    assert file.read_bytes() == kept.read_bytes()
    assert not (tmp_path / "results.json").exists()
    first, *different, last = str(raised.value).splitlines()
    assert str(file) in first and "To start over, delete the file" in last
    return dict(line.strip().split(": ", 1) for line in different)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_new_tokens": 13}, {"evaluation.max_new_tokens": "got 13, recorded 12"}),
        ({"temperature": 0.5}, {"evaluation.temperature": "got 0.5, recorded 0.0"}),
        ({"block_size": 4}, {"evaluation.block_size": "got 4, recorded 3"}),
        ({"batch_size": 2}, {"evaluation.batch_size": "got 2, recorded 1"}),
        ({"timing_prompts": 1}, {"evaluation.timing_prompts": "got 1, recorded 0"}),
        ({"dtype": "bfloat16"}, {"target.dtype": "got 'bfloat16', recorded 'float32'"}),
        ({"prompts": 1}, {"evaluation.prompts": "got 1, recorded 2", "prompts.embedded/math": ""}),
        ({"seed": 1}, {"evaluation.seed": "got 1, recorded 0", "prompts.embedded/math": ""}),
        (
            {"benchmarks": ("embedded/math", "embedded/code")},
            {"evaluation.benchmarks": "", "prompts.embedded/code": "recorded None"},
        ),
    ],
)
def test_changed_settings_are_named(folders, kept, tmp_path, change, named):
    got = refusal(kept, tmp_path, config_of(folders[0], **change), folders[1])
    assert got.keys() == named.keys()
    assert all(text in got[name] for name, text in named.items())


def test_other_texts_are_named(folders, kept, tmp_path, monkeypatch):
    """Under the same name: an edited data set."""

    def edited(*arguments, **options):
        first, *rest = load_examples(*arguments, **options)
        turns = (("user", "Say something else."), *first.turns[1:])
        return [dataclasses.replace(first, turns=turns)] * (1 + len(rest))

    monkeypatch.setattr("jaxspec.evals.benchmarks.load_examples", edited)
    got = refusal(kept, tmp_path, config_of(folders[0]), folders[1])
    assert got.keys() == {"prompts.embedded/math"}


def test_other_weights_are_named(folders, others, kept, tmp_path):
    config = config_of(folders[0])
    assert refusal(kept, tmp_path, config_of(others[0]), folders[1]).keys() == {"target.weights"}
    for workdirs in (folders[1][::-1], folders[1][:1], [folders[1][0], others[1][1]]):
        assert refusal(kept, tmp_path, config, workdirs).keys() == {"measured"}
    copied = tmp_path / "target"
    shutil.copytree(folders[0], copied)
    file = copied / "tokenizer_config.json"
    content = json.loads((EMBEDDED_FOLDER / file.name).read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "chat_template": "{{ messages[0].content }}"}))
    assert refusal(kept, tmp_path, config_of(copied), folders[1]).keys() == {"target.tokenizer"}


def test_other_code_and_machines_are_named(folders, kept, tmp_path, monkeypatch):
    for name, changed in (
        ("commit", {"commit": "0" * 40}),
        ("code", {"code": "0" * 16}),  # Also where there is no commit, or nothing is committed.
        ("devices.kind", {"devices": {"kind": "TPU v9"}}),
        ("host.cpus", {"host": {"cpus": 1024}}),
        ("versions.jax", {"versions": {"jax": "99.0"}}),
    ):

        def elsewhere(*, changed=changed, **options):
            record = provenance(**options)
            return record | {
                key: {**record[key], **value} if isinstance(value, dict) else value
                for key, value in changed.items()
            }

        monkeypatch.setattr("jaxspec.evals.speculative.runner.provenance", elsewhere)
        assert name in refusal(kept, tmp_path, config_of(folders[0]), folders[1])


def test_a_moved_target_is_the_same(folders, kept, tmp_path):
    """Folders are compared by content."""
    moved = tmp_path / "elsewhere" / "target"
    shutil.copytree(folders[0], moved)
    shutil.copy(kept, tmp_path)
    lines = []
    output = tmp_path / "results.json"
    evaluate(config_of(moved), workdirs=folders[1], output=output, echo=lines.append)
    assert lines[0].startswith("Continuing: 1 of 2 rows are already in ")
    assert not output.with_suffix(ENDING).exists()


def test_without_finished_rows_another_evaluation_starts_afresh(folders, tmp_path):
    output = tmp_path / "results.json"

    def die(line):
        if "uniform (run0)" in line:
            raise Killed

    with pytest.raises(Killed):
        evaluate(config_of(folders[0]), workdirs=folders[1], output=output, echo=die)
    assert b'"kind": "reference"' in output.with_suffix(ENDING).read_bytes()
    config = config_of(folders[0], prompts=1)
    record = evaluate(config, workdirs=folders[1], output=output, echo=lambda line: None)
    assert "continued" not in record["provenance"]
    assert [row["turns"] for row in record["results"]] == [1, 1]


def test_times_of_an_earlier_process(folders, tmp_path):
    """Drafters of one shape report one time of compiling; the notes are about all rows."""
    config = config_of(folders[0], timing_prompts=1)
    output = tmp_path / "results.json"
    with pytest.raises(Killed):
        evaluate(config, workdirs=folders[1], output=output, echo=kill_after_a_timed_row)
    (kept,) = (
        line["value"]
        for line in map(json.loads, output.with_suffix(ENDING).read_text().splitlines())
        if line["kind"] == "row"
    )
    rows = evaluate(config, workdirs=folders[1], output=output, echo=lambda line: None)["results"]
    assert kept["row"]["compile_s"] > 0
    assert [row["compile_s"] for row in rows] == [kept["row"]["compile_s"]] * 2
    assert rows[0] == kept["row"]
    text = output.with_suffix(".md").read_text(encoding="utf-8")
    assert all(f"- embedded/math, {row['loss']}: {row['speedup']:.2f}x" in text for row in rows)
    assert "Speed-up = tau x autoregressive step" in text


def test_a_row_that_no_file_may_hold_is_refused_at_once(folders, tmp_path, monkeypatch):
    """Not after the last row."""
    monkeypatch.setattr(
        "jaxspec.evals.speculative.runner.computed", lambda *_: {"share": float("nan")}
    )
    lines = []
    with pytest.raises(ValueError, match=r"results\[0\] \(uniform, embedded/math\): share is nan"):
        evaluate(
            config_of(folders[0]), workdirs=folders[1], output=tmp_path / "r.json",
            echo=lines.append,
        )  # fmt: skip
    assert lines[-1].startswith("0 of 2 rows are saved in ")
    assert lines[-1].endswith(". Only the same settings continue from there.")


def test_texts_of_others_are_not_replaced(tmp_path):
    """--output README.json writes README.md, too."""
    file, text = tmp_path / "README.json", tmp_path / "README.md"
    text.write_text("# Read me\n")
    with (
        pytest.raises(ValueError, match=r"README\.md exists and does not begin"),
        held_output(file),
    ):
        pass
    for earlier in ("", "| benchmark | loss |\n"):
        text.write_text(earlier)
        with held_output(file):
            pass


def test_another_draft_graph_is_another_decoder(tmp_path):
    folder = diffusion_folders.write_model(tmp_path / "model")
    graph = tmp_path / "graph.json"
    save_graph(graph, star(2))
    settings = dataclasses.replace(diffusion_folders.DIFFUSION, graph=str(graph), drafts=())
    untimed = dataclasses.replace(diffusion_folders.EVALUATION, timing_prompts=0)
    config = diffusion_folders.run_config(folder, diffusion=settings, evaluation=untimed)
    output = tmp_path / "results.json"
    with pytest.raises(Killed):
        evaluate_diffusion(config, output=output, echo=kill_after_a_row)
    save_graph(graph, chain(2))
    with pytest.raises(ValueError, match=r"of another evaluation .*:\n  measured: got .*spiffy"):
        evaluate_diffusion(config, output=output, echo=kill_after_a_row)
