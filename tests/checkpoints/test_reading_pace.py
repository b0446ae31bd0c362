"""What is said while a large model is read."""

from __future__ import annotations

import pytest

from jaxspec.checkpoints import huggingface, reading_pace
from jaxspec.checkpoints.folders import EMBEDDED_TARGET
from jaxspec.checkpoints.reading_pace import ReadingPace


def test_a_line_now_and_then_and_one_at_the_end() -> None:
    now, said = [0.0], list[str]()
    pace = ReadingPace("model", 60_000_000_000, echo=said.append, clock=lambda: now[0])
    for seconds, read in ((4, 6), (11, 12), (15, 20), (22, 30)):
        now[0] = seconds
        pace.so_far(read * 10**9)
    now[0] = 40
    pace.finished(60 * 10**9)
    assert said == [
        "Reading weights from model: 12.0 of 60.0 GB (1.09 GB/s).",
        "Reading weights from model: 30.0 of 60.0 GB (1.36 GB/s).",
        "Read 60.0 GB of weights from model in 40.0 s (1.50 GB/s).",
    ]


def test_only_of_large_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    huggingface.load_target(EMBEDDED_TARGET)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(reading_pace, "LARGE_BYTES", 1000)
    huggingface.load_target(EMBEDDED_TARGET)
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith("Read 0.0 GB of weights from ") and "GB/s" in err
