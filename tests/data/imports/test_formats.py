"""Rows in the usual formats become conversations; rows that cannot be used say why."""

import functools
import json

import pytest

from jaxspec.data.imports.conversations import to_example
from jaxspec.data.imports.rows import BadRow

ASKED = {"role": "user", "content": "Weather in Oslo?"}
ANSWERED = {"role": "assistant", "content": "Rain."}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}


def read(row, *, needs_answer=True):
    return to_example(row, id="demo/1", source="demo", needs_answer=needs_answer)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": [ASKED, ANSWERED]}, "OpenAI's `messages` format"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Weather in Oslo?"},
                    {"from": "gpt", "value": "Rain."},
                ]
            },
            "ShareGPT's `conversations` format",
        ),
        ({"prompt": "Weather in Oslo?", "response": "Rain."}, "prompt/response pairs"),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, "prompt/completion pairs"),
        ({"question": "Weather in Oslo?", "answer": "Rain."}, "question/answer pairs"),
        (
            {"instruction": "Weather in Oslo?", "input": "", "output": "Rain.", "text": "all"},
            "instruction/output pairs",
        ),
    ],
)
def test_formats_are_told_by_their_fields(row, form):
    example, found = read(row)
    assert found == form
    assert example.turns == (("user", "Weather in Oslo?"), ("assistant", "Rain."))
    assert (example.id, example.source) == ("demo/1", "demo")


def test_a_worked_solution_is_learned_rather_than_its_result():
    row = {"problem": "What is 2 + 3?", "answer": "5", "solution": "2 + 3 is 5."}
    example, form = read(row)
    assert form == "problem/solution pairs"
    assert example.turns[-1] == ("assistant", "2 + 3 is 5.")
    example, _ = read({**row, "solution": None})
    assert example.turns[-1] == ("assistant", "5")


def test_text_is_running_text_and_a_system_field_is_the_first_turn():
    example, form = read({"text": "Once upon a time."})
    assert form == "plain text" and example.is_running_text
    example, _ = read({"system_prompt": "Be brief.", "question": "Why?", "response": "So."})
    assert example.turns[0] == ("system", "Be brief.")
    example, _ = read({"instruction": "Sort.", "input": "cab", "output": "abc"})
    assert example.turns[0] == ("user", "Sort.\n\ncab")
    for prompt, answer in (("instruction", "response"), ("question", "answer")):
        example, _ = read({prompt: "Who wrote it?", "context": "By Y.", answer: "Y."})
        assert example.turns[0] == ("user", "Who wrote it?\n\nBy Y.")
    example, _ = read({"question": "Who?", "context": {"title": ["a"]}, "answer": "Y."})
    assert example.turns[0] == ("user", "Who?"), "passages in a form of their own are left"
    example, _ = read({"question": "Who?", "context": ["One.", "Two."], "answer": "Y."})
    assert example.turns[0] == ("user", "Who?\n\nOne.\nTwo.")


@pytest.mark.parametrize("field", ["instruction", "prompt"])
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("21", "21"),
        (21, "21"),
        (0, "0"),
        (["2", "1"], "2\n1"),
        ([{"type": "text", "text": "2"}, {"text": "1"}], "21"),
        *((nothing, "") for nothing in (None, "", " ", [], {}, float("nan"))),
    ],
)
def test_all_that_is_asked_about_is_read(field, given, text):
    example, _ = read({field: "Double it.", "input": given, "output": "42"})
    assert example.turns[0] == ("user", f"Double it.\n\n{text}" if text else "Double it.")
    if not text:
        example, _ = read(
            {"instruction": "Why?", "input": given, "context": "By Y.", "output": "a"}
        )
        assert example.turns[0] == ("user", "Why?\n\nBy Y.")


def test_a_prompt_beside_an_instruction_is_whole():
    row = {"prompt": "Double it: 21", "instruction": "Double it", "input": "21", "output": "42"}
    assert read(row)[0].turns[0] == ("user", "Double it: 21")


@pytest.mark.parametrize("given", [{"value": 21}, [21], True, [{"type": "image"}]])
def test_an_input_that_cannot_be_read_is_a_bad_row(given):
    with pytest.raises(BadRow, match="content that is not text: input has "):
        read({"instruction": "Double it.", "input": given, "output": "42"})


def test_a_system_prompt_may_be_parts():
    """As Anthropic's API takes it."""
    row = {"system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}
    example, _ = read({**row, "messages": [ASKED, ANSWERED]})
    assert example.turns[0] == ("system", "Be brief.")
    with pytest.raises(BadRow, match="content that is not text: system has "):
        read({"system": {"id": 3}, "messages": [ASKED, ANSWERED]})
    for nothing in ([], "", " ", [""]):
        assert read({"system": nothing, "messages": [ASKED, ANSWERED]})[0].turns[0][0] == "user"


def test_tools_and_calls_are_as_servers_hand_them_to_templates():
    tool = {"name": "weather", "parameters": {}}
    row = {
        "tools": json.dumps([tool]),
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Weather "}, {"text": "in Oslo?"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL], "thinking": "Look it up."},
            {"role": "function", "name": "weather", "tool_call_id": "c1", "content": "4 C"},
            ANSWERED,
        ],
    }
    example, _ = read(row)
    assert example.tool_list == [{"type": "function", "function": tool}]
    system, user, call, result, answer = example.conversation
    assert system["role"] == "system" and user == ASKED and answer == ANSWERED
    assert call["content"] == "" and call["reasoning_content"] == "Look it up."
    assert call["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"a": 1}}}
    ]
    assert result == {"role": "tool", "content": "4 C", "name": "weather", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    "call",
    [
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"a": 1}}'},
        {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"a": 1}'}},
        {"role": "assistant", "tool_calls": json.dumps([CALL["function"]])},
        {"from": "function_call", "value": '{"name": "weather", "parameters": {"a": 1}}'},
    ],
)
def test_older_ways_to_write_a_call(call):
    row = {"conversations": [ASKED, call, {"from": "observation", "value": "4 C"}, ANSWERED]}
    turn = read(row)[0].conversation[1]
    expected = {"type": "function", "function": {"name": "weather", "arguments": {"a": 1}}}
    assert turn == {"role": "assistant", "content": "", "tool_calls": [expected]}


