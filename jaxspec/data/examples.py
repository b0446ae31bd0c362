"""One conversation of a data set, before it is tokenized.

>>> Example("demo/0", (("user", "Hi."), ("assistant", "Hello.")), "demo").prompt_turns
[{'role': 'user', 'content': 'Hi.'}]
"""

from __future__ import annotations

import dataclasses

ROLES = ("system", "user", "assistant")

Conversation = list[dict[str, str]]
"""What chat templates read: ``[{"role": "user", "content": "..."}, ...]``."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation with a name.

    Benchmarks with several rounds and no reference answers hold user turns only.

    Raises:
      ValueError: no turns, or a role other than system, user and assistant.
    """

    id: str
    """Unique within its data set; used in error messages."""
    turns: tuple[tuple[str, str], ...]
    """(role, content) of each turn, in order."""
    source: str
    """Name of the data set it comes from."""

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"Example {self.id!r} has no turns: at least a prompt is needed.")
        for role, _ in self.turns:
            if role not in ROLES:
                raise ValueError(
                    f"Example {self.id!r} has a turn of role {role!r}: expected one of {ROLES}."
                )

    @property
    def conversation(self) -> Conversation:
        """Every turn, in the form a chat template reads."""
        return [{"role": role, "content": content} for role, content in self.turns]

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
