"""Small Python functions with asserts: chains of two to four operations.

A structure is the tuple of the operations' names. Every operation occurs in training. A test prompt
asks for a chain that never occurs in training, under a function name that never occurs there. The
expected values in the asserts are computed, not guessed.
"""

from __future__ import annotations

import functools
import random
from typing import Any

from jaxspec.data.embedded.code_ops import NUMBERS, OPERATIONS, Operation
from jaxspec.data.embedded.split import any_of, members, pick

_VERBS = (
    "get",
    "find",
    "make",
    "build",
    "compute",
    "collect",
    "select",
    "prepare",
    "process",
    "report",
)
_NUMBER_SAMPLES: dict[str, tuple[list[int], ...]] = {
    "numbers": ([3, 8, 5, 2, 9], [4, 1, 7, 6], [6, 6, 3, 10]),
    "scores": ([7, 10, 4, 9], [5, 8, 8, 2], [9, 3, 6, 1]),
    "ages": ([12, 7, 15, 9], [4, 6, 11, 6], [8, 5, 3, 10]),
    "prices": ([5, 12, 3, 8], [9, 9, 4, 6], [2, 7, 10, 1]),
    "values": ([-2, 4, 7, -5, 8], [6, -3, 9, 2], [1, -4, 5, 8]),
    "points": ([1, 5, 9, 4], [8, 2, 2, 7], [3, 6, 12, 5]),
    "temperatures": ([-4, 3, 8, -1], [6, 12, -2, 5], [9, 4, 7, -3]),
    "counts": ([2, 9, 4, 4, 7], [6, 1, 8, 3], [5, 10, 5, 2]),
    "sizes": ([8, 3, 6, 11], [4, 7, 9, 4], [2, 5, 12, 6]),
    "weights": ([10, 4, 9, 5], [3, 8, 6, 7], [12, 2, 5, 9]),
    "marks": ([6, 9, 2, 8], [7, 4, 4, 10], [1, 3, 9, 5]),
    "steps": ([9, 2, 5, 8], [3, 3, 10, 6], [4, 7, 1, 12]),
}
_TEXT_SAMPLES: dict[str, tuple[str, ...]] = {
    "text": ("the red house", "a small stone", "rain on the roof"),
    "title": ("a long road home", "the last tree", "night and stars"),
    "name": ("rosa stone", "peter the great", "anna rose"),
    "sentence": ("we read the book", "the cat sat there", "she sees a star"),
    "line": ("one more time", "over the hill", "to the sea"),
    "phrase": ("best of all", "for a short time", "at the door"),
    "message": ("see you soon", "call me later", "the train is late"),
    "note": ("buy some bread", "water the roses", "ask the teacher"),
    "label": ("green tea", "hot pepper sauce", "rose water"),
    "word_list": ("apple pear plum", "east west south", "red green orange"),
}
_STYLES = (
    ("", "short"),
    (" Use a for loop.", "loop"),
    (" Comment each step.", "commented"),
    (" Add two asserts.", "short"),
    (" Explain it in one sentence.", "explained"),
)
_INTROS = (
    "Here is the function:\n",
    "Here is `{name}`:\n",
    "This function does it:\n",
)
MAX_OPERATIONS = 3


def structures() -> list[tuple[str, ...]]:
    """Every chain of two or three operations (four after a split into words)."""
    found: list[tuple[str, ...]] = []

    def extend(chain: tuple[str, ...], kind: str) -> None:
        if len(chain) > 1:
            found.append(chain)
        limit = MAX_OPERATIONS + ("split" in chain)
        if kind == "end" or len(chain) >= limit:
            return
        for operation in OPERATIONS.values():
            if operation.before == kind and operation.name not in chain:
                extend((*chain, operation.name), operation.after)

    extend((), "numbers")
    extend((), "text")
    return found


@functools.cache
def _table(split: str) -> dict[tuple[bool, int], list[tuple[str, ...]]]:
    """The split's chains, grouped by what they begin with and by length."""
    names = {operation.name for operation in NUMBERS}
    table: dict[tuple[bool, int], list[tuple[str, ...]]] = {}
    for chain in members(structures(), label="code", split=split):
        table.setdefault((chain[0] in names, len(chain)), []).append(chain)
    return table


@functools.cache
def _names(samples: tuple[str, ...], split: str) -> list[tuple[str, ...]]:
    every = [(verb, noun) for verb in _VERBS for noun in samples]
    return members(every, label="code/name", split=split)


