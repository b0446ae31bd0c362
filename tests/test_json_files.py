"""JSON that others wrote: what is refused, in one short message with the file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxspec import json_files
from jaxspec.json_files import parse_object, read_bytes, shortened, shown


def test_an_object_is_read_as_it_is() -> None:
    content = '{"a": 1, "b": {"a": [1.5, null, "é"]}}'.encode()
    assert parse_object(content, name="FILE") == {"a": 1, "b": {"a": [1.5, None, "é"]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "FILE is not JSON: "),
        (b"[1]", "FILE holds a list: expected a JSON object"),
        (b"[" * 100_000, "FILE is not JSON: it is nested too deeply"),
        (b'{"a":' * 100_000, "FILE is not JSON: it is nested too deeply"),
        (b'{"a": "\xff"}', "FILE is not JSON: .*can't decode byte 0xff"),
        (b"\xef\xbb\xbf{}", "FILE is not JSON: .*BOM"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "FILE is not JSON: the key 'c' occurs twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "FILE is not JSON: .*4300"),
        (b'{"eps": NaN}', "FILE: eps is nan, expected a finite number"),
        (b'{"rope": {"theta": -Infinity}}', r"FILE: rope\.theta is -inf, expected a finite"),
        (b'{"a": [1, {"b": 1e999}]}', r"FILE: a\[1\]\.b is inf, expected a finite number"),
    ],
)
def test_what_is_no_json_object_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_object(content, name="FILE")
    assert len(str(caught.value)) < 500


def test_folders_and_huge_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        read_bytes(tmp_path)
    file = tmp_path / "config.json"
    file.write_bytes(b"{}")
    assert read_bytes(file) == b"{}"
    monkeypatch.setattr(json_files, "LARGEST_FILE", 1)
    with pytest.raises(ValueError, match=r"config\.json has 2 bytes: expected at most 1"):
        read_bytes(file)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_bytes(tmp_path / "none.json")


def test_values_are_shown_on_one_short_line() -> None:
    assert shown([1, "a"]) == "[1, 'a']"
    assert shortened("\x1b[31mred\n") == r"\x1b[31mred\n"
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10_000, list(range(10_000)), {"k": "\n" * 10_000}):
        assert len(shown(value)) <= 300 and shown(value).isprintable()
