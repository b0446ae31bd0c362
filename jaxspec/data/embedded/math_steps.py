"""Openings and steps of the arithmetic stories: numbers, sentences and worked sentences.

An opening starts a story in a domain (a count of things, money, miles, pages, square feet, an age);
a step takes a number of one domain and makes one of another, or ends the story.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from jaxspec.data.embedded.split import any_of, between


def _listed(text: str) -> tuple[str, ...]:
    """Words separated by commas."""
    return tuple(word.strip() for word in text.split(","))


WOMEN = _listed(
    "Anna, Maria, Lena, Sara, Nora, Ella, Clara, Julia, Emma, Rosa, Ida, Mina, Tara, Lucy"
)
MEN = _listed("Tom, Ben, Paul, Omar, Leo, Max, Ravi, Hugo, Ivan, Karl, Noah, Adam, Felix, Sam")
DAYS = _listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
THINGS: dict[str, tuple[str, ...]] = {
    "count": _listed(
        "apples, stickers, marbles, books, stamps, shells, cookies, pencils, cards, lemons, "
        "eggs, coins, beads, candles, flowers, buttons, muffins, plums, stones, toys"
    ),
    "money": _listed(
        "washing cars, walking dogs, mowing lawns, painting fences, baking bread, cleaning "
        "windows, sorting mail, picking berries, fixing bikes, watering plants, teaching "
        "chess, selling papers"
    ),
    "miles": _listed(
        "lake, coast, city, farm, castle, forest, museum, village, island, valley, harbor, mill"
    ),
    "pages": _listed(
        "a novel, a history book, a travel guide, a mystery, a cookbook, a science book, a "
        "long poem, an art book, a diary, a book of tales"
    ),
    "area": _listed("garden, yard, field, hall, patio, playground, kitchen, barn, studio, market"),
    "age": _listed("brother, sister, cousin, uncle, aunt, neighbor, teacher, coach"),
}


@dataclasses.dataclass
class Story:
    """What is known so far while a problem is being written."""

    name: str
    friend: str
    thing: str
    domain: str
    value: int = 0

    @property
    def they(self) -> str:
        """Pronoun of the main person."""
        return "she" if self.name in WOMEN else "he"

    @property
    def their(self) -> str:
        """Possessive of the main person."""
        return "her" if self.name in WOMEN else "his"

    def amount(self, value: int) -> str:
        """A number with the unit of the story's domain."""
        return {
            "count": f"{value} {self.thing}",
            "money": f"${value}",
            "miles": f"{value} miles",
            "pages": f"{value} pages",
            "area": f"{value} square feet",
            "age": f"{value} years",
        }[self.domain]


@dataclasses.dataclass
class Line:
    """One sentence of the problem and its counterpart in the worked answer."""

    told: tuple[str, ...]
    """Wordings in the problem."""
    worked: tuple[str, ...]
    """Wordings in the answer; each contains the equation."""
    equation: str
    value: int
    question: str = ""
    """What is asked if the story ends here; "": the question of the domain."""
    conclusion: str = ""
    """How the answer closes if the story ends here."""


Build = Callable[[random.Random, Story], Line | None]


@dataclasses.dataclass(frozen=True)
class Step:
    """A step, with the domains before and after it; `after` "end": nothing can follow."""

    build: Build
    before: str
    after: str


OPENINGS: dict[str, tuple[str, Build]] = {}
STEPS: dict[str, Step] = {}


def _opening(domain: str) -> Callable[[Build], Build]:
    def register(build: Build) -> Build:
        OPENINGS[build.__name__.strip("_")] = (domain, build)
        return build

    return register


def register_step(before: str, after: str) -> Callable[[Build], Build]:
    """Add a function to `STEPS` under its own name."""

    def register(build: Build) -> Build:
        STEPS[build.__name__.strip("_")] = Step(build, before, after)
        return build

    return register


# Openings: counts of things.


