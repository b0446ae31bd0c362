"""Where the figures of a result file come from, as lines that can be read.

>>> settings_of({"versions": {"jax": "0.10.2"}, "seeds": [0, 1]})
[('versions.jax', '0.10.2'), ('seeds', '0, 1')]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec.evals.html_report.measured import Measured


@dataclasses.dataclass(frozen=True)
class Origin:
    """The provenance of a file."""

    name: str
    summary: str
    """When and on what it was measured, as the end of a line; "": unknown."""
    command: str
    lines: list[tuple[str, str]]
    """Commit, versions, devices and so on."""
    settings: list[tuple[str, str]]
    """Every setting of the configuration."""


def origin_of(name: str, parts: Sequence[Measured]) -> Origin:
    """The provenance of a result file.

    Args:
      name: of the file.
      parts: what was read of it.
    """
    record = dict(parts[0].provenance)
    summary = _summary(record)
    command = record.pop("command", None)
    config = record.pop("config", None)
    if record.pop("dirty", False):
        record["commit"] = f"{record.get('commit')}, with changed files"
    lines = settings_of(record)
    rows = [row for part in parts for row in part.rows]
    seeds = sorted({row["seed"] for row in rows if row.get("seed") is not None})
    if seeds:
        lines.append(("seeds of the drafters", ", ".join(map(str, seeds))))
    return Origin(
        name,
        summary,
        command if isinstance(command, str) else "not recorded",
        lines,
        settings_of(config) if isinstance(config, Mapping) else [],
    )


def _summary(record: Mapping[str, Any]) -> str:
    time, devices = record.get("time"), record.get("devices")
    kind = devices.get("kind") if isinstance(devices, Mapping) else None
    when = f", {time[:10]}" if isinstance(time, str) else ""
    return when + (f", on {kind}" if isinstance(kind, str) else "")


def settings_of(value: Mapping[str, Any], *, name: str = "") -> list[tuple[str, str]]:
    """The values of nested objects, each under a name with dots."""
    found = []
    for key, each in value.items():
        full = f"{name}.{key}" if name else str(key)
        if isinstance(each, Mapping):
            found += settings_of(each, name=full)
        else:
            found.append((full, _written(each)))
    return found


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_written, value)) if value else "none"
    if value is None or value == "":
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
