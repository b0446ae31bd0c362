"""Shapes of what is trained, and of a target in a folder beside the one that a run asks for.

>>> agreed(TargetConfig(dtype="bfloat16"))
{'dtype': 'bfloat16', 'attention': 'auto', 'remat': False}
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from jaxspec.config import GPT2Config, LanguageModelConfig, RunConfig, TargetConfig

COMPUTED = ("dtype", "param_dtype", "unroll_layers", "remat", "attention")
"""How a model is computed, which target.architecture says for a target in a folder too."""
GIVEN_TWICE = ("dtype", "attention", "remat")
"""Those that `target` has as well as `target.architecture`."""


ShapeT = TypeVar("ShapeT")
"""A configuration with a `param_dtype`."""


def in_float32(shape: ShapeT) -> ShapeT:
    """The shape of what is trained: its parameters, and with them Adam's averages, are float32.

    In bfloat16, a step of less than 0.4% of a weight is rounded away, and b2 = 0.999 becomes 1.
    """
    return dataclasses.replace(shape, param_dtype="float32")  # type: ignore[type-var]


def agreed(target: TargetConfig) -> dict[str, Any]:
    """How a target is computed, by `target` and `target.architecture` together.

    What is not the default was given, and counts, wherever it was given.

    Raises:
      ValueError: two values were given that differ.
    """
    found = {}
    for name in GIVEN_TWICE:
        default = getattr(TargetConfig(), name)
        own = getattr(target, name)
        of_shape = default if target.architecture is None else getattr(target.architecture, name)
        if default not in (own, of_shape):
            check_agrees(name, own, of_shape)
        found[name] = of_shape if own == default else own
    return found


def check_agrees(name: str, own: Any, of_shape: Any) -> None:
    """Raises ValueError where target and target.architecture were given different values."""
    if own != of_shape:
        raise ValueError(
            f"target.{name} is {own!r}, but target.architecture.{name} is {of_shape!r}: leave one "
            "of them out, or give both the same value."
        )


def check_positions(config: RunConfig, architecture: LanguageModelConfig) -> None:
    """Refuses rows that are longer than a table of positions; rotary positions do not end.

    Raises:
      ValueError: names both lengths.
    """
    rows = architecture.max_position_embeddings
    if isinstance(architecture, GPT2Config) and config.data.sequence_length > rows:
        raise ValueError(
            f"data.sequence_length is {config.data.sequence_length}, but the target has learned "
            f"{rows} positions and no others: choose a data.sequence_length of at most {rows}."
        )


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
