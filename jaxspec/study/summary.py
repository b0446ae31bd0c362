"""The figures of a study: accepted length over seeds, and gains that are paired by seed and prompt.

A gain compares a row with the base row of the same target, decoding and benchmark. It is counted
within each seed and then averaged:

  gain = mean_s (tau of the row, seed s / tau of the base, seed s - 1)

A base that needs no training stands for every seed. Drafters that were trained on other weights
than the target's are compared with each other, or with such a base.

A gain's interval resamples the prompts. A resample takes the same prompts for both rows and for all
seeds, so what a prompt does to both of them cancels. Seeds are not resampled: of three, the lowest
and the highest say more. The mean over benchmarks averages taus and gains, and resamples the
prompts of each benchmark on their own.

>>> [entry["gain"]["mean"] for entry in summary(rows, base="uniform")]         # doctest: +SKIP
[None, 27.3]
"""

from __future__ import annotations

import functools
import statistics
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxspec.evals.intervals import by_conversation, percentiles, resampled
from jaxspec.evals.results import Row, own_loss

MEAN = "mean"
"""What the mean over benchmarks is called."""

Entry = dict[str, Any]
"""One line of the tables: target, decoding, benchmark, loss, and its figures."""
BySeed = Mapping[int, Row]
Figures = npt.NDArray[Any]


def summary(rows: Sequence[Row], *, base: str, untrained: Collection[str] = ()) -> list[Entry]:
    """The lines of the tables, in the order of the rows; the mean over benchmarks comes last.

    Args:
      rows: result rows with the fields `target`, `decoding`, `benchmark`, `loss` and `seed`.
      base: the loss that gains are counted against.
      untrained: losses of drafters that need no training; as the base, such a row stands for every
        seed.

    Returns:
      Entries with `target`, `decoding`, `benchmark`, `loss`, `seeds`, `prompts`, `tau` and `gain`
      ({"mean", "lowest", "highest"} over seeds; a gain is in percent), `tau_ci95` and `gain_ci95`
      (over prompts), `gain_seeds` (those that the gain rests on), `accepted_per_round`, `speedup`,
      `mismatched_prompts`, `repetitive_share`. None where something was not measured, rests on too
      few prompts, or has no base.
    """
    entries: list[Entry] = []
    for target, decoding in dict.fromkeys((row["target"], row["decoding"]) for row in rows):
        table: dict[tuple[str, str], dict[int, Row]] = {}
        for row in rows:
            if (row["target"], row["decoding"]) == (target, decoding):
                table.setdefault((row["benchmark"], row["loss"]), {})[row["seed"]] = row
        place = {"target": target, "decoding": decoding}
        base_of = functools.partial(_base_rows, table, base=base, untrained=base in untrained)
        benchmarks = list(dict.fromkeys(benchmark for benchmark, _ in table))
        losses = list(dict.fromkeys(loss for _, loss in table))
        for benchmark in benchmarks:
            for loss in losses:
                if (benchmark, loss) in table:
                    figures = _figures([table[benchmark, loss]], [base_of(benchmark, loss)])
                    entries.append({**place, "benchmark": benchmark, "loss": loss, **figures})
        if len(benchmarks) > 1:
            for loss in losses:
                # A mean over other benchmarks than its neighbours' would mislead.
                if all((benchmark, loss) in table for benchmark in benchmarks):
                    own = [table[benchmark, loss] for benchmark in benchmarks]
                    bases = [base_of(benchmark, loss) for benchmark in benchmarks]
                    entries.append(
                        {**place, "benchmark": MEAN, "loss": loss, **_figures(own, bases)}
                    )
    return entries


def _base_rows(
    table: Mapping[tuple[str, str], BySeed],
    benchmark: str,
    loss: str,
    *,
    base: str,
    untrained: bool,
) -> BySeed:
    """The base's rows that a loss is compared with; {}: it is the base, or there is none.

    Args:
      table: rows by benchmark and loss, then by seed.
      benchmark: the benchmark.
      loss: the loss, which `table` has for this benchmark.
      base: the loss that gains are counted against.
      untrained: whether the base needs no training.
    """
    plain = own_loss({"loss": loss})
    if plain == base:
        return {}
    if untrained:
        # It is measured once, with one seed.
        return {
            seed: row
            for row in table.get((benchmark, base), {}).values()
            for seed in table[benchmark, loss]
        }
    mark = loss.removeprefix(plain)
    return table.get((benchmark, f"{base}{mark}"), {})


