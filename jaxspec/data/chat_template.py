"""Chat templates: the text that a model was trained to see for a conversation.

Templates come with other people's models, so they run in a sandbox that counts their work. Their
clock stands still: the same conversation gives the same text every day.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from jaxspec.data.examples import ROLES, Conversation
from jaxspec.data.template_sandbox import Sandbox
from jaxspec.data.tokenizer_files import read_json, read_text
from jaxspec.tokenizer_files import TOOL_TEMPLATE

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template of tokenizers trained here."""

PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""Unchanged contents, with end-of-text after each answer: for models that do not know turns."""
_BEGINNING = "{{ bos_token }}"
"""What comes before, where the tokenizer begins each text with it."""


_LONGEST_REASON = 300
_NOW = "strftime_now"
_TESTS_FOR_NOW = re.compile(rf"{_NOW}\s+is\s+(not\s+)?(un)?defined")
_DATE = datetime.date(2024, 7, 26)
"""The date that Llama 3.2's template takes where it is given none."""


class Refused(ValueError):
    """A chat template refuses a conversation: a role, an order of turns, a missing field."""


class ChatTemplate:
    """The chat template of a model's folder.

    >>> ChatTemplate("model", source="{{ messages[0]['content'] }}").render(
    ...     [{"role": "user", "content": "Hi."}], add_generation_prompt=True)
    'Hi.'
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        source: str | None,
        tool_source: str | None = None,
        variables: Mapping[str, Any] | None = None,
        is_own: bool = True,
        begins: bool = False,
    ) -> None:
        """Keep a template; it is compiled when it is first needed.

        Args:
          place: the file or folder that it comes from; messages name it.
          source: its text; None if the folder has none, which is an error only when it is used.
          tool_source: the text that is used with tools; None: `source` is.
          variables: what templates may print or test in addition to the conversation: bos_token,
            eos_token, enable_thinking and so on.
          is_own: whether it comes from the folder itself.
          begins: whether the tokenizer begins each text with bos_token.
        """
        self._plain = (_BEGINNING if begins else "") + PLAIN
        self.is_own = is_own and source is not None
        self._place = str(place)
        self._source = source
        self._tool_source = tool_source
        self._templates: dict[str, jinja2.Template] = {}
        self._variables = dict(variables or {})

    @classmethod
    def read(
        cls,
        folder: pathlib.Path,
        config: Mapping[str, Any],
        *,
        variables: Mapping[str, Any] | None = None,
        default: str | None = None,
        begins: bool = False,
    ) -> ChatTemplate:
        """Find the template of a folder whose tokenizer_config.json has already been read.

        `default` is used if the folder has no template, after bos_token where the tokenizer begins
        each text with it (`begins`).
        """
        found, tool_source, place = _find_sources(folder, config)
        if default is not None and begins:
            default = _BEGINNING + default
        return cls(
            place,
            source=found or default,
            tool_source=tool_source,
            variables=variables,
            is_own=bool(found),
            begins=begins,
        )

    def render(
        self, turns: Conversation, *, add_generation_prompt: bool, tools: Sequence[Any] = ()
    ) -> str:
        """The text of a conversation, followed by the header of an answer if wanted.

        Args:
          turns: the conversation.
          add_generation_prompt: whether the assistant's answer comes next.
          tools: what the assistant may call. Where the folder has a template "tool_use", it is used
            for them, as in transformers.

        Raises:
          ValueError: no template, or one that cannot be read.
          Refused: the template refuses the conversation.
        """
        check_turns(turns)
        source = self._tool_source if tools and self._tool_source else self._source
        template = self._compiled(source)
        conversation = {
            "messages": turns,
            "add_generation_prompt": add_generation_prompt,
            # Templates test it for None, or for truth.
            "tools": list(tools) or None,
        }
        try:
            variables = {**_date(source or ""), **self._variables, **conversation}
            return _sandbox().rendered(template, variables)
        except Exception as error:  # A template is a program: a broken one can raise anything.
            raise Refused(
                f"The chat template of {self._place!r} refused a conversation with roles "
                f"{_brief([turn['role'] for turn in turns])}: {_brief(error)}."
            ) from error

    def reads(self, variable: str) -> bool:
        """Whether the template mentions a variable."""
        return variable in (self._source or "")

    def _compiled(self, source: str | None) -> jinja2.Template:
        if source is None:
            raise ValueError(
                f"The tokenizer in {self._place!r} has no chat template. Put the model's own into "
                "chat_template.jinja there. A base model has none; this one passes contents on "
                f"unchanged:\n{self._plain}"
            )
        try:
            if source not in self._templates:
                self._templates[source] = _sandbox().compiled(source)
            return self._templates[source]
        except Exception as error:  # Python's compiler has its own limits.
            raise ValueError(
                f"The chat template of {self._place!r} cannot be read: {_brief(error)}."
            ) from error


@functools.lru_cache(maxsize=8)
def _date(source: str) -> dict[str, Any]:
    """What a template that needs today's date gets.

    One that has a date of its own, where it is given none, uses that: Llama 3.2's, which tests
    whether the function is defined. The date is always the same: today's would make other texts of
    the same data every day.
    """
    if _NOW not in source or _TESTS_FOR_NOW.search(source):
        return {}
    return {_NOW: _DATE.strftime}


def _brief(what: Any) -> str:
    text = " ".join((str(what) or type(what).__name__)[: 2 * _LONGEST_REASON].split())
    return text.rstrip(".") if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def check_turns(turns: Conversation) -> None:
    """Raise ValueError unless these are turns with a known role and a text."""
    if not turns:
        raise ValueError("A conversation needs at least one turn: got none.")
    for turn in turns:
        if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise ValueError(
                f"A turn must be a dict with a role from {ROLES} and text as content: got {turn!r}."
            )
        check_unicode(turn["content"])


def check_unicode(text: str) -> None:
    """Raises ValueError for half of a surrogate pair, which stands for a byte that is no text.

    Python reads such bytes from a terminal or a command line in this way.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise ValueError(
            f"The text is not UTF-8 near {around!r}: save or type it as UTF-8."
        ) from None


