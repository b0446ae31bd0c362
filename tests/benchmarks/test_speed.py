"""The table of passes, with and without running them."""

import dataclasses
import json
import sys

import pytest

from benchmarks import speed
from benchmarks.bounds import Device, bound_of
from benchmarks.shapes import SHAPES, Shape
from jaxspec.config import DataConfig, DrafterConfig, TransformerConfig
from jaxspec.parallel.chips import CHIPS
from jaxspec.planning.passes import Work

TINY = Shape(
    target=TransformerConfig(vocab_size=1100, hidden_size=16, num_layers=3, num_heads=2),
    drafter=DrafterConfig(block_size=4, num_features=2, num_layers=1),
    data=DataConfig(sequence_length=32, batch_size=2, anchors=4),
    prefills=(16,),
)


def run(monkeypatch, capsys, *options):
    monkeypatch.setattr(speed, "SHAPES", {**SHAPES, "tiny": lambda: TINY})
    monkeypatch.setattr(sys, "argv", ["speed", *options])
    speed.main()
    return capsys.readouterr().out


def test_a_plan_covers_every_part_and_runs_nothing(monkeypatch, capsys):
    text = run(
        monkeypatch, capsys, *("--shape", "1.5B", "--dtype", "bfloat16", "--plan-only"),
        *("--batches", "1", "--chips", "v5e", "H100"),
    )  # fmt: skip
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    }
    # 1.54 billion parameters in bfloat16, read at 3,350 GB/s.
    assert rows["decode: step"] == ["1", "", "", "", "", "", "3.78 m", "0.924 m"]
    assert rows["decode: verification of 16 rows"][-1] == "0.925 m"
    assert rows["prefill: 4,096 tokens"][-1] == "12.3 a"
    for name in ("decode: round with tree of 32", "regenerate: greedy", "train: step"):
        assert name in rows


def test_what_is_measured_stands_beside_its_bound(monkeypatch, capsys, tmp_path):
    file = tmp_path / "speed.json"
    options = (
        *("--shape", "tiny", "--parts", "prefill", "--batches", "1", "--repeats", "3"),
        *("--stream-mb", "8", "--product-width", "64", "--output", str(file)),
    )
    text = run(monkeypatch, capsys, *options)
    document = json.loads(file.read_text())
    assert document["provenance"]["devices"]["platform"] == "cpu"
    (row,) = document["rows"]
    assert len(row["seconds"]) == 3
    assert row["bound_s"] == pytest.approx(
        max(row["memory_bytes"] / row["bandwidth"], row["operations"] / row["product"])
    )
    share = row["bound_s"] / sorted(row["seconds"])[1]
    assert f" {share:.0%} |" in text
    # The same command reads what is there.
    monkeypatch.setattr(speed, "measured", lambda *_: pytest.fail("measured again"))
    again = run(monkeypatch, capsys, *options)
    assert "prefill: 16 tokens" in again
    assert json.loads(file.read_text())["rows"][0]["seconds"] == row["seconds"]


def test_passes_follow_one_another():
    chip = dataclasses.replace(CHIPS["v5e"], memory_bandwidth=10.0, peak_operations=100.0)
    read, computed = Work(0.0, 50.0), Work(200.0, 0.0)
    bound = bound_of([(2, read), (1, computed)], chip)
    assert (bound.seconds, bound.binding) == (12.0, "memory")


def test_the_best_measurement_of_this_device_counts():
    device = Device("float32", stream_mb=8, width=64)
    first = (device.bandwidth, device.operations)
    assert min(first) > 1e6
    device.measure()
    assert device.bandwidth >= first[0] and device.operations >= first[1]
    assert device.chip().peak_operations == device.operations
