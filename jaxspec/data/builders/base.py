"""What all builders share: one schema, raw files in, array_record out, no TensorFlow.

A builder says which raw files make up each split and how a record becomes a conversation:

>>> class Greetings(ConversationBuilder):                               # doctest: +SKIP
...     FILES: ClassVar = {"train": ("greetings/train.jsonl",)}
...     def turns(self, record, *, split):
...         return [("user", record.text("question")), ("assistant", record.text("answer"))]

Files prepared from different raw files are kept apart (see `prepare`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from jaxspec.data.array_records import count_records
from jaxspec.data.builders import raw_files
from jaxspec.data.builders.records import Record as Record
from jaxspec.data.builders.records import read_records
from jaxspec.data.heldout import HeldOutPrompts
from jaxspec.files import naming, write_text
from jaxspec.interruption import is_outage
from jaxspec.paths import copy_file, is_remote, user_path

_INFO = "dataset_info.json"
_ORIGIN, _DOWNLOAD = "origin.txt", "download"
_COPIES = "~/.cache/jaxspec/buckets"
"""Folder on this machine with the prepared data of buckets."""
Turns = list[tuple[str, str]]

_log = logging.getLogger(__name__)


class LocalInfo(tfds.core.DatasetInfo):
    """Information about a data set, without a look-up in TFDS's public bucket, which lacks it."""

    def initialize_from_bucket(self) -> None:
        """Nothing to fetch."""


class ConversationBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """Conversations as {"id", "source", "turns": [{"role", "content"}]}.

    Records of a training split whose prompt is also in a test set are left out; the metadata says
    how many.

    Args:
      raw_dir: folder with the raw files; never written to.
      data_dir: folder for the prepared files.
    """

    VERSION = tfds.core.Version("1.0.0")
    FILES: ClassVar[Mapping[str, tuple[str, ...]]]
    """Names of raw files (see `raw_files.PUBLIC`) for each split.

    Splits other than train and test are parts of the test split, each of them a benchmark."""
    SOURCE: ClassVar[str] = ""
    """Name of the data set in `jaxspec.data.sources`; "": the builder's name."""

    def __init_subclass__(cls, **options: Any) -> None:
        # TFDS has data sets with the same names; ours are found through `jaxspec.data.sources`.
        super().__init_subclass__(skip_registration=True, **options)

    def __init__(self, *, raw_dir: Path, data_dir: Path) -> None:
        self._raw_dir = raw_dir
        self._metadata = tfds.core.MetadataDict(excluded={})
        super().__init__(data_dir=data_dir, file_format="array_record")

    @classmethod
    def raw_names(cls) -> list[str]:
        """Every raw file that is needed."""
        return list(dict.fromkeys(name for names in cls.FILES.values() for name in names))

    def turns(self, record: Record, *, split: str) -> Turns | None:
        """One record as (role, content) pairs; None if it is not in the split."""
        raise AssertionError(f"{type(self).__name__} does not say how to read a record.")

    def records(self, path: Path) -> Iterator[Record]:
        """The records of a raw file."""
        return read_records(path)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return LocalInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    "source": text,
                    "turns": tfds.features.Sequence({"role": text, "content": text}),
                }
            ),
            metadata=self._metadata,
            disable_shuffling=True,  # the first N stay the file's first N; the pipeline shuffles
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(split) for split in self.FILES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        held_out = HeldOutPrompts.load() if split == "train" else None
        source, number, excluded = self.SOURCE or self.name, 0, 0
        for path in raw_files.find(self.FILES[split], folder=self._raw_dir):
            records = 0
            for record in self.records(path):
                records += 1
                turns = self.turns(record, split=split)
                if turns is None:
                    continue
                if held_out is not None and held_out.contains(turns):
                    excluded += 1
                    continue
                yield (
                    number,
                    {
                        "id": f"{source}/{split}/{number}",
                        "source": source if split in ("train", "test") else f"{source}/{split}",
                        "turns": [{"role": role, "content": content} for role, content in turns],
                    },
                )
                number += 1
            if not records:
                raise ValueError(f"{path} holds no records: replace it with the original file.")
        if not number:
            raise ValueError(
                f"No record in {self._raw_dir} belongs to the {split} split of {source}: replace "
                "the files with the original ones."
            )
        self._metadata["excluded"][split] = excluded

    def excluded(self, split: str) -> int:
        """Number of records left out of a split because their prompt is in a test set."""
        return int((self.info.metadata or {}).get("excluded", {}).get(split, 0))