def as_served(turns: Conversation) -> Conversation:
    """Turns in the form in which servers give them to a template.

    The arguments of a tool call are an object there, not its JSON text, as in OpenAI's format.
    """
    return [
        {**turn, "tool_calls": [_with_arguments(call) for call in turn["tool_calls"]]}
        if isinstance(turn.get("tool_calls"), list)
        else turn
        for turn in turns
    ]


def _with_arguments(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    if "function" in call:
        return {**call, "function": _with_arguments(call["function"])}
    try:
        arguments = json.loads(call["arguments"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return call
    return {**call, "arguments": arguments} if isinstance(arguments, dict) else call


def _find_sources(
    folder: pathlib.Path, config: Mapping[str, Any]
) -> tuple[str | None, str | None, pathlib.Path]:
    """A folder's template, the one for tools if it has another, and the file of the first.

    Without any, the file is the folder.
    """
    file = folder / TOOL_TEMPLATE
    tool_source = _template_in(file) if file.is_file() else None
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _template_in(file), tool_source, file
    file = folder / "chat_template.json"
    stated = read_json(file).get("chat_template")
    if stated in (None, ""):
        file = folder / "tokenizer_config.json"
        stated = config.get("chat_template")
    # Several named templates, such as tool_use, rag and default.
    if isinstance(stated, list) and all(map(_is_named, stated)):
        named = {entry["name"]: entry["template"] for entry in stated}
        stated, tool_source = named.get("default"), tool_source or named.get("tool_use")
    if stated in (None, ""):
        return None, tool_source, file if tool_source else folder
    if not isinstance(stated, str):
        raise ValueError(
            f"The chat template in {str(file)!r} must be text, or a list of objects with a name "
            f"and a template: got {stated!r:.60}."
        )
    return stated, tool_source, file


def _template_in(file: pathlib.Path) -> str:
    source = read_text(file)
    if not source:
        raise ValueError(f"{str(file)!r} is empty: download it again, or remove it.")
    return source


def _is_named(entry: Any) -> bool:
    keys = ("name", "template")
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in keys)


class _GenerationTag(jinja2.ext.Extension):
    """Lets templates mark responses with {% generation %}; the tag itself prints nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Take the statements between the tags unchanged."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


@functools.cache
def _sandbox() -> Sandbox:
    def refuse(message: str) -> str:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    # White space is trimmed as in transformers, because templates are written for that.
    return Sandbox(
        {"raise_exception": refuse},
        {"tojson": to_json},
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
