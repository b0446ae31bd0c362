"""Wrong files at every door for conversations: one message, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import runs
from tests.trust.bad_files import DATA_FILES
from tests.trust.outcomes import Outcomes, is_tried
from tests.trust.test_cli_values import Place, count, here, place

__all__ = ["place"]

DOORS = {
    "import-data": "",
    "train": "data.sources",
    "eval": "evaluation.benchmarks",
    "regenerate": "source",
    "generate": "prompts",
}
"""Command -> its option that takes a file of conversations."""


def arguments(place: Place, command: str, path: Path) -> list[str]:
    """A command line that opens a file of conversations."""
    if command == "import-data":
        return [command, str(path), "--output", str(place.folder / "imported")]
    if command == "generate":
        return [command, "--target.path", str(place.target), "--prompts", str(path)]
    return place.arguments(command, DOORS[command], str(path))


@pytest.mark.parametrize("command", DOORS)
def test_wrong_files_of_conversations(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, is_slow: bool
) -> None:
    data = tmp_path / "data"
    monkeypatch.setenv("JAXSPEC_DATA_DIR", str(data))
    outcomes = Outcomes(f"wrong files of conversations: {command}")
    door = list(DOORS).index(command)
    for number, (kind, (name, make, words)) in enumerate(DATA_FILES.items()):
        if not is_slow and not is_tried(door, number, doors=len(DOORS)):
            continue
        path = tmp_path / kind / name
        path.parent.mkdir()
        make(path)
        before = runs.contents(place.folder)
        ended = here(arguments(place, command, path))
        says = all(word in ended.err for word in words)
        count(outcomes, ended, (command, kind), expected=2 if says else -1)
        if runs.contents(place.folder) != before or runs.contents(data):
            outcomes.add("silent", f"{command}, {kind}: something was left behind")
    outcomes.check()
