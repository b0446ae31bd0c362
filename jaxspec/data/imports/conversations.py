r"""From a row, in any of the usual formats, to an example.

>>> row = {"instruction": "Sort the letters.", "input": "cab", "output": "abc"}
>>> example, form = to_example(row, id="demo/1", source="demo", needs_answer=True)
>>> form, example.turns[0]
('instruction/output pairs', ('user', 'Sort the letters.\n\ncab'))
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec.data.examples import Example
from jaxspec.data.imports.rows import BadRow, start_of
from jaxspec.data.imports.turns import check_order, drop_fillers, read_tools, read_turn, text_of

LISTS = {
    "messages": "OpenAI's `messages` format",
    "conversations": "ShareGPT's `conversations` format",
    "conversation": "lists of turns",
}
"""Fields that hold a list of turns -> what the format is called."""
PROMPTS = ("prompt", "question", "instruction", "problem")
ANSWERS = ("response", "completion", "output", "solution", "answer")
"""Fields that hold an answer, the one that counts first: beside a solution that is worked out,
"answer" is only its result."""
TEXTS = "plain text"
FIELDS = frozenset(
    (
        *(*LISTS, *PROMPTS, *ANSWERS),
        *("input", "context", "text", "system", "system_prompt", "tools", "functions"),
    )
)
"""All fields that are read."""
TELLING_FIELDS = frozenset((*LISTS, *PROMPTS, "text"))
"""Fields of which a row has at least one."""


def to_example(value: Any, *, id: str, source: str, needs_answer: bool) -> tuple[Example, str]:
    """The conversation or text that a row holds, and what its format is called.

    Args:
      value: what the row holds.
      id: the example's name.
      source: name of its data set.
      needs_answer: whether questions alone are refused.

    Raises:
      BadRow: it holds neither, or turns that cannot be served.
    """
    if not isinstance(value, Mapping):
        raise BadRow("not an object", f"got {start_of(value)}")
    turns, form = _turns(value, needs_answer=needs_answer)
    if form == TEXTS:
        return _checked(Example(id, (("assistant", turns),), source)), form
    system = value.get("system") or value.get("system_prompt")
    if system and turns[:1] and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": text_of(system, where="system")}, *turns]
    turns = [turn for turn in turns if turn["role"] != "system" or turn["content"].strip()]
    check_order(turns, needs_answer=needs_answer)
    given = value.get("tools") or value.get("functions")
    try:
        tools = read_tools(given) if given else []
        drop_fillers(turns, tools)
        example = Example.from_conversation(turns, id=id, source=source, tools=tools)
    except BadRow:
        raise
    except RecursionError as error:
        raise BadRow("a value that is nested too deeply") from error
    except ValueError as error:  # NaN is in no JSON that others read.
        raise BadRow("a number that is not finite", str(error)) from error
    except TypeError as error:  # Tables can hold dates and the like.
        raise BadRow("a value that is not JSON", str(error)) from error
    return _checked(example), form


def _turns(value: Mapping[str, Any], *, needs_answer: bool) -> tuple[Any, str]:
    """The turns of a row (for `TEXTS`: the text), and its format.

    The answer of a pair is not looked at where none is needed: it may be a number or empty.
    """
    for field, form in LISTS.items():
        if value.get(field) is not None:
            return _read_turns(value[field], field=field), form
    prompts = [field for field in PROMPTS if value.get(field) is not None]
    answers = [field for field in ANSWERS if value.get(field) is not None]
    if prompts:
        prompt = prompts[0]
        further = _further(value, prompts)
        turns = _side(value[prompt], role="user", field=prompt, further=further)
        if not answers:
            return turns, f"`{prompt}` fields"
        answer = answers[0]
        if needs_answer:
            turns = turns + _side(value[answer], role="assistant", field=answer)
        return turns, f"{prompt}/{answer} pairs"
    text = value.get("text")
    if text is not None:
        if not isinstance(text, str) or not text.strip():
            raise BadRow("content that is not text", f"text is {start_of(text)}")
        return text, TEXTS
    expected = "messages, conversations, prompt and response, or text"
    names = ", ".join(map(repr, list(value)[:8]))
    raise BadRow("no conversation", f"the fields are {names or 'none'}, expected {expected}")


def _further(value: Mapping[str, Any], prompts: Sequence[str]) -> str:
    """Text of a row that belongs to its question: Alpaca's input, a passage; "": none.

    Args:
      value: the row.
      prompts: the fields that hold a question, the one that is read first.

    Raises:
      BadRow: an input that cannot be read.
    """
    text = ""
    # Beside an instruction, a prompt may be both of them, rendered.
    if prompts[0] == "instruction" or prompts == ["prompt"]:
        text = _input(value.get("input"))
    if not text.strip() and prompts[0] in ("instruction", "question"):
        context = value.get("context")
        is_list = isinstance(context, list) and all(isinstance(part, str) for part in context)
        # Passages in a form of their own are left.
        text = _input(context) if is_list or isinstance(context, str) else ""
    return text


def _input(given: Any) -> str:
    """What is asked about, as text."""
    if given is None or given in ([], {}) or given != given:  # Tables have NaN where nothing is.
        return ""
    if isinstance(given, int | float) and not isinstance(given, bool):
        return str(given)
    if isinstance(given, list) and all(isinstance(part, str) for part in given):
        return "\n".join(given)
    return text_of(given, where="input")


def _read_turns(turns: Any, *, field: str) -> list[dict[str, Any]]:
    if not isinstance(turns, list):
        raise BadRow("turns that are not a list", f"{field} is {start_of(turns)}")
    return [read_turn(turn, number=number) for number, turn in enumerate(turns, start=1)]


def _side(value: Any, *, role: str, field: str, further: str = "") -> list[dict[str, Any]]:
    """The turns on one side of a pair: a list, or one of this role."""
    if isinstance(value, list):
        return _read_turns(value, field=field)
    if not isinstance(value, str) or not value.strip():
        got = start_of(value)
        raise BadRow(
            "content that is not text", f"{field} is {got}, expected text that is not empty"
        )
    if further.strip():
        value = f"{value}\n\n{further}"
    return [{"role": role, "content": value}]


def _checked(example: Example) -> Example:
    """Refuses half of a surrogate pair, which JSON can contain but text cannot."""
    try:
        "".join(text for _, text in example.turns).encode()
        "".join((*example.details, example.tools)).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise BadRow("half of a surrogate pair", f"got {half!a}, which is not text") from error
    return example


def content_of(example: Example) -> bytes:
    """Everything that makes a conversation what it is: equal for duplicates."""
    return json.dumps([example.turns, example.details, example.tools], ensure_ascii=False).encode()


def question_of(example: Example) -> bytes:
    """All that a model is asked that answers a conversation itself; of running text, all of it.

    Its own answers take the place of those there, and it is asked nothing from a tool's turn on.
    """
    if example.is_running_text:
        return content_of(example)
    before_tools = itertools.takewhile(lambda turn: turn["role"] != "tool", example.conversation)
    asked = [turn for turn in before_tools if turn["role"] != "assistant"]
    return json.dumps([asked, example.tools], ensure_ascii=False).encode()
