from __future__ import annotations

import dataclasses

import pytest

from jaxspec.config import EvaluationConfig, RunConfig
from jaxspec.study.declaration import (
    StudyDecoding,
    StudyLoss,
    StudyTarget,
    with_settings,
)
from tests.study.tiny import STUDY


def test_settings_replace_those_of_a_run_at_once():
    run = RunConfig(evaluation=EvaluationConfig(tree_nodes=4))
    # One by one, a tree and chains would be refused.
    changed = with_settings(
        run,
        {"evaluation.chains": 2, "evaluation.tree_nodes": 0, "loss.decay": None},
        where="x",
    )
    assert (changed.evaluation.chains, changed.evaluation.tree_nodes) == (2, 0)
    assert changed.loss.decay is None
    assert changed.loss.focal == run.loss.focal


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss.dekay": 1.0}, r"here: There is no setting loss\.dekay\. Did you mean 'decay'"),
        ({"los.decay": 1.0}, r"no setting los\. Did you mean 'loss'"),
        ({"loss": 1.0}, "loss cannot be set here: name single settings"),
        ({"target.architecture.num_layers": 2}, r"target\.architecture cannot be set here"),
        ({"loss.focal": -1.0}, r"here: loss\.focal"),
    ],
)
def test_settings_that_there_are_not(settings, message):
    with pytest.raises(ValueError, match=message):
        with_settings(RunConfig(), settings, where="here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ()}, r"study\.losses is empty"),
        ({"seeds": ()}, r"study\.seeds is empty"),
        ({"seeds": (1, 1)}, "holds a seed twice"),
        ({"name": "a/b"}, r"study\.name: got the name 'a/b'"),
        ({"base": "unifrm"}, r"study\.base names 'unifrm'.*Did you mean 'uniform'"),
        ({"losses": (StudyLoss("a"), StudyLoss("a"))}, "two rows called 'a'"),
        ({"decodings": (StudyDecoding("d", losses=("no",)),)}, "d: losses names 'no'"),
        ({"decodings": (StudyDecoding("d", {"loss.decay": 1}),)}, "d sets loss.decay"),
        (
            {"decodings": (StudyDecoding("d", seeds=(0, 9)),)},
            r"d: seeds is \(0, 9\), but its rows have the seeds 0, 1",
        ),
        ({"decodings": (StudyDecoding("d", seeds=(1, 1)),)}, "d: seeds holds a seed twice"),
        ({"losses": (StudyLoss("a", {"evaluation.prompts": 1}),)}, "all rows are measured alike"),
        ({"losses": (StudyLoss("a", {"training.seed": 1}),)}, "name the seeds in study.seeds"),
        ({"targets": (StudyTarget("t", "c", {"data.seed": 1}),)}, "name the seeds in study.seeds"),
    ],
)
def test_mistakes_in_a_declaration(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(STUDY, **changes)


def test_defaults_of_rows():
    study = dataclasses.replace(
        STUDY,
        losses=(StudyLoss("a"), StudyLoss("b", seeds=(7,))),
        decodings=(
            StudyDecoding("all"),
            StudyDecoding("some", losses=("b",)),
            StudyDecoding("one_seed", seeds=(0,)),
        ),
    )
    assert [study.seeds_of(loss) for loss in study.losses] == [(0, 1), (7,)]
    names = [
        [d.name for d in study.decodings_of(loss, seed)]
        for loss in study.losses
        for seed in study.seeds_of(loss)
    ]
    assert names == [["all", "one_seed"], ["all"], ["all", "some"]]
    assert study.base_loss == "a"
