"""What a comparison found, line by line."""

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


def equal_arrays(name: str, got: np.ndarray, expected: np.ndarray) -> Finding:
    """A line about two arrays of one shape."""
    size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0
    gap = float(np.max(np.abs(got.astype(np.float64) - expected)))
    detail = f"largest difference {gap:.1e} at a size of {size:.3g}"
    return judged(name, gap <= TOLERANCE * size, detail)


def equal_drafts(name: str, got_NGV: np.ndarray, expected_NGV: np.ndarray) -> Finding:
    """A line about the logits of drafted slots; it counts the drafts that are equal."""
    line = equal_arrays(name, got_NGV, expected_NGV)
    same_NG = got_NGV.argmax(-1) == expected_NGV.argmax(-1)
    detail = f"{line.detail}; {int(same_NG.sum())} of {same_NG.size} drafts equal"
    return dataclasses.replace(line, detail=detail)
