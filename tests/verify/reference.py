"""The rejection rules for one block, in plain Python, from their published definitions.

Each takes the uniform numbers and returns (accepted length, distribution of the next token).
"""

from __future__ import annotations

import numpy as np


def greedy(draft: np.ndarray, logits: np.ndarray) -> tuple[int, int]:
    accepted = 0
    for token, row in zip(draft, logits, strict=False):
        if token != np.argmax(row):
            break
        accepted += 1
    return accepted, int(np.argmax(logits[accepted]))


def token(
    uniforms: np.ndarray, draft: np.ndarray, q: np.ndarray, p: np.ndarray
) -> tuple[int, np.ndarray]:
    for i, x in enumerate(draft):
        # u < p / q without the division; a token that q cannot draw passes if p can.
        passes = uniforms[i] * q[i][x] < p[i][x]
        if not passes:
            return i, _normalised([max(a - b, 0.0) for a, b in zip(p[i], q[i], strict=True)], p[i])
    return len(draft), p[len(draft)]


def point_mass(uniforms: np.ndarray, draft: np.ndarray, p: np.ndarray) -> tuple[int, np.ndarray]:
    for i, x in enumerate(draft):
        if uniforms[i] >= p[i][x]:
            return i, _normalised([0.0 if v == x else a for v, a in enumerate(p[i])], p[i])
    return len(draft), p[len(draft)]


def block(
    uniforms: np.ndarray, draft: np.ndarray, q: np.ndarray, p: np.ndarray
) -> tuple[int, np.ndarray]:
    slots = len(draft)
    joint = [1.0]
    for i, x in enumerate(draft):
        if q[i][x] == 0:
            joint.append(1.0 if joint[-1] * p[i][x] > 0 else 0.0)
        else:
            joint.append(min(1.0, joint[-1] * p[i][x] / q[i][x]))
    accepted = 0
    for i in range(1, slots + 1):
        chance = joint[slots]
        if i < slots:
            excess = sum(max(joint[i] * a - b, 0.0) for a, b in zip(p[i], q[i], strict=True))
            total = excess + 1 - joint[i]
            chance = excess / total if total > 0 else 1.0
        if uniforms[i - 1] < chance:
            accepted = i
    if accepted == slots:
        return slots, p[slots]
    rest = [
        max(joint[accepted] * a - b, 0.0) for a, b in zip(p[accepted], q[accepted], strict=True)
    ]
    return accepted, _normalised(rest, p[accepted])


def _normalised(weights: list[float], otherwise: np.ndarray) -> np.ndarray:
    total = sum(weights)
    return np.array(weights) / total if total > 0 else otherwise