def prepare(
    builder_class: type[ConversationBuilder], *, raw_dir: Path | None, data_dir: Path
) -> ConversationBuilder:
    """A builder whose files are ready to read; the work is done only once.

    Prepared files are kept in a folder named after a hash of the raw files, so that a changed or
    shortened raw file is never mistaken for the original. They are checked first, and
    prepared again if they are damaged.

    Args:
      builder_class: the data set.
      raw_dir: folder with the raw files; None: use files that are already prepared, or download.
        Downloaded files are preferred. For others, a warning names the folder of their raw files.
      data_dir: root folder of all data that is kept.

    Raises:
      ValueError: raw files are missing or unreadable, or cannot be downloaded; or prepared files
        are damaged and there are no raw files.
    """
    if not is_remote(data_dir):
        return _prepare(builder_class, raw_dir=raw_dir, data_dir=data_dir)
    # array_record reads files of this machine only: each machine has a copy of what is in a bucket.
    number = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    here = user_path(_COPIES) / number
    pattern = f"*/{builder_class.name}/{builder_class.VERSION}"
    _copy_missing(data_dir / "prepared", here / "prepared", pattern=pattern)
    if raw_dir is None and not any((here / "prepared").glob(pattern)):
        raw_dir = data_dir / "raw"
        raw_files.download(builder_class.raw_names(), folder=raw_dir)
    builder = _prepare(builder_class, raw_dir=raw_dir, data_dir=here)
    _copy_missing(here / "prepared", data_dir / "prepared", pattern=pattern)
    return builder


def _copy_missing(source: Path, target: Path, *, pattern: str) -> None:
    """Copies folders that `target` lacks; dataset_info.json, which readers look for, last."""
    for folder in source.glob(pattern):
        new = target / str(folder.relative_to(source))
        if not (new / _INFO).exists():
            new.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir(), key=lambda file: (file.name == _INFO, file.name)):
                copy_file(file, new / file.name)


def _prepare(
    builder_class: type[ConversationBuilder], *, raw_dir: Path | None, data_dir: Path
) -> ConversationBuilder:
    """`prepare` on this machine."""
    prepared = data_dir / "prepared"
    names = builder_class.raw_names()
    if raw_dir is None:
        raw_dir = data_dir / "raw"
        pattern = f"{HeldOutPrompts.load().digest}-*/{builder_class.name}/{builder_class.VERSION}"
        kept = sorted(
            prepared.glob(f"{pattern}/{_INFO}"),
            key=lambda path: (_origin(path.parents[2]) == _DOWNLOAD, path.stat().st_mtime),
        )
        if kept:
            folder = kept[-1].parents[2]
            if (origin := _origin(folder)) not in ("", _DOWNLOAD):
                _log.warning(
                    "%s: using data prepared from the raw files in %s. "
                    "To download the original, remove %s.",
                    *(builder_class.name, origin, folder),
                )
            found, problem = _open(builder_class, raw_dir=raw_dir, data_dir=folder)
            if found is None:
                raise ValueError(
                    f"The prepared files in {kept[-1].parent} are damaged ({problem}). Remove that "
                    "folder, and they are prepared again, from data.raw_dir or from a download."
                )
            return found
        files = raw_files.download(names, folder=raw_dir)
        origin = _DOWNLOAD
    else:
        files = raw_files.find(names, folder=raw_dir)
        origin = os.path.abspath(raw_dir)
    folder = prepared / _digest(files)
    path = folder / builder_class.name / str(builder_class.VERSION)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _origin(folder) != _DOWNLOAD:
            write_text(folder / _ORIGIN, origin + "\n")
        if path.exists():
            found, problem = _open(builder_class, raw_dir=raw_dir, data_dir=folder)
            if found is not None:
                return found
            _log.warning("%s is damaged (%s): preparing it again.", path, problem)
            _remove(path)
        builder = builder_class(raw_dir=raw_dir, data_dir=folder)
        _write(builder)
    except OSError as error:
        if is_outage(error):
            raise
        raise ValueError(
            f"Prepared data cannot be kept in {prepared} ({error}): set data.data_dir or the "
            "environment variable JAXSPEC_DATA_DIR to a folder that can be written to."
        ) from error
    return builder


def _origin(folder: Path) -> str:
    """Where the raw files of prepared ones were: "download", a folder, or "" if nobody knows."""
    file = folder / _ORIGIN
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _open(
    builder_class: type[ConversationBuilder], *, raw_dir: Path, data_dir: Path
) -> tuple[ConversationBuilder | None, str]:
    """A builder of prepared files if they are complete; otherwise None, and what is wrong."""
    try:
        builder = builder_class(raw_dir=raw_dir, data_dir=data_dir)
        for split in builder_class.FILES:
            builder.excluded(split)  # reads another of TFDS's files
            info = builder.info.splits[split]
            for file, expected in zip(info.filepaths, info.shard_lengths, strict=True):
                count = count_records(Path(file))
                if count != expected:
                    return None, f"{file} holds {count} records, expected {expected}"
    except Exception as error:  # TFDS may raise almost anything for a damaged file.
        if is_outage(error):
            raise
        return None, f"{type(error).__name__}: {error}"
    return builder, ""


def _remove(path: Path) -> None:
    """Removes a folder. It is moved away first, so that it disappears at once."""
    aside = path.with_name(f".{path.name}.damaged-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):  # Another process was faster.
        path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            if is_outage(error):
                raise
            raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
    return f"{HeldOutPrompts.load().digest}-{digest.hexdigest()[:16]}"


def _write(builder: ConversationBuilder) -> None:
    _log.info("Preparing %s in %s.", builder.name, builder.data_path)
    tfds.disable_progress_bar()
    try:
        # TFDS prints messages.
        with naming(builder.data_path), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except OSError:
        # TFDS writes to a temporary folder and renames it. If another process was faster, the
        # rename fails, and that process's files are as good as ours.
        if not builder.data_path.exists():
            raise
        builder.info.read_from_directory(builder.data_path)
