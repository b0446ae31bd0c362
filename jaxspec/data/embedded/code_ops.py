"""Operations on lists and texts that are chained into the small functions of the embedded corpus.

Each operation is written twice: as Python source for the answer, and as a callable that computes
the values its asserts expect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

Run = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One link of a chain."""

    name: str
    before: str
    """What it takes: "numbers", "words" or "text"."""
    after: str
    """What it makes; "end" if nothing can follow."""
    verb: str
    """Imperative verb in its description: "keep"."""
    rest: str
    """The rest of the description; {k} is the constant."""
    run: Run
    """The same operation on a value, given the constant."""
    keep: str = ""
    """Condition on each element, for filters."""
    each: str = ""
    """Expression of an element, for maps."""
    whole: str = ""
    """Expression of the whole value {x}, for the others."""
    constants: tuple[Any, ...] = (0,)


def _keep(
    name: str, rest: str, keep: str, run: Run, constants: tuple[Any, ...] = (0,)
) -> Operation:
    return Operation(name, "numbers", "numbers", "keep", rest, run, keep=keep, constants=constants)


def _each(
    name: str, verb: str, rest: str, each: str, run: Run, constants: tuple[Any, ...] = (0,)
) -> Operation:
    return Operation(name, "numbers", "numbers", verb, rest, run, each=each, constants=constants)


def _list(
    name: str, verb: str, rest: str, whole: str, run: Run, constants: tuple[Any, ...] = (0,)
) -> Operation:
    return Operation(name, "numbers", "numbers", verb, rest, run, whole=whole, constants=constants)


def _text(
    name: str, verb: str, rest: str, whole: str, run: Run, constants: tuple[Any, ...] = (0,)
) -> Operation:
    return Operation(name, "text", "text", verb, rest, run, whole=whole, constants=constants)


def _end(
    name: str, before: str, rest: str, whole: str, run: Run, constants: tuple[Any, ...] = (0,)
) -> Operation:
    return Operation(name, before, "end", "return", rest, run, whole=whole, constants=constants)


_FEW = (2, 3, 4, 5)
_SMALL = (1, 2, 3)
_LETTERS = ("a", "e", "o", "r", "s", "t")
_MARKS = ("-", "_", "*", "+")

NUMBERS = (
    _keep("even", "the even numbers", "n % 2 == 0", lambda v, k: [n for n in v if n % 2 == 0]),
    _keep("odd", "the odd numbers", "n % 2 == 1", lambda v, k: [n for n in v if n % 2 == 1]),
    _keep("positive", "the positive numbers", "n > 0", lambda v, k: [n for n in v if n > 0]),
    _keep("above", "numbers above {k}", "n > {k}", lambda v, k: [n for n in v if n > k], _FEW),
    _keep(
        "below", "numbers below {k}", "n < {k}", lambda v, k: [n for n in v if n < k], (6, 7, 8, 9)
    ),
    _keep(
        "multiples",
        "the multiples of {k}",
        "n % {k} == 0",
        lambda v, k: [n for n in v if n % k == 0],
        (3, 4, 5),
    ),
    _keep("not", "numbers other than {k}", "n != {k}", lambda v, k: [n for n in v if n != k], _FEW),
    _each("add", "add", "{k} to each number", "n + {k}", lambda v, k: [n + k for n in v], _FEW),
    _each(
        "subtract",
        "subtract",
        "{k} from each number",
        "n - {k}",
        lambda v, k: [n - k for n in v],
        _SMALL,
    ),
    _each(
        "times", "multiply", "each number by {k}", "n * {k}", lambda v, k: [n * k for n in v], _FEW
    ),
    _each("square", "square", "each number", "n * n", lambda v, k: [n * n for n in v]),
    _each("negate", "negate", "each number", "-n", lambda v, k: [-n for n in v]),
    _each("absolute", "take", "absolute values", "abs(n)", lambda v, k: [abs(n) for n in v]),
    _each(
        "remainder",
        "take",
        "remainders by {k}",
        "n % {k}",
        lambda v, k: [n % k for n in v],
        (3, 4, 5),
    ),
    _list("sort", "sort", "them", "sorted({x})", lambda v, k: sorted(v)),
    _list(
        "descending",
        "sort",
        "them from high to low",
        "sorted({x}, reverse=True)",
        lambda v, k: sorted(v, reverse=True),
    ),
    _list("reverse", "reverse", "the order", "{x}[::-1]", lambda v, k: v[::-1]),
    _list("first", "take", "the first {k}", "{x}[:{k}]", lambda v, k: v[:k], (2, 3)),
    _list("last", "take", "the last {k}", "{x}[-{k}:]", lambda v, k: v[-k:], (2, 3)),
    _list("skip", "skip", "the first {k}", "{x}[{k}:]", lambda v, k: v[k:], (2, 3)),
    _list("second", "keep", "every second one", "{x}[::2]", lambda v, k: v[::2]),
    _list(
        "unique",
        "remove",
        "repeated numbers",
        "list(dict.fromkeys({x}))",
        lambda v, k: list(dict.fromkeys(v)),
    ),
    _end("sum", "numbers", "the sum", "sum({x})", lambda v, k: sum(v)),
    _end("largest", "numbers", "the largest one", "max({x})", lambda v, k: max(v)),
    _end("smallest", "numbers", "the smallest one", "min({x})", lambda v, k: min(v)),
    _end("count", "numbers", "how many there are", "len({x})", lambda v, k: len(v)),
    _end(
        "spread",
        "numbers",
        "the largest minus the smallest",
        "max({x}) - min({x})",
        lambda v, k: max(v) - min(v),
    ),
    _end(
        "has",
        "numbers",
        "whether {k} is among them",
        "{k} in {x}",
        lambda v, k: k in v,
        (4, 5, 6, 8, 9),
    ),
    _end(
        "mean",
        "numbers",
        "the mean, rounded down",
        "sum({x}) // len({x})",
        lambda v, k: sum(v) // len(v),
    ),
)

