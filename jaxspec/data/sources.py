"""The data sets by name, and how their examples are had.

Names are those of `SOURCES`, or a folder written by `jaxspec regenerate`. A set that is meant for
evaluation has no "train" split, and training splits hold no prompt of any test split; running text
has no prompts, and none of it is in both splits of a set.

>>> examples = load_examples("embedded/math", split="test", data=DataConfig())
>>> examples[0].source
'embedded/math'
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from jaxspec.config import DataConfig
from jaxspec.data.embedded import corpus
from jaxspec.data.example_files import (
    is_example_folder,
    read_examples,
    read_manifest,
    write_examples,
)
from jaxspec.data.examples import Example

if TYPE_CHECKING:
    from jaxspec.data.builders.base import ConversationBuilder

__all__ = [
    "SOURCES",
    "Source",
    "builder_for",
    "data_folder",
    "held_out_prompts",
    "is_example_folder",
    "load_examples",
    "read_examples",
    "read_manifest",
    "write_examples",
]

_log = logging.getLogger(__name__)

EMBEDDED_TEST_EXAMPLES = 300
"""Size of the test split of each kind of embedded text."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that has a name."""

    splits: tuple[str, ...]
    about: str
    builder: str = ""
    """``module:Class`` below jaxspec.data.builders; "": made by a program (`embedded`)."""
    train_builder: str = ""
    """The same for the train split, where another builder prepares it."""
    part: str = ""
    """The part of a test set that this is; "": all of it."""


_BOTH = ("train", "test")

SOURCES: dict[str, Source] = {
    "embedded": Source(_BOTH, "generated maths, code and chat in turn; needs no files"),
    **{
        f"embedded/{kind}": Source(_BOTH, f"generated {kind}; needs no files")
        for kind in corpus.KINDS
    },
    "gsm8k": Source(_BOTH, "grade-school maths, 7,473 / 1,319", "gsm8k:Gsm8k"),
    "math": Source(("train",), "competition maths, four subjects, 4,589", "math:Math"),
    "math500": Source(("test",), "competition maths, 500", "math:Math500"),
    "aime24": Source(("test",), "AIME 2024, 30", "aime:Aime24"),
    "aime25": Source(("test",), "AIME 2025, 30", "aime:Aime25"),
    "mbpp": Source(_BOTH, "small Python tasks, 374 / 500", "mbpp:Mbpp"),
    "humaneval": Source(("test",), "Python functions to complete, 164", "humaneval:Humaneval"),
    "livecodebench": Source(
        ("test",), "contest problems in Python, 1,055", "livecodebench:Livecodebench"
    ),
    "mt_bench": Source(("test",), "dialogues of two questions, 80", "dialogues:MtBench"),
    "spec_bench": Source(("test",), "six tasks of 80 prompts", "dialogues:SpecBench"),
    **{
        f"spec_bench/{task}": Source(
            ("test",), f"Spec-Bench, {about}, 80", "dialogues:SpecBench", part=task
        )
        for task, about in (
            ("mt_bench", "dialogues of two questions"),
            ("translation", "German to English"),
            ("summarization", "news articles to sum up"),
            ("qa", "short questions"),
            ("math_reasoning", "grade-school maths"),
            ("rag", "questions behind the passages found for them"),
        )
    },
    "instructions": Source(("train",), "short instructions, 1,100", "dialogues:Instructions"),
    "code_instructions": Source(
        ("train",), "programming tasks, 4,535", "dialogues:CodeInstructions"
    ),
    "roleplay": Source(("train",), "scenes to act out, 1,923", "dialogues:Roleplay"),
    "tinystories": Source(_BOTH, "running text, stories, 2,157 / 159", "text:Tinystories"),
    "wikitext2": Source(
        _BOTH,
        "running text, Wikipedia: articles / 145 passages",
        "text:Wikitext2",
        train_builder="text:Wikitext2Train",
    ),
}


def data_folder(data: DataConfig) -> Path:
    """Where everything that is prepared is kept."""
    chosen = data.data_dir or os.environ.get("JAXSPEC_DATA_DIR") or "~/.cache/jaxspec"
    return Path(chosen).expanduser()


