"""Benchmarks by name: which prompts are decoded, and how a conversation of several turns goes on.

A benchmark is the test split of a data set of that name (`jaxspec.data.sources`). Where examples
hold questions only, as in MT-Bench, all of them are asked, one after the other, and the
conversation so far holds the target's own answers; elsewhere the first question is asked.

Running text (wikitext2, tinystories) is to be continued: its first tokens are the prompt, encoded
as training encodes it, without a chat template. It suits targets that know no turns.

>>> examples = load_benchmark("gsm8k", prompts=40, data=DataConfig(), seed=0)
>>> reference = ask(
...     examples, answer=answer, tokenizer=tokenizer, max_prompt_tokens=512, passage_tokens=32
... )
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from jaxspec.config import DataConfig
from jaxspec.data.examples import Conversation, Example
from jaxspec.data.sources import load_examples
from jaxspec.data.tokenizer import Tokenizer


class Answered(Protocol):
    """What is asked of a response."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """What was answered."""


AnsweredT = TypeVar("AnsweredT", bound=Answered)
Answer = Callable[[list[list[int]], list[str]], list[AnsweredT]]
"""(prompts, names) -> the target's responses."""


@dataclasses.dataclass(frozen=True)
class Reference(Generic[AnsweredT]):
    """The prompts of a benchmark, and what the target alone answers to them."""

    prompts: tuple[tuple[int, ...], ...]
    ids: tuple[str, ...]
    """Name of each prompt; "#2" behind the example's name for its second turn."""
    responses: tuple[AnsweredT, ...]
    conversations: int
    """Examples of which at least one turn was decoded."""
    skipped: int
    """Prompts that were left out because they are too long."""


def load_benchmark(
    name: str, *, prompts: int, data: DataConfig, seed: int, split: str = "test"
) -> list[Example]:
    """A fixed choice of examples: the first `prompts` of a split in a seeded order.

    Shuffled, because some sets are sorted by task or difficulty. A longer choice begins with the
    shorter one.

    Raises:
      ValueError: an unknown name, missing files, or a set without examples in this split.
    """
    # A limit on training examples is no limit on benchmarks.
    examples = load_examples(name, split=split, data=dataclasses.replace(data, max_examples=0))
    if len(examples) == 0:
        raise ValueError(f"Benchmark {name!r} holds no prompts: there is nothing to decode.")
    order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(examples))
    return [examples[int(index)] for index in order[:prompts]]


def questions(example: Example) -> tuple[str, ...]:
    """What is asked, turn by turn: every user turn where nothing is answered, else the first."""
    if any(role == "assistant" for role, _ in example.turns):
        return example.user_turns[:1]
    return example.user_turns


def ask(
    examples: Sequence[Example],
    *,
    answer: Answer[AnsweredT],
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    passage_tokens: int,
) -> Reference[AnsweredT]:
    """Plays every conversation with the target.

    Args:
      examples: conversations, or running text.
      answer: decodes a batch of prompts.
      tokenizer: the target's.
      max_prompt_tokens: a conversation ends early where its next prompt is longer.
      passage_tokens: of running text, so many tokens are the prompt; a text that has no more is
        given whole.

    Raises:
      ValueError: no prompt is short enough.
    """
    conversations: dict[str, Conversation] = {
        example.id: [turn for turn in example.prompt_turns if turn["role"] == "system"]
        for example in examples
    }
    prompts: list[tuple[int, ...]] = []
    ids: list[str] = []
    responses: list[AnsweredT] = []
    answered: set[str] = set()
    skipped = 0
    open_examples, turn = list(examples), 0
    while open_examples:
        batch_prompts: list[list[int]] = []
        batch_examples: list[Example] = []
        for example in open_examples:
            if example.is_running_text:
                prompt = tokenizer.encode(example.running_text)[:passage_tokens]
            else:
                conversation = conversations[example.id]
                conversation.append({"role": "user", "content": questions(example)[turn]})
                prompt = tokenizer.encode_prompt(conversation)
            if len(prompt) > max_prompt_tokens:
                skipped += 1
            else:
                batch_prompts.append(prompt)
                batch_examples.append(example)
        if not batch_prompts:
            break
        names = [e.id if turn == 0 else f"{e.id}#{turn + 1}" for e in batch_examples]
        answers = answer(batch_prompts, names)
        prompts += [tuple(prompt) for prompt in batch_prompts]
        ids += names
        responses += answers
        answered |= {example.id for example in batch_examples}
        for example, response in zip(batch_examples, answers, strict=True):
            text = tokenizer.decode(response.tokens)
            conversations[example.id].append({"role": "assistant", "content": text})
        turn += 1
        open_examples = [e for e in batch_examples if len(questions(e)) > turn]
    if not prompts:
        raise ValueError(
            f"No prompts to decode: all {skipped} are longer than {max_prompt_tokens} tokens. "
            "Raise evaluation.max_prompt_tokens (at most the target's positions less "
            "evaluation.max_new_tokens)."
        )
    return Reference(tuple(prompts), tuple(ids), tuple(responses), len(answered), skipped)
