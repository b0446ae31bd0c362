"""Answers of a page, round by round: the tokens, and the numbers of each round."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxspec.evals.results import Row

FIRST, ACCEPTED, BONUS, JUDGED, REJECTED = "first", "accepted", "bonus", "judged", "rejected"
"""Classes of tokens: of the prefill; drafted and accepted; the target's own; the first draft that
the target rejected; drafts that were built on it."""


@dataclasses.dataclass(frozen=True)
class Token:
    """A token and where it comes from."""

    text: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Step:
    """A round, or the prefill, which drafts nothing."""

    tokens: list[Token]
    drafted: int
    accepted: int
    added: int
    total: int
    """Tokens of all rounds so far; the prefill's is not among them."""
    tau: str
    """Of all rounds so far."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """An answer."""

    name: str
    prompt: str
    prompt_tokens: int
    steps: list[Step]
    ending: str
    has_rejected: bool
    """Whether rejected drafts were recorded; those of trees are not."""


def traces_of(rows: Sequence[Row]) -> list[Trace]:
    """The answers that rows hold."""
    return [_trace(row, row["trace"]) for row in rows if row.get("trace")]


def _trace(row: Row, record: Mapping[str, Any]) -> Trace:
    rounds = record["rounds"]
    return Trace(
        name=f"{row['benchmark']}: {row['series']}",
        prompt=record["prompt"],
        prompt_tokens=record["prompt_tokens"],
        steps=list(_steps(record["first"], rounds)),
        ending="a stop token ended it" if record["stopped"] else "the limit ended it",
        has_rejected=any(each["rejected"] for each in rounds),
    )


def _steps(first: str, rounds: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
    yield Step([Token(_visible_text(first), FIRST)], 0, 0, 1, 0, "–")
    total = 0
    for number, each in enumerate(rounds, 1):
        added = len(each["accepted"]) + len(each["bonus"])
        total += added
        tokens = [Token(_visible_text(text), ACCEPTED) for text in each["accepted"]]
        tokens += [
            Token(_one_line(text), REJECTED if place else JUDGED)
            for place, text in enumerate(each["rejected"])
        ]
        tokens += [Token(_visible_text(text), BONUS) for text in each["bonus"]]
        yield Step(
            tokens, each["drafted"], len(each["accepted"]), added, total, f"{total / number:.2f}"
        )


def _one_line(text: str) -> str:
    """The text of a rejected draft, whose spaces are not those of the answer."""
    return text.replace("\n", "↵").replace(" ", "␣") or "…"


def _visible_text(text: str) -> str:
    """A token's text: a line break is marked, and so is a token that completes no character."""
    return text.replace("\n", "↵\n") or "…"
