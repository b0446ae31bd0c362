"""Finished evaluations of a study: read, and refused where one table may not hold them.

So are the drafters that they measured.

>>> refuse_mixtures(evaluations)                                               # doctest: +SKIP
ValueError: The weights of the target 'small' have changed between evaluations, so ...
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxspec.evals.report import read_json
from jaxspec.evals.results import PROMPTS, WEIGHTS
from jaxspec.study.records import UnitRecord
from jaxspec.study.units import Unit

_MOST_NAMED = 4
_PLACES = ("path", "raw_dir", "data_dir")
"""Settings that say where something lies, and not what it is."""


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
    remedy = (
        "Delete the evaluation files of all sides but one (such as {output}), and the same command "
        "measures them again."
    )
    for target, sides in weights.items():
        what = f"The weights of the target {target!r} have changed between evaluations"
        _refuse_sides(what, sides, remedy)
    for (target, benchmark, *_), sides in prompts.items():
        name = f"The prompts of the benchmark {benchmark!r} for {target!r}"
        _refuse_sides(f"{name} have changed between evaluations", sides, remedy)


def refuse_other_data(drafters: Iterable[tuple[Unit, UnitRecord]]) -> None:
    """Refuses drafters of one target that learned other texts with the same settings.

    A source may have been edited, or another folder of data sets may have been named, between their
    trainings. Older records do not hold the fingerprints of the data, and are not compared.

    Args:
      drafters: the units, and their records with the provenance of what they have left.

    Raises:
      ValueError: names the target and the units on each side.
    """
    found: dict[tuple[str, str], dict[str, list[Unit]]] = {}
    for unit, record in drafters:
        digest = (record.provenance.get("fingerprints") or {}).get("data")
        if digest is None:
            continue
        # The tokenizer and its template are the target's; a seed is among the settings of the data.
        settings = {
            group: {
                name: value
                for name, value in record.settings.get(group, {}).items()
                if name not in _PLACES
            }
            for group in ("data", "target")
        }
        key = (unit.target, json.dumps(settings, sort_keys=True))
        found.setdefault(key, {}).setdefault(str(digest), []).append(unit)
    for (target, _), sides in found.items():
        _refuse_sides(
            f"The texts that drafters of {target!r} learn have changed between trainings",
            sides,
            "Delete the folders of the drafters of all sides but one (such as {output}) and the "
            "evaluation files of these drafters, and the same command makes them again.",
        )


def _refuse_sides(what: str, sides: Mapping[str, Sequence[Unit]], remedy: str) -> None:
    if len(sides) < 2:
        return
    lines = [f"  {digest}: {_named(units)}" for digest, units in sides.items()]
    example = next(iter(sides.values()))[0]
    raise ValueError(
        "\n".join(
            [
                f"{what}, so these cannot be compared:",
                *lines,
                remedy.format(output=example.output),
            ]
        )
    )


def _named(units: Sequence[Unit]) -> str:
    more = len(units) - _MOST_NAMED
    names = ", ".join(unit.name for unit in units[:_MOST_NAMED])
    return names + (f" and {more} more" if more > 0 else "")
