"""Text of tokens that arrive one by one: never half a character.

A character may be spread over several tokens. Its text is held back until the last of them is
there. Text that has been given stays: only where bytes that are no character follow characters made
of bytes can it differ from the text of the whole, in which some decoders show neither.

>>> from jaxspec.data.tokenizer import Tokenizer
>>> tokenizer = Tokenizer.load("embedded")
>>> text = TextStream(tokenizer)
>>> [text.add([token]) for token in tokenizer.encode("5 €")]
['5', ' ', '', '', '€']
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

UNFINISHED = "\ufffd"
"""What a decoder writes in place of bytes that are no character, or not one yet."""


class Decoder(Protocol):
    """What is asked of a tokenizer."""

    def decode(self, ids: Sequence[int], /) -> str:
        """Text of ids, without special tokens."""


class TextStream:
    """Decodes a growing list of ids; the pieces add up to the text of the whole list."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        # The ids of the newest piece. What follows is decoded together with them, since some
        # tokenizers drop the space before the first word of a text.
        self._context: list[int] = []
        self._given = ""
        self._held: list[int] = []

    def add(self, ids: Sequence[int]) -> str:
        """The text that is complete with these ids and has not been given yet."""
        self._held += ids
        piece = self.preview(())
        if not piece or piece.endswith(UNFINISHED):
            return ""
        self._context, self._held = self._held, []
        self._given = self._decoder.decode(self._context)
        return piece

    def preview(self, ids: Sequence[int]) -> str:
        """The text that would follow if these ids came next; nothing is added."""
        return self._decoder.decode([*self._context, *self._held, *ids])[len(self._given) :]

    def end(self) -> str:
        """The text that is still held back: bytes that are no character."""
        piece = self.preview(())
        self._context, self._given, self._held = [], "", []
        return piece