@_opening("count")
def _boxes(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 2, 9), between(rng, 3, 12)
    eq = f"{a} x {b} = {a * b}"
    return Line(
        (
            f"{s.name} buys {a} boxes of {s.thing} with {b} in each box.",
            f"{s.name} has {a} boxes, and each box holds {b} {s.thing}.",
        ),
        (f"{a} boxes of {b} make {eq} {s.thing}.", f"{s.name} gets {eq} {s.thing}."),
        eq,
        a * b,
    )


@_opening("count")
def _two_days(rng: random.Random, s: Story) -> Line:
    a, b, day = between(rng, 8, 40), between(rng, 5, 40), between(rng, 0, 5)
    eq = f"{a} + {b} = {a + b}"
    return Line(
        (
            f"On {DAYS[day]} {s.name} collects {a} {s.thing}, and on {DAYS[day + 1]} {b} more.",
            f"{s.name} finds {a} {s.thing} on {DAYS[day]} and {b} on {DAYS[day + 1]}.",
        ),
        (
            f"over the two days {s.name} has {eq} {s.thing}.",
            f"the two days together give {eq} {s.thing}.",
        ),
        eq,
        a + b,
    )


@_opening("count")
def _rows(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 3, 9), between(rng, 3, 11)
    eq = f"{a} x {b} = {a * b}"
    return Line(
        (
            f"{s.name} lays out {s.thing} in {a} rows of {b}.",
            f"There are {a} rows on {s.name}'s table, with {b} {s.thing} in each row.",
        ),
        (f"{a} rows of {b} are {eq} {s.thing}.", f"the rows hold {eq} {s.thing}."),
        eq,
        a * b,
    )


@_opening("count")
def _more_than_friend(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 8, 50), between(rng, 3, 30)
    eq = f"{a} + {b} = {a + b}"
    return Line(
        (
            f"{s.friend} has {a} {s.thing}. {s.name} has {b} more than {s.friend}.",
            f"{s.friend} owns {a} {s.thing}, and {s.name} owns {b} more.",
        ),
        (
            f"{s.name} has {b} more than {s.friend}, which is {eq} {s.thing}.",
            f"{s.name} has {eq} {s.thing}.",
        ),
        eq,
        a + b,
    )


@_opening("count")
def _times_friend(rng: random.Random, s: Story) -> Line:
    a, k = between(rng, 4, 20), between(rng, 2, 5)
    eq = f"{k} x {a} = {k * a}"
    return Line(
        (
            f"{s.friend} has {a} {s.thing}, and {s.name} has {k} times as many.",
            f"{s.name} has {k} times as many {s.thing} as {s.friend}, who has {a}.",
        ),
        (
            f"{s.name} has {k} times {a}, which is {eq} {s.thing}.",
            f"{s.name} has {eq} {s.thing}.",
        ),
        eq,
        k * a,
    )


# Openings: the other domains.


@_opening("money")
def _wages(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 2, 9), between(rng, 6, 15)
    eq = f"{a} x {b} = {a * b}"
    return Line(
        (
            f"{s.name} earns ${b} an hour {s.thing} and works {a} hours.",
            f"{s.name} spends {a} hours {s.thing} for ${b} an hour.",
        ),
        (f"{a} hours at ${b} pay {eq} dollars.", f"{s.name} earns {eq} dollars."),
        eq,
        a * b,
    )


@_opening("money")
def _savings(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 3, 9), between(rng, 4, 12)
    eq = f"{a} x {b} = {a * b}"
    return Line(
        (
            f"{s.name} saves ${b} a week for {a} weeks by {s.thing}.",
            f"By {s.thing}, {s.name} puts aside ${b} each week for {a} weeks.",
        ),
        (f"{a} weeks of ${b} add up to {eq} dollars.", f"{s.name} saves {eq} dollars."),
        eq,
        a * b,
    )