def builder_for(name: str, *, split: str, data: DataConfig) -> ConversationBuilder:
    """The prepared TFDS builder of a split of a named data set; prepares it the first time.

    Raises:
      ValueError: a set without files, or its raw files are missing or out of reach.
    """
    if name not in SOURCES or not SOURCES[name].builder:
        built = sorted(key for key, source in SOURCES.items() if source.builder)
        raise ValueError(f"There are no files to prepare for {name!r}: expected one of {built}.")
    # Imported here: TFDS is not needed for the embedded corpus.
    from jaxspec.data.builders.base import prepare

    source = SOURCES[name]
    chosen = source.train_builder if split == "train" and source.train_builder else source.builder
    module, class_name = chosen.split(":")
    builder_class = getattr(importlib.import_module(f"jaxspec.data.builders.{module}"), class_name)
    raw = data.raw_dir or os.environ.get("JAXSPEC_RAW_DATA", "")
    return prepare(
        builder_class,
        raw_dir=Path(raw).expanduser() if raw else None,
        data_dir=data_folder(data),
    )


def load_examples(name: str, *, split: str, data: DataConfig) -> Sequence[Example]:
    """The examples of a data set in random access, in a fixed order.

    Args:
      name: one of `SOURCES`, or a folder of examples.
      split: "train" or "test".
      data: where files are, the size of the embedded corpus, and `max_examples`.

    Raises:
      ValueError: an unknown name or split, or files that are missing or out of reach.
    """
    if name not in SOURCES:
        return _folder(name, split=split, limit=data.max_examples)
    source = SOURCES[name]
    if split not in source.splits:
        why = " It is for evaluation only, never to train on." if split == "train" else ""
        alternatives = [key for key, other in SOURCES.items() if split in other.splits]
        raise ValueError(
            f"Data set {name!r} has no split {split!r}: got {split!r}, expected "
            f"{' or '.join(map(repr, source.splits))}.{why}"
            + (f" With a {split} split: {', '.join(alternatives)}." if alternatives else "")
        )
    if source.builder:
        builder = builder_for(name, split=split, data=data)
        if builder.excluded(split):
            _log.info(
                "%s: %d records of %s are left out because a test set has their prompt.",
                name,
                builder.excluded(split),
                split,
            )
        records = builder.as_data_source(source.part or split)
        return PreparedExamples(records, limit=data.max_examples)
    return _embedded(name, split=split, data=data)


def held_out_prompts(data: DataConfig) -> Iterator[str]:
    """Every prompt of every test set that has files: what training data must not hold."""
    for name, source in SOURCES.items():
        if source.builder and "test" in source.splits and not source.part:
            for example in load_examples(name, split="test", data=data):
                yield from example.user_turns


class PreparedExamples(Sequence[Example]):
    """Examples of a prepared data set, read from disk when they are asked for."""

    def __init__(self, records: Any, *, limit: int = 0) -> None:
        self._records = records
        self._length = min(limit, len(records)) if limit else len(records)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            numbers = list(range(self._length)[index])
            return [_from_record(record) for record in self._records.__getitems__(numbers)]
        return _from_record(self._records[range(self._length)[index]])

    def __iter__(self) -> Iterator[Example]:
        # Reading in blocks is half as slow as one by one.
        for start in range(0, self._length, 1024):
            yield from self[start : start + 1024]


def _from_record(record: dict[str, Any]) -> Example:
    turns = record["turns"]
    return Example(
        id=record["id"].decode(),
        turns=tuple(
            (role.decode(), content.decode())
            for role, content in zip(turns["role"], turns["content"], strict=True)
        ),
        source=record["source"].decode(),
    )


def _embedded(name: str, *, split: str, data: DataConfig) -> list[Example]:
    _, _, kind = name.partition("/")
    count = EMBEDDED_TEST_EXAMPLES * (1 if kind else len(corpus.KINDS))
    if split == "train":
        count = data.embedded_examples
    if data.max_examples:
        count = min(count, data.max_examples)
    if kind:
        return corpus.generate(kind, split=split, count=count)
    return corpus.generate_mixture(split, count)


def _folder(name: str, *, split: str, limit: int) -> Sequence[Example]:
    if not is_example_folder(name):
        raise ValueError(
            f"Unknown data set {name!r}: expected one of {', '.join(SOURCES)}, or a folder written "
            "by `jaxspec regenerate`."
        )
    examples = read_examples(name)
    if examples.manifest["split"] != split:
        raise ValueError(
            f"The folder {name} holds the {examples.manifest['split']} split: got {split!r}. "
            "Splits are never mixed."
        )
    return examples[:limit] if limit else examples
