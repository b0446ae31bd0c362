"""Benchmarks by name: which prompts are decoded, and what the target alone answers to them.

A benchmark is the test split of a data set of that name (`jaxspec.data.sources`), or a user's own
file of conversations or prompts. Where examples hold questions only, as in MT-Bench, all of them
are asked, one after the other, and the conversation so far holds the target's own answers. A
conversation with answers is asked as it is if it ends with a question or with a tool's turn;
elsewhere the first question is asked. Where an example has tools, the target is told of them.

Running text (wikitext2, tinystories) is to be continued: its first tokens are the prompt, encoded
as training encodes it, without a chat template. It suits targets that know no turns.

>>> examples = load_benchmark("gsm8k", prompts=40, data=DataConfig(), seed=0)
>>> reference = ask(  # doctest: +SKIP
...     examples, answer=answer, tokenizer=tokenizer, max_prompt_tokens=512, passage_tokens=32
... )
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Generic

import numpy as np

from jaxspec.config import DataConfig, EvaluationConfig
from jaxspec.data.examples import Conversation, Example
from jaxspec.data.sources import SOURCES, load_examples
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.evals.conversations import REFUSED, TOO_LONG, Answer, AnsweredT, play, user_questions
from jaxspec.files import user_path
from jaxspec.names import for_terminal


@dataclasses.dataclass(frozen=True)
class Reference(Generic[AnsweredT]):
    """The prompts of a benchmark, and what the target alone answers to them."""

    prompts: tuple[tuple[int, ...], ...]
    ids: tuple[str, ...]
    """Name of each prompt; "#2" after the example's name for its second turn."""
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
    examples = load_examples(
        name,
        split=split,
        data=dataclasses.replace(data, max_examples=0),
        use="benchmark" if split == "test" else "prompts",
    )
    if len(examples) == 0:
        raise ValueError(f"Benchmark {name!r} holds no prompts: there is nothing to decode.")
    key = zlib.crc32(_seeding_name(name).encode())
    order = np.random.default_rng([seed, key]).permutation(len(examples))
    return [examples[int(index)] for index in order[:prompts]]


def load_benchmarks(settings: EvaluationConfig, *, data: DataConfig) -> dict[str, list[Example]]:
    """The examples of every benchmark of an evaluation.

    Raises:
      ValueError: see `load_benchmark`.
    """
    names = [own_name(name) for name in settings.benchmarks]
    return {
        # Of two files of one name, both are called by their paths.
        (own if names.count(own) == 1 else name): load_benchmark(
            name, prompts=settings.prompts, data=data, seed=settings.seed
        )
        for own, name in zip(names, settings.benchmarks, strict=True)
    }


def own_name(benchmark: str) -> str:
    """What results call a benchmark: a data set's name; of a file, its name without folders."""
    path = user_path(benchmark)
    return path.name if benchmark not in SOURCES and path.is_file() else benchmark


def _seeding_name(benchmark: str) -> str:
    """What the order of a benchmark's prompts depends on: a folder has one, however it is typed."""
    path = user_path(benchmark)
    is_folder = benchmark not in SOURCES and path.is_dir()
    return path.resolve().name if is_folder else own_name(benchmark)


def questions(example: Example) -> list[Conversation]:
    """What is asked, turn by turn: every user turn where nothing is answered, else the first.

    A conversation with answers that ends with a question, or with a tool's turn, is asked as it is:
    the next answer follows.
    """
    asked = user_questions(example)
    if not any(role == "assistant" for role, _ in example.turns):
        return asked
    is_open = example.turns[-1][0] in ("user", "tool")
    return [example.conversation] if is_open else asked[:1]


@dataclasses.dataclass(frozen=True)
class _Placeholder:
    """Stands for an answer where nothing is decoded."""

    tokens: tuple[int, ...]


def check_askable(
    benchmarks: Mapping[str, Sequence[Example]],
    *,
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    passage_tokens: int,
) -> None:
    """Finds out, before hours of work, whether `ask` can ask every benchmark.

    Prompts are encoded, and a short text takes the place of the answers.

    Args:
      benchmarks: the examples of each, by its name.
      tokenizer: see `ask`.
      max_prompt_tokens: see `ask`.
      passage_tokens: see `ask`.

    Raises:
      ValueError: what `ask` would raise, with the benchmark's name in front.
    """
    placeholder = _Placeholder(tuple(tokenizer.encode("Yes.")))
    for name, examples in benchmarks.items():
        try:
            ask(
                examples,
                answer=lambda prompts, _: [placeholder] * len(prompts),
                tokenizer=tokenizer,
                max_prompt_tokens=max_prompt_tokens,
                passage_tokens=passage_tokens,
            )
        except ValueError as error:
            raise ValueError(f"{for_terminal(name)}: {error}") from error


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
      passage_tokens: this many first tokens of running text are its prompt; a shorter text is
        given whole.

    Raises:
      ValueError: no prompt is short enough, or the chat template refuses one.
    """
    played = play(
        examples,
        answer=answer,
        tokenizer=tokenizer,
        max_prompt_tokens=max_prompt_tokens,
        questions=questions,
        passage_tokens=passage_tokens,
    )
    for place, end in played.ended.items():
        if end.reason == REFUSED:
            raise ValueError(
                f"Example {examples[place].id!r} cannot be asked: {end.message} Leave it out, or "
                "choose a target whose template takes it."
            )
    skipped = sum(end.reason == TOO_LONG for end in played.ended.values())
    asked = played.asked
    if not asked:
        raise ValueError(
            f"No prompts to decode: all {skipped} are longer than {max_prompt_tokens} tokens. "
            "Raise evaluation.max_prompt_tokens (at most the target's positions less "
            "evaluation.max_new_tokens)."
        )
    return Reference(
        prompts=tuple(each.prompt for each in asked),
        ids=tuple(each.name for each in asked),
        responses=tuple(each.response for each in asked),
        conversations=len({each.place for each in asked}),
        skipped=skipped,
    )
