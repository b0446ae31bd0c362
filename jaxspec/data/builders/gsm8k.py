"""GSM8K: grade-school maths in words (Cobbe et al. 2021, MIT)."""

from __future__ import annotations

import re
from typing import ClassVar

from jaxspec.data.builders.base import ConversationBuilder, Record, Turns

_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")


class Gsm8k(ConversationBuilder):
    """Questions with worked answers that end in ``#### N``.

    Notes such as ``<<48/2=24>>`` are dropped: they are calls of a calculator, they repeat the text
    next to them, and no model writes them unless it was trained to.
    """

    name = "gsm8k"
    FILES: ClassVar = {"train": ("gsm8k/train.jsonl",), "test": ("gsm8k/test.jsonl",)}

    def turns(self, record: Record, *, split: str) -> Turns:
        """Question and answer."""
        answer = _CALCULATOR_NOTE.sub("", record.text("answer"))
        return [("user", record.text("question")), ("assistant", answer)]
