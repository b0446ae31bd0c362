"""One conversation of a data set, before it is tokenized.

>>> Example("demo/0", (("user", "Hi."), ("assistant", "Hello.")), "demo").prompt_turns
[{'role': 'user', 'content': 'Hi.'}]
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "user", "assistant", "tool")

Conversation = list[dict[str, Any]]
"""What chat templates read: ``[{"role": "user", "content": "..."}, ...]``. A turn may have further
fields, such as tool_calls; its content is always text, "" where there is none."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation with a name.

    Benchmarks with several rounds and no reference answers hold user turns only.

    Raises:
      ValueError: no turns, a role that is not in `ROLES`, or details that do not fit the turns.
    """

    id: str
    """Unique within its data set; used in error messages."""
    turns: tuple[tuple[str, str], ...]
    """(role, content) of each turn, in order."""
    source: str
    """Name of the data set it comes from."""
    details: tuple[str, ...] = ()
    """Further fields of each turn (tool_calls, reasoning_content and so on) as a JSON object, ""
    for a turn without any; (): no turn has any."""
    tools: str = ""
    """The tools that the assistant may call, as a JSON list; "": none."""

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"Example {self.id!r} has no turns: at least a prompt is needed.")
        for role, _ in self.turns:
            if role not in ROLES:
                raise ValueError(
                    f"Example {self.id!r} has a turn of role {role!r}: expected one of {ROLES}."
                )
        if self.details and len(self.details) != len(self.turns):
            raise ValueError(
                f"Example {self.id!r} has details of {len(self.details)} turns: expected "
                f"{len(self.turns)}, one for each turn, or none."
            )

    @classmethod
    def from_conversation(
        cls,
        turns: Sequence[Mapping[str, Any]],
        *,
        id: str,
        source: str,
        tools: Sequence[Any] = (),
    ) -> Example:
        """An example of turns in the form that `conversation` gives.

        Args:
          turns: a "role" and a "content" each, and any further fields that JSON can hold.
          id: its name.
          source: name of the data set.
          tools: what the assistant may call.

        Raises:
          ValueError: see `Example`.
        """
        further = [
            {name: value for name, value in turn.items() if name not in ("role", "content")}
            for turn in turns
        ]
        details = tuple(_to_json(fields) if fields else "" for fields in further)
        return cls(
            id=id,
            turns=tuple((turn["role"], turn["content"]) for turn in turns),
            source=source,
            details=details if any(details) else (),
            tools=_to_json(list(tools)) if tools else "",
        )

    @property
    def conversation(self) -> Conversation:
        """Every turn, in the form a chat template reads."""
        turns = [{"role": role, "content": content} for role, content in self.turns]
        if not self.details:
            return turns
        return [
            {**turn, **json.loads(fields or "{}")}
            for turn, fields in zip(turns, self.details, strict=True)
        ]

    @property
    def tool_list(self) -> list[Any]:
        """The tools that the assistant may call, in the form a chat template reads."""
        return list(json.loads(self.tools)) if self.tools else []

    @property
    def prompt_turns(self) -> Conversation:
        """The turns up to the first user turn, inclusive: what a model is asked first."""
        for index, (role, _) in enumerate(self.turns):
            if role == "user":
                return self.conversation[: index + 1]
        return self.conversation

    @property
    def is_running_text(self) -> bool:
        """Whether the example is only text, without questions: all turns are the assistant's."""
        return all(role == "assistant" for role, _ in self.turns)

    @property
    def running_text(self) -> str:
        """The text of such an example, its turns separated by empty lines."""
        return "\n\n".join(content for _, content in self.turns)

    @property
    def user_turns(self) -> tuple[str, ...]:
        """The user's questions in order, for benchmarks of several rounds."""
        return tuple(content for role, content in self.turns if role == "user")


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
