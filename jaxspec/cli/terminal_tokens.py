"""Answers as they grow: coloured tokens on a terminal, plain text elsewhere, or one line per round.

Of the drafts that a round rejects, the coloured text shows the first: the one that the target
replaced with its own token. The others were built on it and never judged; ``--show rounds`` shows
them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from jaxspec.data.text_stream import UNFINISHED, TextStream
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding.stream import Round
from jaxspec.names import visible

Show = Literal["tokens", "rounds", "text"]

ACCEPTED, BONUS, REJECTED = "green", "bold", "dim red strike"
"""Styles of tokens."""
LEGEND = Text.assemble(
    ("drafted and accepted", ACCEPTED),
    " · ",
    ("the target's own", BONUS),
    " · ",
    ("rejected", REJECTED),
)

Piece = tuple[str, str]
"""Text and its style."""

# What could move the cursor, change colours or turn the direction of the text around.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# Scripts without spaces (Thai and its neighbours, Chinese, Japanese) may break at every character.
# Korean has spaces, but is wide, too.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff"
    r"\uff00-\uffef"
)
_WORDS = re.compile(rf"\n|[^\S\n]+|[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_WIDE = re.compile(f"[{_UNSPACED}]")


class View(Protocol):
    """Where the rounds of an answer go."""

    def add(self, each: Round) -> None:
        """Shows a round."""

    def end(self) -> None:
        """The answer is over."""


def make_view(show: Show, *, tokenizer: Tokenizer, console: Console, has_drafter: bool) -> View:
    """The view that ``--show`` names; without colours, tokens are shown as plain text."""
    if show == "rounds":
        return RoundLines(tokenizer, console)
    if is_coloured(show, console=console, has_drafter=has_drafter):
        return ColouredTokens(tokenizer, console)
    return PlainText(tokenizer, console)


def is_coloured(show: Show, *, console: Console, has_drafter: bool) -> bool:
    """Whether tokens are coloured: on a terminal that shows colours, without NO_COLOR."""
    shows_colours = (
        console.is_terminal and not console.no_color and console.color_system is not None
    )
    return show == "tokens" and has_drafter and shows_colours


def harmless(text: str) -> str:
    """Text that is safe to print: control characters are written out."""
    return _CONTROL.sub(lambda match: visible(match.group()), text)


def pieces_of(each: Round, text: TextStream) -> Iterator[Piece]:
    """The text that a round adds, token by token, and the first draft that it rejected."""
    for token in each.accepted:
        yield text.add([token]), ACCEPTED
    if each.rejected and each.bonus:
        yield from _struck(text.preview(each.rejected[:1]).rstrip(UNFINISHED))
    for token in each.bonus:
        yield text.add([token]), BONUS


def _struck(draft: str) -> Iterator[Piece]:
    """A rejected draft without the spaces around it: those on the screen are the answer's own."""
    if draft:
        yield draft.strip(" ").replace("\n", "↵") or "␣", REJECTED


def coloured(rounds: Sequence[Round], tokenizer: Tokenizer) -> Text:
    """A whole answer, as `ColouredTokens` shows it."""
    text = TextStream(tokenizer)
    pieces = [piece for each in rounds for piece in pieces_of(each, text)]
    shown = [(harmless(piece), style) for piece, style in [*pieces, (text.end(), BONUS)]]
    return Text.assemble(*shown)


class PlainText:
    """The text alone."""

    def __init__(self, tokenizer: Tokenizer, console: Console) -> None:
        self._text, self._console = TextStream(tokenizer), console

    def add(self, each: Round) -> None:
        """Prints what is complete."""
        self._print(self._text.add(each.emitted))

    def end(self) -> None:
        """Prints what was held back, and ends the line."""
        self._print(self._text.end() + "\n")

    def _print(self, text: str) -> None:
        self._console.file.write(harmless(text))
        self._console.file.flush()


class ColouredTokens:
    """Tokens in the colour of where they come from; no word is broken at the edge."""

    def __init__(self, tokenizer: Tokenizer, console: Console) -> None:
        self._text, self._console = TextStream(tokenizer), console
        self._column = 0
        self._space: Piece = ("", "")
        self._word: list[Piece] = []

    def add(self, each: Round) -> None:
        """Prints the words that are complete."""
        for text, style in pieces_of(each, self._text):
            self._split(text, style)

    def end(self) -> None:
        """Prints the rest, and ends the line."""
        self._split(self._text.end() + "\n", BONUS)

    def _split(self, text: str, style: str) -> None:
        for part in _WORDS.findall(harmless(text)):
            if _WIDE.match(part):
                self._print_word()
                self._word = [(part, style)]
                self._print_word()
                continue
            if not part.isspace():
                self._word.append((part, style))
                continue
            self._print_word()
            if part == "\n":
                self._print("\n", "")
                self._column = 0
            else:
                self._space = (part.expandtabs(4), style)

    def _print_word(self) -> None:
        (space, its_style), self._space = self._space, ("", "")
        width = sum(cell_len(part) for part, _ in self._word)
        if self._column and self._column + len(space) + width > self._console.width:
            self._print("\n", "")
            self._column = 0
        elif space:
            self._print(space, its_style)
            self._column += len(space)
        for part, style in self._word:
            self._print(part, style)
        self._column += width
        self._word = []

    def _print(self, text: str, style: str) -> None:
        self._console.print(Text(text, style), end="", soft_wrap=True)
        self._console.file.flush()


class RoundLines:
    """A line for each round: how many drafts were accepted, and all texts."""

    def __init__(self, tokenizer: Tokenizer, console: Console) -> None:
        self._tokenizer, self._console = tokenizer, console
        self._rounds = 0

    def add(self, each: Round) -> None:
        """Prints the round's line."""
        first = f"round {self._rounds:>3}" if self._rounds else "prefill  "
        self._rounds += 1
        line = Text(f"{first}  {len(each.accepted)}/{len(each.drafted)}")
        for name, ids, style in (
            ("accepted", each.accepted, ACCEPTED),
            ("target", each.bonus, BONUS),
            ("rejected", each.rejected, REJECTED),
        ):
            if ids:
                text = self._tokenizer.decode(ids, skip_special=False)
                line.append(f"  {name} ").append(f"{text!r}", style)
        self._console.print(line, soft_wrap=True)

    def end(self) -> None:
        """There is nothing more to print."""
