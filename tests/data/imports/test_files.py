"""Files of every kind are read row by row, and those that cannot be read are named."""

import datetime
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxspec.data.builders import records
from jaxspec.data.example_files import write_examples
from jaxspec.data.examples import Example
from jaxspec.data.imports import json_rows, text_rows
from jaxspec.data.imports.conversations import to_example
from jaxspec.data.imports.locate import files_of_split, locate
from jaxspec.data.imports.open_rows import open_rows
from jaxspec.data.imports.rows import BadRow

ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "é"}]}
    for n in range(5)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def values(path):
    return [row.value for row in open_rows(path)]


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
        gzip.compress(LINES),
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
        json.dumps({"version": 1.5, "tags": ["a"], "data": ROWS, "end": None}).encode(),
        json.dumps({"data": ROWS}, indent=2).encode(),
        gzip.compress(json.dumps({"data": ROWS}).encode()),
        b'{"data": [\n' + LINES.strip().replace(b"\n", b",\n") + b"\n]}\n",
        "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    ],
)
@pytest.mark.parametrize("name", ["a", "a.jsonl", "a.json", "a.txt"])
def test_json_is_told_by_its_content(tmp_path, content, name):
    file = tmp_path / name
    file.write_bytes(content)
    assert values(file) == ROWS


def test_a_first_line_that_is_longer_than_what_is_looked_at(tmp_path, monkeypatch):
    """Named .jsonl, a file is read line by line: a broken line costs one row."""
    monkeypatch.setattr("jaxspec.data.imports.json_rows.PROBE_BYTES", 64)
    long = {"note": "x" * 100, "messages": []}
    rows = [long, {"messages": [1]}, {"messages": [2]}]
    lines = [json.dumps(row).encode() for row in rows]
    for file in (tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"):
        content = b"\n".join([lines[0], b'{"messages": [', *lines[1:]])
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
        read = list(open_rows(file))
        assert [row.value for row in read if row.problem is None] == rows
        assert sum(row.problem is not None for row in read) == 1
    whole = tmp_path / "a.json"
    whole.write_bytes(json.dumps({"note": "x" * 100, "data": rows}).encode())
    assert values(whole) == rows


@pytest.mark.parametrize("count", [1, 2])
def test_rows_of_a_file_of_lines_are_named_alike_however_many_there_are(tmp_path, count):
    row = {"foo": 1}
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    bad.write_text(count * (json.dumps(row) + "\n"))
    assert [read.place for read in open_rows(bad)] == [
        f"line {n + 1} of {bad}" for n in range(count)
    ]
    good.write_text(count * (json.dumps(ROWS[0]) + "\n"))
    assert next(read.place for read in open_rows(good)) == f"line 1 of {good}"
    # Named as lines, but one object with a list.
    good.write_text(json.dumps({"data": ROWS}))
    assert values(good) == ROWS


def test_tables_are_told_by_their_content(tmp_path):
    table = pa.Table.from_pylist([{**row, "score": 1.0} for row in ROWS])
    pq.write_table(table, tmp_path / "a")
    assert values(tmp_path / "a") == ROWS  # other columns are not read
    for make, name in ((pa.ipc.new_file, "file"), (pa.ipc.new_stream, "stream")):
        with make(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
        assert [value["messages"] for value in values(tmp_path / name)] == [
            row["messages"] for row in ROWS
        ]


def test_texts(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("[1] One.\n\nMore.\n<|endoftext|>\nTwo.\n", encoding="utf-8")
    assert values(file) == [{"text": "[1] One.\n\nMore."}, {"text": "Two."}]
    told = 'The server says\n{"text": "busy"}\nand ends.'
    file.write_text(told, encoding="utf-8")
    assert values(file) == [{"text": told}], "one line of a text may be JSON"
    monkeypatch.setattr(text_rows, "LONGEST_TEXT", 10)
    file.write_text("12345678\n12345678\nabc\n", encoding="utf-8")
    assert values(file) == [{"text": "12345678\n12345678"}, {"text": "abc"}]


def test_long_lists_are_never_held_whole(monkeypatch):
    """Each row is there before the file has been read much further."""
    content = io.BytesIO(json.dumps(ROWS * 2000).encode())
    size = len(content.getvalue())
    monkeypatch.setattr(json_rows, "PROBE_BYTES", 1000)
    for number, row in enumerate(json_rows.read_json(content, name="a", fields={"messages"})):
        assert row.value == ROWS[number % 5]
        expected = size * (number + 1) / 10_000
        assert content.tell() < expected + 3 * (1 << 16)
    assert number == 9_999


def test_values_that_are_cut_by_a_chunk_are_read_whole(monkeypatch):
    monkeypatch.setattr(json_rows, "_CHUNK", 3)
    value = [{"a": 'é\\" \U0001f600' * 9, "b": [-12.5e-3, True, None], "c": {}}, 12345, "x"]
    content = json.dumps(value).encode()
    assert [
        row.value for row in json_rows.read_json(io.BytesIO(content), name="a", fields={"a"})
    ] == value


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (LINES + b"not json\n" + LINES, ["line 6: not JSON"]),
        (b"not json\n" + LINES, ["line 1: not JSON"]),
        (b'{"messages": [\n' + LINES, ["line 1: not JSON"]),
        (LINES + b'{"messages": "\xe9"}\n', ["line 6: not UTF-8"]),
        (LINES + b"[" * 100_000 + b"\n", ["line 6: not JSON"]),
        (LINES + b'{"text": "' + b"x" * 2000 + b'"}\n' + LINES, ["line 6: too long"]),
        (json.dumps(ROWS).encode()[:-30], ["record 5: broken JSON"]),
        (json.dumps(ROWS).encode()[:-1], ["record 5: broken JSON"]),
        (json.dumps(ROWS).encode() + b"x", ["the end: text after the list"]),
        (
            json.dumps({"data": ROWS}, indent=1).encode() * 2,
            ["the end: text after the object"],
        ),
        (b'[{"text": "a"} {"text": "b"}]', ["record 1: broken JSON"]),
        (b'[{"text": "a"}, {"text": "\xe9"}, {"text": "b"}]', ["record 2: not UTF-8"]),
        (b'{"data": [{"text": "a"}, {"text": ]}', ["record 2: broken JSON"]),
    ],
)
def test_bad_rows_have_a_place(tmp_path, monkeypatch, content, places):
    monkeypatch.setattr(records, "LONGEST_LINE", 1000 if b"xxx" in content else 1 << 26)
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    problems = [row for row in open_rows(file) if row.problem is not None]
    found = [f"{row.place.removesuffix(f' of {file}')}: {row.problem.reason}" for row in problems]
    assert found == places


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\xef\xbb\xbf\n \n", "is empty"),
        ("a.pt", LINES, "is a pickle"),
        ("a.jsonl", b"\x80\x04\x95abc", "is a pickle"),
        ("a.zip", b"PK\x03\x04abc", "is a zip archive: unpack it first"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdabc", "is compressed with zstd"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
        ("a.jsonl", b"\x7fELF\0\0\0", "it has null bytes"),
        ("a.csv", b"question,answer\n1,2\n", "a table as text"),
        ("a.json", b"hello", "is not a .json file: it begins with 'hello'"),
        ("a.parquet", b"hello", "is not a .parquet file"),
        ("a.parquet", b"PAR1" + b"x" * 100, "is damaged"),
        ("a.arrow", b"ARROW1\0\0" + b"x" * 100, "is damaged"),
        ("a.jsonl.gz", gzip.compress(LINES * 99)[:-40], "is damaged"),
        ("a.json", b'{"a": {"b": 1}}', "is a JSON object without a list"),
        ("a.json", b'{"a": [{"x": 1}], "b": [{"x": 1}]}', "holds several lists, 'a' and 'b'"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        values(file)
    assert str(file) in str(caught.value)


def test_folders_of_files(tmp_path):
    for name in ("data/test-0.jsonl", "data/train-1.jsonl", "data/train-0.jsonl", ".git/x.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    found = locate(str(tmp_path), split="train")
    assert found.names == ("data/train-0.jsonl", "data/train-1.jsonl")
    with pytest.raises(ValueError, match="belongs to the split 'dev': there are test, train"):
        locate(str(tmp_path), split="dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data: expected files ending in"):
        locate(str(tmp_path / "empty"), split="train")
    with pytest.raises(ValueError, match="There is no file or folder"):
        locate(str(tmp_path / "missing"), split="train")


def test_folders_of_our_own_need_no_import(tmp_path):
    turns = (("user", "Why?"), ("assistant", "So."))
    write_examples(tmp_path / "ours", [Example("a", turns, "a")], manifest={"split": "train"})
    with pytest.raises(ValueError, match="ours was written by jaxspec and needs no import: name"):
        locate(str(tmp_path / "ours"), split="train")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "manifest.json").write_text(json.dumps([{"prompt": "Why?"}]))
    assert locate(str(theirs), split="train").names == ("manifest.json",)


def test_folders_saved_by_datasets(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        with pa.ipc.new_stream(tmp_path / split / "data-0.arrow", table.schema) as writer:
            writer.write_table(table)
        state = {"_data_files": [{"filename": "data-0.arrow"}], "_split": split}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
        (tmp_path / split / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (file,) = locate(str(tmp_path), split="test").files
    assert file == tmp_path / "test" / "data-0.arrow" and values(file) == ROWS
    assert locate(str(tmp_path / "train"), split="train").names == ("data-0.arrow",)
    with pytest.raises(ValueError, match="has no split 'dev': there are test, train"):
        locate(str(tmp_path), split="dev")
    (tmp_path / "train" / "state.json").write_text('{"_data_files": [{"filename": "../x"}]}')
    with pytest.raises(ValueError, match="names no data files"):
        locate(str(tmp_path / "train"), split="train")


def test_splits_are_words_of_names():
    names = ["train_sft-0.parquet", "train_gen-0.parquet", "test_sft-0.parquet", "val.jsonl"]
    assert files_of_split(names, "train_sft") == names[:1]
    assert files_of_split(names, "train") == names[:2]
    assert files_of_split(names, "validation") == names[3:]
    assert files_of_split(["contest.jsonl", "b.jsonl"], "train") == ["contest.jsonl", "b.jsonl"]


def test_what_a_table_can_hold_and_json_cannot_is_a_bad_row(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    dated = {"name": "f", "since": datetime.date(2020, 1, 1)}
    pq.write_table(pa.table({"messages": [turns], "tools": [[dated]]}), tmp_path / "dates.parquet")
    (row,) = open_rows(tmp_path / "dates.parquet")
    with pytest.raises(BadRow, match=r"a value that is not JSON: .*date"):
        to_example(row.value, id="a", source="a", needs_answer=True)

    values = pa.array([b"good", b"\xff\xfe", b"good, too"])
    text = pa.Array.from_buffers(pa.string(), 3, values.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "texts.parquet")
    rows = list(open_rows(tmp_path / "texts.parquet"))
    assert [row.value for row in rows] == [{"text": "good"}, None, {"text": "good, too"}]
    assert rows[1].place == f"row 2 of {tmp_path / 'texts.parquet'}"
    assert "cannot be read: 'utf-8' codec" in str(rows[1].problem)
