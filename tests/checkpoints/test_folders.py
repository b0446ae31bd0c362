"""Fingerprints distinguish models, no matter which of their tensors differs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxspec.checkpoints.folders import fingerprint

ROWS = 200_000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three tensors of more than a megabyte, so that no end of the file shows the second."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    tensors = {name: np.ones((ROWS, 4), np.float32) for name in ("a", "b", "c")}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("rows", [slice(0, 8), slice(ROWS - 8, ROWS)])
def test_either_end_of_every_tensor_shows(model, tmp_path, name, rows):
    other = shutil.copytree(model, tmp_path / "other")
    assert fingerprint(other) == fingerprint(model), "wherever it lies"
    tensors = load_file(other / "model.safetensors")
    tensors[name][rows] = 2.0
    save_file(tensors, other / "model.safetensors")
    assert fingerprint(other) != fingerprint(model)


def test_the_configuration_counts(model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text('{"rope_theta": 500}')
    assert fingerprint(other) != fingerprint(model)


def test_a_damaged_file_has_a_fingerprint(model, tmp_path):
    """It is refused when it is read."""
    other = shutil.copytree(model, tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"\xff" * 100)
    assert len(fingerprint(other)) == 16
