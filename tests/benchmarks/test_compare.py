"""Comparing two files of benchmarks, made by hand."""

import json

import pytest

from benchmarks.compare import main, ratio_interval
from benchmarks.records import Records

CONDITIONS = {"cached": 256}


def write(path, *, kind="cpu", conditions=CONDITIONS, shape="tiny", **seconds):
    record = {"devices": {"kind": kind}, "host": {"cpus": 2}, "commit": "abc"}
    records = Records(str(path), provenance=record, conditions=conditions)
    for name, found in seconds.items():
        row = {"shape": shape, "dtype": "float32", "part": "decode", "name": name, "batch": 1}
        records.add({**row, "seconds": found})
    return str(path)


def test_what_differs_beyond_noise(tmp_path, capsys):
    old = write(
        tmp_path / "old.json",
        faster=[10.0, 10.2, 9.8, 10.1, 9.9],
        slower=[10.0, 10.2, 9.8, 10.1, 9.9],
        noisy=[10.0, 14.0, 6.0, 12.0, 8.0],
        equal=[10.0, 10.0, 10.0],
        once=[10.0],
        gone=[1.0],
    )
    new = write(
        tmp_path / "new.json",
        faster=[5.0, 5.1, 4.9, 5.2, 4.8],
        slower=[12.0, 12.1, 11.9, 12.2, 11.8],
        noisy=[9.0, 13.0, 5.0, 11.0, 7.0],
        equal=[10.1, 10.1, 10.1],  # By 1%: a difference that does not count.
        once=[1.0],
    )
    assert main([old, new]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in lines
        if line.startswith("| decode")
    }
    assert verdicts["decode: faster"][3] == "0.50"
    assert verdicts["decode: faster"][-1] == "faster"
    assert verdicts["decode: slower"][3] == "1.20"
    assert verdicts["decode: slower"][-1] == "slower"
    assert verdicts["decode: noisy"][-1] == ""
    assert verdicts["decode: equal"][-2:] == ["1.01–1.01", ""]
    assert verdicts["decode: once"][-3:] == ["0.10", "", ""]
    text = "\n".join(lines)
    assert "1 rows are faster, 1 slower, 3 within the noise." in text
    assert "1 rows were measured only in the old file" in text
    assert main([old, new, "--fail"]) == 1
    assert main([old, old, "--fail"]) == 0


def test_the_range_holds_the_ratio_and_is_the_same_every_time():
    old, new = [10.0, 11.0, 9.0, 10.5], [20.0, 21.0, 19.0, 22.0]
    low, high = ratio_interval(old, new)
    assert low < 20.5 / 10.25 < high
    assert ratio_interval(old, new) == (low, high)
    assert ratio_interval(old, new[:2]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "NVIDIA H100"}, "devices: {'kind': 'cpu'} and {'kind': 'NVIDIA H100'}"),
        ({"conditions": {"cached": 512}}, "cached: 256 and 512"),
        ({"shape": "1.5B"}, "shape: ['tiny'] and ['1.5B']"),
    ],
)
def test_what_was_not_measured_alike_is_refused(changes, message, tmp_path, capsys):
    old = write(tmp_path / "old.json", step=[1.0, 1.0, 1.0])
    new = write(tmp_path / "new.json", step=[2.0, 2.0, 2.0], **changes)
    assert main([old, new]) == 2
    error = capsys.readouterr().err
    assert "were not measured alike" in error and message in error
    if "shape" not in changes:
        assert main([old, new, "--any"]) == 0
    else:  # No row is in both.
        assert main([old, new, "--any"]) == 2


def test_other_files_are_refused(tmp_path, capsys):
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    good = write(tmp_path / "good.json", step=[1.0])
    assert main([good, str(tmp_path / "other.json")]) == 2
    assert "is not a file of this benchmark" in capsys.readouterr().err
