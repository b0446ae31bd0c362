"""Every command with its target, data, run and results in a bucket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxspec.cli import main as console
from jaxspec.files import user_path
from jaxspec.training.metrics import MetricsLog
from tests.fake_bucket import fake_bucket, put
from tests.training import runs

BUCKET = "gs://bucket"


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """The objects; the current folder is an empty one, where nothing may appear."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with fake_bucket(monkeypatch) as objects:
        yield objects
    assert not list(here.iterdir()), "something was written to this machine"


def upload(folder: Path, name: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            put(f"bucket/{name}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def call(*words: str) -> None:
    console.dispatch([str(word) for word in words])


def test_from_conversations_to_a_measured_drafter(bucket, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("JAXSPEC_DATA_DIR", f"{BUCKET}/kept")
    target = runs.write_target(tmp_path / "target")
    upload(target, "target")
    config = runs.write_config(tmp_path / "config.py", target=f"{BUCKET}/target")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}."},
                {"role": "assistant", "content": f"{n}, {n} and {n}."},
            ]
        }
        for n in range(40)
    ]
    put("bucket/chats.jsonl", "\n".join(map(json.dumps, rows)).encode())

    call(
        "import-data",
        f"{BUCKET}/chats.jsonl",
        "--output",
        f"{BUCKET}/data/chats",
        "--validation",
        "0.1",
    )
    assert "bucket/data/chats/manifest.json" in bucket

    call(
        *("regenerate", "--target.path", f"{BUCKET}/target", "--source", f"{BUCKET}/data/chats"),
        *("--output", f"{BUCKET}/data/answers", "--max_new_tokens", 6, "--batch_size", 2),
        *("--shard_prompts", 2, "--limit", 4, "--unfinished", "keep"),
    )
    assert {
        "bucket/data/answers/examples-00000.array_record",
        "bucket/data/answers/manifest.json",
    } <= set(bucket)
    assert not any("jsonl" in name or ".writing" in name for name in bucket if "answers" in name)

    small = ("--training.checkpoint_every", 2, "--data.batch_size", 8, "--data.sequence_length", 64)
    train = (
        "train",
        "--config",
        config,
        "--data.sources",
        f"{BUCKET}/data/chats",
        f"{BUCKET}/chats.jsonl",
        *small,
    )
    call(*train, "--workdir", f"{BUCKET}/runs/full", "--training.steps", 4, "--profile", 1)
    whole = user_path(f"{BUCKET}/runs/full/metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [1, 2, 3, 4]
    names = set(bucket)
    for name in (
        "provenance.json",
        "export/config.json",
        "export/model.safetensors",
        "export/tokenizer.json",
    ):
        assert f"bucket/runs/full/{name}" in names
    assert any("/runs/full/tensorboard/events" in name for name in names)
    assert any("/runs/full/profile/" in name and name.endswith(".xplane.pb") for name in names)
    assert "bucket/runs/full/checkpoints/4/run/file_digests.json" in names

    with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        write = MetricsLog.write

        def stops(log, step, *arguments, **named):
            if step == 3:
                raise KeyboardInterrupt
            return write(log, step, *arguments, **named)

        stopping.setattr(MetricsLog, "write", stops)
        call(*train, "--workdir", f"{BUCKET}/runs/again", "--training.steps", 4)
    assert "bucket/runs/again/export/config.json" not in bucket
    call(*train, "--workdir", f"{BUCKET}/runs/again", "--training.steps", 4)
    assert runs.rows(user_path(f"{BUCKET}/runs/again")) == runs.rows(
        user_path(f"{BUCKET}/runs/full")
    )

    call("export", "--workdir", f"{BUCKET}/runs/full", "--output", f"{BUCKET}/drafter")
    assert {"bucket/drafter/config.json", "bucket/drafter/README.md"} <= set(bucket)
    results = f"{BUCKET}/results/full.json"
    call(
        *("eval", "--config", config, "--workdir", f"{BUCKET}/runs/full", "--output", results),
        *("--evaluation.benchmarks", f"{BUCKET}/chats.jsonl", "--evaluation.prompts", 2),
        *("--evaluation.max_new_tokens", 6, "--evaluation.batch_size", 2),
    )
    assert {"bucket/results/full.json", "bucket/results/full.md"} <= set(bucket)
    assert not any("unfinished" in name for name in bucket)

    call(
        *("generate", "--target.path", f"{BUCKET}/target", "--drafter", f"{BUCKET}/drafter"),
        *("--prompt", "What is 1 + 2?", "--max-new-tokens", 4),
        *("--picture", f"{BUCKET}/results/drafted.svg"),
    )
    assert bucket["bucket/results/drafted.svg"].startswith(b"<svg")
