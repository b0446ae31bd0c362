"""What tables call the folders of targets and drafters.

>>> folder_name(Path("/runs/full/export"))
'full'
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def folder_name(folder: Path) -> str:
    """What to call a folder in tables: its last part, or its run's where that is "export"."""
    return run_folder(folder).name


def run_folder(folder: Path) -> Path:
    """A run's folder, resolved, also where its "export" is named; or a folder of weights."""
    resolved = folder.resolve()
    return resolved.parent if resolved.name == "export" else resolved


def folder_names(folders: Sequence[Path]) -> list[str]:
    """What to call several folders: with those above them in front, where names would be equal.

    >>> folder_names([Path("/runs/lrA/full"), Path("/runs/lrB/full/export"), Path("/runs/base")])
    ['lrA/full', 'lrB/full', 'base']

    Raises:
      ValueError: a folder that is named twice.
    """
    places = [run_folder(folder) for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ValueError(f"--workdir names {folders[number]} twice: leave it out once.")
    names = [place.name for place in places]
    while twice := {name for name in names if names.count(name) > 1}:
        for number, name in enumerate(names):
            if name in twice:
                places[number] = places[number].parent
                names[number] = f"{places[number].name}/{name}"
    return names


def is_called(folder: Path, name: str) -> bool:
    """Whether a name in tables may be that of a folder: see `folder_names`.

    >>> is_called(Path("/runs/lrA/full/export"), "lrA/full")
    True
    """
    return f"/{run_folder(folder)}".endswith(f"/{name}")
