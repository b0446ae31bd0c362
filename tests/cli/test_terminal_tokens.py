"""How tokens look on a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from jaxspec.cli.terminal_tokens import (
    ACCEPTED,
    BONUS,
    REJECTED,
    ColouredTokens,
    PlainText,
    RoundLines,
    coloured,
    pieces_of,
)
from jaxspec.data.text_stream import TextStream
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding.stream import Round

WIDTH = 20


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("embedded")


@pytest.fixture
def console():
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=WIDTH,
        color_system="standard",
        no_color=False,
    )


def plain(console) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())


def own(tokenizer, text: str) -> list[Round]:
    """Rounds in which the target wrote a text by itself, token by token."""
    return [Round((), 0, (token,), 0.1) for token in tokenizer.encode(text)]


def the_round(tokenizer, accepted: str, bonus: str, rejected: str) -> Round:
    """A round whose drafts were a text and then a rejected token."""
    kept, wrong = tokenizer.encode(accepted), tokenizer.encode(rejected)[:1]
    assert tokenizer.decode(wrong) == rejected, "the test needs a single token"
    emitted = (*kept, *tokenizer.encode(bonus))
    return Round((*kept, *wrong, *kept), len(kept), emitted, 0.1)


def test_pieces_come_in_the_order_of_a_round(tokenizer):
    each = the_round(tokenizer, "cat", "s", "x")
    pieces = [piece for piece in pieces_of(each, TextStream(tokenizer)) if piece[0]]
    styles = list(dict.fromkeys(style for _, style in pieces))
    assert styles == [ACCEPTED, REJECTED, BONUS]
    assert "".join(text for text, style in pieces if style != REJECTED) == "cats"
    assert [text for text, style in pieces if style == REJECTED] == ["x"], "the first draft only"


@pytest.mark.parametrize(
    ("rejected", "shown"), [(" ", "␣"), ("\n", "↵"), ("\n    ", "↵"), ("x", "x")]
)
def test_a_rejected_draft_never_breaks_the_line(tokenizer, rejected, shown):
    each = the_round(tokenizer, "cat", "s", rejected)
    assert coloured([each], tokenizer).plain == f"cat{shown}s"


def test_spaces_on_the_screen_are_those_of_the_answer():
    class Words:
        def decode(self, ids):
            return "".join(["a", " b"][token] for token in ids)

    each = Round(drafted=(0, 1, 1), verified=1, emitted=(0, 0), seconds=0.1)
    pieces = list(pieces_of(each, TextStream(Words())))
    assert pieces == [("a", ACCEPTED), ("b", REJECTED), ("a", BONUS)]


def test_words_are_not_broken_at_the_edge(tokenizer, console):
    text = "a quick brown fox jumps over it\n\n    twice, 世界世界世界 too"
    view = ColouredTokens(tokenizer, console)
    for each in own(tokenizer, text):
        view.add(each)
    view.end()
    lines = plain(console).splitlines()
    wide = ["    twice, 世界世界", "世界 too"]
    assert lines == ["a quick brown fox", "jumps over it", "", *wide]


@pytest.mark.parametrize("text", ["世界世界", "สวัสดี", "おはよう"])
def test_scripts_without_spaces_appear_round_by_round(tokenizer, console, text):
    view = ColouredTokens(tokenizer, console)
    for number, character in enumerate(text, start=1):
        (token, *others) = own(tokenizer, character)
        view.add(token)
        for each in others:
            view.add(each)
        assert plain(console) == text[:number]
    view.end()
    assert plain(console) == text + "\n"


def test_what_could_steer_the_terminal_is_written_out(tokenizer, console):
    text = "a\x1b[31mb\r\u202ec\td"
    for view in (ColouredTokens(tokenizer, console), PlainText(tokenizer, console)):
        for each in own(tokenizer, text):
            view.add(each)
        view.end()
    escaped = "a\\x1b[31mb\\r\\u202ec"
    assert plain(console).split() == [escaped, "d", escaped, "d"]


def test_rounds_show_all_drafts(tokenizer, console):
    view = RoundLines(tokenizer, console)
    view.add(Round((), 0, tuple(tokenizer.encode("a")[:1]), 0.1))
    view.add(the_round(tokenizer, "cat", "s", "\n"))
    view.end()
    first, second = plain(console).splitlines()
    assert first == "prefill    0/0  target 'a'"
    accepted = len(tokenizer.encode("cat"))
    assert second.startswith(f"round   1  {accepted}/{2 * accepted + 1}  accepted 'cat'")
    assert second.endswith(r"target 's'  rejected '\ncat'")
