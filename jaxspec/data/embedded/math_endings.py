"""More steps of the arithmetic stories, and steps that end a story with their own question.

These are the steps on money, miles, pages, areas and ages; importing this completes `STEPS`.
"""

from __future__ import annotations

import random

from jaxspec.data.embedded.math_steps import STEPS, Line, Story, register_step
from jaxspec.data.embedded.split import any_of, between

__all__ = ["STEPS"]


def _divisor(rng: random.Random, value: int, low: int = 2, high: int = 9) -> int | None:
    choices = [k for k in range(low, high + 1) if value % k == 0 and value // k >= 2]
    return any_of(rng, choices) if choices else None


# Counts of things.


@register_step("count", "money")
def _sell(rng: random.Random, s: Story) -> Line | None:
    b = between(rng, 2, 6)
    if s.value > 60:
        return None
    eq = f"{s.value} x {b} = {s.value * b}"
    return Line(
        (
            f"{s.name} sells all the {s.thing} for ${b} each.",
            f"All the {s.thing} are sold at ${b} each.",
        ),
        (
            f"selling {s.value} {s.thing} at ${b} brings {eq} dollars.",
            f"the {s.thing} bring {eq} dollars.",
        ),
        eq,
        s.value * b,
    )


@register_step("count", "end")
def _share(rng: random.Random, s: Story) -> Line | None:
    k = _divisor(rng, s.value)
    if k is None:
        return None
    eq = f"{s.value} / {k} = {s.value // k}"
    return Line(
        (
            f"{s.name} shares the {s.thing} equally among {k} children.",
            f"{k} children share the {s.thing} equally.",
        ),
        (f"each of the {k} children gets {eq} {s.thing}.", f"shared by {k}, that is {eq} each."),
        eq,
        s.value // k,
        f"How many {s.thing} does each child get?",
        f"Each child gets {s.value // k} {s.thing}.",
    )


@register_step("count", "end")
def _bags(rng: random.Random, s: Story) -> Line | None:
    k = _divisor(rng, s.value, 3)
    if k is None:
        return None
    eq = f"{s.value} / {k} = {s.value // k}"
    return Line(
        (f"{s.name} packs the {s.thing} into bags of {k}.", f"Each bag holds {k} {s.thing}."),
        (f"with {k} to a bag, {eq} bags are needed.", f"that fills {eq} bags."),
        eq,
        s.value // k,
        f"How many bags can {s.name} fill?",
        f"{s.name} can fill {s.value // k} bags.",
    )


@register_step("count", "end")
def _compare(rng: random.Random, s: Story) -> Line | None:
    if s.value < 10:
        return None
    b = between(rng, 3, s.value - 3)
    eq = f"{s.value} - {b} = {s.value - b}"
    return Line(
        (f"A friend has {b} {s.thing}.", f"{s.name}'s friend has only {b} {s.thing}."),
        (f"the difference is {eq} {s.thing}.", f"compared with the friend that is {eq} more."),
        eq,
        s.value - b,
        f"How many more {s.thing} does {s.name} have than this friend?",
        f"{s.name} has {s.value - b} more {s.thing} than this friend.",
    )


@register_step("count", "end")
def _goal_count(rng: random.Random, s: Story) -> Line:
    b = between(rng, 4, 40)
    eq = f"{s.value + b} - {s.value} = {b}"
    return Line(
        (f"{s.name} wants to have {s.value + b} {s.thing}.", f"The goal is {s.value + b}."),
        (f"to reach the goal {eq} more are needed.", f"what is missing is {eq} {s.thing}."),
        eq,
        b,
        f"How many more {s.thing} does {s.name} need?",
        f"{s.name} needs {b} more {s.thing}.",
    )


# Money.


@register_step("money", "money")
def _spend(rng: random.Random, s: Story) -> Line | None:
    if s.value < 12:
        return None
    b = between(rng, 3, s.value - 5)
    thing = any_of(rng, ("a gift", "a shirt", "lunch", "a game", "new shoes", "a lamp"))
    eq = f"{s.value} - {b} = {s.value - b}"
    return Line(
        (f"{s.name} spends ${b} on {thing}.", f"Then {s.name} pays ${b} for {thing}."),
        (
            f"after paying ${b} for {thing}, {eq} dollars are left.",
            f"{thing} costs ${b}, so {eq} dollars remain.",
        ),
        eq,
        s.value - b,
    )


@register_step("money", "money")
def _buy_several(rng: random.Random, s: Story) -> Line | None:
    a, b = between(rng, 2, 6), between(rng, 2, 9)
    if s.value < a * b + 4:
        return None
    thing = any_of(rng, ("tickets", "sandwiches", "plants", "notebooks", "drinks", "pies"))
    eq = f"{s.value} - {a * b} = {s.value - a * b}"
    return Line(
        (
            f"{s.name} buys {a} {thing} at ${b} each.",
            f"{s.name} then pays for {a} {thing} that cost ${b} each.",
        ),
        (
            f"the {thing} cost {a} x {b} = {a * b} dollars, so {eq} dollars are left.",
            f"{a} {thing} cost {a} x {b} = {a * b} dollars, which leaves {eq} dollars.",
        ),
        f"{a} x {b} = {a * b}, {eq}",
        s.value - a * b,
    )


@register_step("money", "money")
def _earn(rng: random.Random, s: Story) -> Line:
    b = between(rng, 5, 45)
    eq = f"{s.value} + {b} = {s.value + b}"
    return Line(
        (f"{s.friend} pays {s.name} back ${b}.", f"{s.name} also earns a bonus of ${b}."),
        (f"with ${b} more, there are {eq} dollars.", f"adding ${b} gives {eq} dollars."),
        eq,
        s.value + b,
    )


@register_step("money", "money")
def _percent(rng: random.Random, s: Story) -> Line | None:
    p = any_of(rng, (10, 20, 25, 50))
    if s.value * p % 100:
        return None
    part = s.value * p // 100
    eq = f"{s.value} - {part} = {s.value - part}"
    return Line(
        (
            f"{s.name} gives {p}% of the money to {s.friend}.",
            f"{p}% of the money goes to a good cause.",
        ),
        (
            f"{p}% of {s.value} is {part}, so {eq} dollars are left.",
            f"{p}% of {s.value} dollars are {part} dollars, which leaves {eq} dollars.",
        ),
        f"{p}% of {s.value} = {part}, {eq}",
        s.value - part,
    )


@register_step("money", "end")
def _goal_money(rng: random.Random, s: Story) -> Line:
    b = between(rng, 5, 60)
    thing = any_of(rng, ("bike", "camera", "tent", "guitar", "desk", "coat"))
    eq = f"{s.value + b} - {s.value} = {b}"
    return Line(
        (f"A {thing} costs ${s.value + b}.", f"{s.name} wants a {thing} for ${s.value + b}."),
        (f"for the {thing}, {eq} dollars are missing.", f"the {thing} needs {eq} dollars more."),
        eq,
        b,
        f"How much more money does {s.name} need for the {thing}?",
        f"{s.name} needs ${b} more for the {thing}.",
    )


@register_step("money", "end")
def _split_money(rng: random.Random, s: Story) -> Line | None:
    k = _divisor(rng, s.value)
    if k is None:
        return None
    eq = f"{s.value} / {k} = {s.value // k}"
    return Line(
        (f"The money is split equally among {k} people.", f"{k} people share the money equally."),
        (f"each of the {k} people gets {eq} dollars.", f"one share is {eq} dollars."),
        eq,
        s.value // k,
        "How much money does each person get?",
        f"Each person gets ${s.value // k}.",
    )


@register_step("money", "end")
def _how_many_tickets(rng: random.Random, s: Story) -> Line | None:
    k = _divisor(rng, s.value, 3)
    if k is None:
        return None
    thing = any_of(rng, ("rides", "tickets", "comics", "plates", "pens"))
    eq = f"{s.value} / {k} = {s.value // k}"
    return Line(
        (f"{s.name} spends all the money on {thing} at ${k} each.", f"{thing} cost ${k} each."),
        (f"at ${k} each, the money pays for {eq} {thing}.", f"that buys {eq} {thing}."),
        eq,
        s.value // k,
        f"How many {thing} can {s.name} buy?",
        f"{s.name} can buy {s.value // k} {thing}.",
    )


# Miles, pages, square feet, ages.


@register_step("miles", "miles")
def _farther(rng: random.Random, s: Story) -> Line:
    b = between(rng, 6, 60)
    eq = f"{s.value} + {b} = {s.value + b}"
    return Line(
        (f"After a break {s.they} goes {b} miles farther.", f"A detour adds {b} miles."),
        (f"{b} more miles make {eq} miles.", f"with the extra way it is {eq} miles."),
        eq,
        s.value + b,
    )


@register_step("miles", "miles")
def _and_back(rng: random.Random, s: Story) -> Line:
    eq = f"2 x {s.value} = {2 * s.value}"
    return Line(
        (f"{s.name} takes the same way back.", "The way back is just as long."),
        (f"there and back is {eq} miles.", f"with the way back that is {eq} miles."),
        eq,
        2 * s.value,
    )


@register_step("miles", "end")
def _remaining_miles(rng: random.Random, s: Story) -> Line:
    b = between(rng, 10, 90)
    eq = f"{s.value + b} - {s.value} = {b}"
    return Line(
        (f"The whole trip is {s.value + b} miles.", f"{s.name} plans {s.value + b} miles in all."),
        (f"of {s.value + b} miles, {eq} miles remain.", f"what is left is {eq} miles."),
        eq,
        b,
        f"How many miles does {s.name} still have to go?",
        f"{s.name} still has {b} miles to go.",
    )


@register_step("miles", "end")
def _fuel(rng: random.Random, s: Story) -> Line | None:
    k = _divisor(rng, s.value, 5, 30)
    if k is None:
        return None
    eq = f"{s.value} / {k} = {s.value // k}"
    return Line(
        (f"The car needs one gallon for {k} miles.", f"One gallon lasts for {k} miles."),
        (f"at {k} miles a gallon this takes {eq} gallons.", f"the car uses {eq} gallons."),
        eq,
        s.value // k,
        "How many gallons does the car use?",
        f"The car uses {s.value // k} gallons.",
    )


@register_step("pages", "pages")
def _more_pages(rng: random.Random, s: Story) -> Line:
    b = between(rng, 5, 50)
    eq = f"{s.value} + {b} = {s.value + b}"
    return Line(
        (f"On the weekend {s.they} reads {b} more pages.", f"Then {s.name} reads {b} pages more."),
        (f"{b} more pages make {eq} pages.", f"adding them gives {eq} pages."),
        eq,
        s.value + b,
    )


@register_step("pages", "end")
def _remaining_pages(rng: random.Random, s: Story) -> Line:
    b = between(rng, 10, 99)
    eq = f"{s.value + b} - {s.value} = {b}"
    return Line(
        (f"There are {s.value + b} pages in all.", f"The last page is page {s.value + b}."),
        (f"of {s.value + b} pages, {eq} pages remain.", f"what is left is {eq} pages."),
        eq,
        b,
        f"How many pages does {s.name} still have to read?",
        f"{s.name} still has {b} pages to read.",
    )


@register_step("pages", "end")
def _reading_time(rng: random.Random, s: Story) -> Line | None:
    k = _divisor(rng, s.value, 3, 20)
    if k is None:
        return None
    eq = f"{s.value} / {k} = {s.value // k}"
    return Line(
        (f"{s.friend} reads the same pages at {k} a day.", f"{s.friend} reads only {k} a day."),
        (f"at {k} pages a day this takes {eq} days.", f"{s.friend} needs {eq} days."),
        eq,
        s.value // k,
        f"How many days does {s.friend} need for these pages?",
        f"{s.friend} needs {s.value // k} days.",
    )


@register_step("area", "area")
def _cover(rng: random.Random, s: Story) -> Line | None:
    b = between(rng, 4, 30)
    if s.value < b + 6:
        return None
    thing = any_of(rng, ("pond", "shed", "stage", "table", "sandbox", "carpet"))
    eq = f"{s.value} - {b} = {s.value - b}"
    return Line(
        (f"A {thing} takes up {b} square feet of it.", f"{b} square feet go to a {thing}."),
        (
            f"without the {thing}, {eq} square feet are free.",
            f"the {thing} leaves {eq} square feet.",
        ),
        eq,
        s.value - b,
    )


@register_step("area", "area")
def _extend(rng: random.Random, s: Story) -> Line:
    b = between(rng, 6, 50)
    eq = f"{s.value} + {b} = {s.value + b}"
    return Line(
        (f"{s.name} adds {b} square feet to it.", f"It is made {b} square feet larger."),
        (f"with the addition it has {eq} square feet.", f"it grows to {eq} square feet."),
        eq,
        s.value + b,
    )


@register_step("area", "money")
def _cost_per_foot(rng: random.Random, s: Story) -> Line | None:
    b = between(rng, 2, 5)
    if s.value > 99:
        return None
    eq = f"{s.value} x {b} = {s.value * b}"
    return Line(
        (
            f"{s.name} rents it out for ${b} a square foot.",
            f"{s.name} is paid ${b} for each square foot.",
        ),
        (f"at ${b} a square foot that is {eq} dollars.", f"this brings {eq} dollars."),
        eq,
        s.value * b,
    )


@register_step("area", "end")
def _tiles(rng: random.Random, s: Story) -> Line | None:
    k = _divisor(rng, s.value)
    if k is None:
        return None
    eq = f"{s.value} / {k} = {s.value // k}"
    return Line(
        (f"One can of paint is enough for {k} square feet.", f"A can covers {k} square feet."),
        (f"at {k} square feet a can, {eq} cans are needed.", f"this takes {eq} cans."),
        eq,
        s.value // k,
        f"How many cans of paint does {s.name} need for it?",
        f"{s.name} needs {s.value // k} cans.",
    )


@register_step("age", "age")
def _years_later(rng: random.Random, s: Story) -> Line:
    b = between(rng, 2, 20)
    eq = f"{s.value} + {b} = {s.value + b}"
    return Line(
        (f"Now {b} years go by.", f"{b} years pass."),
        (f"{b} years later the {s.thing} is {eq}.", f"adding {b} years gives {eq}."),
        eq,
        s.value + b,
    )


@register_step("age", "end")
def _compare_age(rng: random.Random, s: Story) -> Line | None:
    b = between(rng, 3, 30)
    if s.value <= b:
        return None
    eq = f"{s.value} - {b} = {s.value - b}"
    return Line(
        (f"At that time {s.friend} is {b}.", f"{s.friend} is then {b} years old."),
        (f"the difference in age is {eq} years.", f"compared with {s.friend} that is {eq} more."),
        eq,
        s.value - b,
        f"How many years older than {s.friend} is the {s.thing} then?",
        f"The {s.thing} is {s.value - b} years older than {s.friend}.",
    )


@register_step("age", "end")
def _sum_age(rng: random.Random, s: Story) -> Line:
    b = between(rng, 3, 40)
    eq = f"{s.value} + {b} = {s.value + b}"
    return Line(
        (f"At that time {s.friend} is {b}.", f"{s.friend} is then {b} years old."),
        (f"their ages add up to {eq} years.", f"the sum is {eq} years."),
        eq,
        s.value + b,
        f"How old are {s.friend} and the {s.thing} together then?",
        f"Together they are {s.value + b} years old.",
    )
