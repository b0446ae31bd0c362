"""Running text: TinyStories (Eldan and Li 2023, CDLA-Sharing-1.0)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from jaxspec.data.builders.base import ConversationBuilder, Record, Turns

_END_OF_STORY = "<|endoftext|>"


class Tinystories(ConversationBuilder):
    """The stories in the first 2 MiB of the training split.

    Running text is kept as a conversation of one assistant turn; the pipeline learns all of it.
    """

    name = "tinystories"
    FILES: ClassVar = {"train": ("tinystories/tinystories_sample.txt",)}

    def records(self, path: Path) -> Iterator[Record]:
        """Whole stories; the last one is cut off in the sample."""
        # The sample may end inside a character.
        text = path.read_text(encoding="utf-8", errors="ignore")
        for story in text.split(_END_OF_STORY)[:-1]:
            if story.strip():
                yield {"text": story.strip()}

    def turns(self, record: Record, *, split: str) -> Turns:
        """The story."""
        return [("assistant", record["text"])]
