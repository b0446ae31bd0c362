"""Prompts from a file: one a line, as text or as JSON.

>>> read_prompts("questions.txt")                                              # doctest: +SKIP
[[{'role': 'user', 'content': 'What is 12 + 30?'}]]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxspec.data.examples import Conversation, Example
from jaxspec.files import user_path
from jaxspec.json_files import parse_object, read_bytes, shown

_EXPECTED = (
    'expected one prompt a line: text (.txt), or JSON objects with "prompt" or "messages" (.jsonl)'
)


def read_prompts(path: str) -> list[Conversation]:
    """The conversations in a file, each up to its last question.

    Args:
      path: a .txt file, whose lines are questions, or a .jsonl file, whose lines are objects with a
        "prompt" (text) or with "messages".

    Raises:
      ValueError: no such file, one that is not UTF-8 or holds nothing, or a line that is no prompt.
    """
    file = user_path(path)
    if not file.exists():
        raise ValueError(f"--prompts: there is no file {file}; {_EXPECTED}.")
    if file.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"--prompts: got {str(file)!r}, {_EXPECTED}.")
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 text: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{file} holds no prompt: {_EXPECTED}.")
    if file.suffix == ".txt":
        return [[{"role": "user", "content": line}] for _, line in lines]
    return [
        _conversation(line, place=f"{file}, line {number}", file=file) for number, line in lines
    ]


def _conversation(line: str, *, place: str, file: Path) -> Conversation:
    row = parse_object(line.encode(), name=place)
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if not isinstance(messages, list) or not all(map(_is_turn, messages)):
        raise ValueError(
            f'{place}: got {shown(row)}, expected a "prompt" that is text, or "messages", '
            'each with a "role" and a "content" that are text.'
        )
    turns = Example.from_conversation(messages, id=place, source=file.name).conversation
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns or not turns[-1]["content"].strip():
        raise ValueError(f'{place}: its "messages" ask nothing: the last one must be a question.')
    return turns


def _is_turn(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(field), str) for field in ("role", "content")
    )
