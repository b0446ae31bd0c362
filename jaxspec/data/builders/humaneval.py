"""HumanEval: 164 Python functions to complete (Chen et al. 2021, MIT)."""

from __future__ import annotations

from typing import ClassVar

from jaxspec.data.builders.base import ConversationBuilder, Record, Turns


class Humaneval(ConversationBuilder):
    """A function's signature and docstring, and the whole function."""

    name = "humaneval"
    FILES: ClassVar = {"test": ("humaneval/HumanEval.jsonl",)}

    def turns(self, record: Record, *, split: str) -> Turns:
        """The function to complete, quoted, and the completed function."""
        start = record.text("prompt")
        whole = f"{start}{record.text('canonical_solution')}".strip()
        return [
            ("user", f"Complete this Python function.\n\n```python\n{start.rstrip()}\n```"),
            ("assistant", f"```python\n{whole}\n```"),
        ]
