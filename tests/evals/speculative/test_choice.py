"""evaluation.strategy "auto": what is tried, what is chosen, and that outputs stay the same."""

import dataclasses
import json

import pytest

from jaxspec.config import DataConfig, EvaluationConfig, RunConfig, TargetConfig
from jaxspec.decoding import Autoregressive, Speculative, TreeSpeculative
from jaxspec.evals.benchmarks import load_benchmark, load_benchmarks
from jaxspec.evals.opening import open_drafter, open_target, untrained_drafter
from jaxspec.evals.report import read_json
from jaxspec.evals.speculative import choice as choice_module
from jaxspec.evals.speculative import runner
from jaxspec.evals.speculative.choice import (
    LEAST_GAIN,
    OFF,
    Choice,
    Measured,
    calibration_examples,
    options,
)
from jaxspec.evals.speculative.runner import evaluate
from jaxspec.evals.speculative.strategies import build_strategy
from tests.evals.drafter_folders import SETTINGS, write_folders

AUTO = dataclasses.replace(SETTINGS, strategy="auto", block_size=0, calibration_prompts=1)
WARM = {"temperature": 1.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def models(folders):
    target = open_target(TargetConfig(path=str(folders[0])))
    return target, open_drafter(folders[1][0], target=target)


def run_config(folders, settings):
    return RunConfig(name="test", target=TargetConfig(path=str(folders[0])), evaluation=settings)


def test_the_most_tokens_per_second_are_chosen():
    found = Choice(
        (
            Measured(OFF, 1.0, 2.0),
            Measured("block 4, greedy", 2.0, 3.0),
            Measured("block 8, greedy", 2.4, 4.0),
        ),
        6,
    )
    assert found.chosen.name == "block 4, greedy"
    assert found.sentence() == (
        "chose block 4, greedy: 667 tokens/s (tau 2.00, round 3.00 ms) against 600 of block 8, "
        "greedy; no drafting would give 500. Measured one by one on 6 prompts that are not in the "
        "table."
    )
    assert Choice.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_no_drafting_is_chosen_where_drafting_costs_more_than_it_gives():
    found = Choice((Measured(OFF, 1.0, 2.0), Measured("block 4, greedy", 2.0, 5.0)), 6)
    assert found.chosen.name == OFF
    assert found.sentence().startswith(
        "chose no drafting: 500 tokens/s (tau 1.00, round 2.00 ms) against 400 of block 4, greedy."
    )
    # Of equally fast ones, the first, which is the simplest.
    equal = Choice((Measured(OFF, 1.0, 2.0), Measured("block 4, greedy", 2.0, 4.0)), 6)
    assert equal.chosen.name == OFF


@pytest.mark.parametrize(
    ("round_ms", "interval", "chosen"),
    [
        (3.7, (1.01, 1.15), "block 4, greedy"),  # 1.08 times as fast
        (3.7, (0.98, 1.20), OFF),  # on some prompts only
        (3.9, (1.01, 1.04), OFF),  # 1.03 times: less than varies from run to run
        (3.7, None, "block 4, greedy"),  # too few prompts for an interval
        (3.9, None, OFF),
    ],
)
def test_drafting_has_to_be_clearly_faster(round_ms, interval, chosen):
    block = Measured("block 4, greedy", 2.0, round_ms, interval)
    found = Choice((Measured(OFF, 1.0, 2.0, (1.0, 1.0)), block), 8)
    assert found.chosen.name == chosen
    assert ("which is not clearly more" in found.sentence()) == (chosen == OFF)
    assert Choice.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_what_is_tried(models):
    target, drafter = models

    def tried(drafter=drafter, **changes):
        return options(dataclasses.replace(AUTO, **changes), target, drafter)

    assert list(tried()) == [OFF, "block 2, greedy", "block 4, greedy", "tree of 16", "tree of 32"]
    assert list(tried(**WARM)) == [
        *(OFF, "block 2, point_mass", "block 2, token", "block 4, point_mass", "block 4, token"),
        *("tree of 16", "tree of 32"),
    ]
    # Drafts at temperature 0 are the argmax: there is no second rule.
    assert list(tried(**WARM, draft_temperature=0.0))[:3] == [
        *(OFF, "block 2, point_mass", "block 4, point_mass"),
    ]
    ngram = untrained_drafter("ngram")
    assert list(tried(ngram, **WARM)) == [
        *(OFF, "block 2, point_mass", "block 4, point_mass", "block 8, point_mass"),
        *("tree of 16", "tree of 32"),
    ]
    # Several passes are for drafters that denoise; others draft trees whatever their number.
    assert list(tried(ngram, denoising_passes=4))[-1] == "tree of 32"
    assert list(tried(denoising_passes=4))[-1] == "tree of 32"
    assert list(tried(untrained_drafter("none"))) == [OFF]
    assert list(tried(strategy="given")) == ["given"]
    built = {
        name: build_strategy(settings, target, drafter) for name, settings in tried(**WARM).items()
    }
    assert isinstance(built[OFF], Autoregressive)
    for name, strategy in built.items():
        if name.startswith("block"):
            size, rule = name.removeprefix("block ").split(", ")
            assert type(strategy) is Speculative
            assert (strategy.round_tokens, strategy.verifier) == (int(size), rule)
            assert strategy.proposer.sampling.greedy == (rule == "point_mass")
    assert isinstance(built["tree of 32"], TreeSpeculative)
    assert built["tree of 32"].verified_rows == 33


def test_what_is_chosen_cannot_be_given():
    with pytest.raises(ValueError, match=r"leave out evaluation.verifier, evaluation.block_size"):
        EvaluationConfig(strategy="auto", verifier="token", block_size=4, temperature=1.0)


def test_a_strategy_is_decided_before_it_is_built(models):
    with pytest.raises(ValueError, match="'auto' is decided by an evaluation"):
        build_strategy(AUTO, *models)


def test_calibration_prompts_are_not_measured():
    settings = dataclasses.replace(AUTO, prompts=5, calibration_prompts=3)
    data = DataConfig()
    measured = load_benchmarks(settings, data=data)
    (found,) = calibration_examples(settings, measured=measured, data=data).values()
    assert len(found) == 3
    asked = {example.turns for example in measured["embedded/math"]}
    assert not asked & {example.turns for example in found}
    other = dataclasses.replace(settings, calibration="embedded/code")
    (found,) = calibration_examples(other, measured=measured, data=data).values()
    assert found == load_benchmark("embedded/code", prompts=3, data=data, seed=0)
    every = dataclasses.replace(settings, prompts=300)
    measured = load_benchmarks(every, data=data)
    with pytest.raises(ValueError, match=r"lower evaluation\.prompts, or name another"):
        calibration_examples(every, measured=measured, data=data)


@pytest.fixture
def one_tree(monkeypatch):
    """Instead of two: each option is two programs. `test_what_is_tried` builds all of them."""
    monkeypatch.setattr(choice_module, "TREES", (16,))


def with_costs(monkeypatch, costs_ms):
    """Replaces measured times of rounds by given ones; acceptance is still measured."""
    measure = choice_module.measure_options

    def measured(*arguments, **keywords):
        found = measure(*arguments, **keywords)
        return dataclasses.replace(
            found,
            measured=tuple(
                dataclasses.replace(option, round_ms=costs_ms.get(option.name, 1e6))
                for option in found.measured
            ),
        )

    monkeypatch.setattr(choice_module, "measure_options", measured)


@pytest.mark.usefixtures("one_tree")
def test_an_evaluation_chooses_and_its_outputs_stay(folders, tmp_path, monkeypatch):
    """At temperature 0, whatever is chosen gives the target's own answers."""
    lines = []
    settings = dataclasses.replace(AUTO, timing_prompts=0)
    config = run_config(folders, settings)

    def evaluated(name, costs_ms):
        with monkeypatch.context() as patch:
            with_costs(patch, costs_ms)
            return evaluate(
                config, workdirs=folders[1][:1], output=tmp_path / name, echo=lines.append
            )["results"][0]

    costs = {OFF: 1.0, "block 2, greedy": 0.1, "block 4, greedy": 5.0}
    row = evaluated("blocks.json", costs)
    assert (row["block_size"], row["verifier"], row["tree_nodes"]) == (2, "greedy", 0)
    assert row["choice"]["chosen"] == "block 2, greedy"
    assert row["choice"]["calibration_prompts"] == 1
    assert [each["name"] for each in row["choice"]["measured"]] == [
        *(OFF, "block 2, greedy", "block 4, greedy", "tree of 16"),
    ]
    # Equal costs: an equal choice, from equal acceptance.
    assert evaluated("again.json", costs)["choice"] == row["choice"]
    tree = evaluated("tree.json", {"tree of 16": 0.1})
    assert (tree["block_size"], tree["verifier"], tree["tree_nodes"]) == (4, "tree", 16)
    off = evaluated("off.json", {OFF: 0.1})
    assert (off["block_size"], off["verifier"], off["tau_micro"]) == (1, "none", 1.0)
    for each in (row, tree, off):
        assert each["mismatched_prompts"] == 0
        assert each["tokens"] == row["tokens"]
    text = "\n".join(lines)
    assert "chose block 2, greedy: " in text and "chose no drafting: " in text
    (shown,) = [
        line
        for line in (tmp_path / "blocks.md").read_text(encoding="utf-8").splitlines()
        if "chose block 2, greedy" in line
    ]
    assert "no drafting would give 1,000" in shown
    assert "that are not in the table" in shown
    assert read_json(tmp_path / "blocks.json")[1][0]["choice"] == row["choice"]


@pytest.mark.usefixtures("one_tree")
def test_a_continued_evaluation_keeps_its_choice(folders, tmp_path, monkeypatch):
    settings = dataclasses.replace(
        AUTO, benchmarks=("embedded/math", "embedded/code"), timing_prompts=0
    )
    config = run_config(folders, settings)
    output = tmp_path / "r.json"
    measure = runner.Evaluation.measure

    def stopped(self, name, *arguments):
        if name == "embedded/code":
            raise KeyboardInterrupt
        return measure(self, name, *arguments)

    with monkeypatch.context() as patch:
        with_costs(patch, {"block 2, greedy": 0.1})
        patch.setattr(runner.Evaluation, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, workdirs=folders[1][:1], output=output, echo=lambda line: None)
    # Other times now would choose otherwise.
    monkeypatch.setattr(choice_module, "measure_options", lambda *_, **__: pytest.fail("measured"))
    rows = evaluate(config, workdirs=folders[1][:1], output=output, echo=lambda line: None)
    assert [row["choice"]["chosen"] for row in rows["results"]] == ["block 2, greedy"] * 2


def test_a_sampling_evaluation_chooses_among_the_rules(folders, tmp_path, monkeypatch):
    """With the times of this machine, whatever they are."""
    # One size, no trees: `test_what_is_tried` builds all of them, at this temperature, too.
    monkeypatch.setattr(choice_module, "_SHARES", (1,))
    monkeypatch.setattr(choice_module, "TREES", ())
    settings = dataclasses.replace(AUTO, **WARM, timing_prompts=1)
    result = evaluate(
        run_config(folders, settings),
        workdirs=folders[1][:1],
        kinds=["dflash", "none"],
        output=tmp_path / "r.json",
        echo=lambda line: None,
    )
    drafter, alone = result["results"]
    found = drafter["choice"]
    rates = {each["name"]: each["tokens_per_s"] for each in found["measured"]}
    assert list(rates) == [OFF, "block 4, point_mass", "block 4, token"]
    allowed = {name for name, rate in rates.items() if rate >= LEAST_GAIN * rates[OFF]} | {OFF}
    assert found["chosen"] == max(allowed, key=rates.__getitem__)
    assert {each["name"]: each["tau"] for each in found["measured"]}[OFF] == 1.0
    assert all(each["tau"] >= 1 and each["round_ms"] > 0 for each in found["measured"])
    assert drafter["speedup"] > 0
    assert "choice" not in alone
