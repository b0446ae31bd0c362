"""Folders of examples: what `jaxspec regenerate` writes and training reads.

A folder holds array_record shards and a ``manifest.json``. Each record is one JSON object ({"id",
"source", "turns": [{"role", "content"}]}). Every call of `write_examples` adds one shard and then
enters it in the manifest. Both are renamed into place: a killed run loses only the shard that it
was writing.

>>> write_examples("answers", examples, manifest={"split": "train"})        # doctest: +SKIP
>>> len(read_examples("answers"))                                           # doctest: +SKIP
128
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from jaxspec.data.examples import Example

MANIFEST = "manifest.json"
_FORMAT = "jaxspec-examples/1"


def is_example_folder(path: str | Path) -> bool:
    """Whether `path` is a folder with a manifest."""
    return (Path(path) / MANIFEST).is_file()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a folder: "split", "examples", "shards" and what its writer added.

    Raises:
      ValueError: no manifest, or a manifest of another format.
    """
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise ValueError(
            f"No examples in {path}: expected a folder with {MANIFEST}, as written by "
            "`jaxspec regenerate`."
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}): write the folder again.") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != _FORMAT:
        raise ValueError(f"{file} has format {found!r}: expected {_FORMAT!r}.")
    return manifest


def write_examples(
    folder: str | Path, examples: Iterable[Example], *, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Adds one shard of examples; only one process may write to a folder at a time.

    Args:
      folder: made if it does not exist.
      examples: what to add; if there are none, no shard is added.
      manifest: facts about the whole folder that JSON can hold, for example "split" and
        "provenance"; they replace earlier ones of the same name.

    Returns:
      The updated manifest.

    Raises:
      ValueError: the folder holds another split.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before: dict[str, Any] = (
        read_manifest(folder)
        if is_example_folder(folder)
        else {"format": _FORMAT, "split": "train", "examples": 0, "shards": []}
    )
    wanted_split = manifest.get("split", before["split"])
    if before["shards"] and wanted_split != before["split"]:
        raise ValueError(
            f"{folder} holds the {before['split']} split: got examples of {wanted_split!r}. "
            "Splits are never mixed: write to another folder."
        )
    records = [_to_bytes(example) for example in examples]
    shards = list(before["shards"])
    if records:
        name = f"examples-{len(shards):05d}.array_record"
        temporary = folder / f"{name}.partial"
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        os.replace(temporary, folder / name)
        shards.append({"file": name, "examples": len(records)})
    after = {
        **before,
        **manifest,
        "format": _FORMAT,
        "shards": shards,
        "examples": sum(shard["examples"] for shard in shards),
    }
    handle, temporary_name = tempfile.mkstemp(dir=folder, suffix=".partial")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(after, file, indent=1)
    os.replace(temporary_name, folder / MANIFEST)
    return after


class FolderExamples(Sequence[Example]):
    """The examples of a folder, read from disk when they are needed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(path)
        files = [str(self.path / shard["file"]) for shard in self.manifest["shards"]]
        lost = [file for file in files if not Path(file).is_file()]
        if lost:
            raise ValueError(f"{self.path / MANIFEST} names files that are missing: {lost}.")
        self._source = ArrayRecordDataSource(files) if files else None

    def __len__(self) -> int:
        return int(self.manifest["examples"])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            numbers = range(len(self))[index]
            if self._source is None or not numbers:
                return []
            return [_from_bytes(record) for record in self._source.__getitems__(list(numbers))]
        if self._source is None:
            raise IndexError(index)
        return _from_bytes(self._source[range(len(self))[index]])


def read_examples(path: str | Path) -> FolderExamples:
    """The examples of a folder, in the order they were written.

    Raises:
      ValueError: no such folder, or files of it are missing.
    """
    return FolderExamples(path)


def _to_bytes(example: Example) -> bytes:
    record = {"id": example.id, "source": example.source, "turns": example.conversation}
    return json.dumps(record, ensure_ascii=False).encode()


def _from_bytes(record: bytes) -> Example:
    value = json.loads(record)
    turns = tuple((turn["role"], turn["content"]) for turn in value["turns"])
    return Example(id=value["id"], turns=turns, source=value["source"])
