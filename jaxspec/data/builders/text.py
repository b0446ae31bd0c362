"""Running text: TinyStories (Eldan and Li 2023, CDLA-Sharing-1.0), WikiText-2 (Merity et al. 2016).

Running text is stored as a conversation of one assistant turn. Training learns all of it; a
benchmark takes its first tokens as the prompt (`jaxspec.evals.benchmarks`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from jaxspec.data.builders.base import ConversationBuilder, Record, Turns
from jaxspec.data.builders.records import read_text
from jaxspec.data.heldout import text_hash

_END_OF_STORY = "<|endoftext|>"

HELD_OUT_SHARE = 16
"""One story in N is for evaluation."""

SHORTEST_PASSAGE = 80
"""Fewest words of a passage that is used in the test split."""
OPENING = 40
"""Number of words at its beginning that must not contain a rare word."""
# What WikiText-2 has in place of rare words; no other text has it.
_RARE = "<unk>"
_TITLE = re.compile(r"= [^=].* =")
_HEADING = re.compile(r"(?:= )+(.*?)(?: =)+")


class Tinystories(ConversationBuilder):
    """The stories in the first 2 MiB of the training split.

    One in `HELD_OUT_SHARE` is in the test split, chosen by a hash of its content, so that the same
    story is never in both splits. (The original validation split is not among the raw files.)
    """

    name = "tinystories"
    VERSION = tfds.core.Version("1.1.0")
    FILES: ClassVar = {
        split: ("tinystories/tinystories_sample.txt",) for split in ("train", "test")
    }

    def records(self, path: Path) -> Iterator[Record]:
        """Whole stories: the last one, which the sample cuts off, is left out."""
        # The sample may end in the middle of a character.
        text = read_text(path, up_to=_END_OF_STORY)
        for number, story in enumerate(text.split(_END_OF_STORY), start=1):
            if story.strip():
                yield Record({"text": story.strip()}, place=f"story {number} of {path}")

    def turns(self, record: Record, *, split: str) -> Turns | None:
        """The story, if it is in this split."""
        text = record.text("text")
        held_out = text_hash(text) % HELD_OUT_SHARE == 0
        return [("assistant", text)] if held_out == (split == "test") else None


class Wikitext2(ConversationBuilder):
    """Paragraphs of the test articles, to be continued.

    Only those of `SHORTEST_PASSAGE` words or more, without a rare word among the first `OPENING`:
    WikiText-2 has "<unk>" in place of rare words, and a prompt should not contain that.
    """

    name = "wikitext2"
    FILES: ClassVar = {"test": ("wikitext2/test.txt",)}

    def records(self, path: Path) -> Iterator[Record]:
        """The paragraphs that can be used."""
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            text = as_written(line)
            words = text.split()
            opening = " ".join(words[:OPENING])
            if len(words) >= SHORTEST_PASSAGE and _RARE not in opening:
                yield Record({"text": text}, place=f"line {number} of {path}")

    def turns(self, record: Record, *, split: str) -> Turns:
        """The text."""
        return [("assistant", record.text("text"))]


class Wikitext2Train(Wikitext2):
    """The whole training articles. This is a separate builder: raw folders seldom have the file."""

    name = "wikitext2_train"
    SOURCE = "wikitext2"
    FILES: ClassVar = {"train": ("wikitext2/train.txt",)}

    def records(self, path: Path) -> Iterator[Record]:
        """Articles, with each heading on a line of its own."""
        article: list[str] = []
        for line in read_text(path).splitlines():
            text = line.strip()
            if _TITLE.fullmatch(text) and article:
                yield Record({"text": "\n\n".join(article)}, place=f"an article of {path}")
                article = []
            if text:
                article.append(as_written(text))
        if article:
            yield Record({"text": "\n\n".join(article)}, place=f"the last article of {path}")


def as_written(line: str) -> str:
    """A line of WikiText-2 without the spaces that separate its tokens.

    >>> as_written('About 1 @,@ 500 men ( " or more " ) , he said .')
    'About 1,500 men ("or more"), he said.'
    """
    text = line.strip()
    if heading := _HEADING.fullmatch(text):
        text = heading.group(1)
    text = re.sub(r" @(\S)@ ", r"\1", text)
    text = re.sub(r' " (.*?) "(?= |$)', r' "\1"', f" {text}").strip()  # pairs, from the left
    text = re.sub(r" ([,.;:!?%)\]]|'(?:s|t|re|ve|m|ll|d)\b)", r"\1", text)
    return re.sub(r"([(\[$£€]) ", r"\1", text)
