"""What the processes of a run compare before the first step."""

from __future__ import annotations

import dataclasses

import pytest

from jaxspec.config import RunConfig
from jaxspec.parallel import processes
from jaxspec.training import agreement, loop
from jaxspec.training.agreement import check_contents, check_settings, check_workdir


class Two:
    """Two processes, of which this is the first; the second answers what a function makes of it."""

    def __init__(self, answer):
        self.answer = answer

    def name(self, process):
        return f"process {process} on {'ab'[process]}"

    def gather(self, value):
        return [value, self.answer(value)]


@pytest.fixture
def second(monkeypatch):
    """Sets what the second process answers."""

    def set_answer(answer):
        monkeypatch.setattr(processes, "_links", Two(answer))

    return set_answer


def test_processes_that_agree(second, tmp_path):
    second(lambda value: value)
    check_settings(RunConfig(), {"accept_changes": False})
    check_contents({"data": "abc"})
    check_workdir(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_other_settings_are_named(second):
    second(lambda value: {**value, "training.steps": 7, "--accept_changes": True})
    with pytest.raises(ValueError) as caught:
        check_settings(RunConfig(), {"--accept_changes": False})
    said = str(caught.value)
    assert "--accept_changes: True for process 1 on b, False for process 0 on a" in said
    assert "training.steps: 7 for process 1 on b, 1000 for process 0 on a" in said
    assert "the same config file" in said


def test_other_data_is_named(second):
    second(lambda value: {**value, "content of data": "xyz"})
    with pytest.raises(ValueError, match="content of data: xyz for process 1 on b, abc"):
        check_contents({"data": "abc"})


def test_other_held_out_data_is_named(run_config, tmp_path, monkeypatch):
    """Hosts with other held-out data would take other numbers of passes, and wait without end."""
    compared = []

    class Compared(Exception):
        """Ends the run before anything is computed."""

    def compare(fingerprints):
        compared.append(set(fingerprints))
        raise Compared

    monkeypatch.setattr(loop, "check_contents", compare)
    held_out = dataclasses.replace(run_config.data, validation=0.1)
    for data in (run_config.data, held_out):
        with pytest.raises(Compared):
            loop.train(dataclasses.replace(run_config, data=data), workdir=tmp_path / "run")
    assert compared[1] - compared[0] == {"validation data"}


def test_a_workdir_that_is_not_shared(second, tmp_path):
    second(lambda value: False if value is True else value)
    with pytest.raises(ValueError, match=r"is not shared: process 1 cannot see"):
        check_workdir(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_not_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "_APPEARS_WITHIN_S", 0.0)
    assert not agreement._holds(tmp_path / "none", "token")
    (tmp_path / "old").write_text("another")
    assert not agreement._holds(tmp_path / "old", "token")
