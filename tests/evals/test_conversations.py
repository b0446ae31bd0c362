"""Playing conversations turn by turn."""

from __future__ import annotations

import pytest

from jaxspec.data.examples import Example
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding import Response
from jaxspec.evals.conversations import Ended, play, user_questions
from tests.data import templates

TWO = Example("two", (("system", "Be brief."), ("user", "One?"), ("user", "Two?")), "demo")
ONE = Example("one", (("user", "Three?"),), "demo")
TEXT = Example("text", (("assistant", "It was a long way."),), "demo")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("embedded")


def yes(tokenizer):
    def answer(prompts, names):
        answered.append(list(names))
        tokens = tuple(tokenizer.encode("Yes."))
        return [Response(name, tokens, True) for name in names]

    answered = []
    return answer, answered


def player(tokenizer, examples, **changes):
    answer, batches = yes(tokenizer)
    settings = {
        "answer": answer,
        "tokenizer": tokenizer,
        "max_prompt_tokens": 256,
        "questions": user_questions,
        **changes,
    }
    return play(examples, **settings), batches


def test_first_questions_then_second_ones(tokenizer):
    played, batches = player(tokenizer, [TWO, TEXT, ONE])
    assert batches == [["two", "one"], ["two#2"]]
    assert [(each.place, each.turn) for each in played.asked] == [(0, 0), (2, 0), (0, 1)]
    assert [turn["role"] for turn in played.conversations[0]] == [
        "system",
        *["user", "assistant"] * 2,
    ]
    assert played.conversations[1] == [] and played.ended == {}
    second = tokenizer.decode(played.asked[-1].prompt)
    assert second.index("One?") < second.index("Yes.") < second.index("Two?")


def test_running_text_is_a_prompt_where_passages_are_taken(tokenizer):
    played, batches = player(tokenizer, [TEXT, ONE], passage_tokens=3)
    assert batches == [["text", "one"]]
    assert list(played.asked[0].prompt) == tokenizer.encode("It was a long way.")[:3]
    assert played.conversations[0] == [{"role": "assistant", "content": "Yes."}]


def test_refused_answers_and_long_prompts_end_a_conversation(tokenizer):
    played, _ = player(tokenizer, [TWO, ONE], refuse=lambda response, text: "dull")
    assert played.ended == {0: Ended(0, "dull"), 1: Ended(0, "dull")}
    assert played.conversations == [[], []]
    limit = len(tokenizer.encode_prompt(TWO.prompt_turns)) + 2
    played, _ = player(tokenizer, [TWO], max_prompt_tokens=limit)
    assert played.ended == {0: Ended(1, "too_long")}
    assert played.conversations[0][-1] == {"role": "assistant", "content": "Yes."}
    played, batches = player(tokenizer, [TWO], max_prompt_tokens=2)
    assert (played.asked, batches) == ([], [])


CALLED = Example.from_conversation(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "system", "content": "Be long."},
        {"role": "user", "content": "Weather?", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather"}}]},
        {"role": "tool", "content": "4 C, rain"},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "And later?"},
    ],
    id="called",
    source="demo",
    tools=[{"type": "function", "function": {"name": "weather"}}],
)


def test_questions_end_before_a_tools_turn():
    assert [[turn["content"] for turn in asked] for asked in user_questions(CALLED)] == [
        ["Be brief.", "One?"],
        ["Be long.", "Weather?"],
    ]
    assert user_questions(CALLED)[1][1]["name"] == "Ann"
    assert user_questions(TEXT) == []


def test_the_model_is_told_of_tools(tmp_path):
    folder = templates.tokenizer_folder(tmp_path / "tokenizer", templates.THINKING)
    tokenizer = Tokenizer.load(folder)
    played, _ = player(tokenizer, [CALLED])
    assert [each.turn for each in played.asked] == [0, 1]
    conversation = played.conversations[0]
    assert [turn["content"] for turn in conversation] == [
        *["Be brief.", "One?", "Yes.", "Be long.", "Weather?", "Yes."],
    ]
    for each, length in zip(played.asked, (2, 5), strict=True):
        expected = tokenizer.encode_prompt(conversation[:length], tools=CALLED.tool_list)
        assert list(each.prompt) == expected
        assert '"weather"' in tokenizer.decode(each.prompt)
