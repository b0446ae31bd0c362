"""Settings as a command line sees them: by name, with their types, meanings and values.

A setting is named by its group and its field ("training.steps"). A command *reads* whole groups
("training") or single settings ("data.raw_dir") and accepts no others.

>>> next(read_settings(RunConfig(), ("training.steps",))).value
1000
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro

from jaxspec.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a command."""

    name: str
    """As it is typed, without the dashes: "training.steps"."""
    kind: Any
    """Its type."""
    meaning: str
    """The text under its field."""
    value: Any
    """What it is when the command line does not say."""


class _Part:
    """Base of the classes that hold only the settings that a command reads."""


def setting_names(settings: object, *, prefix: str = "") -> Iterator[str]:
    """Names of all settings, as they are typed: "training.steps" and so on."""
    assert dataclasses.is_dataclass(settings)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from setting_names(value, prefix=f"{name}.")
        else:
            yield name


def is_read(name: str, reads: Collection[str]) -> bool:
    """Whether a setting, or the group that it lies in, is among those that a command reads."""
    return any(name == read or name.startswith(f"{read}.") for read in reads)


def given_names(argv: Sequence[str]) -> list[str]:
    """Names of the options that a command line gives, without dashes: "training.steps"."""
    typed = [argument for argument in argv if argument.startswith("--") and len(argument) > 2]
    return [argument[2:].split("=", 1)[0].replace("-", "_") for argument in typed]


def given_value(argv: Sequence[str], name: str) -> str | None:
    """The value that a command line gives to an option, read ahead of the parser."""
    found = None
    for position, argument in enumerate(argv):
        typed, equals, value = argument.partition("=")
        if not typed.startswith("--") or typed[2:].replace("-", "_") != name:
            continue
        if equals:
            found = value
        elif position + 1 < len(argv):
            found = argv[position + 1]
    return found


def is_list(kind: Any) -> bool:
    """Whether a setting of this type takes several values."""
    return any(typing.get_origin(each) is tuple for each in (kind, *typing.get_args(kind)))


def refuse_second_lists(argv: Sequence[str], lists: Collection[str]) -> None:
    """Refuses a list that is given twice: its first values would be lost.

    Args:
      argv: a command line.
      lists: names of the options that take several values.

    Raises:
      ValueError: names the list.
    """
    given = given_names(argv)
    for name in given:
        if name in lists and given.count(name) > 1:
            raise ValueError(
                f"--{name} is given {given.count(name)} times, and only the last one would count: "
                f"give all values after one --{name}."
            )


def with_flag_values(argv: Sequence[str], flags: Collection[str]) -> list[str]:
    """A command line in which options that are true or false have a value.

    >>> with_flag_values(["--json", "--no-compare", "--seed", "3"], ["json", "compare"])
    ['--json', 'True', '--compare', 'False', '--seed', '3']
    """
    found: list[str] = []
    for position, argument in enumerate(argv):
        name = argument[2:].replace("-", "_") if argument.startswith("--") else ""
        has_value = argv[position + 1 : position + 2] in (["True"], ["False"])
        if name in flags and not has_value:
            found += [f"--{name}", "True"]
        elif name.startswith("no_") and name.removeprefix("no_") in flags:
            found += [f"--{name.removeprefix('no_')}", "False"]
        else:
            found.append(argument)
    return found


def read_settings(run: RunConfig, reads: Collection[str]) -> Iterator[Setting]:
    """The settings of a run that a command reads, in the order of the classes."""
    yield from (s for s in _settings(run, prefix="") if is_read(s.name, reads))


def own_options(command: type) -> list[Setting]:
    """The options of a command itself, those of the run left out."""
    hints = typing.get_type_hints(command)
    return [
        Setting(field.name, hints[field.name], meaning(command, field.name), default_of(field))
        for field in dataclasses.fields(command)
        if field.name != "run"
    ]


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, `tyro.MISSING` where it has none."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING


def meaning(kind: type, name: str) -> str:
    """The text under a field of a dataclass, on one line; "" where it has none."""
    for owner in kind.__mro__:
        if name in inspect.get_annotations(owner):
            return _texts(owner).get(name, "")
    return ""


def part_of(settings: Any, reads: Collection[str], *, types_by_name: Mapping[str, Any]) -> Any:
    """An object with only the settings that are read; its class is what a parser is made from.

    Args:
      settings: a dataclass: a command, a run, or a group of settings.
      reads: which of its fields, or fields of its fields ("data.raw_dir").
      types_by_name: types that take the place of the classes' own.
    """
    kind = type(settings)
    hints = typing.get_type_hints(kind, include_extras=True)
    fields: list[tuple[str, Any]] = []
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        inner = [read.partition(".")[2] for read in reads if read.startswith(f"{field.name}.")]
        if field.name not in reads and not inner:
            continue
        if field.name not in reads:
            below = {
                name.partition(".")[2]: other
                for name, other in types_by_name.items()
                if name.startswith(f"{field.name}.")
            }
            value = part_of(value, inner, types_by_name=below)
            hint = _with_marks_of(hint, type(value))
        else:
            hint = _with_marks_of(hint, types_by_name.get(field.name))
            if text := meaning(kind, field.name):
                hint = Annotated[hint, tyro.conf.arg(help=text)]
        fields.append((field.name, hint))
        values[field.name] = value
    part = dataclasses.make_dataclass(kind.__name__, fields, bases=(_Part,), frozen=True)
    part.__doc__ = kind.__doc__
    return part(**values)


def merged(settings: Any, parsed: Any) -> Any:
    """The settings with what was parsed into a part of them (`part_of`).

    Raises:
      ValueError: values that do not go together.
    """
    changes = {}
    for field in dataclasses.fields(parsed):
        value = getattr(parsed, field.name)
        if isinstance(value, _Part):
            value = merged(getattr(settings, field.name), value)
        changes[field.name] = value
    return dataclasses.replace(settings, **changes)


def _settings(settings: Any, *, prefix: str) -> Iterator[Setting]:
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _settings(value, prefix=f"{name}.")
        else:
            yield Setting(name, hints[field.name], meaning(type(settings), field.name), value)


def _with_marks_of(hint: Any, other: Any) -> Any:
    """Another type in place of the one that a hint names; what it is annotated with stays."""
    if other is None:
        return hint
    for mark in getattr(hint, "__metadata__", ()):
        other = Annotated[other, mark]
    return other


@functools.cache
def _texts(owner: type) -> dict[str, str]:
    """Field -> the string under it, from the source of a class."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError, SyntaxError):  # a class that has no source of its own
        return {}
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
