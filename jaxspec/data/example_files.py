"""Folders of examples: what `jaxspec import-data` and `regenerate` write and training reads.

A folder holds array_record shards and a ``manifest.json``. Each record is one JSON object ({"id",
"source", "turns": [{"role", "content"}]}; "tools" and further fields of a turn where there are
any). Every call of `write_examples` adds one shard and then
enters it in the manifest, with its size and a digest. Both are written under a temporary name and
then renamed: a killed run loses only the shard that it was writing.

>>> write_examples("answers", examples, manifest={"split": "train"})        # doctest: +SKIP
>>> len(read_examples("answers"))                                           # doctest: +SKIP
128
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from array_record.python.array_record_module import ArrayRecordWriter

from jaxspec.data.array_records import count_records, read_records
from jaxspec.data.examples import Example
from jaxspec.files import LOCK, replaced_file, write_text
from jaxspec.json_files import read_object
from jaxspec.paths import local_copy, user_path

MANIFEST = "manifest.json"
_FORMAT = "jaxspec-examples/1"
# Leftovers of a killed write, in the names of this version and of older ones.
_UNFINISHED = re.compile(r"\..+\.writing-.*|(examples-\d+\.array_record|tmp\w+)\.partial")


def is_example_folder(path: str | Path) -> bool:
    """Whether `path` is a folder with a manifest."""
    return (user_path(path) / MANIFEST).is_file()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a folder: "split", "examples", "shards" and what its writer added.

    Raises:
      ValueError: no manifest, or a manifest of another format.
    """
    file = user_path(path) / MANIFEST
    if not file.is_file():
        raise ValueError(
            f"No examples in {path}: expected a folder with {MANIFEST}, as written by "
            "`jaxspec import-data` or `jaxspec regenerate`."
        )
    manifest = read_object(file)
    found = manifest.get("format")
    if found != _FORMAT:
        raise ValueError(f"{file} has format {found!r}: expected {_FORMAT!r}.")
    problems = list(_manifest_problems(manifest))
    if problems:
        raise ValueError(
            f"{file} is damaged: write the folder again.\n  " + "\n  ".join(problems[:10])
        )
    return manifest


