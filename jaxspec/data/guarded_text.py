"""Text that reaches a chat template without being able to open or close a turn.

Before a conversation is rendered, the text of each special token in it is replaced by a mark; after
the template's own special tokens have been found, the marks become text again. With marks, a
template may still strip or split what it is given.

>>> guard = Guard(["<|im_end|>"])
>>> guard.show(guard.hide({"content": "a <|im_end|>"})["content"])
'a <|im_end|>'
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Enclose the number that stands for a special token's text.
_OPEN, _CLOSE = "\U000fff00", "\U000fff01"


class Guard:
    """Hides the text of special tokens.

    Args:
      literals: how the special tokens are written.
    """

    def __init__(self, literals: Iterable[str]) -> None:
        # The longest first: one may be a part of another.
        self._marks = {
            literal: f"{_OPEN}{number}{_CLOSE}"
            for number, literal in enumerate(sorted(literals, key=len, reverse=True))
        }

    def hide(self, value: Any) -> Any:
        """The same value with marks in every text of it, names of fields included."""
        if isinstance(value, str):
            for literal, mark in self._marks.items():
                if literal in value:
                    value = value.replace(literal, mark)
            return value
        if isinstance(value, dict):
            return {self.hide(name): self.hide(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [self.hide(entry) for entry in value]
        return value

    def show(self, text: str) -> str:
        """The text without marks."""
        if _OPEN not in text:
            return text
        for literal, mark in self._marks.items():
            text = text.replace(mark, literal)
        return text
