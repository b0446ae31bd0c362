"""The rows of a result file that the model card of an exported drafter may show.

>>> rows = card_rows("runs/full.json", "drafter", folders=[Path("runs/full")])  # doctest: +SKIP
>>> check_measured(rows, "runs/full.json", folders=folders, record=record)  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxspec.checkpoints.config_reader import read_json
from jaxspec.checkpoints.folders import exported_weights, fingerprint
from jaxspec.evals.folder_names import folder_name, is_called
from jaxspec.evals.report import read_json as read_results
from jaxspec.evals.results import is_diffusion, is_target_alone
from jaxspec.files import user_path

_OF_WEIGHTS = ("time", "seed", "step")
"""What tells weights apart in records: when their run began, its seed, and the step."""


def card_rows(file: str, kind: str, *, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of a result file that are of a drafter in one of the folders.

    Args:
      file: what eval.py wrote.
      kind: what the run trained (`TaskKind.name`).
      folders: the run's, and the one that the drafter is exported to.

    Raises:
      ValueError: not a drafter, not such a file, or one without a row of it.
    """
    if kind != "drafter":
        raise ValueError(
            f"--results is only for drafters, but the run holds a {kind}: leave it out."
        )
    _, results = read_results(user_path(file))
    rows = [row for row in results if not is_diffusion(row)]
    if not rows:
        raise ValueError(f"--results {file} has no row of a drafter: expected eval.py's --output.")
    own = [
        row
        for row in rows
        if not is_target_alone(row) and any(is_called(each, row["drafter"]) for each in folders)
    ]
    if not own:
        names = {folder_name(folder) for folder in folders}
        raise ValueError(
            f"--results {file} has no row of {' or '.join(sorted(names))}. It has rows of "
            f"{', '.join(sorted({row['drafter'] for row in rows}))}."
        )
    return own


def check_measured(
    rows: Iterable[Mapping[str, Any]],
    file: str,
    *,
    folders: Iterable[Path],
    record: Mapping[str, Any],
) -> None:
    """Refuses rows that were measured with other weights than those of `record`.

    Rows say only which folder's weights they were measured with: it must still hold them, and its
    own record must be of the same step of the same run. Rows of older files do not say it.

    Args:
      rows: see `card_rows`.
      file: where they are, for the message.
      folders: see `card_rows`.
      record: of the weights that are exported, with their step.

    Raises:
      ValueError: such a row.
    """
    held: dict[Path, str] = {}
    for folder in folders:
        with contextlib.suppress(ValueError):
            weights = exported_weights(folder)
            theirs = read_json(weights / "provenance.json")
            same = all(theirs.get(key) == record.get(key) for key in _OF_WEIGHTS)
            held[folder] = fingerprint(weights) if same else ""
    for row in rows:
        measured = row.get("drafter_weights")
        found = [held[folder] for folder in held if is_called(folder, row["drafter"])]
        if measured and found and measured not in found:
            raise ValueError(
                f"--results {file}: {row['drafter']} was measured on {row['benchmark']} with "
                f"other weights than those that are exported (step {record.get('step')}). Evaluate "
                "the export, or leave --results out."
            )
