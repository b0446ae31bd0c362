"""The short help of a command: what people change, at a glance.

``--help`` shows the options of the command and its most used settings, each with the first sentence
of its meaning and its default in the config that is named. ``--help-all``, which tyro writes, has
everything.
"""

from __future__ import annotations

import re
import textwrap
import types
import typing
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import tyro

from jaxspec.cli.settings import Setting

WIDTH = 80
_INDENT = 6
_KINDS = {int: "INT", float: "FLOAT", bool: "{True,False}", str: "TEXT"}
_FIRST_SENTENCE = re.compile(r"(.+?\.)(?=\s+[A-Z\"]|$)")


def short_help(
    *,
    program: str,
    description: str,
    example: str,
    options: Sequence[Setting],
    settings: Sequence[Setting],
    names: Collection[str],
    total: int,
    unread: Sequence[str] = (),
) -> str:
    """The text of ``--help``.

    Args:
      program: how the command is called.
      description: what it does, in a sentence.
      example: a command line.
      options: the command's own.
      settings: those of the run that are shown.
      names: those of them that are names in a registry, which only ``--help-all`` opens.
      total: how many settings the command reads in all.
      unread: groups that it reads with other configurations only.
    """
    lines = [*_usage(program, options), "", *textwrap.wrap(" ".join(description.split()), WIDTH)]
    if example:
        lines += ["", "example:", *(f"  {line}" for line in example.splitlines())]
    lines += ["", "options (defaults in brackets):"]
    for option in options:
        lines += _entry(option, is_name=option.name in names, program=program)
    group = ""
    for setting in settings:
        if (its_group := setting.name.split(".")[0]) != group:
            group = its_group
            lines += ["", f"{group}:"]
        lines += _entry(setting, is_name=setting.name in names, program=program)
    which = (
        f"These are the most used settings, {len(settings)} of {total}. All of them"
        if total > len(settings)
        else "The same settings in full"
    )
    footer = f"{which}, each with its type, default and meaning: {program} --help-all"
    if unread:
        groups = " and ".join(f"--{group}.*" for group in unread)
        footer += f". With this configuration, {groups} are not read."
    return "\n".join([*lines, "", *textwrap.wrap(footer, WIDTH)])


def all_settings_header(description: str) -> str:
    """What ``--help-all`` begins with."""
    note = "This is every setting that is read; --help shows those that people change."
    return f"{textwrap.fill(' '.join(description.split()), WIDTH)}\n\n{note}"


def type_name(kind: Any) -> str:
    """A type as it is shown: INT, TEXT ..., {jit,pmap}."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return "|".join(type_name(argument) for argument in arguments)
    if origin is Literal:
        return f"{{{','.join(shown(argument) for argument in arguments)}}}"
    if origin is tuple:
        return f"[{type_name(arguments[0])} ...]"
    if kind is type(None):
        return "None"
    return _KINDS.get(kind, "VALUE")


def shown(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, tuple):
        return " ".join(map(shown, value)) or "none"
    return '""' if value == "" else str(value)


def _usage(program: str, options: Sequence[Setting]) -> list[str]:
    words = []
    for option in options:
        word = f"--{option.name} {type_name(option.kind)}"
        words.append(word if option.value is tyro.MISSING else f"[{word}]")
    # Required ones first, and no line is broken within an option.
    words.sort(key=lambda word: word.startswith("["))
    first = f"usage: {program} "
    lines = [first]
    for word in [*words, "[--GROUP.SETTING VALUE ...]"]:
        if len(lines[-1]) + len(word) > WIDTH and lines[-1].strip():
            lines.append(" " * len(first))
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]


def _entry(setting: Setting, *, is_name: bool, program: str) -> Iterator[str]:
    """A line with the name, type and default, then what it means."""
    default = "required" if setting.value is tyro.MISSING else shown(setting.value)
    kind, text = type_name(setting.kind), setting.meaning
    if match := _FIRST_SENTENCE.match(text):
        text = match.group(1)
    if is_name or len(kind) > WIDTH // 2:
        kind, text = "NAME", f"{text} Names: {program} --help-all"
    yield from textwrap.wrap(
        f"--{setting.name} {kind} ({default})",
        WIDTH,
        initial_indent="  ",
        subsequent_indent=" " * 2 * _INDENT,
        break_on_hyphens=False,
        break_long_words=False,
    )
    indent = " " * _INDENT
    yield from textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
