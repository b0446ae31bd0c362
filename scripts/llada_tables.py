"""Prints the tables of diffusion decoding in docs/results.md, from the files of llada_tables.sh.

After the measurements: python scripts/llada_tables.py runs/real/llada
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = {"gsm8k": "GSM8K", "humaneval": "HumanEval", "mbpp": "MBPP", "math500": "MATH-500"}
RULES = {
    "scheduled": "one token per step",
    "0.9": "threshold 0.9",
    "0.8": "threshold 0.8",
    "0.7": "threshold 0.7",
    "factor": "factor 1",
}
SIZES, ALL_SIZES = (3, 5, 8, 10), (1, 3, 5, 8, 10)
MISSING = "–"

Row = dict[str, Any]


class Measured:
    """The rows of one file of eval.py; none if it does not exist yet."""

    def __init__(self, file: Path) -> None:
        self.rows: list[Row] = json.loads(file.read_text())["results"] if file.exists() else []

    def of(self, decoder: str, drafts: int, benchmark: str = "") -> list[Row]:
        """Rows of one decoder, of one benchmark or all."""
        return [
            row
            for row in self.rows
            if (row["decoder"], row["drafts_per_pass"]) == (decoder, drafts)
            and benchmark in ("", row["benchmark"])
        ]

    def reduction(self, decoder: str, drafts: int, benchmark: str = "") -> str:
        """Passes of the base decoder over the decoder's."""
        rows = self.of(decoder, drafts, benchmark)
        nfe = sum(row["nfe"] for row in rows)
        return f"{sum(row['base_nfe'] for row in rows) / nfe:.2f}" if rows else MISSING

    def reductions(self, decoder: str, sizes: Iterable[int], benchmark: str = "") -> str:
        """One figure for each size."""
        return " / ".join(self.reduction(decoder, drafts, benchmark) for drafts in sizes)

    def figures(self, decoder: str, sizes: Iterable[int], benchmark: str, figure: str) -> str:
        """One figure of a single benchmark for each size."""
        found = [self.of(decoder, drafts, benchmark) for drafts in sizes]
        return " / ".join(f"{rows[0][figure]:.2f}" if rows else MISSING for rows in found)

    def identical(self, sizes: Iterable[int]) -> tuple[list[int], int]:
        """Responses equal to the base decoder's for each size, and how many there are of each."""
        found = [self.of("spiffy", drafts) for drafts in sizes]
        same = [sum(row["identical"] for row in rows) for rows in found]
        return same, sum(row["turns"] for row in found[0])


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Prints a table of Markdown."""
    for cells in (header, ["---"] * len(header), *lines):
        print("|", " | ".join(cells), "|")
    print()


def lossless(folder: Path) -> None:
    """Responses that drafts leave unchanged, and the passes that drafts save."""
    groups = (
        ("dual cache, temperature 0, 256 tokens", "256"),
        ("dual cache, temperature 1, 128 tokens", "warm"),
        ("block-causal, temperature 0, 128 tokens", "blocks-0"),
        ("block-causal, temperature 1, 128 tokens", "blocks-1"),
    )
    lines = []
    for title, suffix in groups:
        for rule, name in RULES.items():
            measured = Measured(folder / f"{rule}-{suffix}.json")
            if measured.rows:
                same, each = measured.identical(ALL_SIZES)
                counts = f"{sum(same)} of {each * len(same)} ({' / '.join(map(str, same))})"
                lines.append([title, name, counts, measured.reductions("spiffy", ALL_SIZES)])
    sizes = "D = " + " / ".join(map(str, ALL_SIZES))
    table(["", "unmasking", f"identical, {sizes}", f"fewer passes, {sizes}"], lines)


def caches(folder: Path) -> None:
    """The share of responses that stays unchanged without a dual cache."""
    lines = []
    for caching in ("none", "prefix"):
        for layout in ("mask", "batch"):
            for rule, name in RULES.items():
                measured = Measured(folder / f"{rule}-{caching}-{layout}.json")
                if measured.rows:
                    sizes = [drafts for drafts in ALL_SIZES if measured.of("spiffy", drafts)]
                    same, each = measured.identical(sizes)
                    counts = f"{' / '.join(map(str, same))} of {each}"
                    drafts = " / ".join(map(str, sizes))
                    fewer = measured.reductions("spiffy", sizes)
                    lines.append([caching, layout, name, drafts, counts, fewer])
    table(["cache", "layout", "unmasking", "D", "identical", "fewer passes"], lines)


def graphs(folder: Path) -> None:
    """Calibrated graphs next to those that need no calibration."""
    lines = []
    for length in (128, 256):
        measured = Measured(folder / f"scheduled-{length}.json")
        for benchmark, title in (*BENCHMARKS.items(), ("", "all")):
            plain = measured.of("plain", 0, benchmark)
            responses = sum(row["turns"] for row in plain)
            passes = f"{sum(row['nfe'] for row in plain) / responses:.1f}" if plain else MISSING
            fewer = [
                measured.reductions(decoder, SIZES, benchmark)
                for decoder in ("spiffy", "ssd", "star")
            ]
            lines.append([title, str(length), passes, *fewer])
    table(["prompts", "length", "passes, plain", "calibrated", "SSD chain", "top-k star"], lines)


def weights(folder: Path) -> None:
    """Two ways of choosing nodes, on the same counts."""
    lines = []
    for title, name in (
        ("steps that led there (`followed`)", "scheduled"),
        ("degree-1 accumulation (`accumulated`)", "accumulated"),
    ):
        measured = Measured(folder / f"{name}-256.json")
        fewer = [measured.reductions("spiffy", SIZES, benchmark) for benchmark in (*BENCHMARKS, "")]
        lines.append([title, *fewer])
    table(["chosen by, 256 tokens", *BENCHMARKS.values(), "all"], lines)


def thresholds(folder: Path) -> None:
    """Several tokens per step."""
    lines = []
    for rule, name in list(RULES.items())[1:]:
        measured = Measured(folder / f"{rule}-256.json")
        if not measured.rows:
            continue
        uncalibrated = Measured(folder / f"{rule}-256-uncalibrated.json")
        for benchmark, title in BENCHMARKS.items():
            tokens = [
                measured.figures(decoder, sizes, benchmark, "tokens_per_pass")
                for decoder, sizes in (("plain", (0,)), ("spiffy", SIZES))
            ]
            fewer = measured.reductions("spiffy", SIZES, benchmark)
            others = ", ".join(uncalibrated.reduction(d, 8, benchmark) for d in ("ssd", "star"))
            lines.append([name, title, *tokens, fewer, others])
    sizes = "D = " + " / ".join(map(str, SIZES))
    table(
        [
            "unmasking",
            "prompts",
            "tokens per pass, plain",
            f"with drafts, {sizes}",
            "fewer passes",
            "SSD, star at D = 8: fewer passes",
        ],
        lines,
    )


def main() -> None:
    """Prints all tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the files of llada_tables.sh")
    folder = parser.parse_args().folder
    for part in (lossless, caches, graphs, weights, thresholds):
        print(f"{part.__doc__}\n")
        part(folder)


if __name__ == "__main__":
    main()
