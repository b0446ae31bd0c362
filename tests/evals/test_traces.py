from __future__ import annotations

import pytest

from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding.stream import Round
from jaxspec.evals.record_checks import problems_of
from jaxspec.evals.traces import trace_of


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("embedded")


def recorded(tokenizer, rounds, **options):
    options = {"prompt_id": "p", "prompt": tokenizer.encode("Say it."), "is_chain": True, **options}
    return trace_of(rounds, tokenizer=tokenizer, **options)


def test_texts_add_up_to_the_answer(tokenizer):
    first, *ids = tokenizer.encode("Add two and 5 € to the numbers.")
    wrong = tokenizer.encode(" three apples")
    rounds = [
        Round((), 0, (first,), 0.1),
        Round((*ids[:2], *wrong), 2, tuple(ids[:3]), 0.1),
        Round(tuple(ids[3:7]), 4, tuple(ids[3:]), 0.1),
        Round((ids[0],), 0, (tokenizer.stop_ids[0],), 0.1),
    ]
    record = recorded(tokenizer, rounds)
    answer = record["first"] + "".join(
        text for each in record["rounds"] for text in (*each["accepted"], *each["bonus"])
    )
    stop = tokenizer.decode(tokenizer.stop_ids[:1], skip_special=False)
    assert answer == f"Add two and 5 € to the numbers.{stop}" and stop
    one, two, three = record["rounds"]
    assert (one["drafted"], len(one["accepted"]), len(one["bonus"])) == (2 + len(wrong), 2, 1)
    assert "".join(one["rejected"]) == " three apples" and len(one["rejected"]) == len(wrong)
    assert two["rejected"] == [] and three["rejected"] == [tokenizer.decode([ids[0]])]
    assert (record["stopped"], record["prompt"]) == (True, "Say it.")
    assert record["prompt_tokens"] == len(tokenizer.encode("Say it."))
    assert list(problems_of({"trace": record})) == []


def test_nothing_is_rejected_where_the_answer_ends_inside_the_draft(tokenizer):
    first, *ids = tokenizer.encode("one two three")
    stop = tokenizer.stop_ids[0]
    rounds = [Round((), 0, (first,), 0.1), Round((ids[0], stop, ids[1]), 2, (ids[0], stop), 0.1)]
    (each,) = recorded(tokenizer, rounds)["rounds"]
    assert each["rejected"] == each["bonus"] == []
    assert each["accepted"] == [
        tokenizer.decode([ids[0]]),
        tokenizer.decode([stop], skip_special=False),
    ]


def test_rejected_drafts_of_a_tree_are_left_out(tokenizer):
    first, *ids = tokenizer.encode("one two three four five")
    rounds = [Round((), 0, (first,), 0.1), Round(tuple(ids), 1, tuple(ids[:2]), 0.1)]
    (each,) = recorded(tokenizer, rounds, is_chain=False)["rounds"]
    assert (each["rejected"], each["drafted"]) == ([], len(ids))
    assert not recorded(tokenizer, rounds)["stopped"]
