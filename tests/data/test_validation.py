"""Which conversations are for validation."""

import random

import pytest

from jaxspec.data.examples import Example
from jaxspec.data.validation import is_validation, split_examples


def _examples(count):
    return [
        Example(f"demo/{number}", (("user", f"What is {number}?"), ("assistant", "x")), "demo")
        for number in range(count)
    ]


def test_a_fraction_of_the_prompts_is_chosen_whatever_their_order():
    examples = _examples(4000)
    training, validation = split_examples(examples, 0.05)
    assert training + validation != examples
    assert 150 < len(validation) < 250
    assert {*training, *validation} == {*examples} and not {*training} & {*validation}
    shuffled = random.Random(0).sample(examples, len(examples))
    assert {*split_examples(shuffled, 0.05)[1]} == {*validation}
    assert {*validation} < {*split_examples(examples, 0.1)[1]}


def test_only_the_prompt_decides():
    chosen = split_examples(_examples(400), 0.1)[1][0]
    (_, question), _ = chosen.turns
    other = Example(
        "elsewhere/9",
        (("system", "Be brief."), ("user", f"  {question.upper()}"), ("assistant", "Another.")),
        "elsewhere",
    )
    assert is_validation(other, 0.1)


def test_running_text_is_chosen_by_its_first_turn():
    texts = [Example(str(n), (("assistant", f"Text {n}."),), "demo") for n in range(400)]
    training, validation = split_examples(texts, 0.5)
    assert 150 < len(validation) < 250 and len(training) == 400 - len(validation)


def test_none_and_all():
    examples = _examples(20)
    assert split_examples(examples, 0.0) == (examples, [])
    assert split_examples(examples, 1.0) == ([], examples)


@pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="from 0 to 1: got"):
        is_validation(_examples(1)[0], fraction)