def _manifest_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a manifest: for each key, what was got and what is expected."""
    split, total, shards = (manifest.get(key) for key in ("split", "examples", "shards"))
    if not isinstance(split, str):
        yield f"split: got {split!r}, expected text."
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        yield f"shards: got {str(shards)[:80]}, expected a list of objects."
        return
    names: set[str] = set()
    for number, shard in enumerate(shards):
        name, where = shard.get("file"), f"shards[{number}]"
        if not isinstance(name, str) or not name or name in (".", "..") or {"/", "\\"} & set(name):
            yield f"{where}.file: got {name!r}, expected the name of a file in this folder."
        elif name in names:
            yield f"{where}.file: got {name!r} a second time, expected another name."
        else:
            names.add(name)
        if not _is_count(shard.get("examples")):
            yield f"{where}.examples: got {shard.get('examples')!r}, expected a whole number."
        # Older versions did not write these two.
        if not _is_count(shard.get("bytes", 0)):
            yield f"{where}.bytes: got {shard['bytes']!r}, expected a whole number."
        if not isinstance(shard.get("sha256", ""), str):
            yield f"{where}.sha256: got {shard['sha256']!r}, expected text."
    counts = [shard.get("examples") for shard in shards]
    if not _is_count(total):
        yield f"examples: got {total!r}, expected a whole number."
    elif all(map(_is_count, counts)) and total != sum(counts):
        yield f"examples: got {total}, expected {sum(counts)}, the sum over the shards."


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def remove_unfinished(folder: str | Path) -> None:
    """Removes what killed writes left in a folder. No other process may be writing to it."""
    for entry in user_path(folder).iterdir():
        if _UNFINISHED.fullmatch(entry.name) and entry.is_file():
            entry.unlink()


def foreign_files(folder: str | Path) -> list[str]:
    """Names in a folder that are neither a lock nor leftovers of a killed write."""
    names = sorted(entry.name for entry in user_path(folder).iterdir())
    return [name for name in names if name != LOCK and not _UNFINISHED.fullmatch(name)]


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
    folder = user_path(folder)
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
        with replaced_file(folder / name) as temporary:
            writer = ArrayRecordWriter(str(temporary), "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
            shard = {"bytes": temporary.stat().st_size, "sha256": _sha256(temporary)}
        shards.append({"file": name, "examples": len(records), **shard})
    after = {
        **before,
        **manifest,
        "format": _FORMAT,
        "shards": shards,
        "examples": sum(shard["examples"] for shard in shards),
    }
    write_text(folder / MANIFEST, json.dumps(after, indent=1))
    return after


class FolderExamples(Sequence[Example]):
    """The examples of a folder, read from disk when they are needed.

    Raises:
      ValueError: see `read_examples`; also when a damaged record is read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        self.manifest = read_manifest(path)
        shards = self.manifest["shards"]
        self._files = [self.path / shard["file"] for shard in shards]
        lost = [str(file) for file in self._files if not file.is_file()]
        if lost:
            raise ValueError(f"{self.path / MANIFEST} names files that are missing: {lost}.")
        local = [local_copy(file) for file in self._files]
        for file, copy, shard in zip(self._files, local, shards, strict=True):
            _check_shard(copy, shard, name=str(file))
        self._ends = list(itertools.accumulate(shard["examples"] for shard in shards))
        self._copies = local

    def __len__(self) -> int:
        return int(self.manifest["examples"])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        numbers = range(len(self))[index]
        return self._read(numbers) if isinstance(numbers, range) else self._read([numbers])[0]

    def __iter__(self) -> Iterator[Example]:
        # Reading in blocks is faster than reading one by one, and a block is little memory.
        for start in range(0, len(self), 1024):
            yield from self[start : start + 1024]

    def _read(self, numbers: Sequence[int]) -> list[Example]:
        found: dict[int, Example] = {}
        by_shard = itertools.groupby(sorted(set(numbers)), self._shard_of)
        for shard, group in by_shard:
            members = list(group)
            start = self._ends[shard - 1] if shard else 0
            records = read_records(self._copies[shard], [number - start for number in members])
            for number, record in zip(members, records, strict=True):
                where = f"example {number} in {self._files[shard]}"
                found[number] = _from_bytes(record, where=where)
        return [found[number] for number in numbers]

    def _shard_of(self, number: int) -> int:
        return bisect.bisect_right(self._ends, number)


def read_examples(path: str | Path) -> FolderExamples:
    """The examples of a folder, in the order they were written.

    Raises:
      ValueError: there is no such folder, or its files are missing or differ from the manifest.
    """
    return FolderExamples(path)


def _check_shard(file: Path, shard: Mapping[str, Any], *, name: str) -> None:
    """Compares a shard with its entry in the manifest."""
    size = file.stat().st_size
    problem = ""
    if size != shard.get("bytes", size):
        problem = f"it has {size:,} bytes, expected {shard['bytes']:,}"
    elif "sha256" in shard and _sha256(file) != shard["sha256"]:
        problem = "its bytes have changed since it was written"
    elif (count := count_records(file)) != shard["examples"]:
        problem = f"it holds {count} examples, expected {shard['examples']}"
    if problem:
        raise ValueError(
            f"{name} is damaged: {problem}. Replace it with a good copy, or write the folder again."
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _to_bytes(example: Example) -> bytes:
    record = {"id": example.id, "source": example.source, "turns": example.conversation}
    if example.tools:
        record["tools"] = example.tool_list
    return json.dumps(record, ensure_ascii=False).encode()


def _from_bytes(record: bytes, *, where: str) -> Example:
    try:
        value = json.loads(record)
        turns, tools = value["turns"], value.get("tools", [])
        texts = [value["id"], value["source"]]
        texts += [turn[name] for turn in turns for name in ("role", "content")]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a value is not text")
        if not isinstance(tools, list):
            raise TypeError("tools is not a list")
        return Example.from_conversation(turns, id=value["id"], source=value["source"], tools=tools)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where} is not a conversation ({type(error).__name__}: {error}): expected "
            '{"id", "source", "turns": [{"role", "content"}]}.'
        ) from error
