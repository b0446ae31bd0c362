"""The two parts of a run's data: what is learned, and what is held out to measure the loss on.

A folder with a part of its own for validation (`jaxspec import-data` makes one) is divided already.
Of any other source, `data.validation` says which share is held out.

>>> data = DataConfig(sources=("embedded/math",), embedded_examples=100, validation=0.1)
>>> len(training_examples(data)) + len(validation_examples(data))
100
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaxspec.config import DataConfig
from jaxspec.data import sources
from jaxspec.data.examples import Example
from jaxspec.data.sources import ChosenExamples, JoinedExamples
from jaxspec.data.validation import is_validation, prompt_hash
from jaxspec.files import user_path

_VALIDATION = "validation"


def training_examples(data: DataConfig) -> Sequence[Example]:
    """What is learned, source after source; what lies on disk is read when it is needed.

    A prompt that is held out of one source is learned from no other.

    Raises:
      ValueError: an unknown source, missing files, or a split that is not for training.
    """
    if data.split != "train":
        raise ValueError(
            f"data.split is {data.split!r}, but training reads only 'train': a drafter that has "
            "learned a test or validation split cannot be measured on it. If your training split "
            "has another name, import it: jaxspec import-data FOLDER --split NAME."
        )
    held_out = _held_out_prompts(data)
    parts: list[Sequence[Example]] = []
    for name in data.sources:
        found = sources.load_examples(name, split=data.split, data=data)
        if held_out:
            found = ChosenExamples(found, [prompt_hash(each) not in held_out for each in found])
        parts.append(found)
    return parts[0] if len(parts) == 1 else JoinedExamples(parts)


def validation_examples(data: DataConfig) -> list[Example]:
    """What is held out; nothing of it is in `training_examples`.

    Raises:
      ValueError: an unknown source or split, or missing files.
    """
    return [example for name in data.sources for example in _held_out_of(name, data)]


def is_to_hold_out(data: DataConfig) -> bool:
    """Whether the settings or the sources ask for a part to measure on, even if it is empty."""
    return data.validation > 0 or any(map(is_divided, data.sources))


def _held_out_of(name: str, data: DataConfig) -> Iterable[Example]:
    """What is held out of one source."""
    if is_divided(name):
        return sources.load_examples(name, split=_VALIDATION, data=data)
    if not data.validation:
        return ()
    found = sources.load_examples(name, split=data.split, data=data)
    return (example for example in found if is_validation(example, data.validation))


def _held_out_prompts(data: DataConfig) -> frozenset[int]:
    """Hashes of the prompts that are held out of any source; none has to be searched if empty."""
    if len(data.sources) == 1 and is_divided(data.sources[0]):
        return frozenset()
    return frozenset(
        prompt_hash(example) for name in data.sources for example in _held_out_of(name, data)
    )


def is_divided(name: str) -> bool:
    """Whether a source has a part of its own for validation."""
    return name not in sources.SOURCES and sources.is_example_folder(user_path(name) / _VALIDATION)
