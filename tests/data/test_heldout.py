import time

import numpy as np
import pytest

from jaxspec.data.heldout import TESTS_FOLLOW, HeldOutPrompts, keys, table


@pytest.fixture
def held_out():
    return HeldOutPrompts.from_table(
        table([f"Sort a list.{TESTS_FOLLOW}\n\nassert f([2, 1]) == [1, 2]", "What is x + 2?"])
    )


@pytest.mark.parametrize(
    "prompt, contained",
    [
        ("What is x + 2?", True),
        ("  what IS x+2? \n", True),
        ("What is x - 2?", False),
        ("Sort a list.", True),
        (f"Sort a list.{TESTS_FOLLOW}\n\nassert g([3]) == [3]", True),
        ("Sort a lists.", False),
    ],
)
def test_spelling_makes_no_difference_and_content_does(held_out, prompt, contained):
    assert held_out.contains([("user", prompt)]) is contained


def test_any_question_counts_and_no_answer_does(held_out):
    assert held_out.contains([("user", "Hi."), ("assistant", "Yes?"), ("user", "What is x + 2?")])
    assert not held_out.contains([("user", "Hi."), ("assistant", "What is x + 2?")])


def test_running_text_asks_itself(held_out):
    """As rows of MBPP's own file, which have their task in a field `text`."""
    assert held_out.contains([("assistant", " Sort a list.\n")])
    assert held_out.contains([("assistant", "Once."), ("assistant", "What is x + 2?")])
    assert not held_out.contains([("assistant", "Sort a list. It is easy.")])


@pytest.mark.parametrize("end", ["", "Your code should", "You are an expert"])
def test_white_space_costs_no_time(held_out, end):
    """A pattern that looks for its end from every blank would take minutes."""
    started = time.monotonic()
    assert not held_out.contains([("user", f"a{' ' * 300_000}{end}")])
    assert time.monotonic() - started < 10


def test_quoted_code_is_found():
    code = "def has_close_elements(numbers, threshold):\n    '''Whether two numbers are close.'''\n"
    quoted = f"Complete this.\n\n```python\n{code}```"
    assert set(keys(code)) <= set(keys(quoted))


@pytest.mark.parametrize("tag", ["", "python", "Python", "python3", "python "])
@pytest.mark.parametrize("before", ["", "Run this first:\n```bash\nls\n```\n", "`a`\n"])
def test_quoted_code_is_found_after_other_blocks(tag, before):
    code = (
        "def has_close(numbers, threshold):\n    return min(numbers) < threshold - 1  # They are.\n"
    )
    assert len(code) > 80
    assert set(keys(code)) <= set(keys(f"{before}Complete this.\n\n```{tag}\n{code}```"))


def test_mbpp_in_the_words_of_its_paper(held_out):
    asked = (
        "You are an expert Python programmer, and here is your task: Sort a list. Your code should "
        "pass these tests:\n\nassert f([2, 1]) == [1, 2]"
    )
    assert held_out.contains([("user", asked)])
    assert not held_out.contains([("user", asked.replace("a list", "two lists"))])


JANET = (
    "Janet\u2019s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes "
    "muffins for her friends every day with four. She sells the remainder at the farmers' market "
    "daily for $2 per fresh duck egg. How much in dollars does she make every day at the farmers' "
    "market?"
)
"""The first question of GSM8K's test split."""
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f" {BOXED}"),
        ("", f"\n{BOXED}"),
        ("Solve the following problem.\n\n", ""),
        ("Question: ", "\nLet's think step by step."),
        ("You are a teacher. Solve this:\n", f"\n\n{BOXED}\n"),
        ("", " please explain"),
    ],
)
def test_an_instruction_around_a_prompt_hides_nothing(before, after):
    """Public sets of maths problems come with one."""
    shipped = HeldOutPrompts.load()
    assert shipped.contains([("user", before + JANET + after)])
    assert not shipped.contains([("user", before + JANET.replace("16", "17") + after)])


def test_what_is_short_is_not_looked_for_inside(held_out):
    """A request may well begin with such a sentence."""
    assert not held_out.contains([("user", "Sort a list. Then print it.")])


def test_the_shipped_table():
    shipped = HeldOutPrompts.load()
    assert len(shipped.hashes) > 3000
    # In other case and spacing.
    assert shipped.contains(
        [("user", JANET.replace("Janet", "JANET").replace("farmers' ", "farmers'  "))]
    )


def test_the_digest_changes_with_the_table():
    one, other = (HeldOutPrompts.from_table(table([text])).digest for text in ("a", "b"))
    assert one != other
    assert table(["a", "a"]).dtype == np.uint64 and len(table(["a", "A "])) == 1
