from __future__ import annotations

import dataclasses
import itertools
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from jaxspec.config import (
    DiTConfig,
    GPT2Config,
    Llama3RopeScaling,
    MaskedTransformerConfig,
    RunConfig,
    TransformerConfig,
)
from jaxspec.ranges import Range, check_ranges, fraction, not_negative, positive, whole

IMPOSSIBLE = (math.nan, math.inf, -math.inf, -1)
TOO_LARGE = {int: 10**30, float: 1e39}
AXES = ("data", "fsdp", "context", "tensor")
MEANT = {("decay", math.inf), ("decay", 1e39), *((axis, -1) for axis in AXES)}
"""Those that a setting may have after all: no decay, and all devices that are left."""


def dataclasses_of(kind: type) -> Iterator[type]:
    """A dataclass and all that its fields may hold."""
    yield kind
    for hint in typing.get_type_hints(kind).values():
        for choice in typing.get_args(hint) or (hint,):
            if dataclasses.is_dataclass(choice):
                assert isinstance(choice, type)
                yield from dataclasses_of(choice)


def kind_of_number(hint: Any) -> type | None:
    """int or float, if a type is one of them or has it as a choice or item."""
    if hint in (int, float):
        return hint  # type: ignore[no-any-return]
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        return next(filter(None, map(kind_of_number, typing.get_args(hint))), None)
    return None


CLASSES = [*dict.fromkeys(dataclasses_of(RunConfig)), GPT2Config, MaskedTransformerConfig]
NUMBERS = [
    pytest.param(kind, name, hint, id=f"{kind.__name__}.{name}")
    for kind in CLASSES
    for name, hint in typing.get_type_hints(kind).items()
    if kind_of_number(hint)
]


def test_all_classes_are_walked_over():
    assert {DiTConfig, TransformerConfig, Llama3RopeScaling} < set(CLASSES)
    assert len(NUMBERS) > 100


@pytest.mark.parametrize(("kind", "name", "hint"), NUMBERS)
def test_no_number_is_without_a_range(kind, name, hint):
    for value in (*IMPOSSIBLE, TOO_LARGE[kind_of_number(hint)]):
        if (name, value) in MEANT:
            kind(**{name: value})
            continue
        given = (value,) if typing.get_origin(hint) is tuple else value
        with pytest.raises(ValueError) as caught:
            kind(**{name: given})
        message = rf"(\w+\.)?{name} must be .*: got .*{re.escape(str(value))}.*\."
        assert re.fullmatch(message, str(caught.value))


@dataclasses.dataclass(frozen=True)
class Numbers:
    """One field of every kind of range."""

    count: Annotated[int, whole(2, 9_999)] = 2
    rate: Annotated[float, positive(5.0)] = 1.0
    weight: Annotated[float, not_negative()] = 0.0
    share: Annotated[float, fraction()] = 0.0
    part: Annotated[float, fraction(zero=False, one=False)] | None = 0.5
    many: tuple[Annotated[int, whole(1, 3)], ...] = ()
    axis: Annotated[int, Range(-1, 4, "positive, or -1", "at most 4", without=(0,))] = -1
    free: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, prefix="numbers.")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 1, "at least 2: got 1."),
        ("count", 10_000, "at most 9,999: got 10000."),
        ("rate", 0, "finite and positive: got 0."),
        ("rate", 5.5, "at most 5: got 5.5."),
        ("weight", -0.5, "finite and not negative: got -0.5."),
        ("weight", math.inf, "finite and not negative: got inf."),
        ("weight", 1e39, "at most 3.40282e+38: got 1e+39."),
        ("share", 1.5, "in [0, 1]: got 1.5."),
        ("part", 0, "in (0, 1): got 0."),
        ("part", 1, "in (0, 1): got 1."),
        ("part", math.nan, "in (0, 1): got nan."),
        ("many", (1, 4), "at most 3: got (1, 4)."),
        ("axis", 0, "positive, or -1: got 0."),
    ],
)
def test_what_is_said(name, value, expected):
    with pytest.raises(ValueError) as caught:
        Numbers(**{name: value})
    assert str(caught.value) == f"numbers.{name} must be {expected}"


def test_numbers_inside_their_range_pass():
    Numbers()
    Numbers(count=9_999, rate=5, weight=1e38, share=1.0, part=None, many=(1, 3), free=math.nan)
    for low, high in itertools.product((True, False), repeat=2):
        assert (0 in fraction(zero=low, one=high)) is low
        assert (1 in fraction(zero=low, one=high)) is high


def test_a_value_that_is_no_number_is_a_type_error():
    with pytest.raises(TypeError):
        Numbers(count="2")  # type: ignore[arg-type]


def test_a_number_too_large_for_a_float_is_named():
    @dataclasses.dataclass
    class Settings:
        size: Annotated[int, whole(1, 8)] = 10**400

    with pytest.raises(ValueError, match="size must be at most 8: got 1000"):
        check_ranges(Settings())
