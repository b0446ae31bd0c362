"""jaxspec regenerate and calibrate in two real processes, which meet on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxspec.cli import main as console
from jaxspec.cli.configuration import run_as_command
from jaxspec.data.example_files import read_examples, read_manifest
from jaxspec.decoding.diffusion.draft_graph import load_graph
from tests.evals.diffusion_folders import write_model
from tests.evals.drafter_folders import WIDE, write_folders

ROOT = Path(__file__).parents[2]
DEVICES = "--xla_force_host_platform_device_count"
LIMIT_S = 300


def two_processes(line):
    """What the command says on standard output in each of two processes, with two devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(DEVICES)]
    common = {
        **os.environ,
        "XLA_FLAGS": " ".join([*flags, f"{DEVICES}=2"]),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxspec.cli.main", *line],
            cwd=ROOT,
            env={**common, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_S) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (out, error) in zip(started, said, strict=True):
        assert process.returncode == 0, out + error
    return [
        "\n".join(line for line in out.splitlines() if not line.startswith("[Gloo]"))
        for out, _ in said
    ]


def test_regenerate(tmp_path):
    target, _ = write_folders(tmp_path / "folders", **WIDE)
    line = ["regenerate", "--target.path", str(target), "--source", "embedded/chat"]
    line += ["--limit", "5", "--shard_prompts", "2", "--batch_size", "2", "--unfinished", "keep"]
    line += ["--max_new_tokens", "6", "--temperature", "1", "--mesh.tensor", "2"]
    first, second = two_processes([*line, "--output", str(tmp_path / "shared")])
    assert "Questions asked: 5; examples written: 5" in first and second == ""
    assert run_as_command(console.dispatch, [*line, "--output", str(tmp_path / "alone")]) == 0
    shared, alone = (read_manifest(tmp_path / name) for name in ("shared", "alone"))
    assert shared["shards"] == alone["shards"]
    assert shared["questions_digest"] == alone["questions_digest"]
    assert list(read_examples(tmp_path / "shared")) == list(read_examples(tmp_path / "alone"))
    devices = shared["provenance"]["devices"]
    assert devices["processes"] == 2 and devices["mesh"]["tensor"] == 2


def test_calibrate(tmp_path, is_slow):
    if not is_slow:
        pytest.skip("processes meet as in test_regenerate, and share as in threads: --slow")
    folder = write_model(tmp_path / "export", **WIDE)
    line = ["calibrate", "--target.path", str(folder), "--source", "embedded/math"]
    line += ["--prompts", "5", "--budget", "3", "--tokens", "16", "--diffusion.block_length"]
    line += ["4", "--evaluation.max_new_tokens", "8", "--evaluation.batch_size", "2"]
    first, second = two_processes([*line, "--output", str(tmp_path / "shared.json")])
    assert "Written: " in first and second == ""
    assert run_as_command(console.dispatch, [*line, "--output", str(tmp_path / "alone.json")]) == 0
    shared, alone = (load_graph(tmp_path / f"{name}.json") for name in ("shared", "alone"))
    assert shared.nodes == alone.nodes
    assert shared.provenance["calibration"] == alone.provenance["calibration"]