def test_nulls_that_fill_a_schema_are_left_out():
    """`datasets` gives every tool and call the fields of all of them, and writes them as JSON."""

    def tool(name, **properties):
        schema = {"type": "object", "properties": properties}
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    def called(**calls):
        return [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            for name, arguments in calls.items()
        ]

    city, text = {"type": "string", "default": None}, {"type": "string"}
    tools = [tool("weather", city=city, stock=None), tool("price", city=None, stock=text)]
    calls = called(
        weather={"city": None, "stock": None}, price={"city": None, "stock": "X"}, other={"a": None}
    )
    turns = [ASKED, {"role": "assistant", "content": "", "tool_calls": calls}]
    example, _ = read({"tools": tools, "messages": turns})
    assert example.tool_list == [tool("weather", city=text), tool("price", stock=text)]
    assert example.conversation[1]["tool_calls"] == called(
        weather={"city": None}, price={"stock": "X"}, other={"a": None}
    )
    # Without one that says nothing, a null is what was meant.
    meant = [tool("weather", city=city)]
    assert read({"tools": meant, "messages": turns})[0].tool_list == meant
    nameless = [{"function": {"name": [], "parameters": {}}}]
    assert read({"tools": nameless, "messages": turns})[0].tool_list == nameless
    flat = [{"name": "price", "parameters": {"city": text}}]
    answer = read({"tools": flat, "messages": turns})[0].conversation[1]
    assert answer["tool_calls"][1]["function"]["arguments"] == {"city": None, "stock": "X"}


def _messages(*turns):
    return {"messages": list(turns)}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (7, "not an object: got 7"),
        ({"a": 1, "b": 2}, "no conversation: the fields are 'a', 'b', expected messages"),
        ({"messages": "x"}, "turns that are not a list: messages is 'x'"),
        (_messages(), "no turns"),
        (_messages("x"), "a turn is not an object: turn 1 is 'x'"),
        (
            _messages({"role": "oracle", "content": "x"}),
            "unknown role: turn 1 has 'oracle', expected",
        ),
        (_messages(ASKED), "no answer"),
        (_messages(ANSWERED), r"roles out of order: turn 1 \(assistant\) is the first, expected"),
        (_messages(ASKED, ASKED, ANSWERED), r"out of order: turn 2 \(user\) follows the user's"),
        (_messages(ASKED, ANSWERED, ANSWERED), r"turn 3 \(assistant\) follows the assistant's"),
        (_messages(ASKED, {"role": "tool", "content": "x"}, ANSWERED), r"turn 2 \(tool\) follows"),
        (_messages(ASKED, ANSWERED, {"role": "system", "content": "x"}), r"turn 3 \(system\)"),
        (_messages({"role": "user", "content": None}, ANSWERED), r"turn 1 \(user\) has null"),
        (_messages({"role": "user", "content": 5}, ANSWERED), r"turn 1 \(user\) has 5"),
        (_messages({"role": "user", "content": " "}, ANSWERED), r"an empty turn: turn 1 \(user\)"),
        (
            _messages({"role": "user", "content": [{"type": "image_url"}]}, ANSWERED),
            r"content that is not text: turn 1 \(user\) has a part of type 'image_url'",
        ),
        (_messages(ASKED, {"role": "assistant", "content": "\ud83d"}), "half of a surrogate pair"),
        (
            _messages(
                ASKED, {**ANSWERED, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
            ),
            "JSON text that cannot be read: arguments of turn 2",
        ),
        (_messages(ASKED, {**ANSWERED, "tool_calls": [{"id": "1"}]}), "expected a function's name"),
        ({"tools": "x", **_messages(ASKED, ANSWERED)}, "JSON text that cannot be read: tools"),
        (
            {"tools": [{"v": float("nan")}], **_messages(ASKED, ANSWERED)},
            "number that is not finite",
        ),
        (
            {"tools": [{"v": functools.reduce(lambda v, _: [v], range(900), 1)}]}
            | _messages(ASKED, ANSWERED),
            "a value that is nested too deeply",
        ),
        ({"prompt": "a", "response": 5}, "content that is not text: response is 5"),
        ({"prompt": "a"}, "no answer"),
        (_messages(ASKED, {**ANSWERED, "weight": 0}), "an answer of weight 0: turn 2"),
        ({"text": ""}, "content that is not text: text is ''"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row, message):
    with pytest.raises(BadRow, match=message):
        read(row)


def test_prompts_need_no_answer():
    assert read(_messages(ASKED), needs_answer=False)[0].user_turns == ("Weather in Oslo?",)
    example, _ = read(_messages(ASKED, ASKED), needs_answer=False)
    assert len(example.user_turns) == 2
    assert read({"question": "How many?", "answer": 4}, needs_answer=False)[0].user_turns
    with pytest.raises(BadRow, match="no question"):
        read(_messages({"role": "system", "content": "Be brief."}), needs_answer=False)
    with pytest.raises(BadRow, match="roles out of order"):
        read(_messages(ASKED, ASKED, ANSWERED), needs_answer=False)
