"""Which drafters an evaluation measures, and what they are called."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from jaxspec.config import RunConfig, TargetConfig
from jaxspec.evals.opening import open_target
from jaxspec.evals.speculative.drafters import open_drafters
from jaxspec.evals.speculative.runner import evaluate
from tests.evals.drafter_folders import SETTINGS, write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(target, drafters)"""
    return write_folders(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def target(folders):
    return open_target(TargetConfig(path=str(folders[0])))


def test_kinds_of_drafters_are_checked(folders, target):
    dflash = folders[1][0]
    opened = open_drafters([dflash], kinds=["ngram", "dflash"], target=target)
    assert [drafter.name for drafter in opened] == ["ngram", "run0"]
    left_out = r"run0 holds a drafter of kind 'dflash', .* add it \(--drafters dflash,ngram,none\)"
    for workdirs, kinds, message in (
        ([], [], "No drafters to measure"),
        ([dflash], ["eagle"], "Unknown kind of drafter 'eagle': there are dflash"),
        ([folders[0]], ["autoregressive", "dflash"], "no folder in --workdir holds such a drafter"),
        ([dflash], ["ngram", "none"], left_out),
        ([dflash, dflash / "export"], [], "--workdir names .*export twice"),
    ):
        with pytest.raises(ValueError, match=message):
            open_drafters(workdirs, kinds=kinds, target=target)


def test_drafters_of_one_name_are_called_by_the_folders_above_them(folders, tmp_path):
    """Otherwise one table mixes them, and a plot shows one of them."""
    workdirs = [tmp_path / name / "full" for name in ("lrA", "lrB")]
    for workdir in workdirs:
        shutil.copytree(folders[1][0], workdir)
    settings = dataclasses.replace(SETTINGS, timing_prompts=0, prompts=1)
    config = RunConfig(target=TargetConfig(path=str(folders[0])), evaluation=settings)
    lines: list[str] = []
    output = tmp_path / "r.json"
    rows = evaluate(config, workdirs=workdirs, output=output, echo=lines.append)["results"]
    assert [row["drafter"] for row in rows] == ["lrA/full", "lrB/full"]
    table = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "| uniform (lrA/full) |" in table and "| uniform (lrB/full) |" in table
