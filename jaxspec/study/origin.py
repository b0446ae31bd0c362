"""Where the tables and plots of a study come from, in the words that these files carry.

results.json and summary.json have the whole record of each unit. The other files may be taken out
of the folder, so they name the commits.

>>> made = {"drafters/a/full-seed0": {"commit": "1b185cd2f0", "time": "2026-11-29T18:13:00+00:00"}}
>>> origin_text("tiny", made)
'Study tiny: measured at commit 1b185cd, 2026-11-29. summary.json has the record of each unit.'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxspec.evals.results import own_loss
from jaxspec.provenance import short_commit
from jaxspec.study.summary import Entry
from jaxspec.study.units import drafter_name, evaluation_name

Units = Mapping[str, Mapping[str, Any]]
"""Provenance by the name of the unit."""


def origin_text(study: str, units: Units) -> str:
    """A sentence with the commits and the dates of a study's units.

    Args:
      study: its name.
      units: those whose results are shown.
    """
    commits = sorted({commit for each in units.values() if (commit := short_commit(each))})
    days = sorted({str(each["time"])[:10] for each in units.values() if each.get("time")})
    at = f" at commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}" if commits else ""
    when = f", {' to '.join(dict.fromkeys([days[0], days[-1]]))}" if days else ""
    return f"Study {study}: measured{at}{when}. summary.json has the record of each unit."


def commits_of(entry: Entry, units: Units) -> str:
    """The commits that trained and measured a line of the tables, with spaces between them.

    >>> commits_of({"target": "a", "decoding": "b", "loss": "full", "seeds": [0]}, {})
    ''
    """
    target, decoding, loss = entry["target"], entry["decoding"], own_loss(entry)
    names = [drafter_name(target, loss, seed) for seed in entry["seeds"]]
    names += [evaluation_name(target, decoding, loss, seed) for seed in entry["seeds"]]
    found = {short_commit(units[name]) for name in names if name in units}
    return " ".join(sorted(found - {""}))
