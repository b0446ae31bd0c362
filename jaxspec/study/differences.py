"""How two studies differ: first in their settings, then in what they measured.

>>> print(study_difference(read_results("runs/a"), read_results("runs/b")))    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec.evals.results import PROMPTS, WEIGHTS
from jaxspec.evals.tables import formatted, markdown
from jaxspec.json_files import shortened
from jaxspec.names import for_terminal
from jaxspec.study.results import StudyResults
from jaxspec.study.summary import Entry
from jaxspec.study.tables import base_of, interval_text
from jaxspec.training.segments import differences

_CIRCUMSTANCES = ("commit", "versions", "devices", "host")
_Key = tuple[str, str, str, str]


def study_difference(first: StudyResults, second: StudyResults) -> str:
    """Says how two studies differ, as Markdown.

    Units and rows of the same name are compared. A row differs if its tau or its gain does, by
    however little.
    """
    parts = ["Settings that differ:", *_settings(first, second)]
    ours, theirs = _by_key(first.summary), _by_key(second.summary)
    for name, only in (
        ("first", [key for key in ours if key not in theirs]),
        ("second", [key for key in theirs if key not in ours]),
    ):
        if only:
            rows = "\n".join(f"- {', '.join(key)}" for key in only)
            parts.append(f"Rows of the {name} study only:\n\n{for_lines(rows)}")
    both = [key for key in ours if key in theirs]
    differ = [key for key in both if _figures(ours[key]) != _figures(theirs[key])]
    parts.append(f"{len(differ)} of {len(both)} rows that both have differ.")
    if differ:
        lines = [_line(key, ours[key], theirs[key]) for key in differ]
        header = ["target", "decoding", "benchmark", "loss", "tau", "95%", "tau", "95%", "change"]
        header += ["gain", "95%", "gain", "95%"]
        parts.append(markdown(header, lines, names=4))
        parts.append(
            "Of each pair, the first study's figure comes first. change: of tau. 95%: over the "
            "prompts of each study on its own."
        )
    return "\n\n".join(parts) + "\n"


def for_lines(text: str) -> str:
    """Several lines for a terminal."""
    return "\n".join(for_terminal(line, longest=200) for line in text.split("\n"))


def _settings(first: StudyResults, second: StudyResults) -> list[str]:
    """Settings that differ, each with the units that it differs in; and the bases of the gains."""
    units: dict[str, list[str]] = {}
    ours, theirs = first.provenance.get("units", {}), second.provenance.get("units", {})
    for name in (name for name in ours if name in theirs):
        for found in _differences(ours[name], theirs[name]):
            units.setdefault(found, []).append(name)
    bases = [base_of(results.study) for results in (first, second)]
    lines = [f"- base of the gains: {', then '.join(bases)}"] if bases[0] != bases[1] else []
    lines += [f"- {setting} ({_named(names)})" for setting, names in units.items()]
    return [for_lines("\n".join(lines))] if lines else ["none, among units of the same name."]


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    found = differences(theirs.get("settings", {}), ours.get("settings", {}))
    measured_with = [name for name in (WEIGHTS, PROMPTS) if name in ours and name in theirs]
    for name in (*_CIRCUMSTANCES, *measured_with):
        found += differences(theirs.get(name), ours.get(name), setting=name)
    return [f"{d.setting}: {_shown(d.recorded)}, then {_shown(d.got)}" for d in found]


def _shown(value: Any) -> str:
    return shortened(str(value), longest=60)


def _named(names: Sequence[str]) -> str:
    more = len(names) - 1
    return names[0] + (f" and {more} more" if more else "")


def _by_key(entries: Sequence[Entry]) -> dict[_Key, Entry]:
    return {(e["target"], e["decoding"], e["benchmark"], e["loss"]): e for e in entries}


def _figures(entry: Entry) -> tuple[Any, Any]:
    return entry["tau"], entry["gain"]


def _line(key: _Key, ours: Entry, theirs: Entry) -> list[str]:
    taus = [entry["tau"] and entry["tau"]["mean"] for entry in (ours, theirs)]
    change = 100 * (taus[1] / taus[0] - 1) if all(taus) else None
    line = list(key)
    for entry, tau in zip((ours, theirs), taus, strict=True):
        line += [formatted(tau, ".3f"), formatted(entry["tau_ci95"], ".2f")]
    line.append(formatted(change, "+.1f", unit="%"))
    for entry in (ours, theirs):
        gain = entry["gain"]["mean"] if entry["gain"] else None
        line += [formatted(gain, "+.1f", unit="%"), interval_text(entry["gain_ci95"])]
    return line
