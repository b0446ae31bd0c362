"""The file of a benchmark."""

import pytest

from benchmarks.records import Records, read_records, table

RECORD = {"devices": {"kind": "cpu"}, "commit": "abc", "time": "now"}


def row(name, **more):
    return {"shape": "s", "dtype": "f", "part": "p", "name": name, "batch": 1, **more}


def test_an_interrupted_run_keeps_what_is_done(tmp_path):
    path = str(tmp_path / "r.json")
    first = Records(path, provenance=RECORD, conditions={"cached": 8})
    first.add(row("step", seconds=[1.0]))
    # The file is whole after every row.
    assert [each["name"] for each in read_records(path)["rows"]] == ["step"]
    second = Records(path, provenance={**RECORD, "time": "later"}, conditions={"cached": 8})
    assert second.find(row("step"))["seconds"] == [1.0]
    assert second.find(row("draft")) is None
    second.add(row("draft", seconds=[2.0]))
    assert [each["name"] for each in read_records(path)["rows"]] == ["step", "draft"]


@pytest.mark.parametrize(
    ("record", "conditions", "message"),
    [
        ({**RECORD, "devices": {"kind": "TPU v5e"}}, {"cached": 8}, "another devices"),
        ({**RECORD, "commit": "def"}, {"cached": 8}, "another commit"),
        (RECORD, {"cached": 9}, "another cached: got 9, recorded 8"),
    ],
)
def test_rows_of_other_conditions_are_refused(record, conditions, message, tmp_path):
    path = str(tmp_path / "r.json")
    Records(path, provenance=RECORD, conditions={"cached": 8}).add(row("step", seconds=[1.0]))
    with pytest.raises(ValueError, match=message):
        Records(path, provenance=record, conditions=conditions)


def test_a_table_is_aligned():
    assert table(("", "ms"), [("step", "1.5"), ("a draft", "12")]).splitlines() == [
        "|         |  ms |",
        "| ------- | --: |",
        "| step    | 1.5 |",
        "| a draft |  12 |",
    ]
