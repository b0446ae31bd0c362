from __future__ import annotations

import random

import pytest

from jaxspec.data.text_stream import UNFINISHED, TextStream
from jaxspec.data.tokenizer import Tokenizer

TEXT = "Grüße, 世界! \U0001f469‍\U0001f680 costs 5 € – naïve\n\tcafé  end\ufffd."


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("embedded")


def test_pieces_add_up_and_are_never_half_a_character(tokenizer):
    ids = tokenizer.encode(TEXT)
    text = TextStream(tokenizer)
    pieces = [text.add([token]) for token in ids]
    assert "".join(pieces) + text.end() == TEXT
    assert pieces.count("") > 10, "the text has characters of several tokens"
    assert [piece for piece in pieces if UNFINISHED in piece] == ["\ufffd."]


def test_any_tokens_in_any_groups_add_up_to_their_text(tokenizer):
    """Among them bytes that are no characters, special tokens, and ends in the middle of one."""
    choose = random.Random(0)
    for _ in range(50):
        ids = [choose.randrange(tokenizer.vocab_size) for _ in range(30)]
        ids += tokenizer.encode("€")[: choose.randrange(3)]
        text, pieces, rest = TextStream(tokenizer), [], list(ids)
        while rest:
            count = choose.randrange(1, 5)
            pieces.append(text.add(rest[:count]))
            rest = rest[count:]
        assert "".join(pieces) + text.end() == tokenizer.decode(ids)


def test_a_space_before_a_word_stays():
    """Some tokenizers drop the first space of a text."""

    class DropsFirstSpace:
        def decode(self, ids):
            return "".join([" a", " b", "c"][token] for token in ids).removeprefix(" ")

    text = TextStream(DropsFirstSpace())
    assert [text.add([token]) for token in (0, 1, 2, 1)] == ["a", " b", "c", " b"]


def test_a_preview_adds_nothing(tokenizer):
    euro = tokenizer.encode("€")
    text = TextStream(tokenizer)
    assert text.add(euro[:1]) == ""
    assert text.preview(euro[1:]) == "€"
    assert text.preview(tokenizer.encode("x")) == f"{UNFINISHED}x"
    assert text.add(euro[1:]) == "€"
    assert text.preview([]) == text.end() == ""
