"""Compares two files of `python -m benchmarks.speed`: which rows became faster or slower.

    python -m benchmarks.compare runs/before.json runs/after.json

"ratio" is the new median time divided by the old one, and the range next to it is where that ratio
lies in 95% of resamples of both files' repeats. A row differs if the range leaves 1 out, and the
medians differ by more than --least percent. The repeats of one run do not show what differs from
run to run: compare two runs of the same commit to see how much that is on your machine.

Files of different devices, shapes or settings are refused, unless --any is given. The exit status
is 1 if a row became slower, with --fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.records import KEY, Row, key_of, read_records, shown_ms, table

RESAMPLES = 2000
FEWEST_REPEATS = 3
"""With fewer, there is no range."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One row in both files."""

    old: Row
    new: Row
    ratio: float
    """New time divided by the old: below 1 is faster."""
    interval: tuple[float, float] | None
    """95% of resamples; None for too few repeats."""
    least: float
    """Smallest relative difference that counts."""

    @property
    def verdict(self) -> str:
        """One of "faster", "slower", and "" within the noise."""
        if self.interval is None or abs(self.ratio - 1.0) < self.least:
            return ""
        low, high = self.interval
        return "faster" if high < 1.0 else "slower" if low > 1.0 else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--least", type=float, default=3.0, help="percent that counts (3)")
    parser.add_argument("--any", action="store_true", help="compare different devices and settings")
    parser.add_argument("--fail", action="store_true", help="status 1 if a row became slower")
    args = parser.parse_args(argv)
    try:
        old, new = read_records(args.old), read_records(args.new)
        if not args.any:
            check_alike(old, new)
        found = changes(old["rows"], new["rows"], least=args.least / 100)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(report(found, old["rows"], new["rows"]))
    return int(args.fail and any(change.verdict == "slower" for change in found))


def check_alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses files whose times cannot be compared.

    Raises:
      ValueError: names everything that differs.
    """
    pairs = {
        "devices": (old["provenance"].get("devices"), new["provenance"].get("devices")),
        "host": (old["provenance"].get("host"), new["provenance"].get("host")),
    }
    names = sorted({*old["conditions"], *new["conditions"]})
    pairs |= {name: (old["conditions"].get(name), new["conditions"].get(name)) for name in names}
    for name in ("shape", "dtype"):
        pairs[name] = tuple(  # type: ignore[assignment]
            sorted({row[name] for row in each["rows"]}) for each in (old, new)
        )
    wrong = [f"  {name}: {a!r} and {b!r}" for name, (a, b) in pairs.items() if a != b]
    if wrong:
        raise ValueError(
            "These files were not measured alike:\n"
            + "\n".join(wrong)
            + "\nMeasure again with equal settings on one machine, or give --any."
        )


def changes(old: Sequence[Row], new: Sequence[Row], *, least: float) -> list[Change]:
    """The rows that were measured in both files, in the order of the new one.

    Raises:
      ValueError: there are none.
    """
    before = {key_of(row): row for row in old if row["seconds"]}
    found = []
    for row in new:
        other = before.get(key_of(row))
        if other is None or not row["seconds"]:
            continue
        ratio = statistics.median(row["seconds"]) / statistics.median(other["seconds"])
        interval = ratio_interval(other["seconds"], row["seconds"])
        found.append(Change(other, row, ratio, interval, least))
    if not found:
        raise ValueError(
            f"No row was measured in both files: rows are told apart by {', '.join(KEY)}."
        )
    return found


def ratio_interval(old: Sequence[float], new: Sequence[float]) -> tuple[float, float] | None:
    """Where the ratio of the medians lies in 95% of resamples; None for too few repeats."""
    if min(len(old), len(new)) < FEWEST_REPEATS:
        return None
    random = np.random.default_rng(0)

    def medians(seconds: Sequence[float]) -> np.ndarray:
        drawn = random.choice(np.asarray(seconds), (RESAMPLES, len(seconds)))
        return np.median(drawn, axis=1)

    low, high = np.quantile(medians(new) / medians(old), [0.025, 0.975])
    return float(low), float(high)


def report(found: Sequence[Change], old: Sequence[Row], new: Sequence[Row]) -> str:
    """The table, and what is in one file only."""
    rows = [
        [
            f"{change.new['part']}: {change.new['name']}",
            str(change.new["batch"]),
            shown_ms(statistics.median(change.old["seconds"])),
            shown_ms(statistics.median(change.new["seconds"])),
            f"{change.ratio:.2f}",
            "" if change.interval is None else "{:.2f}–{:.2f}".format(*change.interval),
            change.verdict,
        ]
        for change in found
    ]
    titles = ("", "batch", "old, ms", "new, ms", "ratio", "95%", "")
    verdicts = [change.verdict for change in found]
    lines = [
        table(titles, rows),
        "",
        f"{verdicts.count('faster')} rows are faster, {verdicts.count('slower')} slower, "
        f"{verdicts.count('')} within the noise.",
    ]
    if any(change.interval is None for change in found):
        lines.append(
            f"Rows without a range have fewer than {FEWEST_REPEATS} repeats: nothing is said of "
            "them."
        )
    shared = {key_of(change.new) for change in found}
    for name, only in (("old", old), ("new", new)):
        if left := sum(key_of(row) not in shared for row in only):
            lines.append(f"{left} rows were measured only in the {name} file, or in neither.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
