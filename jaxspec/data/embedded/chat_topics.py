"""What the dialogues of the embedded corpus talk about: fields with tables of simple facts.

Most cells of a table have one of a few values, and each value includes its reason, so that an
answer about an unseen combination of topic and questions can be composed from what training showed.
This module holds plants, dishes and animals; `chat_people` has the other fields.
"""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Aspect:
    """Something that can be asked about every topic of a field."""

    label: str
    """Its name in a list: "Light"."""
    asked: tuple[str, ...]
    """Indirect questions: "how much light {it} needs"."""
    answered: tuple[str, ...]
    """Sentences with {topic}, {it} and the fact as {fact}."""
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    """A sentence for each fact; empty if the facts need none."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of everyday knowledge: aspects, and a row of facts for each topic."""

    it: str
    """Pronoun of a topic: "it" or "they"."""
    wish: str
    """What the user says first: "I want to grow {topic}"."""
    aspects: dict[str, Aspect]
    topics: dict[str, tuple[str, ...]]
    """Facts of each topic, in the order of the aspects."""
    closings: tuple[str, ...]


def rows(text: str) -> dict[str, tuple[str, ...]]:
    """Read "topic: fact | fact | ..." entries; a line that ends with "|" continues on the next."""
    rows = {}
    for line in re.sub(r"\|\s*\n", "|", text).strip().splitlines():
        topic, facts = line.split(":")
        rows[topic.strip()] = tuple(fact.strip() for fact in facts.split("|"))
    return rows


PLANTS = Field(
    it="they",
    wish="I want to grow {topic}",
    aspects={
        "light": Aspect(
            "Light",
            ("how much light they need", "where I should put them"),
            ("{Topic} grow best in {fact}.", "Give them a place in {fact}."),
            {
                "full sun": "Strong light makes the stems firm.",
                "half shade": "Too much sun burns the leaves.",
                "bright rooms": "They bend when the room is dark.",
            },
        ),
        "water": Aspect(
            "Water",
            ("how often to water them", "how much water they need"),
            ("Water them {fact}.", "They want water {fact}."),
            {
                "every day": "The soil should never dry out.",
                "twice a week": "Let the top of the soil dry in between.",
                "once a week": "Wet roots rot quickly.",
            },
        ),
        "soil": Aspect(
            "Soil",
            ("which soil is best", "what soil to use"),
            ("Use {fact}.", "The best soil for {topic} is {fact}."),
            {
                "rich garden soil": "They are hungry plants.",
                "sandy soil": "Water must run off fast.",
                "light potting soil": "Young roots need air.",
            },
        ),
        "start": Aspect(
            "Planting time",
            ("when to plant them", "which month is right for planting"),
            ("Plant them in {fact}.", "The right time for planting is {fact}."),
            {
                "early spring": "A little frost does no harm.",
                "late spring": "They cannot stand frost.",
                "autumn": "The roots grow during the winter.",
            },
        ),
        "trouble": Aspect(
            "Problem",
            ("what can go wrong", "which problem is common"),
            ("The usual problem is {fact}.", "Watch out for {fact}."),
            {
                "snails": "Collect them in the evening.",
                "yellow leaves": "That means too much water.",
                "small green flies": "Wash them off with soap and water.",
                "dry tips": "Move the pot away from the heater.",
            },
        ),
    },
    topics=rows(
        """
        tomatoes: full sun | every day | rich garden soil | late spring | yellow leaves
        basil: bright rooms | every day | light potting soil | late spring | snails
        roses: full sun | twice a week | rich garden soil | autumn | small green flies
        ferns: half shade | twice a week | light potting soil | early spring | dry tips
        cactus plants: full sun | once a week | sandy soil | early spring | yellow leaves
        beans: full sun | twice a week | rich garden soil | late spring | small green flies
        tulips: half shade | once a week | sandy soil | autumn | snails
        peppers: full sun | every day | light potting soil | late spring | small green flies
        lettuce: half shade | every day | rich garden soil | early spring | snails
        orchids: bright rooms | once a week | light potting soil | early spring | dry tips
        mint plants: half shade | every day | light potting soil | autumn | yellow leaves
        carrots: full sun | twice a week | sandy soil | early spring | snails
        """
    ),
    closings=(
        "With a little patience they will grow well.",
        "Have fun in the garden.",
        "After a few weeks you will see new leaves.",
    ),
)

