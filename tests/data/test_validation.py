"""Which conversations are for validation."""

import random

import pytest

from jaxspec.data.examples import Example
from jaxspec.data.validation import is_validation


def _examples(count):
    return [
        Example(f"demo/{number}", (("user", f"What is {number}?"), ("assistant", "x")), "demo")
        for number in range(count)
    ]


def chosen(examples, fraction):
    return [example for example in examples if is_validation(example, fraction)]


def test_a_fraction_of_the_prompts_is_chosen_whatever_their_order():
    examples = _examples(4000)
    validation = chosen(examples, 0.05)
    assert 150 < len(validation) < 250
    shuffled = random.Random(0).sample(examples, len(examples))
    assert {*chosen(shuffled, 0.05)} == {*validation}
    assert {*validation} < {*chosen(examples, 0.1)}


def test_only_the_prompt_decides():
    first = chosen(_examples(400), 0.1)[0]
    (_, question), _ = first.turns
    other = Example(
        "elsewhere/9",
        (("system", "Be brief."), ("user", f"  {question.upper()}"), ("assistant", "Another.")),
        "elsewhere",
    )
    assert is_validation(other, 0.1)


def test_running_text_is_chosen_by_its_first_turn():
    texts = [Example(str(n), (("assistant", f"Text {n}."),), "demo") for n in range(400)]
    assert 150 < len(chosen(texts, 0.5)) < 250


def test_none_and_all():
    examples = _examples(20)
    assert chosen(examples, 0.0) == []
    assert chosen(examples, 1.0) == examples


@pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="from 0 to 1: got"):
        is_validation(_examples(1)[0], fraction)
