"""The checkpoint that did best on held-out data stays besides the newest."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jaxspec.checkpoints.train_state import (
    SCORE,
    Score,
    TrainCheckpoints,
    best_step,
    saved_scores,
)
from tests.checkpoints.test_train_state import damage, make_state, shapes, steps


def score(value: float, measure: str = "m") -> Score:
    return Score(value=value, measure=measure, text=f"tau {value}")


def save(checkpoints: TrainCheckpoints, step: int, found: Score | None) -> None:
    progress = {SCORE: found and dataclasses.asdict(found)}
    checkpoints.save(step, make_state(step), progress=progress)


@pytest.fixture
def folder(tmp_path):
    """Steps 1 to 6, of which step 2 is the best and two are kept; reopened after the fourth."""
    values = {1: 1.0, 2: 3.0, 3: 2.0, 4: None, 5: 2.5, 6: 2.0}
    folder = tmp_path / "checkpoints"
    checkpoints = TrainCheckpoints(folder, keep=2)
    for step, value in values.items():
        save(checkpoints, step, None if value is None else score(value))
        if step == 4:
            checkpoints.close()
            checkpoints = TrainCheckpoints(folder, keep=2)
    checkpoints.close()
    return folder


def test_the_best_stays_also_after_a_restart(folder):
    assert steps(folder) == ["2", "5", "6"]
    assert saved_scores(folder) == {2: score(3.0), 5: score(2.5), 6: score(2.0)}
    assert best_step(saved_scores(folder)) == 2


def test_a_better_one_takes_its_place(folder):
    checkpoints = TrainCheckpoints(folder, keep=1)
    save(checkpoints, 7, score(3.0))  # As good, and later.
    checkpoints.close()
    assert steps(folder) == ["7"]


def test_another_measure_begins_anew(folder):
    checkpoints = TrainCheckpoints(folder, keep=1)
    save(checkpoints, 7, score(0.5, "other"))
    save(checkpoints, 8, score(0.1, "other"))
    checkpoints.close()
    assert steps(folder) == ["7", "8"]
    assert best_step(saved_scores(folder)) == 7


def test_without_scores_only_the_newest_stay(tmp_path):
    checkpoints = TrainCheckpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        save(checkpoints, step, None)
    checkpoints.close()
    assert steps(tmp_path / "checkpoints") == ["2", "3"]
    assert best_step({}) is None


@pytest.mark.parametrize(
    "found", ["x", 3, {"value": 1.0}, {"value": "x", "measure": "m", "text": ""}]
)
def test_a_score_of_unknown_content_is_none(found):
    assert Score.of(json.loads(json.dumps({SCORE: found}))) is None


def test_one_checkpoint_is_restored(folder):
    checkpoints = TrainCheckpoints(folder, keep=2)
    abstract = shapes(make_state())
    step, state, progress = checkpoints.restore(2, abstract)
    assert step == 2 and Score.of(progress) == score(3.0)
    np.testing.assert_array_equal(
        state["params"]["fc"]["kernel"], make_state(2)["params"]["fc"]["kernel"]
    )
    with pytest.raises(ValueError, match=r"No checkpoint of step 4 .*there are 2, 5, 6"):
        checkpoints.restore(4, abstract)
    damage(folder, 2)
    with pytest.raises(ValueError, match=r"Checkpoint 2 in .* cannot be read"):
        checkpoints.restore(2, abstract)
    checkpoints.close()
    assert steps(folder) == ["2", "5", "6"], "nothing is set aside"
