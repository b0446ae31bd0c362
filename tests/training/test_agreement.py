"""What the processes of a run compare before the first step."""

from __future__ import annotations

import pytest

from jaxspec.config import RunConfig
from jaxspec.parallel import processes
from jaxspec.training import agreement
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
