"""Ranges of numeric settings, next to their types: `rate: Annotated[float, positive()]`.

A class with such fields calls `check_ranges(self)` in its ``__post_init__``. The upper limits are
far above every model or run that exists. They keep a typing mistake from becoming an allocation
that ends the process without a message.

>>> @dataclasses.dataclass
... class Demo:
...     steps: Annotated[int, whole(1, 100)] = 3
>>> check_ranges(Demo(steps=0))
Traceback (most recent call last):
ValueError: steps must be at least 1: got 0.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Annotated, Any

LARGEST = 3.4028234e38
"""The largest real number: above it, float32 has only infinity."""
MOST_VOCABULARY = 1 << 24
MOST_LAYERS = 1 << 12
MOST_HEADS = 1 << 14
MOST_EXPERTS = 1 << 14
"""Of a layer."""
MOST_HEAD_WIDTH = 1 << 12
"""The rotation of a head is a matrix of this width."""
MOST_WIDTH = 1 << 22
"""Of a model or an MLP."""
MOST_POSITIONS = 1 << 30
"""Of a model, and of a window, a prompt or a response in it."""
MOST_SLOTS = 1 << 16
"""Of a block."""
MOST_DRAFTS = 1 << 12
"""Nodes or chains of one round."""
MOST_ROWS = 1 << 20
"""Of a batch in training."""
MOST_TOGETHER = 1 << 12
"""Prompts decoded together; rows without a prompt are computed as well."""
MOST_STEPS = 10**8
MOST_EXAMPLES = 10**12
MOST_DEVICES = 1 << 20
MOST_SEED = (1 << 32) - 1
"""jax's keys keep 32 bits of a seed: a larger one would give the numbers of a smaller one."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have. NaN is in no range."""

    low: float
    high: float
    expected: str
    """What the message says after "must be" for NaN or a number below `low`."""
    at_most: str
    """What the message says after "must be" for a number above `high`."""
    without: tuple[float, ...] = ()
    """Numbers between `low` and `high` that are excluded."""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and value not in self.without


def whole(low: int, high: int, *, words: str = "") -> Range:
    """Integers from `low` to `high`; `words` say more than "at least `low`"."""
    return Range(low, high, words or f"at least {low}", f"at most {high:,}")


def positive(high: float = LARGEST) -> Range:
    """Finite numbers above 0."""
    return Range(0.0, high, "finite and positive", f"at most {high:g}", without=(0.0,))


def not_negative(high: float = LARGEST) -> Range:
    """Finite numbers from 0."""
    return Range(0.0, high, "finite and not negative", f"at most {high:g}")


def fraction(*, zero: bool = True, one: bool = True) -> Range:
    """Numbers from 0 to 1; `zero` and `one` say whether the ends are included."""
    words = f"in {'[' if zero else '('}0, 1{']' if one else ')'}"
    ends = ((0.0, zero), (1.0, one))
    return Range(0.0, 1.0, words, words, without=tuple(end for end, belongs in ends if not belongs))


Vocabulary = Annotated[int, whole(1, MOST_VOCABULARY)]
TokenId = Annotated[int, whole(0, MOST_VOCABULARY)]
Layers = Annotated[int, whole(1, MOST_LAYERS)]
Heads = Annotated[int, whole(1, MOST_HEADS)]
HeadWidth = Annotated[int, whole(1, MOST_HEAD_WIDTH)]
Width = Annotated[int, whole(1, MOST_WIDTH)]
Positions = Annotated[int, whole(1, MOST_POSITIONS)]
Window = Annotated[int, whole(0, MOST_POSITIONS)]
BlockSize = Annotated[int, whole(2, MOST_SLOTS, words="at least 2, as it includes the anchor")]
DrafterBlockSize = Annotated[int, whole(0, MOST_SLOTS)]
Seed = Annotated[int, whole(0, MOST_SEED)]
Epsilon = Annotated[float, not_negative(1.0)]
Positive = Annotated[float, positive()]
NotNegative = Annotated[float, not_negative()]


def check_ranges(settings: Any, *, prefix: str = "") -> None:
    """Checks the fields of a dataclass, and the items of its tuples, whose types have a `Range`.

    Args:
      settings: the dataclass.
      prefix: what messages put before the names of its fields: "optimizer.".

    Raises:
      ValueError: a number outside the range of its field.
      TypeError: a value that is not a number.
    """
    for name, allowed in _ranges(type(settings)):
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None or number in allowed:
                continue
            is_above = allowed.high < number < math.inf
            must = allowed.at_most if is_above else allowed.expected
            raise ValueError(f"{prefix}{name} must be {must}: got {value}.")


def _ranges(settings: type) -> Iterator[tuple[str, Range]]:
    hints = typing.get_type_hints(settings, include_extras=True)
    for name, hint in hints.items():
        yield from ((name, found) for found in _within(hint))


def _within(hint: Any) -> Iterator[Range]:
    """The range in a type, looked for in unions and tuples as well."""
    yield from (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Range))
    for argument in typing.get_args(hint):
        yield from _within(argument)
