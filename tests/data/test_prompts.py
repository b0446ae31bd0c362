"""Questions from a file, in the order of its rows."""

import json

import pytest

from jaxspec.data.prompts import conversation_of, read_questions


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_question_that_comes_twice_is_asked_twice(tmp_path, name):
    """Answers are put next to the rows that they belong to."""
    texts = ["one?", "two?", "one?"]
    lines = [text if name.endswith("txt") else json.dumps({"prompt": text}) for text in texts]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    asked = read_questions(str(tmp_path / name))
    assert [question.turns[-1]["content"] for question in asked] == texts


def test_only_line_feeds_end_a_line(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("one\u2028still one\x0cand still\r\n\ntwo\x85".encode())
    asked = [question.turns[0]["content"] for question in read_questions(str(file))]
    assert asked == ["one\u2028still one\x0cand still", "two\x85"]


@pytest.mark.parametrize(
    "prompt", [{"role": "user", "content": "Hi."}, 5, None, b"Hi.", ["Hi.", "Bye."], [1, 2]]
)
def test_what_is_neither_text_nor_messages_is_named(prompt):
    with pytest.raises(ValueError, match=r"A prompt is a text, or a list of messages .*: got"):
        conversation_of(prompt)
