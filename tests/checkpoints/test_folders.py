"""Fingerprints distinguish models, no matter which of their tensors differs."""

from __future__ import annotations

import hashlib
import shutil
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxspec.checkpoints import folders
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


def test_parts_are_read_at_the_same_time_and_count_in_their_order(model, monkeypatch):
    """In a bucket, each part is a request; 18,000 of them one after the other take minutes."""
    file = model / "model.safetensors"
    size, content = file.stat().st_size, file.read_bytes()
    edge, around = folders._EDGE_BYTES, folders._TENSOR_BYTES
    digest = hashlib.sha256(b"{}" + f"{file.name} {size}".encode())
    digest.update(content[:edge] + content[-edge:])
    starts = folders._tensor_starts(file)
    for start in starts:
        digest.update(content[max(0, start - around) :][: 2 * around])

    barrier = threading.Barrier(2 + len(starts))

    def read(path, start, length):
        if length in (edge, 2 * around):
            barrier.wait(20)  # Until all of them are being read.
        return content[start : start + length]

    monkeypatch.setattr(folders, "read_range", read)
    assert fingerprint(model) == digest.hexdigest()[:16]


def test_a_damaged_file_has_a_fingerprint(model, tmp_path):
    """It is refused when it is read."""
    other = shutil.copytree(model, tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"\xff" * 100)
    assert len(fingerprint(other)) == 16
