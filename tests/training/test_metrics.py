from __future__ import annotations

import json

import numpy as np
import pytest

from jaxspec.training.metrics import MetricsLog, add, means


def test_windows_add_before_they_divide():
    total = add([{"a": (1.0, 1.0)}, {"a": (np.float32(9.0), np.float32(3.0))}])
    assert means(total) == {"a": 2.5}


def test_slots_become_lists():
    total = add([{"at": (np.array([1.0, 0.0, 2.0]), np.array([2.0, 0.0, 2.0]))}])
    assert means(total) == {"at": [0.5, None, 1.0]}


def test_what_json_cannot_hold_is_null():
    assert means({"a": (np.nan, 1.0), "b": (np.inf, 1.0)}) == {"a": None, "b": None}


def test_long_windows_count_exactly():
    count = np.float32(2**24)
    total = add([{"a": (count, count)}, {"a": (np.float32(1), np.float32(1))}])
    assert total["a"] == (2**24 + 1, 2**24 + 1)


def write(log: MetricsLog, *steps: int) -> None:
    for step in steps:
        log.write(step, {"loss": (float(step), 1.0)}, extra={"tokens_per_s": 5.0})


def test_lines_behind_the_checkpoint_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, first_step=0)
    assert log.last_row == {}
    write(log, 1, 2, 3)
    assert log.last_row == {"step": 3, "loss": 3.0, "tokens_per_s": 5.0}
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill

    log = MetricsLog(tmp_path, first_step=2)
    assert log.last_row["step"] == 2
    write(log, 3)
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


FOREIGN = (
    b'{"x": 1}',
    b"[1]",
    b"note to myself",
    b'"step"',
    b"null",
    b'{"step": 1.0}',
    b'{"step": true}',
    b'{"step": "1"}',
    b'{"step": 1, "loss": NaN}',
    b'{"step": 1, "loss": -Infinity}',
    b'{"step": 1, "note": "caf\xe9"}',
    b'\xef\xbb\xbf{"step": 1}',
    b"\x00\x00\x00",
    b"[" * 100_000,
    b'{"step": 1' + b"0" * 5_000 + b"}",
    b'{"step": 1, "lo',  # cut short, and then a line by somebody else
)


def test_foreign_lines_are_kept_aside(tmp_path, capsys):
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.foreign.jsonl"
    own = [b'{"step": %d, "loss": 3.0}' % step for step in range(len(FOREIGN) + 1)]
    mixed = [line for pair in zip(own, FOREIGN, strict=False) for line in pair] + own[-1:]
    path.write_bytes(b"\n".join([*mixed, b"", b"  ", b""]))
    MetricsLog(tmp_path, first_step=1000).close()
    assert path.read_bytes().splitlines() == own
    assert aside.read_bytes().splitlines() == list(FOREIGN)
    (said,) = capsys.readouterr().out.splitlines()
    lines = f"{len(FOREIGN)} of {len(FOREIGN) + len(own)} lines in {path}"
    assert said.startswith(f"{lines} are not metrics")
    assert str(aside) in said

    with path.open("a") as file:
        file.write("one more\n")
    log = MetricsLog(tmp_path, first_step=2)
    assert log.last_row == {"step": 2, "loss": 3.0}
    write(log, 3)
    log.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [0, 1, 2, 3]
    assert aside.read_bytes().splitlines() == [*FOREIGN, b"one more"]


@pytest.mark.parametrize(
    ("last", "is_kept", "is_aside"),
    [
        (b"", False, False),
        (b'{"st', False, False),
        (b'{"step": 2, "loss": 1.', False, False),
        (b'{"step": 2, "loss": 1.5}', True, False),
        (b"note to myself", False, True),
        (b'{"x": 1', False, True),
    ],
)
def test_the_last_line_may_have_no_end(tmp_path, capsys, last, is_kept, is_aside):
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.foreign.jsonl"
    path.write_bytes(b'{"step": 1}\n' + last)
    MetricsLog(tmp_path, first_step=2).close()
    assert path.read_bytes() == b'{"step": 1}\n' + (last + b"\n" if is_kept else b"")
    assert aside.exists() == is_aside
    assert bool(capsys.readouterr().out) == is_aside
    if is_aside:
        assert aside.read_bytes() == last + b"\n"
