"""Which files a source names: a file, a folder of files, or a folder saved by `datasets`.

>>> files_of_split(["data/train-0.parquet", "data/test-0.parquet"], "train")
['data/train-0.parquet']
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from jaxspec.data.example_files import is_example_folder, read_manifest
from jaxspec.data.imports.open_rows import DATA_ENDINGS
from jaxspec.files import user_path
from jaxspec.json_files import read_object

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
}
"""Words in the names of files -> the split that they are of."""
_STATE = "state.json"
_SPLIT_LIST = "dataset_dict.json"
_TEXTS = (".txt", ".txt.gz")
_NO_DATA = (_STATE, _SPLIT_LIST, "dataset_info.json", "dataset_infos.json")


@dataclasses.dataclass(frozen=True)
class DataFiles:
    """The files that a source names, in a fixed order."""

    source: str
    """What was typed."""
    files: tuple[Path, ...]
    names: tuple[str, ...]
    """What each is called in the ids of its examples."""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Where they come from, for the record."""
    ignored: tuple[str, ...] = ()
    """Data files of the folder that are of no split, where others are named after the split."""
    texts: tuple[str, ...] = ()
    """Plain texts of the folder, such as a licence, that lie beside files with rows."""

    def notes(self) -> list[str]:
        """Lines that say what is not read, and what is read together."""
        notes = []
        if self.ignored:
            notes.append(
                f"{self.source}: not read: {_counted(self.ignored)}. No split is in their names, "
                "but the wanted split is in the names of other files."
            )
        if self.texts:
            notes.append(
                f"{self.source}: not read: {_counted(self.texts)}. Plain text of a folder is read "
                "only if no other file has rows; name such a file itself if it is data."
            )
        folders = list(dict.fromkeys(str(PurePosixPath(name).parent) for name in self.names))
        if len(folders) > 1:
            named = ", ".join(folders[:4]) + (", ..." if len(folders) > 4 else "")
            notes.append(f"{self.source}: files of {len(folders)} folders are read: {named}")
        return notes


def _counted(names: Sequence[str]) -> str:
    """The first name, and how many there are besides."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def locate(source: str, *, split: str) -> DataFiles:
    """The files of a path.

    Args:
      source: a file, or a folder.
      split: which files of a folder: those with this split in their names, or with none.

    Raises:
      ValueError: nothing is there, or no data.
    """
    path = user_path(source)
    if path.is_dir():
        files, ignored, texts = _in_folder(path, split=split)
        names = tuple(str(file.relative_to(path)) for file in files)
        return DataFiles(source, tuple(files), names, ignored=ignored, texts=texts)
    if not path.exists():
        raise ValueError(f"There is no file or folder {source!r}: check the path.")
    if not path.is_file():
        raise ValueError(f"{source} is neither a file nor a folder.")
    return DataFiles(source, (path,), (path.name,))


def told_apart(sources: Sequence[DataFiles]) -> list[DataFiles]:
    """The sources with other names for files that are called alike, as examples are named by them.

    >>> twice = [DataFiles(f"{folder}/q.jsonl", (), ("q.jsonl",)) for folder in "ab"]
    >>> [found.names for found in told_apart(twice)]
    [('q.jsonl',), ('q.jsonl (2)',)]
    """
    taken: set[str] = set()
    found = []
    for source in sources:
        names = []
        for name in source.names:
            numbered = (f"{name} ({number})" for number in itertools.count(2))
            free = (each for each in itertools.chain([name], numbered) if each not in taken)
            names.append(next(free))
            taken.add(names[-1])
        found.append(dataclasses.replace(source, names=tuple(names)))
    return found


CHOOSE_SPLIT = "Choose one of them: jaxspec import-data ... --split NAME."
"""Only an import has that option: data that are read directly have no other split."""


def files_of_split(names: Sequence[str], split: str) -> list[str]:
    """The names of files that are of a split; where no name tells a split, all of them.

    Raises:
      ValueError: they are all of other splits.
    """
    if named := [name for name in names if names_split(name, split)]:
        return named
    by_split: dict[str, list[str]] = {}
    for name in names:
        its_split = next((_SPLITS[word] for word in _SPLITS if names_split(name, word)), "")
        by_split.setdefault(its_split, []).append(name)
    found = by_split.get(_SPLITS.get(split, split)) or by_split.get("")
    if not found:
        raise ValueError(
            f"No file belongs to the split {split!r}: there are "
            f"{', '.join(sorted(by_split))}. {CHOOSE_SPLIT}"
        )
    return found


def names_split(file: str, split: str) -> bool:
    """Whether the name of a file has that of a split as a word: "train_sft-0.parquet" both."""
    return re.search(rf"(?<![a-z]){re.escape(split)}(?![a-z])", file, re.IGNORECASE) is not None


def _in_folder(folder: Path, *, split: str) -> tuple[list[Path], tuple[str, ...], tuple[str, ...]]:
    """The files of a folder that are of a split, and the names of what is not read.

    These are files of no split, and plain texts (see `DataFiles`).
    """
    if _is_ours(folder):
        raise ValueError(
            f"{folder} was written by jaxspec and needs no import: name it with --data.sources, "
            "--evaluation.benchmarks or `jaxspec regenerate --source`."
        )
    if (folder / _SPLIT_LIST).is_file():  # datasets.DatasetDict.save_to_disk
        chosen = folder / split
        if not chosen.is_dir():
            there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
            raise ValueError(
                f"{folder} has no split {split!r}: there are {', '.join(there)}. {CHOOSE_SPLIT}"
            )
        folder = chosen
    if (folder / _STATE).is_file():  # datasets.Dataset.save_to_disk
        return _saved_files(folder), (), ()
    every = sorted(
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.suffix in DATA_ENDINGS
        and file.name not in _NO_DATA
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    if not every:
        raise ValueError(
            f"{folder} holds no data: expected files ending in {', '.join(DATA_ENDINGS)}, a folder "
            "saved by `datasets`, or one written by jaxspec."
        )
    named = files_of_split(every, split)
    ignored = tuple(
        name
        for name in every
        if name not in named and not any(names_split(name, word) for word in _SPLITS)
    )
    texts = tuple(name for name in named if name.endswith(_TEXTS))
    if len(texts) == len(named):
        texts = ()
    return [folder / name for name in named if name not in texts], ignored, texts


def _is_ours(folder: Path) -> bool:
    """Whether `jaxspec import-data` or `jaxspec regenerate` wrote a folder."""
    try:
        return is_example_folder(folder) and bool(read_manifest(folder))
    except ValueError:
        return False


def _saved_files(folder: Path) -> list[Path]:
    state = read_object(folder / _STATE)
    listed = state.get("_data_files")
    names = [
        entry.get("filename") if isinstance(entry, dict) else None
        for entry in (listed if isinstance(listed, list) else [])
    ]
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ValueError(
            f"{folder / _STATE} names no data files: expected a folder saved by `datasets`."
        )
    return [folder / str(name) for name in names]
