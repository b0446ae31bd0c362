"""Whether the values of a configuration are of the types and among the names that settings take.

A command line is checked as it is parsed. A config file is Python and can put anything anywhere;
here its values are checked against the same type hints, and names against the registry that knows
them.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any, Literal

from jaxspec.config import RunConfig
from jaxspec.names import did_you_mean


@dataclasses.dataclass(frozen=True)
class Registry:
    """Where the names are that a setting may have: a mapping or a tuple in a module.

    The module is imported when the names are needed, since it may import jax.
    """

    module: str
    attribute: str
    also: tuple[str, ...] = ()
    """Further names, which the registry does not hold."""

    def names(self) -> tuple[str, ...]:
        """The names in the registry's order, after those that are allowed as well."""
        entries: Collection[str] = getattr(importlib.import_module(self.module), self.attribute)
        return (*self.also, *entries)


REGISTRIES: dict[str, Registry] = {
    "loss.objective": Registry("jaxspec.losses.objectives", "OBJECTIVES"),
    "evaluation.verifier": Registry("jaxspec.verify.rules", "RULES", also=("auto",)),
    "diffusion.unmasking": Registry("jaxspec.decoding.diffusion.unmasking", "UNMASKING"),
}
"""Settings whose value is a name in a registry."""


def type_problems(settings: Any, *, prefix: str = "") -> Iterator[str]:
    """Says of every setting with a value of the wrong type: its name, got, expected.

    Args:
      settings: a dataclass, such as a `RunConfig`.
      prefix: what the names of its fields begin with.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        yield from _problems(getattr(settings, field.name), hints[field.name], prefix + field.name)


def name_problems(run: RunConfig, *, known: RunConfig) -> Iterator[str]:
    """Says of every setting whose name no registry has: the setting, got, expected.

    Args:
      run: what is checked.
      known: a run whose names are right, such as ``RunConfig()``; equal ones are not looked up,
        which spares an import.
    """
    for setting, registry in REGISTRIES.items():
        name = value_of(run, setting)
        if name == value_of(known, setting):
            continue
        names = registry.names()
        if name not in names:
            hint = did_you_mean(str(name), names)
            yield f"{setting}: got {name!r}, expected {_any_of(names)}.{hint}"


def list_problems(option: str, value: str, registry: Registry) -> Iterator[str]:
    """Says of every name in a list, separated by commas, that the registry does not have it."""
    for name in filter(None, map(str.strip, value.split(","))):
        if name not in (names := registry.names()):
            hint = did_you_mean(name, names)
            yield f"{option}: got {name!r}, expected {_any_of(names)}.{hint}"


def value_of(run: RunConfig, setting: str) -> Any:
    """The value of a setting that is named as it is typed."""
    value: Any = run
    for part in setting.split("."):
        value = getattr(value, part)
    return value


def _problems(value: Any, hint: Any, where: str) -> Iterator[str]:
    """What is wrong with one value. Types that no setting has today let everything pass."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return
    if origin in (typing.Union, types.UnionType):
        found = [list(_problems(value, argument, where)) for argument in arguments]
        if all(found):
            # Of an optional group, the problem inside it says more.
            inner = [problem for problem in itertools.chain(*found) if _is_inside(problem, where)]
            yield from inner or [_got(value, where, hint)]
    elif origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            choices = [choice for choice in arguments if isinstance(choice, str)]
            yield _got(value, where, hint) + did_you_mean(str(value), choices)
    elif origin is tuple:
        if not isinstance(value, tuple):
            yield _got(value, where, hint)
        elif len(arguments) == 2 and arguments[1] is Ellipsis:
            for place, item in enumerate(value):
                yield from _problems(item, arguments[0], f"{where}[{place}]")
        elif len(arguments) != len(value):
            yield _got(value, where, hint)
        else:
            for place, (item, kind) in enumerate(zip(value, arguments, strict=True)):
                yield from _problems(item, kind, f"{where}[{place}]")
    elif isinstance(kind := origin or hint, type):
        if not _is_a(value, kind):
            yield _got(value, where, hint)
        elif dataclasses.is_dataclass(value):
            yield from type_problems(value, prefix=f"{where}.")


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def _is_inside(problem: str, where: str) -> bool:
    return problem.startswith((f"{where}.", f"{where}["))


def _got(value: Any, where: str, hint: Any) -> str:
    kind = "" if value is None else f" ({type(value).__name__})"
    return f"{where}: got {value!r}{kind}, expected {_expected(hint)}."


def _expected(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_expected, arguments))
    if origin is Literal:
        return _any_of(arguments)
    if origin is tuple:
        kinds = [argument for argument in arguments if argument is not Ellipsis]
        return f"a tuple of {', '.join(map(_expected, kinds))}"
    if hint is type(None):
        return "None"
    return getattr(origin or hint, "__name__", str(hint))


def _any_of(names: Collection[Any]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last
