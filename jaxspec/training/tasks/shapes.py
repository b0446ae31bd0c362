"""Shapes of what is trained, and of a target in a folder beside the one that a run asks for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from jaxspec.config import LanguageModelConfig

COMPUTED = ("dtype", "param_dtype", "unroll_layers", "remat", "attention")
"""How a model is computed, which target.architecture says for a target in a folder too."""


ShapeT = TypeVar("ShapeT")
"""A configuration with a `param_dtype`."""


def in_float32(shape: ShapeT) -> ShapeT:
    """The shape of what is trained: its parameters, and with them Adam's averages, are float32.

    In bfloat16, a step of less than 0.4% of a weight is rounded away, and b2 = 0.999 becomes 1.
    """
    return dataclasses.replace(shape, param_dtype="float32")  # type: ignore[type-var]


def check_architecture(
    expected: LanguageModelConfig | None, got: LanguageModelConfig, folder: Path
) -> None:
    """Compares what decides shapes and mathematics; how it is computed may differ.

    Args:
      expected: target.architecture; None: nothing is expected.
      got: the shape in the target's folder.
      folder: that folder.

    Raises:
      ValueError: says what differs.
    """
    if expected is None:
        return
    if type(got) is not type(expected):
        raise ValueError(
            f"The target in {folder} is of another family than target.architecture: got a "
            f"{type(got).__name__}, expected a {type(expected).__name__}. Leave "
            "target.architecture out."
        )
    # An architecture that does not name its family has said the rest.
    ignored = (*COMPUTED, "max_position_embeddings", *(() if expected.family else ("family",)))
    wrong = [
        f"{field.name}: got {getattr(got, field.name)}, expected {getattr(expected, field.name)}"
        for field in dataclasses.fields(got)
        if field.name not in ignored and getattr(got, field.name) != getattr(expected, field.name)
    ]
    if wrong:
        raise ValueError(
            f"The target in {folder} is not that of target.architecture:\n  " + "\n  ".join(wrong)
        )
