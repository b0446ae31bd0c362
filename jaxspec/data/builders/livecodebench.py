"""LiveCodeBench: contest problems in Python (Jain et al. 2024). For evaluation only."""

from __future__ import annotations

from typing import ClassVar

from jaxspec.data.builders.base import ConversationBuilder, Record, Turns


class Livecodebench(ConversationBuilder):
    """Prompts as the benchmark words them, without reference answers."""

    name = "livecodebench"
    FILES: ClassVar = {"test": ("livecodebench/livecodebench.jsonl",)}

    def turns(self, record: Record, *, split: str) -> Turns:
        """The prompt."""
        return [("user", turn) for turn in record.texts("turns")]
