"""Instructions and dialogues: MT-Bench, Spec-Bench, and instruction data to train on."""

from __future__ import annotations

from typing import ClassVar

import tensorflow_datasets as tfds

from jaxspec.data.builders.base import ConversationBuilder, Record, Turns


class MtBench(ConversationBuilder):
    """80 dialogues of two questions each (Zheng et al. 2023, Apache-2.0), without answers."""

    name = "mt_bench"
    FILES: ClassVar = {"test": ("mt_bench/question.jsonl",)}

    def turns(self, record: Record, *, split: str) -> Turns | None:
        """The questions, in order."""
        return [("user", turn) for turn in record.texts("turns")]


SPEC_BENCH_TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")


class SpecBench(MtBench):
    """Six tasks of 80 prompts (Xia et al. 2024), together and separately.

    Its maths prompts are from GSM8K's test split and its dialogues are MT-Bench's, so the three are
    not independent benchmarks.
    """

    name = "spec_bench"
    VERSION = tfds.core.Version("1.1.0")
    FILES: ClassVar = {
        split: ("spec_bench/question.jsonl",) for split in ("test", *SPEC_BENCH_TASKS)
    }

    def turns(self, record: Record, *, split: str) -> Turns | None:
        """The questions, if they belong to this task."""
        task = record.text("category")
        if task not in SPEC_BENCH_TASKS:  # MT-Bench's own categories: writing, coding and so on.
            task = "mt_bench"
        return super().turns(record, split=split) if split in ("test", task) else None


class Instructions(ConversationBuilder):
    """1,100 short instructions with answers (S. Raschka, Apache-2.0)."""

    name = "instructions"
    FILES: ClassVar = {"train": ("instruction_rasbt/instruction-data.json",)}
    answer = "output"

    def turns(self, record: Record, *, split: str) -> Turns:
        """The instruction, with its input if it has one, and the answer."""
        texts = (record.text("instruction"), record.text("input", may_be_empty=True))
        prompt = "\n\n".join(text for text in texts if text)
        return [("user", prompt), ("assistant", record.text(self.answer))]


class CodeInstructions(Instructions):
    """4,535 programming tasks in many languages (GPTeacher, MIT; answers by GPT-4)."""

    name = "code_instructions"
    FILES: ClassVar = {"train": ("gpteacher/codegen-instruct.json",)}
    answer = "response"


class Roleplay(Instructions):
    """1,923 scenes to act out (GPTeacher, MIT; answers by GPT-4)."""

    name = "roleplay"
    FILES: ClassVar = {"train": ("gpteacher/roleplay-instruct.json",)}
    answer = "response"
