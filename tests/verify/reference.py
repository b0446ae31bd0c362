"""The rejection rules for one block, in plain Python, from their published definitions.

Each takes the uniform numbers and returns (accepted length, distribution of the next token).
"""

from __future__ import annotations

import numpy as np
import scipy.optimize


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


def chains(
    uniforms: np.ndarray, drafts: np.ndarray, q: np.ndarray, p: np.ndarray, *, rule: str
) -> tuple[int, np.ndarray]:
    """uniforms [G, A], drafts [A, G], q [A, G, V], p [A, G + 1, V]."""
    count, slots = drafts.shape
    left = list(range(count))
    for g in range(slots):
        target, draft = p[left[0]][g], q[left[0]][g]
        offer = _k_seq if rule == "k_seq" else _recursive
        tokens = [int(drafts[k][g]) for k in left]
        # Only first tokens are drawn without replacement.
        options = {} if rule == "k_seq" else {"replacement": rule == "recursive" or g > 0}
        token, rest = offer([uniforms[g][k] for k in left], tokens, draft, target, **options)
        if token is None:
            return g, rest
        left = [k for k in left if drafts[k][g] == token]
    return slots, p[left[0]][slots]


def _recursive(
    uniforms: list[float], tokens: list[int], q: np.ndarray, p: np.ndarray, *, replacement: bool
) -> tuple[int | None, np.ndarray]:
    rest, draft = p.copy(), q.copy()
    for u, x in zip(uniforms, tokens, strict=True):
        if u * draft[x] < rest[x]:
            return x, rest
        rest = _normalised([max(a - b, 0.0) for a, b in zip(rest, draft, strict=True)], rest)
        if not replacement:
            draft = _normalised([0.0 if v == x else b for v, b in enumerate(draft)], draft)
    return None, rest


def _k_seq(
    uniforms: list[float], tokens: list[int], q: np.ndarray, p: np.ndarray
) -> tuple[int | None, np.ndarray]:
    k = len(tokens)

    def excess(rho: float) -> float:
        beta = np.minimum(q, p / rho).sum()
        return 1 - (1 - beta) ** k - rho * beta

    rho = scipy.optimize.brentq(excess, 1, k, xtol=1e-15) if k > 1 and excess(1) > 0 else 1.0
    for u, x in zip(uniforms, tokens, strict=True):
        if u * rho * q[x] < p[x]:
            return x, p
    covered = np.minimum(q, p / rho)
    beta = covered.sum()
    scale = (1 - (1 - beta) ** k) / beta if beta > 0 else 0.0
    return None, _normalised(list(np.maximum(p - covered * scale, 0)), p)
