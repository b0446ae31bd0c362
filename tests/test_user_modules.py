"""Files of the user's own are executed as they stand, and their folder stays as it was."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jaxspec.user_modules import execute, module_name


def test_a_change_within_a_second_is_seen_and_nothing_is_left(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "settings.py"
    for steps in (100, 200):
        file.write_text(f"STEPS = {steps}\n")
        os.utime(file, (1_000_000_000, 1_000_000_000))
        module = execute(file, name=module_name("config", file))
        assert steps == module.STEPS and sys.modules[module.__name__] is module
    assert os.listdir(tmp_path) == ["settings.py"]


def test_a_file_that_fails_is_no_module(tmp_path: Path) -> None:
    file = tmp_path / "settings.py"
    file.write_text("import dataclasses\n\n1 / 0\n")
    name = module_name("config", file)
    with pytest.raises(ZeroDivisionError):
        execute(file, name=name)
    assert name not in sys.modules


def test_files_called_alike_have_modules_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = (tmp_path / "settings.py", tmp_path / "other" / "settings.py")
    assert len({module_name("config", file) for file in files}) == 2
