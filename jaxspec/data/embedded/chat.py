"""Short dialogues: a wish, two questions about it, and an answer composed from a table of facts.

A structure is a topic with the two things asked, in order. Every topic and every single question
about it occurs in training. A test prompt asks for a pair that never occurs in training, from a
kind of person (`_PEOPLE`) who never asks about that topic in training. A third of the dialogues
continue for a second round.
"""

from __future__ import annotations

import functools
import random

from jaxspec.data.embedded.chat_people import FIELDS
from jaxspec.data.embedded.chat_topics import Aspect
from jaxspec.data.embedded.split import any_of, is_held_out, members, pick

# What users say about themselves, and how answers to such users begin.
_PEOPLE: dict[str, tuple[str, ...]] = {
    "": ("Sure. ", "Of course. ", "Here is what I know. "),
    "I am a beginner.": ("Welcome! ", "No problem, everybody starts small. "),
    "I have little time.": ("Here is the short version. ", "In short: "),
    "My daughter asked me about this.": ("What a good question from her. ", "Tell her this. "),
    "My son wants to know more.": ("How nice that he asks. ", "Tell him this. "),
    "I am writing a small article.": ("Here are some facts for it. ", "You can write this. "),
    "I do not want to spend much.": ("That need not cost much. ", "Good news: it is cheap. "),
    "It is for a school project.": ("Here is some help for your project. ", "Good choice. "),
    "My grandmother told me about it.": ("She knows good things. ", "How nice of her. "),
    "I tried it once and failed.": ("Do not worry, try again. ", "That happens to many people. "),
    "We are a group of four.": ("A good plan for four. ", "Nice for a group. "),
    "I am a bit nervous.": ("There is no need to be nervous. ", "Stay calm, it is easy. "),
    "I saw it on television.": ("Many people saw that. ", "Television shows only half of it. "),
    "I just moved to a new flat.": ("Congratulations on the new flat. ", "A fresh start. "),
    "I am asking for a friend.": ("Happy to help your friend. ", "Tell your friend this. "),
    "I have a free weekend.": ("A free weekend is perfect. ", "Then use it well. "),
}
_FORMS = ("plain", "plain", "plain", "list", "short")
_REQUESTS = {
    "plain": ("", "", " Please explain it to me.", " Can you help me?"),
    "list": (" Answer as a list.", " Make a short list, please."),
    "short": (" Only one sentence for each, please.", " Keep it short."),
}
_QUESTIONS = (
    "Can you tell me {one} and {two}?",
    "I would like to know {one} and {two}.",
    "Please tell me {one} and also {two}.",
    "Two questions: {one}, and {two}?",
    "Do you know {one} and {two}?",
)
_FOLLOW_UPS = (
    "Thank you. And {one}?",
    "Good. Can you also tell me {one}?",
    "One more question: {one}?",
    "That helps. Now I wonder {one}.",
)
_FOLLOW_OPENINGS = ("", "Sure. ", "Good question. ")
_FOLLOW_CLOSINGS = ("", " Anything else?", " Let me know how it goes.")


def structures() -> list[tuple[str, ...]]:
    """Every combination of field, topic and ordered pair of things asked."""
    return [
        (field_name, topic, one, two)
        for field_name, field in FIELDS.items()
        for topic in field.topics
        for one in field.aspects
        for two in field.aspects
        if one != two
    ]


def _is_test(structure: tuple[str, ...]) -> bool:
    # The pair is held out in both orders: otherwise training would show the same facts together.
    field, topic, one, two = structure
    return is_held_out("chat", field, topic, *sorted((one, two)))


@functools.cache
def split_structures(split: str) -> list[tuple[str, ...]]:
    """The structures of a split."""
    return [key for key in structures() if _is_test(key) == (split == "test")]


@functools.cache
def _people(topic: str, split: str) -> list[tuple[str, ...]]:
    return members([(person,) for person in _PEOPLE], label=f"chat/{topic}", split=split)


def write(rng: random.Random, split: str) -> tuple[tuple[str, str], ...] | None:
    """A dialogue of one or two rounds; None if the split has no person for the topic."""
    field_name, topic, one, two = any_of(rng, split_structures(split))
    people = _people(topic, split)
    if not people:
        return None
    (person,) = any_of(rng, people)
    field = FIELDS[field_name]
    form = any_of(rng, _FORMS)
    asked = [pick(rng, field.aspects[key].asked) for key in (one, two)]
    question = any_of(rng, _QUESTIONS).format(one=asked[0], two=asked[1])
    wish = field.wish.format(topic=topic)
    parts = [f"{wish}.", person, question + any_of(rng, _REQUESTS[form])]
    answer = _answer(rng, field_name, topic, (one, two), form=form)
    opening = "" if form == "short" else pick(rng, _PEOPLE[person])
    if form == "list":
        opening = opening.rstrip(" .:!") + ":\n" if opening else ""
    closing = "" if form == "short" else f" {pick(rng, field.closings)}"
    turns = [
        ("user", " ".join(part for part in parts if part)),
        ("assistant", (opening + answer + (closing if form == "plain" else "")).strip()),
    ]
    if rng.random() < 1 / 3:
        third = any_of(rng, [key for key in field.aspects if key not in (one, two)])
        follow = any_of(rng, _FOLLOW_UPS).format(one=pick(rng, field.aspects[third].asked))
        reply = _answer(rng, field_name, topic, (third,), form="plain")
        first, last = pick(rng, _FOLLOW_OPENINGS), pick(rng, _FOLLOW_CLOSINGS)
        turns += [("user", follow), ("assistant", first + reply + last)]
    return tuple(turns)


def _answer(
    rng: random.Random, field_name: str, topic: str, asked: tuple[str, ...], *, form: str
) -> str:
    field = FIELDS[field_name]
    facts = dict(zip(field.aspects, field.topics[topic], strict=True))
    if form == "list":
        return "\n".join(f"- {field.aspects[key].label}: {facts[key]}" for key in asked)
    sentences = []
    for key in asked:
        aspect = field.aspects[key]
        sentences.append(_sentence(rng, aspect, topic, facts[key]))
        if form == "plain" and facts[key] in aspect.reasons:
            sentences.append(aspect.reasons[facts[key]])
    return " ".join(sentences)


def _sentence(rng: random.Random, aspect: Aspect, topic: str, fact: str) -> str:
    capital = topic[0].upper() + topic[1:]
    return pick(rng, aspect.answered).format(topic=topic, Topic=capital, fact=fact)
