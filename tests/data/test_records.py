"""Raw files: each kind of damage is named with the file and the line."""

import json

import pytest

from jaxspec.data.builders import records
from jaxspec.data.builders.records import Record, read_records, read_text

GOOD = b'{"question": "Why?"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b"\n\n<html>\n", "Expected JSON in line 4 of .*: got '<html>"),
        (GOOD + b'{"question": "Wh', "Expected JSON in line 2 of "),
        (GOOD + b'{"question": "\xff"}\n', "Expected UTF-8 in line 2 of .*: got b'.xff'"),
        (GOOD + b"[" * 100_000 + b"\n", "Expected JSON in line 2 of .*recursion"),
        (GOOD + b"9" * 10_000 + b"\n", "Expected JSON in line 2 of "),
        (GOOD + b"[1]\n", r"Expected a JSON object in line 2 of .*: got \[1\]"),
        (GOOD + b"null\n", "Expected a JSON object in line 2 of .*: got None"),
        (GOOD + b"\xef\xbb\xbf{}\n", "Expected JSON in line 2 of .*BOM"),
        (GOOD + b" " * 1001, "Expected at most 1,000 bytes in line 2 of "),
    ],
)
def test_bad_lines_are_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(records, "LONGEST_LINE", 1000 if b"  " in content else 1 << 26)
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{message}.*") as caught:
        list(read_records(file))
    assert f"of {file}" in str(caught.value) and len(str(caught.value)) < 500


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") * 2)
    assert [record.text("question") for record in read_records(file)] == ["Why?"] * 2
    file.write_bytes(b"")
    assert list(read_records(file)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "Expected a JSON list in "),
        (b"", "Expected JSON in "),
        (b'[{"a": 1},\n{"a": "\xe9"}]', "Expected UTF-8 in line 2 of "),
        (b'[{"a": 1}, 7]', "Expected a JSON object in record 2 of .*: got 7"),
        (b'[{"a": 1}', "Expected JSON in "),
        (b"[" * 100_000, "Expected JSON in .*recursion"),
    ],
)
def test_bad_lists_are_named(tmp_path, content, message):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{message}.*"):
        list(read_records(file))


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        ("text", None, "got None, expected non-empty text"),
        ("text", " \n", "got ' .n', expected non-empty text"),
        ("text", 7, "got 7, expected non-empty text"),
        ("text", ["a"], "got .'a'., expected non-empty text"),
        ("text", "\ud83d", "expected text without half of a surrogate"),
        ("text", ["x" * 999], "got .'x+[.]{3}, expected"),
        ("texts", "abc", "got 'abc', expected a list of non-empty texts"),
        ("texts", [], "expected a list of non-empty texts"),
        ("texts", ["a", None], "expected a list of non-empty texts"),
        ("texts", ["a", "\udfff"], "expected text without half of a surrogate"),
        ("number", "601", "got '601', expected a whole number"),
        ("number", True, "got True, expected a whole number"),
        ("number", 1.0, "got 1.0, expected a whole number"),
    ],
)
def test_wrong_fields_are_named(read, value, expected):
    record = Record({"field": value}, place="line 3 of a.jsonl")
    with pytest.raises(ValueError, match=rf"^Field 'field' in line 3 of a\.jsonl: .*{expected}"):
        getattr(record, read)("field")


def test_fields_are_read():
    record = Record(json.loads('{"a": "x", "b": ["y"], "c": 3, "d": ""}'), place="here")
    assert record.text("a") == "x" and record.texts("b") == ["y"] and record.number("c") == 3
    assert record.text("d", may_be_empty=True) == ""
    assert "a" in record and "e" not in record
    with pytest.raises(ValueError, match=r"^No field 'e' in here: the fields are \['a', 'b', "):
        record.text("e")


def test_texts_are_read_up_to_a_mark(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffé\n<end>x<end>cut \u00e9".encode()[:-1])
    assert read_text(file, up_to="<end>") == "é\n<end>x"
    with pytest.raises(ValueError, match=r"Expected UTF-8 in line 2 of .*a\.txt"):
        read_text(file)
    assert read_text(file, up_to="none") == ""
