"""The examples of docstrings: what begins with ``>>>`` runs.

A sketch, whose names come from elsewhere (a folder with a model, a long training), is marked
``# doctest: +SKIP``. It is not run, but it has to parse, and its calls have to fit the functions
and classes of the module that it shows.
"""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest
from flax import linen as nn

ROOT = Path(__file__).parent.parent
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules_with_examples() -> list[str]:
    """Dotted names of the modules that have an example; nothing is imported for this."""
    names = []
    for file in sorted((ROOT / "jaxspec").rglob("*.py")):
        if re.search(r"^\s*>>> ", file.read_text(encoding="utf-8"), re.MULTILINE):
            parts = file.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


def is_sketch(example: doctest.Example) -> bool:
    return example.options.get(doctest.SKIP, False)


def wrong_calls(source: str, names: dict[str, object]) -> Iterator[str]:
    """Calls in a sketch that the function or class of this name would refuse."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        called = names.get(call.func.id)
        keywords = [keyword.arg for keyword in call.keywords]
        if (
            not callable(called)
            or None in keywords
            or any(isinstance(a, ast.Starred) for a in call.args)
        ):
            continue
        try:
            inspect.signature(called).bind(*call.args, **dict.fromkeys(keywords))
        except TypeError as error:
            yield f"{ast.unparse(call)}: {error}"


def as_one_program(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        return jax.jit(functools.partial(method, model, **options))(*arguments)

    return call


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write a file
    if name.startswith("jaxspec.models."):
        # Op by op, each model is a hundred programs.
        for method in ("init", "apply"):
            monkeypatch.setattr(nn.Module, method, as_one_program(getattr(nn.Module, method)))
    module = importlib.import_module(name)
    found = examples(module)
    assert found, "the example is in no docstring that doctest reads"
    problems: list[str] = []
    for test in found:
        runner = doctest.DocTestRunner(verbose=False, optionflags=OPTIONS)
        runner.run(test, out=problems.append, clear_globs=False)
        for example in filter(is_sketch, test.examples):
            place = f"{test.filename}:{(test.lineno or 0) + example.lineno + 1}"
            problems += [f"{place}: {wrong}" for wrong in wrong_calls(example.source, test.globs)]
    assert not problems, "".join(problems)


@pytest.mark.parametrize(
    ("source", "right"),
    [
        ("f(x, size=2)", True),
        ("f(*x)", True),
        ("g(1, 2, 3)", True),
        ("f(x, length=2)", False),
        ("y = f(f(x), 3)", False),
    ],
)
def test_calls_of_a_sketch_are_checked(source, right):
    def f(x, *, size=1):
        return x, size

    assert (list(wrong_calls(source, {"f": f})) == []) == right
