"""Intervals of figures, and how much a figure has to rest on to be shown.

An interval of a ratio draws the prompts again, not the rounds: the rounds of one response depend on
each other. Of too few prompts there is no interval (None).

>>> bootstrap_ratio([8, 4, 8], [2, 1, 2], seed=0) is None
True
>>> low, high = bootstrap_ratio([8, 4, 8, 2, 5, 9], [2, 2, 2, 2, 2, 2], seed=0)
>>> low < 3 < high
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]
"""(low, high)."""

RESAMPLES = 2000
FEWEST_PROMPTS = 6
"""The fewest prompts that an interval rests on. Of five, even the range from the lowest to the
highest misses their median once in 16 times: more often than 95% allows."""
FEWEST_ROUNDS = 30
"""The fewest rounds (or passes with drafts) that a slot's (or block's) figure rests on."""


def bootstrap(
    parts: Sequence[npt.ArrayLike],
    figure: Callable[..., npt.NDArray[Any]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval | None:
    """Percentile interval of a figure of sums when the prompts are drawn again.

    Args:
      parts: arrays of one number per prompt.
      figure: from the sum of each part to the figure.
      seed: of the draws.
      resamples: how often as many prompts are drawn, with replacement.
      confidence: share of the figures that lie inside.

    Returns:
      None for fewer than `FEWEST_PROMPTS` prompts.
    """
    columns = [np.asarray(part) for part in parts]
    count = len(columns[0])
    if count < FEWEST_PROMPTS:
        return None
    picks = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    figures = figure(*(column[picks].sum(axis=1) for column in columns))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(figures, [tail, 1.0 - tail])
    return float(low), float(high)


def bootstrap_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval | None:
    """`bootstrap` of sum(numerators) / sum(denominators); the denominators are positive."""
    return bootstrap(
        (numerators, denominators),
        np.divide,
        seed=seed,
        resamples=resamples,
        confidence=confidence,
    )


def share_interval(hits: npt.ArrayLike, trials: npt.ArrayLike, *, seed: int = 0) -> Interval | None:
    """95% interval of sum(hits) / sum(trials), of counts per prompt.

    The wider of two on each side. The bootstrap over prompts knows that the trials of a prompt
    depend on each other, but it is a point where all trials went alike. Wilson's interval (E. B.
    Wilson, "Probable inference, the law of succession, and statistical inference", 1927) takes
    trials for independent, but stays honest there.

    Args:
      hits: one count per prompt.
      trials: one count per prompt, at least as high; prompts without trials are left out.
      seed: of the bootstrap.

    Returns:
      None for fewer than `FEWEST_PROMPTS` prompts with trials.
    """
    hits, trials = np.asarray(hits), np.asarray(trials)
    tried = trials > 0
    drawn = bootstrap_ratio(hits[tried], trials[tried], seed=seed)
    if drawn is None:
        return None
    low, high = _wilson(int(hits.sum()), int(trials.sum()))
    return min(drawn[0], low), max(drawn[1], high)


def bracketed(interval: Sequence[float] | None, *, of: str) -> str:
    """An interval as text, or why there is none; `of` names what was drawn: "responses"."""
    if interval is None:
        return f"(no interval: fewer than {FEWEST_PROMPTS} {of})"
    low, high = interval
    return f"[{low:.2f}, {high:.2f}]"


def _wilson(hits: int, trials: int, *, confidence: float = 0.95) -> Interval:
    share, z = hits / trials, NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z**2 / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
