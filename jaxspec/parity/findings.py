"""What a comparison found, line by line.

Dimension key: N blocks, G drafted slots, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

Status = Literal["ok", "FAIL", "not run"]

TOLERANCE = 1e-3
"""Largest difference that float32 explains, as a part of the values' root mean square."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the table."""

    name: str
    status: Status
    detail: str


def judged(name: str, passed: bool, detail: str) -> Finding:
    """A line that passes or fails."""
    return Finding(name, "ok" if passed else "FAIL", detail)


def equal_arrays(name: str, got: np.ndarray, expected: np.ndarray, *, note: str = "") -> Finding:
    """A line about two arrays of one shape; a note goes before the largest difference."""
    size = float(np.linalg.norm(expected) / np.sqrt(expected.size)) or 1.0
    gap = float(np.max(np.abs(got - expected)))
    passed = gap <= TOLERANCE * size
    detail = f"{note}within {gap:.1e}"
    return judged(name, passed, detail if passed else f"{detail} at a size of {size:.3g}")


def equal_drafts(name: str, got_NGV: np.ndarray, expected_NGV: np.ndarray) -> Finding:
    """A line about the logits of drafted slots; it counts the drafts that are equal."""
    if got_NGV.shape != expected_NGV.shape:
        return judged(name, False, f"got {got_NGV.shape[1]} slots, not {expected_NGV.shape[1]}")
    same_NG = got_NGV.argmax(-1) == expected_NGV.argmax(-1)
    note = f"{int(same_NG.sum())} of {same_NG.size} equal, "
    return equal_arrays(name, got_NGV, expected_NGV, note=note)
