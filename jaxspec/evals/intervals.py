"""Confidence intervals, and how many measurements a figure needs to be shown.

An interval of a ratio resamples the prompts, not the rounds: the rounds of one response depend on
each other. So do the turns of a conversation, which are resampled together (`by_conversation`). For
too few prompts there is no interval (None).

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
"""The fewest prompts for an interval. With five, even the range from the lowest to the highest
misses the median once in 16 times: more often than 95% allows."""
FEWEST_ROUNDS = 30
"""The fewest rounds for the figure of a slot, and passes with drafts for that of a block."""


def conversations_of(names: Sequence[str]) -> list[str]:
    """The conversation that each response belongs to, by the name of its first turn.

    Args:
      names: of the responses; "NAME#2" is the second turn of NAME, which may be missing.

    >>> conversations_of(["a", "a#2", "b#2", "b#3"])
    ['a', 'a', 'b', 'b']
    """
    found = []
    for name in names:
        first, mark, turn = name.rpartition("#")
        is_later = bool(mark) and turn.isdecimal() and int(turn) > 1
        found.append(first if is_later else name)
    return found


def by_conversation(names: Sequence[str], parts: Sequence[npt.ArrayLike]) -> list[npt.NDArray[Any]]:
    """Numbers of responses, added up over the turns of each conversation.

    Args:
      names: of the responses.
      parts: arrays whose first axis is that of the responses.
    """
    conversations = conversations_of(names)
    order = {name: place for place, name in enumerate(dict.fromkeys(conversations))}
    places = [order[name] for name in conversations]
    sums = []
    for part in map(np.asarray, parts):
        # Two booleans would add up to one.
        total = np.zeros((len(order), *part.shape[1:]), np.result_type(part, np.int64))
        np.add.at(total, places, part)
        sums.append(total)
    return sums


def resampled(
    parts: Sequence[npt.ArrayLike],
    figure: Callable[..., npt.NDArray[Any]],
    *,
    seed: int | Sequence[int] = 0,
    resamples: int = RESAMPLES,
) -> npt.NDArray[Any] | None:
    """What a figure that is computed from sums over the prompts is in each resample of them.

    Args:
      parts: arrays of one number per prompt.
      figure: computes the figure from the sums of the parts.
      seed: seed of the resampling.
      resamples: number of resamples, each of as many prompts, drawn with replacement.

    Returns:
      One figure per resample; None for fewer than `FEWEST_PROMPTS` prompts.
    """
    columns = [np.asarray(part) for part in parts]
    count = len(columns[0])
    if count < FEWEST_PROMPTS:
        return None
    picks = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    return figure(*(column[picks].sum(axis=1) for column in columns))


def percentiles(figures: npt.NDArray[Any], *, confidence: float = 0.95) -> Interval:
    """The interval that holds this share of the figures, with equal tails."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(figures, [tail, 1.0 - tail])
    return float(low), float(high)


def bootstrap(
    parts: Sequence[npt.ArrayLike],
    figure: Callable[..., npt.NDArray[Any]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval | None:
    """Percentile bootstrap interval of a figure: `percentiles` of what is `resampled`.

    None for fewer than `FEWEST_PROMPTS` prompts.
    """
    figures = resampled(parts, figure, seed=seed, resamples=resamples)
    return None if figures is None else percentiles(figures, confidence=confidence)


def bootstrap_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval | None:
    """`bootstrap` of sum(numerators) / sum(denominators); the denominators must be positive."""
    return bootstrap(
        (numerators, denominators),
        np.divide,
        seed=seed,
        resamples=resamples,
        confidence=confidence,
    )


def mean_interval(
    groups: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], *, seed: int = 0
) -> Interval | None:
    """95% interval of the mean over benchmarks of sum(numerators) / sum(denominators).

    The prompts of each benchmark are resampled among themselves (a stratified bootstrap).

    Args:
      groups: (numerators, denominators) of each benchmark; the denominators must be positive.
      seed: seed of the resampling.

    Returns:
      None if there is no group, or if one has fewer than `FEWEST_PROMPTS` prompts.
    """
    generator = np.random.default_rng(seed)
    ratios = []
    for group in groups:
        numerators, denominators = map(np.asarray, group)
        count = len(numerators)
        if count < FEWEST_PROMPTS:
            return None
        picks = generator.integers(0, count, size=(RESAMPLES, count))
        ratios.append(numerators[picks].sum(axis=1) / denominators[picks].sum(axis=1))
    if not ratios:
        return None
    low, high = np.quantile(np.mean(ratios, axis=0), [0.025, 0.975])
    return float(low), float(high)


def share_interval(hits: npt.ArrayLike, trials: npt.ArrayLike, *, seed: int = 0) -> Interval | None:
    """95% interval of sum(hits) / sum(trials), from counts per prompt.

    On each side, it is the wider one of two intervals. The bootstrap over prompts accounts for the
    dependence of a prompt's trials, but shrinks to a point if all trials had the same outcome.
    Wilson's interval (E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", 1927) assumes independent trials, but does not shrink then.

    Args:
      hits: one count per prompt.
      trials: one count per prompt, at least as high; prompts without trials are left out.
      seed: seed of the bootstrap.

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
    """An interval as text, or why there is none; `of` names what was resampled: "responses"."""
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