@_opening("money")
def _two_jobs(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 10, 60), between(rng, 10, 60)
    eq = f"{a} + {b} = {a + b}"
    return Line(
        (
            f"{s.name} gets ${a} for {s.thing} and ${b} as a birthday gift.",
            f"{s.name} makes ${a} by {s.thing}, and {s.their} uncle gives {s.name} ${b}.",
        ),
        (f"together that is {eq} dollars.", f"{s.name} has {eq} dollars."),
        eq,
        a + b,
    )


@_opening("miles")
def _drive(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 2, 6), 5 * between(rng, 2, 12)
    eq = f"{a} x {b} = {a * b}"
    return Line(
        (
            f"{s.name} drives to the {s.thing} for {a} hours at {b} miles an hour.",
            f"On the way to the {s.thing}, {s.name} drives {b} miles an hour for {a} hours.",
        ),
        (f"{a} hours at {b} miles an hour are {eq} miles.", f"{s.name} drives {eq} miles."),
        eq,
        a * b,
    )


@_opening("miles")
def _two_legs(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 12, 80), between(rng, 12, 80)
    eq = f"{a} + {b} = {a + b}"
    return Line(
        (
            f"{s.name} rides {a} miles to the {s.thing} and then {b} miles to a friend.",
            f"The {s.thing} is {a} miles away. {s.name} goes there and then {b} miles on.",
        ),
        (f"both parts together are {eq} miles.", f"{s.name} covers {eq} miles."),
        eq,
        a + b,
    )


@_opening("pages")
def _daily_pages(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 3, 9), between(rng, 6, 20)
    eq = f"{a} x {b} = {a * b}"
    return Line(
        (
            f"{s.name} reads {b} pages of {s.thing} every day for {a} days.",
            f"For {a} days {s.name} reads {s.thing}, {b} pages a day.",
        ),
        (f"{a} days of {b} pages are {eq} pages.", f"{s.name} reads {eq} pages."),
        eq,
        a * b,
    )


@_opening("pages")
def _two_evenings(rng: random.Random, s: Story) -> Line:
    a, b, day = between(rng, 12, 60), between(rng, 12, 60), between(rng, 0, 5)
    eq = f"{a} + {b} = {a + b}"
    return Line(
        (
            f"{s.name} reads {a} pages of {s.thing} on {DAYS[day]} and {b} on {DAYS[day + 1]}.",
            f"{s.name} has read {a} pages of {s.thing}. On {DAYS[day]} {s.they} reads {b} more.",
        ),
        (f"that makes {eq} pages.", f"{s.name} has read {eq} pages."),
        eq,
        a + b,
    )


@_opening("area")
def _rectangle(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 5, 12), between(rng, 4, 12)
    eq = f"{a} x {b} = {a * b}"
    return Line(
        (
            f"{s.name}'s {s.thing} is {a} feet long and {b} feet wide.",
            f"{s.name} measures a {s.thing} of {a} feet by {b} feet.",
        ),
        (f"the {s.thing} covers {eq} square feet.", f"its area is {eq} square feet."),
        eq,
        a * b,
    )


@_opening("area")
def _two_parts(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 20, 70), between(rng, 20, 70)
    eq = f"{a} + {b} = {a + b}"
    return Line(
        (
            f"{s.name}'s {s.thing} has two parts, of {a} and of {b} square feet.",
            f"One part of {s.name}'s {s.thing} covers {a} square feet, the other {b}.",
        ),
        (f"both parts have {eq} square feet.", f"the {s.thing} covers {eq} square feet."),
        eq,
        a + b,
    )


@_opening("age")
def _older(rng: random.Random, s: Story) -> Line:
    a, b = between(rng, 4, 20), between(rng, 2, 25)
    eq = f"{a} + {b} = {a + b}"
    return Line(
        (
            f"{s.name} is {a} years old, and {s.their} {s.thing} is {b} years older.",
            f"{s.name}'s {s.thing} is {b} years older than {s.name}, who is {a}.",
        ),
        (f"the {s.thing} is {eq} years old.", f"{s.name}'s {s.thing} is {eq} years old."),
        eq,
        a + b,
    )


