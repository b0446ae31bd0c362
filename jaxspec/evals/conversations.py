"""Plays conversations with a model: the user's turns of examples, and the model's own answers.

Every conversation that is still open is asked its next question, all of them in one batch; then
come the next turns. Later questions follow the answers that the model gave itself. Where an example
has tools, the model is told of them.

>>> played = play(examples, answer=answer, tokenizer=tokenizer, max_prompt_tokens=512,
...               questions=user_questions)                                    # doctest: +SKIP
>>> played.conversations[0][-1]["role"]                                        # doctest: +SKIP
'assistant'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from jaxspec.data.chat_template import Refused
from jaxspec.data.examples import Conversation, Example

if TYPE_CHECKING:
    from jaxspec.data.tokenizer import Tokenizer

TOO_LONG = "too_long"
"""Why a conversation ended whose next prompt was longer than allowed."""
REFUSED = "refused"
"""Why a conversation ended whose next prompt the chat template refuses."""


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
    message: str = ""
    """What the chat template says about it."""


@dataclasses.dataclass(frozen=True)
class Played(Generic[AnsweredT]):
    """What was asked and answered."""

    asked: list[Asked[AnsweredT]]
    """All first questions, in the order of the examples, then all second ones and so on."""
    conversations: list[Conversation]
    """Of each example: questions and answers in turn, up to the last answer that was taken."""
    ended: dict[int, Ended]
    """By place of the example: conversations that ended early."""


def name_of_turn(example: Example, turn: int) -> str:
    """The example's name, with "#2" after it for its second question."""
    return example.id if turn == 0 else f"{example.id}#{turn + 1}"


def user_questions(example: Example) -> list[Conversation]:
    """What an example asks: each user turn, after the system's turns that come before it.

    It ends before a tool's turn: what a tool says depends on the call.
    """
    found: list[Conversation] = []
    before: Conversation = []
    for turn in example.conversation:
        if turn["role"] == "tool":
            break
        if turn["role"] == "system":
            before = [*before, turn]
        if turn["role"] == "user":
            found.append([*before, turn])
            before = []
    return found


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
    questions: Callable[[Example], Sequence[Conversation]],
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
      questions: the turns that come before each answer. With none an example is not asked at all.
      name: of a prompt; its random stream depends on it.
      passage_tokens: this many first tokens of running text are its prompt, without a chat
        template; 0: running text is asked its `questions`, of which it has none.
      refuse: why an answer cannot be used (the conversation then ends before its question), given
        the response and its text; "": it can.
    """
    conversations: list[Conversation] = [[] for _ in examples]
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
                ids = [*tokenizer.text_start, *tokenizer.encode(example.running_text)]
                prompt = ids[:passage_tokens]
            else:
                asks = [*conversations[place], *questions(example)[turn]]
                try:
                    prompt = tokenizer.encode_prompt(asks, tools=example.tool_list)
                except Refused as error:
                    ended[place] = Ended(turn, REFUSED, str(error))
                    continue
            if len(prompt) > max_prompt_tokens:
                ended[place] = Ended(turn, TOO_LONG)
                continue
            batch.append((place, prompt))
        if not batch:
            return Played(asked, conversations, ended)
        names = [name(examples[place], turn) for place, _ in batch]
        responses = answer([prompt for _, prompt in batch], names)
        for (place, prompt), its_name, response in zip(batch, names, responses, strict=True):
            asked.append(Asked(place, turn, its_name, tuple(prompt), response))
            text = tokenizer.decode(response.tokens)
            if reason := refuse(response, text):
                ended[place] = Ended(turn, reason)
                continue
            if not is_passage[place]:
                conversations[place] += questions(examples[place])[turn]
            conversations[place].append({"role": "assistant", "content": text})
        turn += 1
