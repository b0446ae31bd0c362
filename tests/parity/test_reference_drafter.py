"""The forward in numpy against the one in torch, and its readings against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxspec.config import Llama3RopeScaling
from jaxspec.ops import rope
from jaxspec.parity.reference_drafter import Reading, ReferenceDrafter
from tests.models.test_dflash_parity import (  # noqa: F401  (fixtures)
    TOLERANCE,
    expected_BNKD,
    folder,
    inputs,
    torch,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def blocks(drafter: ReferenceDrafter, inputs: dict[str, np.ndarray], reading: Reading) -> Any:  # noqa: F811
    rows = [
        drafter(features_SE, anchors_N.tolist(), embeddings_NKD, reading)
        for features_SE, anchors_N, embeddings_NKD in zip(
            inputs["features_BSE"], inputs["anchors_BN"], inputs["embeddings_BNKD"], strict=True
        )
    ]
    return np.stack(rows)


def test_equals_torch(folder: Path, inputs: Any, expected_BNKD: np.ndarray) -> None:  # noqa: F811
    got_BNKD = blocks(ReferenceDrafter(folder), inputs, Reading())
    np.testing.assert_allclose(got_BNKD, expected_BNKD, atol=TOLERANCE, rtol=TOLERANCE)


def test_each_reading_differs(folder: Path, inputs: Any) -> None:  # noqa: F811
    drafter = ReferenceDrafter(folder)
    stated = blocks(drafter, inputs, Reading())
    config = json.loads((folder / "config.json").read_text())
    is_sliding = "sliding_attention" in config["layer_types"]
    readings = {
        "theta": (Reading(rope_theta=700.0), True),
        "context norm": (Reading(has_context_norm=False), True),
        "final norm": (Reading(has_final_norm=False), True),
        "causal": (Reading(is_causal=True), config.get("is_causal") is not True),
        "window": (Reading(has_window=False), is_sliding),
    }
    for name, (reading, differs) in readings.items():
        gap = np.abs(blocks(drafter, inputs, reading) - stated).max()
        assert (gap > 1e-3) == differs, (name, gap)


def test_slot_0_and_layer_ids(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    drafter = ReferenceDrafter(folder)
    assert drafter.layer_ids == (1, 3, 4)
    assert drafter.block(7) == [7, 60, 60, 60, 60]
    assert drafter.block(7, Reading(is_anchor_first=False)) == [60] * 5


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_llama3_frequencies(folder: Path, tmp_path: Path, place: str) -> None:  # noqa: F811
    config = json.loads((folder / "config.json").read_text())
    base = {**config, "rope_parameters": None, "rope_scaling": None, "rope_theta": 500.0}
    (tmp_path / "config.json").write_text(json.dumps({**base, place: LLAMA3}))
    got = ReferenceDrafter(tmp_path)._frequencies(Reading())
    scaling = Llama3RopeScaling(**{k: v for k, v in LLAMA3.items() if k != "rope_type"})
    expected = rope.inverse_frequencies(16, theta=500.0, scaling=scaling)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