def _figures(own: Sequence[BySeed], bases: Sequence[BySeed]) -> Entry:
    """The figures of a loss on one or more benchmarks.

    Args:
      own: its rows by seed, for each benchmark.
      bases: those of the base, for each benchmark; {}: it is the base, or there is none.
    """
    seeds = _shared(own)
    paired = _shared([*own, *bases])
    taus = [statistics.fmean(rows[seed]["tau_micro"] for rows in own) for seed in seeds]
    gains = [
        100
        * statistics.fmean(
            rows[seed]["tau_micro"] / base[seed]["tau_micro"] - 1
            for rows, base in zip(own, bases, strict=True)
        )
        for seed in paired
    ]
    every = [rows[seed] for rows in own for seed in seeds]
    pairs = list(zip(own, bases, strict=True))
    return {
        "seeds": list(seeds),
        "prompts": sum(rows[seeds[0]]["prompts"] for rows in own) if seeds else 0,
        "tau": _over_seeds(taus),
        "tau_ci95": _interval([_resampled_tau(rows, seeds) for rows in own]),
        "gain": _over_seeds(gains),
        "gain_ci95": _interval([_resampled_gain(rows, base, paired) for rows, base in pairs]),
        "gain_seeds": list(paired),
        "accepted_per_round": _mean(row["accepted_per_round"] for row in every),
        "speedup": _mean(row["speedup"] for row in every),
        "mismatched_prompts": _sum(row["mismatched_prompts"] for row in every),
        "repetitive_share": _mean(row.get("repetitive_share") for row in every),
    }


def _resampled_tau(rows: BySeed, seeds: Collection[int]) -> Figures | None:
    """The row's tau in each resample of the prompts, averaged over seeds."""
    return _resampled([rows[seed] for seed in seeds], lambda taus: np.mean(taus, axis=0))


def _resampled_gain(rows: BySeed, base: BySeed, seeds: Collection[int]) -> Figures | None:
    """The gain in percent in each resample of the prompts, averaged over seeds."""
    count = len(seeds)

    def gain(taus: Figures) -> Figures:
        return np.asarray(100 * np.mean(taus[:count] / taus[count:] - 1, axis=0))

    return _resampled([by[seed] for by in (rows, base) for seed in seeds], gain)


def _resampled(rows: Sequence[Row], figure: Callable[[Figures], Figures]) -> Figures | None:
    """A figure of several rows' taus, in resamples of the prompts that all of them have.

    Args:
      rows: result rows of one benchmark.
      figure: computes it from the taus, [rows, resamples].

    Returns:
      None without rows, for rows of older files, and for too few prompts.
    """
    if not rows or not all("by_prompt" in row for row in rows):
        return None
    counts = [
        {each["prompt_id"]: each for each in row["by_prompt"] if each["rounds"]} for row in rows
    ]
    shared = [name for name in counts[0] if all(name in others for others in counts)]
    parts = [
        [prompts[name][field] for name in shared]
        for field in ("tokens", "rounds")
        for prompts in counts
    ]

    def of_sums(*sums: Figures) -> Figures:
        tokens, rounds = np.asarray(sums[: len(rows)]), np.asarray(sums[len(rows) :])
        return figure(tokens / rounds)

    # The same resamples for all rows of a benchmark.
    return resampled(
        by_conversation(shared, parts), of_sums, seed=[0, zlib.crc32(rows[0]["benchmark"].encode())]
    )


def _interval(figures: Sequence[Figures | None]) -> list[float] | None:
    """95% interval of the mean over benchmarks; None if one of them has too few prompts."""
    known = [each for each in figures if each is not None]
    if len(known) < len(figures):
        return None
    return list(percentiles(np.mean(known, axis=0)))


def _shared(tables: Sequence[BySeed]) -> list[int]:
    """The seeds that all tables have."""
    return sorted(set.intersection(*(set(table) for table in tables)))


def _over_seeds(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
