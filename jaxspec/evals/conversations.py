"""Plays conversations with a model: the user's turns of examples, and the model's own answers.

Every conversation that is still open is asked its next question, all of them in one batch; then
come the next turns. Later questions follow the answers that the model gave itself.

>>> played = play(examples, answer=answer, tokenizer=tokenizer, max_prompt_tokens=512,
...               questions=lambda example: example.user_turns)                # doctest: +SKIP
>>> played.conversations[0][-1]["role"]                                        # doctest: +SKIP
'assistant'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from jaxspec.data.examples import Conversation, Example

if TYPE_CHECKING:
    from jaxspec.data.tokenizer import Tokenizer

TOO_LONG = "too_long"
"""Why a conversation ended whose next prompt was longer than allowed."""


class Answered(Protocol):
    """What is asked of a response."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """What was answered."""


AnsweredT = TypeVar("AnsweredT", bound=Answered)
Answer = Callable[[list[list[int]], list[str]], list[AnsweredT]]
"""(prompts, names) -> the model's responses."""


@dataclasses.dataclass(frozen=True)
class Asked(Generic[AnsweredT]):
    """One question and its answer."""

    place: int
    """Which example it belongs to."""
    turn: int
    """Which of its questions, from 0."""
    name: str
    prompt: tuple[int, ...]
    response: AnsweredT


@dataclasses.dataclass(frozen=True)
class Ended:
    """A conversation that ended before all questions were answered."""

    turn: int
    """The question that has no answer, from 0."""
    reason: str


@dataclasses.dataclass(frozen=True)
class Played(Generic[AnsweredT]):
    """What was asked and answered."""

    asked: list[Asked[AnsweredT]]
    """All first questions, in the order of the examples, then all second ones and so on."""
    conversations: list[Conversation]
    """Of each example: the system's turns, then questions and answers in turn."""
    ended: dict[int, Ended]
    """By place of the example: conversations that ended early."""


def name_of_turn(example: Example, turn: int) -> str:
    """The example's name, with "#2" after it for its second question."""
    return example.id if turn == 0 else f"{example.id}#{turn + 1}"


def accept_all(response: Answered, text: str) -> str:
    """Refuses no answer."""
    del response, text
    return ""


def play(
    examples: Sequence[Example],
    *,
    answer: Answer[AnsweredT],
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    questions: Callable[[Example], Sequence[str]],
    name: Callable[[Example, int], str] = name_of_turn,
    passage_tokens: int = 0,
    refuse: Callable[[AnsweredT, str], str] = accept_all,
) -> Played[AnsweredT]:
    """Asks every question of every example.

    Args:
      examples: conversations, or running text.
      answer: decodes a batch of prompts.
      tokenizer: the model's.
      max_prompt_tokens: a conversation ends early (`TOO_LONG`) where its next prompt is longer.
      questions: what an example is asked, turn by turn. With none it is not asked at all.
      name: of a prompt; its random stream depends on it.
      passage_tokens: this many first tokens of running text are its prompt, without a chat
        template; 0: running text is asked its `questions`, of which it has none.
      refuse: why an answer cannot be used (its question is then taken back, and the conversation
        ends), given the response and its text; "": it can.
    """
    conversations: list[Conversation] = [
        [turn for turn in example.prompt_turns if turn["role"] == "system"] for example in examples
    ]
    is_passage = [bool(passage_tokens) and example.is_running_text for example in examples]
    waiting = [
        1 if passage else len(questions(example))
        for example, passage in zip(examples, is_passage, strict=True)
    ]
    asked: list[Asked[AnsweredT]] = []
    ended: dict[int, Ended] = {}
    turn = 0
    while True:
        batch: list[tuple[int, list[int]]] = []
        for place, example in enumerate(examples):
            if place in ended or turn >= waiting[place]:
                continue
            if is_passage[place]:
                prompt = tokenizer.encode(example.running_text)[:passage_tokens]
            else:
                question = {"role": "user", "content": questions(example)[turn]}
                prompt = tokenizer.encode_prompt([*conversations[place], question])
            if len(prompt) > max_prompt_tokens:
                ended[place] = Ended(turn, TOO_LONG)
                continue
            if not is_passage[place]:
                conversations[place].append(question)
            batch.append((place, prompt))
        if not batch:
            return Played(asked, conversations, ended)
        names = [name(examples[place], turn) for place, _ in batch]
        responses = answer([prompt for _, prompt in batch], names)
        for (place, prompt), its_name, response in zip(batch, names, responses, strict=True):
            asked.append(Asked(place, turn, its_name, tuple(prompt), response))
            text = tokenizer.decode(response.tokens)
            if reason := refuse(response, text):
                if not is_passage[place]:
                    conversations[place].pop()
                ended[place] = Ended(turn, reason)
            else:
                conversations[place].append({"role": "assistant", "content": text})
        turn += 1
