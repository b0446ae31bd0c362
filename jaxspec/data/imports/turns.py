"""One turn of a conversation as others write it, and the order that turns must have.

>>> read_turn({"from": "human", "value": "Hi."}, number=1)
{'role': 'user', 'content': 'Hi.'}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxspec.data.imports.rows import BadRow, start_of, without_nulls

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "function_response"), "tool"),
}
"""A role as others write it -> ours. "function_call" is a call of the assistant's as text."""
_REASONING = ("reasoning_content", "reasoning", "thinking")
_KEPT = ("name", "tool_call_id")
_NULL_SAYS_SOMETHING = ("default", "const")
"""Fields of a parameter's description that may be null."""
_FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Role -> what may follow it; "": what a conversation may begin with."""


def read_turn(value: Any, *, number: int) -> dict[str, Any]:
    """A turn in the form that `Example.from_conversation` takes.

    Args:
      value: {"role", "content"} or {"from", "value"}, with further fields.
      number: which turn it is, from 1, for messages.

    Raises:
      BadRow: an unknown role, content that is not text, or a call that cannot be read.
    """
    if not isinstance(value, Mapping):
        raise BadRow("a turn is not an object", f"turn {number} is {start_of(value)}")
    name = value.get("role", value.get("from"))
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        expected = "system, user, assistant or tool (in ShareGPT: human, gpt)"
        raise BadRow("unknown role", f"turn {number} has {start_of(name)}, expected {expected}")
    where = f"turn {number} ({role})"
    if role == "assistant" and value.get("weight") == 0:
        raise BadRow(
            "an answer of weight 0", f"{where} has weight 0, but jaxspec trains on every answer"
        )
    content = value.get("content", value.get("value"))
    calls = value.get("tool_calls")
    if name == "function_call":
        content, calls = None, [content]
    elif not calls and value.get("function_call"):  # OpenAI's form before there were tool calls.
        calls = [value["function_call"]]
    turn: dict[str, Any] = {"role": role}
    if calls:
        turn["content"] = "" if content is None else text_of(content, where=where)
        turn["tool_calls"] = _tool_calls(calls, where=where)
    else:
        turn["content"] = text_of(content, where=where)
        if role in ("user", "assistant") and not turn["content"].strip():
            raise BadRow("an empty turn", where)
    for field in _REASONING:
        reasoning = value.get(field)
        if isinstance(reasoning, str) and reasoning.strip():
            turn["reasoning_content"] = reasoning
            break
    turn.update({field: value[field] for field in _KEPT if value.get(field)})
    return turn


def check_order(turns: Sequence[Mapping[str, Any]], *, needs_answer: bool) -> None:
    """Whether a model could have been asked these turns: a user's first, each then answered.

    Args:
      turns: as from `read_turn`.
      needs_answer: False: the user's questions alone are enough.

    Raises:
      BadRow: no turns, no answer, or turns out of order.
    """
    roles = [turn["role"] for turn in turns]
    if not roles:
        raise BadRow("no turns", "expected a user's turn and the assistant's")
    has_answer = "assistant" in roles
    if not has_answer and "user" not in roles:
        raise BadRow("no question", "expected a user's turn")
    for number, (before, role) in enumerate(zip(["", *roles], roles, strict=False), start=1):
        # Questions that are asked one after the other, as in MT-Bench.
        is_next_question = before == role == "user" and not has_answer and not needs_answer
        if role not in _FOLLOWS[before] and not is_next_question:
            place = f"turn {number} ({role})"
            follows = f"{place} follows the {before}'s" if before else f"{place} is the first"
            expected = " or ".join(_FOLLOWS[before])
            raise BadRow("roles out of order", f"{follows}, expected {expected}")
    if needs_answer and not has_answer:
        raise BadRow(
            "no answer",
            "none of the turns is the assistant's (import questions without answers with --use "
            "prompts, to regenerate, or with --use benchmark)",
        )


def read_tools(value: Any) -> list[Any]:
    """The tools of a row: a list, or its JSON text, of functions.

    Where null fills the fields that other tools have, as in tables, all fields with null are left
    out: a template would write them.

    Raises:
      BadRow: something else.
    """
    tools = _parsed(value, where="tools")
    if isinstance(tools, list):
        tools = [_parsed(tool, where="a tool") for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("tools that cannot be read", f"got {start_of(value)}, expected a list")
    if _has_fillers(tools):
        tools = without_nulls(tools)
    return [
        {"type": "function", "function": tool}
        if "function" not in tool and "name" in tool
        else tool
        for tool in tools
    ]


def drop_fillers(turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> None:
    """Removes arguments that are null and that the called tool does not have.

    Args:
      turns: as from `read_turn`; their calls are changed.
      tools: as from `read_tools`. Calls of others stay as they are.
    """
    arguments: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function")
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(parameters, Mapping) and isinstance(name, str):
            properties = parameters.get("properties")
            arguments[name] = properties if isinstance(properties, Mapping) else parameters
    for call in (call for turn in turns for call in turn.get("tool_calls", ())):
        called = call["function"]
        if (known := arguments.get(called["name"])) is not None:
            called["arguments"] = {
                name: value
                for name, value in called["arguments"].items()
                if value is not None or name in known
            }


def _has_fillers(value: Any) -> bool:
    """Whether null stands where it says nothing."""
    if isinstance(value, Mapping):
        return any(
            name not in _NULL_SAYS_SOMETHING if item is None else _has_fillers(item)
            for name, item in value.items()
        )
    return isinstance(value, list) and any(map(_has_fillers, value))


def text_of(content: Any, *, where: str) -> str:
    """Content that is text, or a list of parts that are.

    Raises:
      BadRow: something else.
    """
    if isinstance(content, list):
        return "".join(_part(part, where=where) for part in content)
    if not isinstance(content, str):
        raise BadRow("content that is not text", f"{where} has {start_of(content)}")
    return content


def _part(part: Any, *, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    text = part.get("text") if kind in ("text", "input_text", "output_text") else None
    if not isinstance(text, str):
        got = f"a part of type {start_of(kind)}" if kind else start_of(part)
        raise BadRow("content that is not text", f"{where} has {got}")
    return text


def _tool_calls(calls: Any, *, where: str) -> list[dict[str, Any]]:
    """Calls as servers hand them to chat templates: the arguments are an object, not its text."""
    calls = _parsed(calls, where=f"tool_calls of {where}")
    return [
        _tool_call(_parsed(call, where=f"a call of {where}"), where=where)
        for call in (calls if isinstance(calls, list) else [calls])
    ]


def _tool_call(call: Any, *, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        got = start_of(call)
        raise BadRow("a call that cannot be read", f"{where} has {got}, expected a function's name")
    given = function.get("arguments", function.get("parameters"))  # Llama writes "parameters".
    arguments = _parsed(given or {}, where=f"arguments of {where}")
    if not isinstance(arguments, dict):
        got = start_of(arguments)
        raise BadRow(
            "a call that cannot be read", f"{where} has arguments {got}, expected an object"
        )
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _parsed(value: Any, *, where: str) -> Any:
    """A value, or what its JSON text holds."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow("JSON text that cannot be read", f"{where}: {start_of(value)}") from error
