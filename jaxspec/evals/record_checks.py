"""What is wrong with the records inside a result row: of prompts, of lengths, of rounds.

>>> list(problems_of({"by_prompt": [{"prompt_id": "a", "prompt_tokens": 9, "rounds": 3}]}))
['by_prompt[0].tokens is missing']
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def is_count(value: Any) -> bool:
    """Whether it is a whole number, 0 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_interval(value: Any) -> bool:
    """Whether it is [low, high]; another check reports bounds that are not finite."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(map(_is_number, value))
        and not value[0] > value[1]
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


Field = tuple[str, Callable[[Any], bool]]
"""What is expected, in words, and whether a value is that."""
_COUNT: Field = ("a count, 0 or more", is_count)
_TEXT: Field = ("text", _is_text)
_TEXTS: Field = ("a list of texts", _are_texts)

PROMPT: dict[str, Field] = {
    "prompt_id": _TEXT,
    "prompt_tokens": _COUNT,
    "tokens": _COUNT,
    "rounds": _COUNT,
}
"""Of `by_prompt`."""
LENGTH: dict[str, Field] = {
    "tokens_from": _COUNT,
    "tokens_below": _COUNT,
    "responses": _COUNT,
    "rounds": ("a count, 1 or more", lambda value: is_count(value) and value > 0),
    "tokens": _COUNT,
    "tau_ci95": ("[low, high] or null", lambda value: value is None or is_interval(value)),
}
"""Of `by_context`."""
TRACE: dict[str, Field] = {
    "prompt_id": _TEXT,
    "prompt": _TEXT,
    "prompt_tokens": _COUNT,
    "first": _TEXT,
    "stopped": ("true or false", lambda value: isinstance(value, bool)),
    "rounds": ("a list", lambda value: isinstance(value, list | tuple)),
}
"""Of `trace`."""
ROUND: dict[str, Field] = {
    "drafted": _COUNT,
    "accepted": _TEXTS,
    "bonus": _TEXTS,
    "rejected": _TEXTS,
}
"""Of the rounds of `trace`."""
_LISTS = {"by_prompt": PROMPT, "by_context": LENGTH}
_FIGURES = ("accept_at", "accepted_depth_by_block")
_NAMES = ("mismatched_ids",)
_COUNTS = ("reached_at", "reached_by_block", "nfe_by_block", "steps_by_block")


def problems_of(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong; a field that is missing or no list is not looked into."""
    for name in _FIGURES:
        values = row.get(name)
        if isinstance(values, list | tuple) and not all(map(_is_number_or_none, values)):
            yield f"{name} must hold numbers or null: got {list(values)}"
    for name in _COUNTS:
        values = row.get(name)
        if isinstance(values, list | tuple) and not all(map(is_count, values)):
            yield f"{name} must hold counts, 0 or more: got {list(values)}"
    for name in _NAMES:
        values = row.get(name)
        if isinstance(values, list | tuple) and not _are_texts(values):
            yield f"{name} must hold texts: got {list(values)}"
    for name, fields in _LISTS.items():
        values = row.get(name)
        for number, record in enumerate(values if isinstance(values, list | tuple) else ()):
            yield from _record_problems(f"{name}[{number}]", record, fields)
    trace = row.get("trace")
    if isinstance(trace, Mapping):
        yield from _record_problems("trace", trace, TRACE)
        rounds = trace.get("rounds")
        for number, record in enumerate(rounds if isinstance(rounds, list | tuple) else ()):
            yield from _record_problems(f"trace.rounds[{number}]", record, ROUND)


def _record_problems(name: str, record: Any, fields: Mapping[str, Field]) -> Iterator[str]:
    if not isinstance(record, Mapping):
        yield f"{name} must be an object: got {type(record).__name__}"
        return
    for field, (expected, fits) in fields.items():
        if field not in record:
            yield f"{name}.{field} is missing"
        elif not fits(record[field]):
            yield f"{name}.{field} must be {expected}: got {type(record[field]).__name__}"
