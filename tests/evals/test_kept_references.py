from __future__ import annotations

import dataclasses
import errno
import json
import os

import pytest

from jaxspec.config import EvaluationConfig, RunConfig, TargetConfig
from jaxspec.evals.kept_references import SETTINGS
from jaxspec.evals.report import read_json
from jaxspec.evals.speculative.runner import evaluate
from jaxspec.json_files import LARGEST_OF_RESULTS, read_object
from tests.evals import drafter_folders

OF_DRAFTING = {
    *("draft_temperature", "strategy", "calibration", "calibration_prompts", "verifier"),
    *("tree_nodes", "chains", "adaptive_sizes", "block_size", "denoising_passes"),
    *("denoising_order", "draft_rule", "timing_prompts", "timing_repeats"),
}
"""Settings that the target's own answers do not depend on."""
OF_THE_FILE = {"benchmarks", "prompts"}
"""Settings that say which files there are."""
KEPT = "the target's own answers are in"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(target, drafters)"""
    return drafter_folders.write_folders(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def first(folders, tmp_path_factory):
    """(folder of references, results) of the evaluation that decodes them."""
    folder = tmp_path_factory.mktemp("first")
    lines: list[str] = []
    results = run(folders, folder, folders[1][:1], lines)
    assert not any(KEPT in line for line in lines)
    return folder / "references", results


def run(folders, folder, workdirs, lines, *, kinds=(), references=None, **changes):
    settings = dataclasses.replace(drafter_folders.SETTINGS, timing_prompts=0, **changes)
    config = RunConfig(target=TargetConfig(path=str(folders[0])), evaluation=settings)
    return evaluate(
        config,
        workdirs=workdirs,
        kinds=kinds,
        output=folder / "results.json",
        references=references or folder / "references",
        echo=lines.append,
    )["results"]


def test_every_setting_is_known_to_matter_or_not():
    names = {field.name for field in dataclasses.fields(EvaluationConfig)}
    assert names == {*SETTINGS} | OF_DRAFTING | OF_THE_FILE


def test_another_drafter_is_compared_with_the_kept_answers(folders, first, tmp_path):
    lines: list[str] = []
    rows = run(folders, tmp_path, folders[1], lines, references=first[0])
    assert sum(KEPT in line for line in lines) == len({row["benchmark"] for row in rows})
    assert not any("target alone" in line for line in lines)
    assert [row for row in rows if row["drafter"] == rows[0]["drafter"]] == first[1]
    assert len(rows) > len(first[1])


def test_files_of_results_may_be_larger_than_those_of_models(folders, first, tmp_path, monkeypatch):
    """Answers of thousands of long prompts, or a study's rows, take more than a tokenizer."""
    monkeypatch.setattr("jaxspec.json_files.LARGEST_FILE", 100)
    (kept,) = (file for file in first[0].iterdir() if file.stat().st_size > 100)
    with pytest.raises(ValueError, match="expected at most 100"):
        read_object(kept)
    assert len(read_object(kept, largest=LARGEST_OF_RESULTS)) == 3
    _, rows = read_json(first[0].parent / "results.json")
    assert rows == first[1]


def test_other_settings_have_answers_of_their_own(folders, first, tmp_path):
    before = {file.name for file in first[0].iterdir()}
    lines: list[str] = []
    shorter = drafter_folders.SETTINGS.max_new_tokens - 1
    settings = {"kinds": ["none"], "max_new_tokens": shorter}
    run(folders, tmp_path, [], lines, references=first[0], **settings)
    assert not any(KEPT in line for line in lines)
    assert before < {file.name for file in first[0].iterdir()}


def test_changed_answers_are_refused(folders, first, tmp_path):
    changed = tmp_path / "references"
    changed.mkdir()
    for file in first[0].iterdir():
        found = json.loads(file.read_text())
        found["reference"]["responses"][0]["tokens"][-1] += 1
        (changed / file.name).write_text(json.dumps(found))
    with pytest.raises(ValueError, match="is damaged: delete it"):
        run(folders, tmp_path, folders[1][:1], [])


def test_a_place_that_cannot_be_written_to_is_found_first(tmp_path):
    """Before the target is opened: this one is not there."""
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "references", "/proc/references"):
        with pytest.raises(ValueError, match=r"^--references .* cannot be written to: "):
            run((tmp_path / "nowhere", []), tmp_path, [], [], references=place)
    assert list(tmp_path.iterdir()) == [file]


def test_answers_that_cannot_be_kept_are_used(folders, first, tmp_path, monkeypatch):
    """A disk that becomes full while the target answers."""

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("jaxspec.evals.kept_references.write_text", full)
    lines: list[str] = []
    assert run(folders, tmp_path, folders[1][:1], lines) == first[1]
    assert any(
        line.startswith("--references ") and "No space left" in line and "not kept" in line
        for line in lines
    )
