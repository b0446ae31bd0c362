"""Arithmetic stories with worked answers: an opening and one to three steps.

A structure is the names of an opening and its steps. Every step occurs in training. A test story
has a combination of steps that never occurs in training, told about a pair of name and thing that
never occurs in training. The last line of an answer is "#### N".
"""

from __future__ import annotations

import functools
import random

from jaxspec.data.embedded.math_endings import STEPS
from jaxspec.data.embedded.math_steps import MEN, OPENINGS, THINGS, WOMEN, Line, Story
from jaxspec.data.embedded.split import any_of, members, pick

MAX_STEPS = 3
_NAMES = WOMEN + MEN
_REQUESTS = (
    ("", "plain"),
    (" Show your work.", "plain"),
    (" Number the steps.", "numbered"),
    (" Explain how you get there.", "plain"),
    (" Be brief.", "brief"),
    (" Just show the equations.", "brief"),
)
_CONNECTORS = (
    ("", "First, ", "To begin, "),
    ("Then ", "Next, ", "After that, "),
    ("Next, ", "Then ", "After that, "),
    ("Finally, ", "Then ", "At last "),
)


def structures() -> list[tuple[str, ...]]:
    """Every possible story: an opening and at least one step that fits after it."""
    found: list[tuple[str, ...]] = []

    def extend(structure: tuple[str, ...], domain: str) -> None:
        if len(structure) > 1:
            found.append(structure)
        if domain == "end" or len(structure) > MAX_STEPS:
            return
        for name, step in STEPS.items():
            if step.before == domain and name not in structure:
                extend((*structure, name), step.after)

    for name, (domain, _) in OPENINGS.items():
        extend((name,), domain)
    return found


@functools.cache
def _table(split: str) -> dict[int, dict[str, list[tuple[str, ...]]]]:
    """The split's structures by number of steps and opening, so that none is drawn too rarely."""
    table: dict[int, dict[str, list[tuple[str, ...]]]] = {}
    for structure in members(structures(), label="math", split=split):
        by_opening = table.setdefault(len(structure) - 1, {})
        by_opening.setdefault(structure[0], []).append(structure)
    return table


@functools.cache
def _pairs(domain: str, split: str) -> list[tuple[str, ...]]:
    every = [(name, thing) for name in _NAMES for thing in THINGS[domain]]
    return members(every, label=f"math/{domain}", split=split)


def write(rng: random.Random, split: str) -> tuple[tuple[str, str], ...] | None:
    """One problem and its worked answer; None if a number cannot be divided as a step needs."""
    by_opening = _table(split)[any_of(rng, (1, 2, 2, 2, 3))]
    structure = any_of(rng, by_opening[any_of(rng, sorted(by_opening))])
    domain, build = OPENINGS[structure[0]]
    name, thing = any_of(rng, _pairs(domain, split))
    friend = any_of(rng, [other for other in _NAMES if other != name])
    story = Story(name=name, friend=friend, thing=thing, domain=domain)
    lines: list[Line] = []
    for step_name in structure:
        line = build(rng, story) if not lines else STEPS[step_name].build(rng, story)
        if line is None or line.value < 1 or line.value > 999:
            return None
        lines.append(line)
        story.value = line.value
        after = STEPS[step_name].after if step_name in STEPS else domain
        story.domain = story.domain if after == "end" else after
    question, conclusion = _closing(story, lines[-1])
    request, style = any_of(rng, _REQUESTS)
    problem = " ".join([_capital(pick(rng, line.told)) for line in lines])
    answer = _answer(rng, lines, conclusion, style=style)
    return (("user", f"{problem} {question}{request}"), ("assistant", answer))


def _closing(story: Story, last: Line) -> tuple[str, str]:
    """The question and the sentence that answers it."""
    if last.question:
        return last.question, last.conclusion
    amount = story.amount(story.value)
    return {
        "count": (
            f"How many {story.thing} are there now?",
            f"There are {amount} now.",
        ),
        "money": (f"How much money does {story.name} have now?", f"{story.name} has {amount} now."),
        "miles": (f"How far does {story.name} go in all?", f"{story.name} goes {amount} in all."),
        "pages": (f"How many pages does {story.name} read?", f"{story.name} reads {amount}."),
        "area": ("How many square feet are there now?", f"There are {amount} now."),
        "age": (f"How old is the {story.thing} then?", f"The {story.thing} is {amount} old."),
    }[story.domain]


def _answer(rng: random.Random, lines: list[Line], conclusion: str, *, style: str) -> str:
    last = len(lines) - 1
    if style == "brief":
        steps = [line.equation for line in lines]
    elif style == "numbered":
        steps = [f"{i}. {_capital(pick(rng, line.worked))}" for i, line in enumerate(lines, 1)]
    else:
        sentences = []
        for i, line in enumerate(lines):
            connector = pick(rng, _CONNECTORS[3 if i == last and i > 1 else i])
            sentences.append(_capital(connector + pick(rng, line.worked)))
        return f"{' '.join(sentences)} {conclusion}\n#### {lines[-1].value}"
    return "\n".join([*steps, conclusion, f"#### {lines[-1].value}"])


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
