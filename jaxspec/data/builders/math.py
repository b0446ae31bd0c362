"""MATH: competition problems with worked solutions (Hendrycks et al. 2021, MIT)."""

from __future__ import annotations

from typing import ClassVar

from jaxspec.data.builders.base import ConversationBuilder, Record, Turns


class Math(ConversationBuilder):
    """The training problems of four of the seven subjects."""

    name = "math"
    FILES: ClassVar = {
        "train": tuple(
            f"math_train_4subjects/{subject}_train.jsonl"
            for subject in ("algebra", "prealgebra", "number_theory", "counting_and_probability")
        )
    }

    def turns(self, record: Record, *, split: str) -> Turns:
        """Problem and solution; the file's instruction about external tools is left out."""
        return [("user", record.text("input")), ("assistant", record.text("output"))]


class Math500(ConversationBuilder):
    """The 500 test problems of Lightman et al. 2023, all subjects."""

    name = "math500"
    FILES: ClassVar = {"test": ("math500/test.jsonl",)}

    def turns(self, record: Record, *, split: str) -> Turns:
        """Problem and solution."""
        return [("user", record.text("problem")), ("assistant", record.text("solution"))]
