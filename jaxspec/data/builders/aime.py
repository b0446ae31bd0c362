"""AIME 2024 and 2025: 30 competition problems per year. For evaluation only."""

from __future__ import annotations

from typing import ClassVar

from jaxspec.data.builders.base import ConversationBuilder, Record, Turns


class Aime24(ConversationBuilder):
    """The problems of 2024."""

    name = "aime24"
    FILES: ClassVar = {"test": ("aime/aime24_qa.jsonl",)}

    def turns(self, record: Record, *, split: str) -> Turns:
        """The problem alone: its answer has no worked solution to learn from."""
        return [("user", record.text("problem" if "problem" in record else "question"))]


class Aime25(Aime24):
    """The problems of 2025."""

    name = "aime25"
    FILES: ClassVar = {"test": ("aime/aime25_qa.jsonl",)}
