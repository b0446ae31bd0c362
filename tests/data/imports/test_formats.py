"""Each format of a file, and of a row: what is read, and what is said of a row that cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxspec.data.imports.conversations import to_example
from jaxspec.data.imports.locate import DataFiles, locate
from jaxspec.data.imports.open_rows import open_rows
from jaxspec.data.imports.reading import Tally, read_conversations
from jaxspec.data.imports.rows import BadRow

ASKED, ANSWERED = ("user", "Two plus two?"), ("assistant", "Four.")
MESSAGES = {"messages": [{"role": role, "content": text} for role, text in (ASKED, ANSWERED)]}
SHAREGPT = {
    "id": "a",
    "conversations": [
        {"from": "human", "value": ASKED[1]},
        {"from": "gpt", "value": ANSWERED[1]},
    ],
}


def example_of(value, *, needs_answer: bool = True):
    return to_example(value, id="a/1", source="a", needs_answer=needs_answer)[0]


def read(path: Path | str, **options) -> tuple[list, Tally]:
    tally = Tally()
    settings = {"use": "training", "seen": set(), **options}
    examples = list(read_conversations(locate(str(path), split="train"), tally=tally, **settings))
    return examples, tally


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (MESSAGES, "OpenAI's `messages` format"),
        (SHAREGPT, "ShareGPT's `conversations` format"),
        ({"prompt": ASKED[1], "response": ANSWERED[1]}, "prompt/response pairs"),
        ({"prompt": ASKED[1], "completion": ANSWERED[1]}, "prompt/completion pairs"),
        ({"question": ASKED[1], "answer": ANSWERED[1]}, "question/answer pairs"),
        ({"instruction": ASKED[1], "input": "", "output": ANSWERED[1]}, "instruction/output pairs"),
        (
            {"prompt": MESSAGES["messages"][:1], "completion": MESSAGES["messages"][1:]},
            "prompt/completion pairs",
        ),
    ],
)
def test_every_form_of_one_conversation(value, form):
    example, found = to_example(value, id="a/1", source="a", needs_answer=True)
    assert example.turns == (ASKED, ANSWERED)
    assert found == form


def test_an_input_follows_its_instruction():
    value = {"instruction": "Sort the letters.", "input": "cab", "output": "abc"}
    assert example_of(value).turns[0] == ("user", "Sort the letters.\n\ncab")


def test_calls_of_tools_are_kept_as_templates_read_them():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    value = {
        "tools": json.dumps([{"name": "f", "parameters": {}}]),
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Ca"}, "ll."]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "7"},
            {"role": "assistant", "content": "Seven.", "reasoning": "It said 7."},
        ],
    }
    example = example_of(value)
    assert example.turns == (
        ("system", "Be brief."),
        ("user", "Call."),
        ("assistant", ""),
        ("tool", "7"),
        ("assistant", "Seven."),
    )
    turns = example.conversation
    assert turns[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert turns[3]["tool_call_id"] == "c"
    assert turns[4]["reasoning_content"] == "It said 7."
    assert example.tool_list == [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (turns(ASKED), "no answer"),
        (turns(), "no turns"),
        (turns(("oracle", "x")), "unknown role"),
        (turns(ANSWERED), "roles out of order"),
        (turns(ASKED, ANSWERED, ANSWERED), "roles out of order"),
        (turns(ASKED, ("tool", "x")), "roles out of order"),
        (turns(ASKED, ASKED, ANSWERED), "roles out of order"),
        (turns(("user", None), ANSWERED), "content that is no text"),
        (turns(("user", 5), ANSWERED), "content that is no text"),
        (turns(("user", [{"type": "image_url"}]), ANSWERED), "content that is no text"),
        (turns(("user", " "), ANSWERED), "an empty turn"),
        (turns(("user", "\ud83d"), ANSWERED), "half of a surrogate pair"),
        ({"messages": "x"}, "turns that are no list"),
        ({"messages": ["x"]}, "a turn is no object"),
        ({"words": "x"}, "no conversation"),
        ({"prompt": "a", "response": 3}, "content that is no text"),
        ([], "not an object"),
        ({**MESSAGES, "tools": "{"}, "JSON text that cannot be read"),
    ],
)
def test_rows_that_cannot_be_used(value, reason):
    with pytest.raises(BadRow) as problem:
        example_of(value)
    assert problem.value.reason == reason


def test_questions_alone_are_prompts():
    questions = turns(ASKED, ("user", "And twice that?"))
    assert example_of(questions, needs_answer=False).user_turns == (ASKED[1], "And twice that?")
    with pytest.raises(BadRow):
        example_of(questions)


def as_lines(path: Path) -> None:
    # A byte order mark, and line ends of Windows.
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(MESSAGES).encode() + b"\r\n\r\n")


def as_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps(MESSAGES).encode()))


def as_list(path: Path) -> None:
    path.write_text(json.dumps([MESSAGES], indent=2))


def as_object(path: Path) -> None:
    path.write_text(json.dumps({"version": 1, "data": [MESSAGES]}, indent=2))


def as_one_object(path: Path) -> None:
    path.write_text(json.dumps(MESSAGES, indent=2))


def as_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**MESSAGES, "score": 3}]), path)


def as_arrow(path: Path) -> None:
    table = pa.Table.from_pylist([MESSAGES])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def as_arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist([MESSAGES])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS = [
    as_lines,
    as_gzip,
    as_list,
    as_object,
    as_one_object,
    as_parquet,
    as_arrow,
    as_arrow_stream,
]


@pytest.mark.parametrize("write", WRITERS)
def test_the_content_tells_the_kind_of_file(tmp_path, write):
    path = tmp_path / "data.any"
    write(path)
    examples, tally = read(path)
    assert [example.turns for example in examples] == [(ASKED, ANSWERED)]
    assert tally.line("data") == "data: 1 conversations in OpenAI's `messages` format"


def test_a_list_is_never_held_whole(tmp_path):
    """The first rows of a list are there before a mistake behind them is seen."""
    path = tmp_path / "a.json"
    path.write_text("[" + ", ".join([json.dumps(MESSAGES)] * 2_000) + ", {broken")
    rows = open_rows(path)
    assert next(rows).value == MESSAGES
    *good, last = rows
    assert len(good) == 1_999
    assert last.problem is not None


def test_texts_are_learned_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n<|endoftext|>\nTwo.\nlines\n")
    examples, tally = read(tmp_path / "a.txt")
    assert [example.running_text for example in examples] == ["One.", "Two.\nlines"]
    assert tally.line("a.txt") == "a.txt: 2 texts"


def test_a_folder_saved_by_datasets(tmp_path):
    """The files that Dataset.save_to_disk writes; DatasetDict puts one such folder per split."""
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    as_arrow_stream(folder / "data-00000-of-00001.arrow")
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    assert read(folder)[0][0].turns == (ASKED, ANSWERED)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert read(tmp_path / "saved")[0][0].turns == (ASKED, ANSWERED)
    with pytest.raises(ValueError, match=r"no split 'test'.*choose one of train"):
        locate(str(tmp_path / "saved"), split="test")


def test_a_folder_of_files_is_read_by_split(tmp_path):
    for name in ("train-0.jsonl", "test-0.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name, "response": "Yes."}) + "\n")
    (tmp_path / "README.md").write_text("about it")
    assert [example.turns[0][1] for example in read(tmp_path)[0]] == ["train-0.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds nothing"),
        ("a.jsonl", b"\n \n", "holds nothing"),
        ("a.jsonl", b"\xef\xbb\xbf", "holds nothing"),
        ("a.json", b"[]", "holds nothing"),
        ("a.json", b"[" + json.dumps(MESSAGES).encode() + b", {", "record 2 of .*broken JSON"),
        ("a.json", b"[" + json.dumps(MESSAGES).encode() + b"] and more", "text after the list"),
        ("a.json", b"[" + json.dumps(MESSAGES).encode() + b"] \xe9", "a.json: not UTF-8"),
        ("a.jsonl", "Wie spät?".encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("a.jsonl", b'{"text": "\xe9"}\n', "a.jsonl: not UTF-8"),
        ("a.pkl", b"whatever", "is a pickle"),
        ("a.jsonl", b"\x80\x04\x95", "is a pickle"),
        ("a.jsonl", b"PK\x03\x04aaaa", "a zip archive: unpack it first"),
        ("a.csv", b"a,b\n1,2\n", "a table as text"),
        ("a.parquet", b"PAR1 and no more", "is damaged"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}' * 999)[:-9], "is damaged"),
        ("a.bin", b"ab\0\0", "is a pickle, or may be one"),
        ("a.dat", b"ab\0\0", "holds zero bytes"),
    ],
)
def test_files_that_are_not_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_places_without_data(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        locate(str(tmp_path / "absent"), split="train")
    with pytest.raises(ValueError, match="holds no data"):
        locate(str(tmp_path), split="train")


def test_one_bad_row_in_a_thousand(tmp_path):
    rows = [json.dumps({"prompt": f"{n}?", "response": "Yes."}) for n in range(1_000)]
    rows[700] = '{"prompt": "700?", "response": "Ye'
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"line 701 of .*a\.jsonl: not JSON"):
        read(tmp_path / "a.jsonl")
    examples, tally = read(tmp_path / "a.jsonl", skip_bad=True)
    assert (len(examples), tally.bad.total()) == (999, 1)
    assert "line 701" in "\n".join(tally.bad_rows())


def test_nothing_is_left(tmp_path):
    (tmp_path / "a.jsonl").write_text("[1]\n{}\n")
    with pytest.raises(ValueError, match=r"Nothing is left of .*: 2 bad rows\."):
        read(tmp_path / "a.jsonl", skip_bad=True)


def test_duplicates_and_benchmarks_prompts_are_left_out(tmp_path, monkeypatch):
    from jaxspec.data import heldout
    from jaxspec.data.imports import reading

    held = heldout.HeldOutPrompts.from_table(heldout.table(["Is it in the test?"]))
    monkeypatch.setattr(reading.HeldOutPrompts, "load", staticmethod(lambda: held))
    prompts = ["a?", "a?", "is it in the TEST?", "b?"]
    lines = [json.dumps({"prompt": prompt, "response": "Yes."}) for prompt in prompts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    examples, tally = read(tmp_path / "a.jsonl")
    assert [example.turns[0][1] for example in examples] == ["a?", "b?"]
    assert (tally.duplicates, tally.held_out, tally.kept) == (1, 1, 2)
    kept, _ = read(tmp_path / "a.jsonl", use="benchmark")
    assert len(kept) == 3, "a benchmark may hold its own prompts"


def test_ids_name_the_file_and_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "x"}\n{"text": "y"}\n')
    found = DataFiles("a", (tmp_path / "a.jsonl",), ("b/a.jsonl",))
    examples = list(read_conversations(found, use="training", tally=Tally(), seen=set()))
    assert [example.id for example in examples] == ["b/a.jsonl/2", "b/a.jsonl/3"]
    assert examples[0].source == "b/a.jsonl"
