"""What is asked: a question, a conversation, or a file of them.

>>> conversation_of("Hi.", system="Be brief.")
[{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi.'}]
>>> read_questions("questions.jsonl")                                          # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec.data.examples import Conversation
from jaxspec.data.imports.locate import locate
from jaxspec.data.imports.reading import Tally, read_conversations
from jaxspec.data.imports.rows import StoppedAtBadRow
from jaxspec.files import user_path
from jaxspec.json_files import read_bytes, shortened

Prompt = str | Sequence[Mapping[str, Any]]
"""A user's question, or a conversation that ends with one: {"role": ..., "content": ...} each."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A conversation that the target is to continue."""

    turns: Conversation
    tools: Sequence[Any] = ()
    """What the assistant may call."""


def conversation_of(prompt: Prompt, *, system: str = "") -> Conversation:
    """A prompt as a conversation.

    Raises:
      ValueError: neither a text nor messages, a prompt without text, or a second system prompt.
    """
    given: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    is_list = isinstance(given, Sequence) and not isinstance(given, bytes)
    if not is_list or not all(isinstance(turn, Mapping) for turn in given):
        raise ValueError(
            "A prompt is a text, or a list of messages ({'role': ..., 'content': ...} each): got "
            f"{shortened(repr(prompt), longest=60)}."
        )
    turns: Conversation = [dict(turn) for turn in given]
    if not turns or not str(turns[-1].get("content") or "").strip():
        raise ValueError("The prompt is empty: ask something.")
    if system and turns[0].get("role") == "system":
        raise ValueError(
            "The conversation has a system prompt of its own: leave the other one (system) out."
        )
    return [{"role": "system", "content": system}, *turns] if system else turns


def read_questions(path: str) -> list[Question]:
    """The questions of a file, in its order.

    Args:
      path: a .txt file with one question per line; or conversations in one of the formats of
        `jaxspec.data.imports`, each up to its last question.

    Raises:
      ValueError: no such file, one that is not UTF-8 or is empty, or a row that asks nothing.
    """
    found = locate(path, split="test")
    if user_path(path).suffix == ".txt":
        lines = _lines(path)
        return [Question([{"role": "user", "content": line}]) for line in lines if line.strip()]
    tally = Tally()
    try:
        examples = list(
            read_conversations(
                found, use="benchmark", tally=tally, seen=set(), keep_duplicates=True
            )
        )
    except StoppedAtBadRow as error:
        raise ValueError(f"{error} Correct the row, or leave it out.") from error
    tally.check_left(path)
    questions = []
    for example in examples:
        turns = example.conversation
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise ValueError(
                f"{example.id} in {path} asks nothing: got text without a question. Expected a "
                '"prompt", "messages" or the like, or a .txt file with one question per line.'
            )
        questions.append(Question(turns, example.tool_list))
    return questions


def _lines(path: str) -> list[str]:
    """The lines of a text file, of which one at least is not empty."""
    try:
        text = read_bytes(user_path(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty: expected one question per line.")
    # Not splitlines: it also breaks lines at form feeds and at Unicode's own separators.
    return text.replace("\r\n", "\n").split("\n")