DISHES = Field(
    it="it",
    wish="I want to cook {topic}",
    aspects={
        "parts": Aspect(
            "Ingredients",
            ("what I have to buy", "which ingredients I need"),
            ("You need {fact}.", "For {topic} buy {fact}."),
        ),
        "first": Aspect(
            "First step",
            ("how to begin", "what to do first"),
            ("First, {fact}.", "Begin like this: {fact}."),
            {
                "cut everything into small pieces": "Small pieces cook evenly.",
                "boil a large pot of water": "Add some salt to it.",
                "heat a little oil in a pan": "It is ready when it shines.",
                "mix it all in a bowl": "Stir until it is smooth.",
            },
        ),
        "time": Aspect(
            "Time",
            ("how long it takes", "how much time I should plan"),
            ("It takes about {fact}.", "Plan {fact} for {topic}."),
            {
                "ten minutes": "That is quick enough for a busy evening.",
                "half an hour": "Most of that time you only wait.",
                "one hour": "You can set the table meanwhile.",
            },
        ),
        "side": Aspect(
            "Served with",
            ("what goes well with it", "what to serve with it"),
            ("It goes well with {fact}.", "Serve it with {fact}."),
            {
                "fresh bread": "The bread takes up the sauce.",
                "a green salad": "Something fresh makes the meal lighter.",
                "rice": "Rice is mild and filling.",
                "fruit": "The fruit adds a sweet note.",
            },
        ),
        "mistake": Aspect(
            "Mistake to avoid",
            ("what I should avoid", "which mistake is common"),
            ("Do not {fact}.", "The most common mistake: cooks {fact}."),
            {
                "use too much salt": "You can always add more at the table.",
                "cook it too long": "It becomes soft and loses its taste.",
                "stir it too much": "It falls apart.",
                "hurry": "Good taste needs a little time.",
            },
        ),
    },
    topics=rows(
        """
        tomato soup: tomatoes, onions and cream | cut everything into small pieces |
            half an hour | fresh bread | use too much salt
        pancakes: flour, milk and eggs | mix it all in a bowl | half an hour | fruit |
            stir it too much
        fried rice: rice, eggs and peas | heat a little oil in a pan | ten minutes |
            a green salad | stir it too much
        noodles with cheese: noodles, butter and cheese | boil a large pot of water |
            ten minutes | a green salad | cook it too long
        bean stew: beans, carrots and onions | cut everything into small pieces | one hour |
            rice | hurry
        apple cake: apples, flour and eggs | mix it all in a bowl | one hour | fruit | hurry
        an omelet: eggs, butter and cheese | heat a little oil in a pan | ten minutes |
            fresh bread | cook it too long
        potato soup: potatoes, carrots and cream | boil a large pot of water | half an hour |
            fresh bread | use too much salt
        vegetable curry: carrots, peas and cream | heat a little oil in a pan | half an hour |
            rice | use too much salt
        fish with lemon: fish, lemons and butter | heat a little oil in a pan | half an hour |
            rice | cook it too long
        oatmeal: oats, milk and apples | boil a large pot of water | ten minutes | fruit |
            cook it too long
        egg salad: eggs, onions and cream | cut everything into small pieces | ten minutes |
            fresh bread | stir it too much
        """
    ),
    closings=(
        "Enjoy your meal.",
        "Taste it once before you serve it.",
        "It is even better on the next day.",
    ),
)

ANIMALS = Field(
    it="they",
    wish="I am learning about {topic}",
    aspects={
        "food": Aspect(
            "Food",
            ("what they eat", "which food they like"),
            ("{Topic} eat mostly {fact}.", "Their main food is {fact}."),
            {
                "grass and leaves": "They chew for many hours a day.",
                "insects": "One animal can eat hundreds in a night.",
                "fish": "They wait quietly and then strike.",
                "seeds and nuts": "They hide some for the winter.",
                "small animals": "They hunt when it is quiet.",
            },
        ),
        "home": Aspect(
            "Home",
            ("where they live", "what kind of home they have"),
            ("They live in {fact}.", "You find {topic} in {fact}."),
            {
                "old trees": "There they are safe from the wind.",
                "holes in the ground": "It stays warm down there.",
                "rivers and lakes": "They never go far from the water.",
                "open fields": "They can see danger from far away.",
            },
        ),
        "active": Aspect(
            "Active",
            ("when they are active", "at what time I can see them"),
            ("They are active {fact}.", "The best time to see {topic} is {fact}."),
            {
                "at night": "Their ears are very good.",
                "during the day": "They use the light to find food.",
                "in the early morning": "Later it is too warm for them.",
            },
        ),
        "winter": Aspect(
            "Winter",
            ("what they do in winter", "how they get through the winter"),
            ("In winter they {fact}.", "When it gets cold, {topic} {fact}."),
            {
                "sleep for months": "They live on the fat of the summer.",
                "fly to the south": "The way is long and takes weeks.",
                "grow a thick coat": "It keeps out the snow.",
                "stay close together": "A group loses less heat.",
            },
        ),
        "danger": Aspect(
            "Danger",
            ("what is a danger to them", "what they fear"),
            ("Their greatest danger is {fact}.", "They have to fear {fact}."),
            {
                "cars": "Many are hit on roads at night.",
                "large birds": "An attack comes from above.",
                "dirty water": "It takes away their food.",
                "dogs": "So please keep yours on a leash.",
            },
        ),
    },
    topics=rows(
        """
        owls: small animals | old trees | at night | stay close together | cars
        bats: insects | old trees | at night | sleep for months | large birds
        hedgehogs: insects | holes in the ground | at night | sleep for months | cars
        rabbits: grass and leaves | holes in the ground | in the early morning |
            grow a thick coat | dogs
        squirrels: seeds and nuts | old trees | during the day | stay close together | large birds
        otters: fish | rivers and lakes | in the early morning | grow a thick coat | dirty water
        deer: grass and leaves | open fields | in the early morning | grow a thick coat | dogs
        swallows: insects | open fields | during the day | fly to the south | dirty water
        storks: small animals | open fields | during the day | fly to the south | cars
        foxes: small animals | holes in the ground | at night | grow a thick coat | dogs
        ducks: grass and leaves | rivers and lakes | during the day | stay close together |
            dirty water
        mice: seeds and nuts | holes in the ground | at night | stay close together | large birds
        """
    ),
    closings=(
        "Watch them from far away and be quiet.",
        "They are wonderful animals.",
        "A good book has more about them.",
    ),
)
