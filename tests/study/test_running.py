"""The order in which units run, with processes that only write down what is asked of them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxspec.config import EvaluationConfig, LossConfig, RunConfig
from jaxspec.study.progress import Durations, Progress
from jaxspec.study.records import read_record, record_file, refuse_changes, write_record
from jaxspec.study.running import Cores, chosen, run_units, states_of, still_needed
from tests.study.tiny import unit

LIVES = 3
"""Looks until a process has ended."""


class Played:
    """Starts processes that end after a few looks, and keeps what happened."""

    def __init__(self, folder: Path, *, fails: tuple[str, ...] = (), stop_at: str = "") -> None:
        self.folder, self.fails, self.stop_at = folder, fails, stop_at
        self.events: list[str] = []
        self.cores: dict[str, tuple[int, ...]] = {}

    def start(self, its_unit, log, cores):
        if its_unit.name == self.stop_at:
            raise KeyboardInterrupt
        self.events.append(f"+{its_unit.name}")
        self.cores[its_unit.name] = cores
        log.write_text(f"first\nlast of {its_unit.name}\n")
        return Playing(self, its_unit)

    def run(self, units, *, jobs=1):
        progress = Progress(
            units,
            states_of(self.folder, units),
            folder=self.folder,
            jobs=jobs,
            title="t",
            echo=self.events.append,
        )
        return run_units(
            units,
            folder=self.folder,
            start=self.start,
            jobs=jobs,
            progress=progress,
            after=lambda its_unit: self.events.append(f"={its_unit.name}"),
        )

    @property
    def order(self):
        return [event for event in self.events if event[0] in "+=!"]


class Playing:
    def __init__(self, played, its_unit):
        self.played, self.unit, self.looks, self.status = played, its_unit, 0, None

    def poll(self):
        self.looks += 1
        if self.looks > LIVES and self.status is None:
            self.status = 1 if self.unit.name in self.played.fails else 0
            if self.status == 0:
                self.unit.output.parent.mkdir(parents=True, exist_ok=True)
                self.unit.output.write_text("{}")
        return self.status

    def terminate(self):
        self.played.events.append(f"!{self.unit.name}")
        self.status = 75

    def wait(self):
        return self.status

    def kill(self):
        raise AssertionError("it was asked to end")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("jaxspec.study.running._LOOKS_EVERY_S", 0.0)


@pytest.fixture
def units(tmp_path):
    def made(name, *needs, **changes):
        return unit(name, output=tmp_path / "made" / name, needs=needs, **changes)

    return made


def test_one_after_the_other_in_their_order(tmp_path, units):
    played = Played(tmp_path)
    assert played.run([units("a"), units("b", "a"), units("c")]) == []
    assert played.order == ["+a", "=a", "+b", "=b", "+c", "=c"]
    again = Played(tmp_path)
    again.run([units("a"), units("b", "a"), units("c"), units("d")])
    assert again.order == ["+d", "=d"], "what is done is not repeated"


def test_several_at_a_time_on_their_own_cores(tmp_path, units, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    played = Played(tmp_path)
    played.run([units("a"), units("b", "a"), units("c"), units("d", "c")], jobs=2)
    assert played.order[:2] == ["+a", "+c"], "b has to wait for a"
    assert {played.cores["a"], played.cores["c"]} == {(0, 1), (2, 3)}


def test_what_measures_speed_runs_alone_and_last(tmp_path, units):
    config = RunConfig(evaluation=EvaluationConfig(timing_prompts=2))
    timed = [units(name, config=config) for name in ("timed1", "timed2")]
    played = Played(tmp_path)
    played.run([*timed, units("a"), units("b")], jobs=2)
    assert played.order[:2] == ["+a", "+b"]
    assert played.order[4:] == ["+timed1", "=timed1", "+timed2", "=timed2"]
    assert played.cores["timed1"] == ()


def test_a_unit_that_fails_stops_only_what_needs_it(tmp_path, units):
    played = Played(tmp_path, fails=("a",))
    grid = [units("a"), units("b", "a"), units("c", "b"), units("d")]
    assert [each.name for each in played.run(grid)] == ["a"]
    assert played.order == ["+a", "+d", "=d"]
    assert any("a: failed" in line and "last of a" in line for line in played.events)
    assert states_of(tmp_path, grid) == {
        "a": "failed", "b": "missing", "c": "missing", "d": "done",
    }  # fmt: skip
    again = Played(tmp_path)
    assert again.run(grid) == []
    assert again.order == ["+a", "=a", "+b", "=b", "+c", "=c"]


def test_ctrl_c_lets_running_units_save_what_they_have(tmp_path, units):
    played = Played(tmp_path, stop_at="b")
    grid = [units("a"), units("b")]
    with pytest.raises(KeyboardInterrupt):
        played.run(grid, jobs=2)
    assert played.order == ["+a", "!a"]
    assert set(states_of(tmp_path, grid).values()) == {"interrupted"}
    again = Played(tmp_path)
    again.run(grid)
    assert states_of(tmp_path, grid) == {"a": "done", "b": "done"}
    record = read_record(tmp_path, grid[0])
    assert record is not None
    assert [attempt.status for attempt in record.attempts] == [75, 0]


def test_units_save_what_they_have_where_nobody_can_be_told(tmp_path, units):
    """The terminal was closed: a line to it would raise before the units are asked to end."""
    played = Played(tmp_path, stop_at="b")

    class Closed(list):
        def append(self, line):
            if line.startswith("Stopping"):
                raise OSError("Input/output error")
            super().append(line)

    played.events = Closed()
    with pytest.raises(KeyboardInterrupt):
        played.run([units("a"), units("b")], jobs=2)
    assert played.order == ["+a", "!a"]


def test_other_settings_are_refused_by_name(tmp_path, units):
    config = RunConfig(evaluation=EvaluationConfig(timing_prompts=0, prompts=3))
    Played(tmp_path).run([units("a")])
    refuse_changes(tmp_path, [units("a")])
    with pytest.raises(ValueError, match=r"a: evaluation\.prompts: got 3, recorded 40"):
        refuse_changes(tmp_path, [units("a", config=config)])


def test_what_the_study_did_not_make_is_refused(tmp_path, units):
    Played(tmp_path).run([units("a")])
    record_file(tmp_path, "a").unlink()
    with pytest.raises(ValueError, match="this study did not make it"):
        refuse_changes(tmp_path, [units("a")])


def test_settings_that_do_not_matter_may_change(tmp_path, units):
    drafter = units("drafters/x", kind="drafter", config=RunConfig())
    Played(tmp_path, fails=("drafters/x",)).run([drafter])
    training = dataclasses.replace(RunConfig().training, log_every=7)
    free = dataclasses.replace(drafter, config=RunConfig(name="y", training=training))
    refuse_changes(tmp_path, [free])
    training = dataclasses.replace(training, steps=7)
    with pytest.raises(ValueError, match=r"training\.steps: got 7, recorded 1000"):
        refuse_changes(
            tmp_path, [dataclasses.replace(drafter, config=RunConfig(training=training))]
        )


@pytest.mark.parametrize(
    "training",
    [{"epochs": 2}, {"export_best": False}, {"export_dtype": "bfloat16"}, {"validate_every": 5}],
)
def test_what_decides_which_weights_are_measured_must_stay(tmp_path, units, training):
    """`jaxspec train` may go on with these, but a study does not look at a finished run again."""
    drafter = units("drafters/x", kind="drafter", config=RunConfig())
    Played(tmp_path, fails=("drafters/x",)).run([drafter])
    other = RunConfig(training=dataclasses.replace(RunConfig().training, **training))
    with pytest.raises(ValueError, match=f"drafters/x: training.{next(iter(training))}: got"):
        refuse_changes(tmp_path, [dataclasses.replace(drafter, config=other)])


def test_a_term_of_ones_own_must_stay_what_it_was(tmp_path, units):
    file = tmp_path / "my_terms.py"
    file.write_text("one = 1\n")
    config = RunConfig(loss=LossConfig(extra=(f"{file}:one=0.5",)))
    drafter = units("drafters/x", kind="drafter", config=config)
    Played(tmp_path, fails=("drafters/x",)).run([drafter])
    refuse_changes(tmp_path, [drafter])
    file.write_text("one = 2\n")
    with pytest.raises(ValueError, match=r"drafters/x: own_terms\.loss\.extra .*my_terms"):
        refuse_changes(tmp_path, [drafter])
    record = read_record(tmp_path, drafter)
    del record.settings["own_terms"]
    write_record(tmp_path, drafter, record)
    refuse_changes(tmp_path, [drafter])  # What the file was is not known.


def test_questions_of_the_embedded_data_count_for_answers(tmp_path, units):
    answers = units("answers/a", kind="answers", config=RunConfig())
    Played(tmp_path, fails=("answers/a",)).run([answers])
    refuse_changes(tmp_path, [answers])
    more = RunConfig(data=dataclasses.replace(RunConfig().data, embedded_examples=7))
    with pytest.raises(ValueError, match=r"answers/a: data\.embedded_examples: got 7, recorded"):
        refuse_changes(tmp_path, [dataclasses.replace(answers, config=more)])


def test_an_evaluation_of_nobody_knows_what_is_refused(tmp_path, units):
    """Who deletes a drafter and its record, to train it anew, must measure it anew, too."""
    drafter = units("drafters/x", kind="drafter", config=RunConfig())
    grid = [drafter, units("a", "drafters/x")]
    Played(tmp_path, fails=("drafters/x",)).run([drafter])
    Played(tmp_path).run([units("a")])
    refuse_changes(tmp_path, grid)
    record_file(tmp_path, "drafters/x").unlink()
    with pytest.raises(ValueError, match=r"a is done, but .*drafters/x\.json is gone"):
        refuse_changes(tmp_path, grid)
    grid[1].output.unlink()
    refuse_changes(tmp_path, grid)


def test_a_setting_that_is_newer_than_a_record_was_the_default(tmp_path, units):
    Played(tmp_path).run([units("a")])
    record = read_record(tmp_path, units("a"))
    assert record.settings["evaluation"].pop("prompts") == 40
    write_record(tmp_path, units("a"), record)
    refuse_changes(tmp_path, [units("a")])
    config = RunConfig(evaluation=EvaluationConfig(timing_prompts=0, prompts=3))
    with pytest.raises(ValueError, match=r"evaluation\.prompts: got 3, recorded 40"):
        refuse_changes(tmp_path, [units("a", config=config)])


def test_a_damaged_record_is_named(tmp_path, units):
    Played(tmp_path).run([units("a")])
    record_file(tmp_path, "a").write_text(json.dumps({"attempts": 3}))
    with pytest.raises(ValueError, match=r"a\.json is not the record of a unit"):
        states_of(tmp_path, [units("a")])


def test_what_only_finished_units_need_is_not_needed(tmp_path, units):
    """As on a machine that has the evaluations of another one, without its drafters."""
    target = units("target")
    drafters = [units("drafter1", "target"), units("drafter2", "target")]
    first, second = units("eval1", "target", "drafter1"), units("eval2", "target", "drafter2")
    grid = [target, *drafters, first, second]
    assert still_needed(grid, states_of(tmp_path, grid)) == grid
    Played(tmp_path).run([units("eval1")])
    names = [each.name for each in still_needed(grid, states_of(tmp_path, grid))]
    assert names == ["target", "drafter2", "eval1", "eval2"]
    Played(tmp_path).run([units("drafter2")])
    # The second evaluation reads the target and its drafter, not what the drafter was made from.
    grid[2] = units("drafter2", "target", "answers")
    grid.insert(1, units("answers"))
    names = [each.name for each in still_needed(grid, states_of(tmp_path, grid))]
    assert names == ["target", "drafter2", "eval1", "eval2"]
    assert still_needed(drafters, states_of(tmp_path, drafters)) == drafters, "asked for alone"


def test_what_was_done_and_is_not_here_is_missing(tmp_path, units):
    """As the drafters of a study that was copied without their weights: none of them failed."""
    grid = [units("drafter"), units("eval", "drafter")]
    Played(tmp_path).run(grid)
    grid[0].output.unlink()
    assert states_of(tmp_path, grid) == {"drafter": "missing", "eval": "done"}


def test_units_are_chosen_with_what_they_need(units):
    grid = [units("drafters/a"), units("evals/a", "drafters/a"), units("drafters/b")]
    assert [each.name for each in chosen(grid, ["evals/"])] == ["drafters/a", "evals/a"]
    assert chosen(grid, []) == grid
    with pytest.raises(ValueError, match="--only 'x': no unit's name contains it"):
        chosen(grid, ["x"])


def test_shares_of_cores():
    assert Cores.of(jobs=1, cores=(0, 1)).shares == ((),)
    assert Cores.of(jobs=2, cores=(0, 1, 2)).shares == ((0,), (1,))
    assert Cores.of(jobs=3, cores=(4, 5)).shares == ((4,), (5,), (4,))


def test_the_estimate_is_by_kind(tmp_path, units):
    grid = [units("a"), units("b"), units("c")]
    Played(tmp_path).run(grid[:2])
    for each, seconds in zip(grid, (10.0, 30.0), strict=False):
        record = read_record(tmp_path, each)
        record.attempts[-1].seconds = seconds
        write_record(tmp_path, each, record)
    durations = Durations.of(tmp_path, grid, states_of(tmp_path, grid))
    assert durations.left({"evaluation": 3}, jobs=2) == 30.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_study_takes_its_units_with_it(tmp_path):
    """The unit would run for minutes: it would still hold its folder when the study continues."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from jaxspec.cli.study_unit import start_unit\n"
        "from tests.study.tiny import unit\n"
        "folder = sys.argv[1]\n"
        "words = ('train', '--config', 'quickstart', '--workdir', f'{folder}/run')\n"
        "process = start_unit(unit('a', command=words), Path(folder, 'log'), (0,))\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while is_running(child):
        assert time.monotonic() < until, "the unit outlived the study"
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
