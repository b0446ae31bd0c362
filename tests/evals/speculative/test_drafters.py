"""Which drafters an evaluation measures, and what they are called."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from jaxspec.config import GPT2Config, RunConfig, TargetConfig, TransformerConfig
from jaxspec.evals.opening import DrafterBundle, open_target, untrained_drafter
from jaxspec.evals.speculative.drafters import check_positions, open_drafters
from jaxspec.evals.speculative.runner import evaluate
from jaxspec.models.registry import make_model
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


def test_a_drafter_with_too_few_positions_is_refused(folders, target, tmp_path, monkeypatch):
    """A GPT-2 reads the last row of its table for all positions beyond it."""
    shape = {"vocab_size": target.config.vocab_size, "num_layers": 1, "num_heads": 2}
    gpt2 = make_model(GPT2Config(**shape, hidden_size=16, max_position_embeddings=64))
    rotary = make_model(TransformerConfig(max_position_embeddings=64))
    small, other = (
        DrafterBundle(name=name, loss=name, seed=None, kind="autoregressive", model=model)
        for name, model in (("small", gpt2), ("rotary", rotary))
    )
    settings = dataclasses.replace(SETTINGS, max_new_tokens=12)
    check_positions([small, other], max_prompt_tokens=52, max_new_tokens=12)
    untrained = untrained_drafter("ngram")
    check_positions([other, untrained], max_prompt_tokens=512, max_new_tokens=12)
    message = (
        r"^small has a table of 64 positions.* Set evaluation\.max_prompt_tokens to 52 or less"
    )
    with pytest.raises(ValueError, match=message):
        check_positions([other, small], max_prompt_tokens=53, max_new_tokens=12)
    with pytest.raises(ValueError, match=r"Lower evaluation\.max_new_tokens \(64\)"):
        check_positions([small], max_prompt_tokens=1, max_new_tokens=64)
    monkeypatch.setattr(
        "jaxspec.evals.speculative.runner.open_drafters", lambda *_, **__: [other, small]
    )
    config = RunConfig(target=TargetConfig(path=str(folders[0])), evaluation=settings)
    # The target has 256 positions, and the default is more.
    with pytest.raises(ValueError, match="prompts may have 244 tokens and answers 12"):
        evaluate(config, workdirs=["small"], output=tmp_path / "r.json", echo=print)


THINKS_IF_TOLD = (
    "{% for message in messages %}{{ message.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
)


def test_another_thinking_mode_than_the_drafters_is_named(folders, tmp_path, monkeypatch):
    """Before anything is decoded; what follows is left out here."""

    class EndOfTheTest(Exception):
        pass

    def load_benchmarks(*_, **__):
        raise EndOfTheTest

    monkeypatch.setattr("jaxspec.evals.speculative.runner.load_benchmarks", load_benchmarks)
    folder, run = tmp_path / "target", tmp_path / "run0"
    shutil.copytree(folders[0], folder)
    shutil.copytree(folders[1][0], run)
    (folder / "chat_template.jinja").write_text(THINKS_IF_TOLD, encoding="utf-8")
    record = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    settings = dataclasses.replace(SETTINGS, timing_prompts=0, prompts=1)
    for recorded, asked, is_named in (
        (False, None, True),
        (False, False, False),
        (None, False, True),
        (True, None, False),
        ("unknown", False, False),
    ):
        mode = {} if recorded == "unknown" else {"enable_thinking": recorded}
        changed = {**record, "config": {**record["config"], "target": mode}}
        (run / "provenance.json").write_text(json.dumps(changed), encoding="utf-8")
        config = RunConfig(
            target=TargetConfig(path=str(folder), enable_thinking=asked), evaluation=settings
        )
        lines: list[str] = []
        with pytest.raises(EndOfTheTest):
            evaluate(config, workdirs=[run], output=tmp_path / "r.json", echo=lines.append)
        notes = [line for line in lines if f"--target.enable_thinking {recorded}" in line]
        assert len(notes) == is_named, (recorded, asked)
