"""What rows are called in plots and tables, and how they are drawn.

A series is one drafter (or one decoder) under one setting, on all benchmarks.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from jaxspec.evals.results import BASELINE, FULL, Row, gains, is_diffusion
from jaxspec.evals.tables import formatted, settings_columns


def name_series(rows: Sequence[dict[str, Any]], *, suffix: Sequence[str]) -> None:
    """Adds names, and gains of drafters, to rows that were measured together.

    `recipe` is the loss (or the decoder) and its settings, and the kind of drafter where a loss has
    several. Of several drafters of a recipe, `series` adds the seed (`is_seed`) or, where seeds do
    not tell them apart, the drafter's name.

    Args:
      rows: of one file.
      suffix: what is added to each name.
    """
    if is_diffusion(rows[0]):
        for row in rows:
            drafts = row["drafts_per_pass"]
            name = f"{row['decoder']}, D {drafts}" if drafts else row["decoder"]
            row["recipe"] = row["series"] = ", ".join([name, *suffix])
        return
    settings = settings_columns(rows)
    kinds: dict[str, set[str | None]] = collections.defaultdict(set)
    for row in rows:
        kinds[row["loss"]].add(row.get("kind"))
    for row, gain in zip(rows, gains(rows), strict=True):
        row["gain"] = gain
        parts = [f"{column.title} {formatted(row[column.field])}" for column in settings]
        if len(kinds[row["loss"]]) > 1:
            parts = [f"kind {formatted(row.get('kind'))}", *parts]
        row["recipe"] = ", ".join([row["loss"], *parts, *suffix])
    drafters: dict[str, set[tuple[Any, str]]] = collections.defaultdict(set)
    for row in rows:
        drafters[row["recipe"]].add((row.get("seed"), row["drafter"]))
    for row in rows:
        members = drafters[row["recipe"]]
        seeds = {seed for seed, _ in members if seed is not None}
        row["is_seed"] = len(members) > 1 and len(seeds) == len(members)
        own = f"seed {row['seed']}" if row["is_seed"] else row["drafter"]
        loss = f"{row['loss']} ({own})" if len(members) > 1 else row["loss"]
        row["series"] = loss + row["recipe"].removeprefix(row["loss"])


def series_of(rows: Sequence[Row]) -> dict[str, int]:
    """Every series in order, and its style: the baseline and the full recipe have the first two."""
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.get("loss", row.get("decoder")), row["series"])
    fixed = {first.get(BASELINE, first.get("plain")): 0, first.get(FULL): 1}
    styles: dict[str, int] = {}
    for name in dict.fromkeys(row["series"] for row in rows):
        following = 2 + sum(style > 1 for style in styles.values())
        styles[name] = fixed.get(name, following)
    return styles


def first_seeds(rows: Sequence[Row]) -> list[Row]:
    """Of several seeds of a recipe, the rows of the lowest: lines of all would hide each other."""
    seeds: dict[str, set[int]] = collections.defaultdict(set)
    for row in rows:
        if row.get("is_seed"):
            seeds[row["recipe"]].add(row["seed"])
    return [
        row
        for row in rows
        if row["recipe"] not in seeds or row["seed"] == min(seeds[row["recipe"]])
    ]


def seeds_note(rows: Sequence[Row]) -> list[str]:
    """A sentence about `first_seeds`, where it leaves rows out."""
    return (
        ["Of several seeds, the plots show the first."]
        if len(first_seeds(rows)) < len(rows)
        else []
    )
