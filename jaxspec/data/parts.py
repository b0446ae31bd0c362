"""The two parts of a run's data: what is learned, and what is held out to measure the loss on.

A folder with a part of its own for validation (`jaxspec import-data` makes one) is divided already.
Of any other source, `data.validation` says which share is held out.

>>> data = DataConfig(sources=("embedded/math",), embedded_examples=100, validation=0.1)
>>> len(training_examples(data)) + len(validation_examples(data))
100
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxspec.config import DataConfig
from jaxspec.data import sources
from jaxspec.data.examples import Example
from jaxspec.data.sources import JoinedExamples
from jaxspec.data.validation import split_examples
from jaxspec.files import user_path

_VALIDATION = "validation"


def training_examples(data: DataConfig) -> Sequence[Example]:
    """What is learned, source after source; what lies on disk is read when it is needed.

    Raises:
      ValueError: an unknown source or split, or missing files.
    """
    parts: list[Sequence[Example]] = []
    for name in data.sources:
        found = sources.load_examples(name, split=data.split, data=data)
        if data.validation and not _is_divided(name):
            found, _ = split_examples(found, data.validation)
        parts.append(found)
    return parts[0] if len(parts) == 1 else JoinedExamples(parts)


def validation_examples(data: DataConfig) -> list[Example]:
    """What is held out; nothing of it is in `training_examples`.

    Raises:
      ValueError: an unknown source or split, or missing files.
    """
    examples: list[Example] = []
    for name in data.sources:
        if _is_divided(name):
            examples.extend(sources.load_examples(name, split=_VALIDATION, data=data))
        elif data.validation:
            found = sources.load_examples(name, split=data.split, data=data)
            examples.extend(split_examples(found, data.validation)[1])
    return examples


def _is_divided(name: str) -> bool:
    return name not in sources.SOURCES and sources.is_example_folder(user_path(name) / _VALIDATION)
