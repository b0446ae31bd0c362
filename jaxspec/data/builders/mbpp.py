"""MBPP: small Python tasks with tests (Austin et al. 2021, CC BY 4.0)."""

from __future__ import annotations

from typing import ClassVar

from jaxspec.data.builders.base import ConversationBuilder, Record, Turns
from jaxspec.data.heldout import TESTS_FOLLOW

_FILE = "mbpp/mbpp.jsonl"
_TASKS = {"train": range(601, 975), "test": range(11, 511)}


class Mbpp(ConversationBuilder):
    """Tasks 601 to 974 for training and 11 to 510 for testing, as its authors say.

    Tasks 1 to 10 (few-shot examples) and 511 to 600 (validation) are in neither.
    """

    name = "mbpp"
    FILES: ClassVar = {"train": (_FILE,), "test": (_FILE,)}

    def turns(self, record: Record, *, split: str) -> Turns | None:
        """The task with its tests, and the code."""
        if record.number("task_id") not in _TASKS[split]:
            return None
        tests = "\n".join(record.texts("test_list"))
        code = record.text("code").replace("\r\n", "\n").strip()
        return [
            ("user", f"{record.text('text').strip()}{TESTS_FOLLOW}\n\n{tests}"),
            ("assistant", f"```python\n{code}\n```"),
        ]