def write(rng: random.Random, split: str) -> tuple[tuple[str, str], ...] | None:
    """One request and its answer; None if a value cannot be computed (the largest of none)."""
    on_numbers = rng.random() < 0.6
    length = any_of(rng, (2, 2, 3, 3, 3) if on_numbers else (2, 3, 3, 4))
    chain = any_of(rng, _table(split)[on_numbers, length])
    table: dict[str, Any] = _NUMBER_SAMPLES if on_numbers else _TEXT_SAMPLES
    verb, noun = any_of(rng, _names(tuple(table), split))
    operations = [(OPERATIONS[key], any_of(rng, OPERATIONS[key].constants)) for key in chain]
    name = f"{verb}_{noun}"
    first = pick(rng, table[noun])
    second = pick(rng, [sample for sample in table[noun] if sample != first])
    try:
        asserts = [
            f"assert {name}({_literal(sample)}) == {_literal(_run(operations, sample))}"
            for sample in (first, second)
        ]
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    request, style = any_of(rng, _STYLES)
    prompt = _prompt(rng, name, noun, operations, on_numbers=on_numbers)
    body = _body(operations, noun, style=style)
    code = "\n".join([f"def {name}({noun}):", *body, "", *asserts])
    intro = pick(rng, _INTROS).format(name=name)
    answer = f"{intro}```python\n{code}\n```"
    if style == "explained":
        answer += f"\nIt {_phrases(operations, third_person=True)}."
    return (("user", (prompt + request).strip()), ("assistant", answer))


def _run(operations: list[tuple[Operation, Any]], value: Any) -> Any:
    for operation, constant in operations:
        value = operation.run(value, constant)
    return value


def _literal(value: Any) -> str:
    """Python source of a list, number, truth value or text (in double quotes)."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(_literal(item) for item in value)}]"
    return str(value)


def _phrases(operations: list[tuple[Operation, Any]], *, third_person: bool) -> str:
    """The chain in words: "keeps the even numbers, squares each number and returns the sum"."""
    phrases = []
    for operation, constant in operations:
        verb = operation.verb
        if third_person:
            verb = f"{verb[:-1]}ies" if verb.endswith("ly") else f"{verb}s"
        phrases.append(f"{verb} {operation.rest.format(k=constant)}")
    if operations[-1][0].after != "end":
        phrases.append("returns the result" if third_person else "return the result")
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _prompt(
    rng: random.Random,
    name: str,
    noun: str,
    operations: list[tuple[Operation, Any]],
    *,
    on_numbers: bool,
) -> str:
    kind = "a list of integers" if on_numbers else "a string"
    does = _phrases(operations, third_person=True)
    do = _phrases(operations, third_person=False)
    docstring = f"{do[0].upper()}{do[1:]}."
    return any_of(
        rng,
        (
            f"Write a Python function {name}({noun}) that takes {kind}, {does}.",
            f'Complete the function below.\n\ndef {name}({noun}):\n    """{docstring}"""\n',
            f"I have {kind} called {noun}. Write {name} to {do}.",
            f"Please write {name}({noun}) in Python. It gets {kind} and {does}.",
        ),
    )


def _body(operations: list[tuple[Operation, Any]], noun: str, *, style: str) -> list[str]:
    """The indented lines of the function."""
    lines: list[str] = []
    variable = noun
    for index, (operation, constant) in enumerate(operations):
        is_last = index == len(operations) - 1
        keep, each, whole = (
            template.format(k=constant, x=variable)
            for template in (operation.keep, operation.each, operation.whole)
        )
        if style == "commented":
            lines.append(f"    # {operation.verb} {operation.rest.format(k=constant)}")
        element = "w" if operation.before == "words" else "n"
        if style == "loop" and not whole:
            lines += ["    kept = []", f"    for {element} in {variable}:"]
            lines += [f"        if {keep}:", f"            kept.append({element})"] if keep else []
            lines += [f"        kept.append({each})"] if each else []
            variable = "kept"
            if is_last:
                lines.append("    return kept")
            else:
                lines.append("    result = kept")
                variable = "result"
            continue
        if keep:
            whole = f"[{element} for {element} in {variable} if {keep}]"
        elif each:
            whole = f"[{each} for {element} in {variable}]"
        lines.append(f"    return {whole}" if is_last else f"    result = {whole}")
        variable = "result"
    return lines
