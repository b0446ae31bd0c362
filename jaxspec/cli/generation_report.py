"""What ``jaxspec generate`` says at the end: figures, JSON, a picture.

>>> next(summary(answers, is_greedy=True, has_drafter=True, tokenizer=tokenizer))  # doctest: +SKIP
'tau 1.94: 62 tokens in 32 rounds, 851 tokens/s'
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from jaxspec.api import Generation
from jaxspec.cli.terminal_tokens import LEGEND, coloured, harmless
from jaxspec.data.prompts import Question
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding.stream import Round
from jaxspec.files import write_text

PICTURE_WIDTH = 80
"""Columns."""
_SHOWN_AT_DIFFERENCE = 8
"""Tokens."""
_FONT_FROM_ELSEWHERE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""A picture loads nothing from the network; without the font, the viewer's monospace is used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A prompt, what was answered, and what the target answers alone."""

    name: str
    question: Question
    first: Round
    """The prefill, which gives the first token."""
    generation: Generation
    alone: Generation | None = None
    """None: it was not asked."""

    @property
    def first_difference(self) -> int | None:
        """The place of the first token that differs from the target's own; None: all are equal."""
        assert self.alone is not None
        ours, theirs = self.generation.tokens, self.alone.tokens
        if ours == theirs:
            return None
        pairs = enumerate(zip(ours, theirs, strict=False))
        return next((at for at, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def summary(
    answers: Sequence[Answer], *, is_greedy: bool, has_drafter: bool, tokenizer: Tokenizer
) -> Iterator[str]:
    """The lines at the end.

    Args:
      answers: at least one.
      is_greedy: whether the target's own text is the same text.
      has_drafter: whether there is a tau.
      tokenizer: shows where texts differ.
    """
    ours = [answer.generation for answer in answers]
    rounds, emitted = sum(len(g.rounds) for g in ours), _emitted(ours)
    if rounds and has_drafter:
        yield (
            f"tau {emitted / rounds:.2f}: {_count(emitted, 'token')} in "
            f"{_count(rounds, 'round')}, {_speed(ours):,.0f} tokens/s"
        )
    elif rounds:
        yield f"{_count(emitted, 'token')}, {_speed(ours):,.0f} tokens/s"
    else:
        yield "Every answer ended with its first token: there was no round to measure."
    theirs = [answer.alone for answer in answers if answer.alone is not None]
    if theirs:
        asked = [answer for answer in answers if answer.alone is not None]
        text = _comparison(asked, tokenizer) if is_greedy else "another sample"
        speed = ""
        if rounds and any(g.rounds for g in theirs):
            ratio = _speed(ours) / _speed(theirs)
            speed = f", {_speed(theirs):,.0f} tokens/s; speed-up {ratio:.2f}x"
        yield f"target alone: {text}{speed}"
    compiled = sum(g.compile_s for g in [*ours, *theirs])
    if compiled:
        yield f"Compiling took {compiled:.1f} s, which is in none of these figures."


def as_json(answer: Answer, *, record: dict[str, Any]) -> dict[str, Any]:
    """The object that ``--json`` prints.

    Args:
      answer: the answer.
      record: what is the same for all answers: target, drafter, settings, versions.
    """
    ours, alone = answer.generation, answer.alone
    baseline = None
    if alone is not None:
        is_greedy = record["settings"]["temperature"] == 0
        speedup = None
        if ours.tokens_per_s and alone.tokens_per_s:
            speedup = ours.tokens_per_s / alone.tokens_per_s
        baseline = {
            "text": alone.text,
            "tokens": alone.tokens,
            "tokens_per_s": alone.tokens_per_s,
            # Samples differ by nature.
            "equal": answer.first_difference is None if is_greedy else None,
            "first_difference": answer.first_difference if is_greedy else None,
            "speedup": speedup,
        }
    last = answer.question.turns[-1]["content"]
    return {
        "prompt": last,
        "messages": answer.question.turns,
        "tools": answer.question.tools,
        "text": ours.text,
        "tokens": ours.tokens,
        "stopped": ours.stopped,
        "rounds": [
            {"drafted": each.drafted, "accepted": len(each.accepted), "emitted": each.emitted}
            for each in ours.rounds
        ],
        "tau": ours.tau,
        "tokens_per_s": ours.tokens_per_s,
        "prefill_s": ours.prefill_s,
        "compile_s": ours.compile_s,
        "baseline": baseline,
        **record,
    }


def write_picture(
    file: Path,
    answers: Sequence[Answer],
    *,
    lines: Sequence[str],
    tokenizer: Tokenizer,
    title: str,
) -> None:
    """An SVG of the answers as a terminal of 80 columns shows them.

    Args:
      file: where it goes.
      answers: what is shown.
      lines: the summary.
      tokenizer: of the answers.
      title: stands above.
    """
    console = Console(
        record=True, width=PICTURE_WIDTH, file=io.StringIO(), force_terminal=True, highlight=False
    )
    for answer in answers:
        console.print(Text(f"> {harmless(answer.question.turns[-1]['content'])}", "bold cyan"))
        console.print()
        console.print(coloured([answer.first, *answer.generation.rounds], tokenizer))
        console.print()
    console.print(LEGEND)
    for line in lines:
        console.print(Text(line))
    picture = console.export_svg(title=title, unique_id="jaxspec")
    write_text(file, _FONT_FROM_ELSEWHERE.sub("", picture))


def _emitted(generations: Sequence[Generation]) -> int:
    """Tokens of the rounds: the first one of each answer is not among them."""
    return sum(len(g.tokens) - 1 for g in generations)


def _speed(generations: Sequence[Generation]) -> float:
    seconds = sum(each.seconds for g in generations for each in g.rounds)
    return _emitted(generations) / seconds


def _comparison(answers: Sequence[Answer], tokenizer: Tokenizer) -> str:
    differ = [answer for answer in answers if answer.first_difference is not None]
    if not differ:
        return "the same text" if len(answers) == 1 else f"the same {len(answers)} texts"
    which = "the text differs" if len(answers) == 1 else f"{len(differ)} texts differ"
    worst, at = differ[0], differ[0].first_difference
    assert worst.alone is not None and at is not None
    ours, theirs = (
        tokenizer.decode(tokens[at : at + _SHOWN_AT_DIFFERENCE])
        for tokens in (worst.generation.tokens, worst.alone.tokens)
    )
    where = "" if len(answers) == 1 else f"{worst.name}: "
    return f"{which} ({where}from token {at + 1} on, {ours!r} instead of {theirs!r})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