@_opening("age")
def _times_older(rng: random.Random, s: Story) -> Line:
    a, k = between(rng, 4, 14), between(rng, 2, 4)
    eq = f"{k} x {a} = {k * a}"
    return Line(
        (
            f"{s.name} is {a}, and {s.their} {s.thing} is {k} times as old.",
            f"{s.name}'s {s.thing} is {k} times as old as {s.name}, who is {a}.",
        ),
        (f"the {s.thing} is {eq} years old.", f"{s.name}'s {s.thing} is {eq} years old."),
        eq,
        k * a,
    )


# Steps on counts of things.


@register_step("count", "count")
def _give(rng: random.Random, s: Story) -> Line | None:
    if s.value < 8:
        return None
    b = between(rng, 2, s.value - 4)
    eq = f"{s.value} - {b} = {s.value - b}"
    return Line(
        (
            f"{s.name} gives {b} {s.thing} to {s.friend}.",
            f"{s.friend} gets {b} of the {s.thing} from {s.name}.",
        ),
        (
            f"{s.name} gives away {b}, so {eq} {s.thing} are left.",
            f"after the gift {eq} {s.thing} remain.",
        ),
        eq,
        s.value - b,
    )


@register_step("count", "count")
def _find(rng: random.Random, s: Story) -> Line:
    b = between(rng, 3, 30)
    eq = f"{s.value} + {b} = {s.value + b}"
    return Line(
        (f"{s.friend} brings {b} more {s.thing}.", f"Later {s.name} gets {b} more."),
        (f"{b} more make {eq} {s.thing}.", f"with the new ones there are {eq} {s.thing}."),
        eq,
        s.value + b,
    )


@register_step("count", "count")
def _lose_part(rng: random.Random, s: Story) -> Line | None:
    k = any_of(rng, (2, 3, 4))
    if s.value % k or s.value < 3 * k:
        return None
    part = s.value // k
    word = {2: "Half", 3: "A third", 4: "A quarter"}[k]
    eq = f"{s.value} - {part} = {s.value - part}"
    return Line(
        (
            f"{word} of the {s.thing} get lost.",
            f"{word} of the {s.thing} turn out to be broken and are thrown away.",
        ),
        (
            f"{word.lower()} of {s.value} is {part}, so {eq} {s.thing} are left.",
            f"{s.value} / {k} = {part} are gone, and {eq} {s.thing} are left.",
        ),
        f"{s.value} / {k} = {part}, {eq}",
        s.value - part,
    )


@register_step("count", "count")
def _double(rng: random.Random, s: Story) -> Line | None:
    if s.value > 99:
        return None
    eq = f"2 x {s.value} = {2 * s.value}"
    return Line(
        (f"The next week the number of {s.thing} doubles.", f"{s.name} then doubles the number."),
        (f"doubling gives {eq} {s.thing}.", f"twice as many are {eq} {s.thing}."),
        eq,
        2 * s.value,
    )


@register_step("count", "count")
def _use_daily(rng: random.Random, s: Story) -> Line | None:
    a, b = between(rng, 2, 5), between(rng, 2, 6)
    if s.value < a * b + 3:
        return None
    eq = f"{s.value} - {a * b} = {s.value - a * b}"
    return Line(
        (
            f"{s.name} uses {b} {s.thing} a day for {a} days.",
            f"For {a} days {s.name} takes {b} {s.thing} a day.",
        ),
        (
            f"{a} x {b} = {a * b} are used, so {eq} {s.thing} are left.",
            f"in {a} days {a} x {b} = {a * b} are used, and {eq} remain.",
        ),
        f"{a} x {b} = {a * b}, {eq}",
        s.value - a * b,
    )
