"""Finished evaluations of a study: read, and refused where one table may not hold them.

>>> refuse_mixtures(evaluations)                                               # doctest: +SKIP
ValueError: The weights of the target 'small' have changed between evaluations, so ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec.evals.report import read_json
from jaxspec.evals.results import PROMPTS, WEIGHTS
from jaxspec.study.units import Unit

_MOST_NAMED = 4


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A finished evaluation."""

    unit: Unit
    provenance: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def read_evaluations(units: Sequence[Unit]) -> list[Evaluated]:
    """Reads what finished evaluations have left.

    Raises:
      ValueError: a damaged file; the message says how to measure again.
    """
    found = []
    for unit in units:
        try:
            found.append(Evaluated(unit, *read_json(unit.output)))
        except ValueError as error:
            raise ValueError(
                f"{unit.name} is done, but what it left cannot be read: {error}\n"
                f"Delete {unit.output}, and the unit is run again."
            ) from error
    return found


def refuse_mixtures(evaluations: Sequence[Evaluated]) -> None:
    """Refuses evaluations of one target with different weights or different prompts.

    Their figures look paired, but are not. Older files do not say what they were measured with, and
    are not compared.

    Raises:
      ValueError: names what differs and the units on each side.
    """
    weights: dict[str, dict[str, list[Unit]]] = {}
    prompts: dict[tuple[Any, ...], dict[str, list[Unit]]] = {}
    for each in evaluations:
        unit, settings = each.unit, each.unit.config.evaluation
        its_weights, its_prompts = each.provenance.get(WEIGHTS), each.provenance.get(PROMPTS)
        if its_weights is not None:
            weights.setdefault(unit.target, {}).setdefault(str(its_weights), []).append(unit)
        for name, digest in its_prompts.items() if isinstance(its_prompts, Mapping) else ():
            # Ways of decoding may ask for other numbers of prompts.
            key = (unit.target, name, settings.prompts, settings.seed)
            prompts.setdefault(key, {}).setdefault(str(digest), []).append(unit)
    for target, sides in weights.items():
        _refuse_sides(f"The weights of the target {target!r}", sides)
    for (target, benchmark, *_), sides in prompts.items():
        _refuse_sides(f"The prompts of the benchmark {benchmark!r} for {target!r}", sides)


def _refuse_sides(what: str, sides: Mapping[str, Sequence[Unit]]) -> None:
    if len(sides) < 2:
        return
    lines = [f"  {digest}: {_named(units)}" for digest, units in sides.items()]
    example = next(iter(sides.values()))[0]
    raise ValueError(
        "\n".join(
            [
                f"{what} have changed between evaluations, so these cannot be compared:",
                *lines,
                "Delete the evaluation files of all sides but one (such as "
                f"{example.output}), and the same command measures them again.",
            ]
        )
    )


def _named(units: Sequence[Unit]) -> str:
    more = len(units) - _MOST_NAMED
    names = ", ".join(unit.name for unit in units[:_MOST_NAMED])
    return names + (f" and {more} more" if more > 0 else "")