TEXTS = (
    _text("upper", "change", "it to upper case", "{x}.upper()", lambda v, k: v.upper()),
    _text("lower", "change", "it to lower case", "{x}.lower()", lambda v, k: v.lower()),
    _text("backward", "reverse", "the text", "{x}[::-1]", lambda v, k: v[::-1]),
    _text(
        "without",
        "remove",
        'the letter "{k}"',
        '{x}.replace("{k}", "")',
        lambda v, k: v.replace(k, ""),
        _LETTERS,
    ),
    _text(
        "spaces",
        "replace",
        'spaces with "{k}"',
        '{x}.replace(" ", "{k}")',
        lambda v, k: v.replace(" ", k),
        _MARKS,
    ),
    _text("start", "take", "the first {k} letters", "{x}[:{k}]", lambda v, k: v[:k], (4, 5, 6)),
    _text("tail", "take", "the last {k} letters", "{x}[-{k}:]", lambda v, k: v[-k:], (4, 5, 6)),
    _text("mark", "add", '"{k}" at the end', '{x} + "{k}"', lambda v, k: v + k, ("!", "?", ".")),
    _text("title", "capitalize", "each word", "{x}.title()", lambda v, k: v.title()),
    Operation(
        "split",
        "text",
        "words",
        "split",
        "it into words",
        lambda v, k: v.split(),
        whole="{x}.split()",
    ),
    Operation(
        "longer",
        "words",
        "words",
        "keep",
        "words longer than {k} letters",
        lambda v, k: [w for w in v if len(w) > k],
        keep="len(w) > {k}",
        constants=(2, 3, 4),
    ),
    Operation(
        "starting",
        "words",
        "words",
        "keep",
        'words with the letter "{k}"',
        lambda v, k: [w for w in v if k in w],
        keep='"{k}" in w',
        constants=_LETTERS,
    ),
    Operation(
        "shout",
        "words",
        "words",
        "change",
        "each word to upper case",
        lambda v, k: [w.upper() for w in v],
        each="w.upper()",
    ),
    Operation(
        "mirror",
        "words",
        "words",
        "reverse",
        "each word",
        lambda v, k: [w[::-1] for w in v],
        each="w[::-1]",
    ),
    Operation(
        "order",
        "words",
        "words",
        "sort",
        "the words",
        lambda v, k: sorted(v),
        whole="sorted({x})",
    ),
    Operation(
        "flip",
        "words",
        "words",
        "reverse",
        "the order of the words",
        lambda v, k: v[::-1],
        whole="{x}[::-1]",
    ),
    Operation(
        "lengths",
        "words",
        "numbers",
        "take",
        "the length of each word",
        lambda v, k: [len(w) for w in v],
        each="len(w)",
    ),
    _end("length", "text", "its length", "len({x})", lambda v, k: len(v)),
    _end(
        "letters",
        "text",
        'how often "{k}" occurs',
        '{x}.count("{k}")',
        lambda v, k: v.count(k),
        _LETTERS,
    ),
    _end(
        "join",
        "words",
        'them joined by "{k}"',
        '"{k}".join({x})',
        lambda v, k: k.join(v),
        _MARKS,
    ),
    _end("how_many", "words", "the number of words", "len({x})", lambda v, k: len(v)),
    _end("first_word", "words", "the first word", "{x}[0]", lambda v, k: v[0]),
    _end("last_word", "words", "the last word", "{x}[-1]", lambda v, k: v[-1]),
)

OPERATIONS = {operation.name: operation for operation in NUMBERS + TEXTS}
