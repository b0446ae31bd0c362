"""Weights are read and written as float32 or bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxspec.checkpoints.folders import target_folder
from jaxspec.checkpoints.huggingface import load_target, save_target


def test_another_type_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = target_folder("embedded")
    expected = r"dtype must be 'float32' or 'bfloat16': got 'float16'\."
    with pytest.raises(ValueError, match=expected):
        load_target(folder, dtype="float16")  # type: ignore[arg-type]
    config, params = load_target(folder)
    with pytest.raises(ValueError, match=expected):
        save_target(tmp_path / "out", config, params, dtype="float16")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
