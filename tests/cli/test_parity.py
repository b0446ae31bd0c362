"""The command: its table, its exit statuses, and what it says of wrong input."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxspec.checkpoints.folders import EMBEDDED_TARGET
from jaxspec.checkpoints.huggingface import save_target
from jaxspec.cli import main as console
from jaxspec.cli import parity as command
from jaxspec.config import TargetConfig, TransformerConfig
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.evals.opening import open_target
from jaxspec.models.transformer import Transformer
from jaxspec.parity import sources
from tests.parity import trained

OPTIONS = ["--target", "embedded", "--new-tokens", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter of the embedded target with random weights."""
    target = open_target(TargetConfig(path="embedded"))
    drafter = trained.network(target, target_layer_ids=(1, 3), block_size=4)
    weights = trained.initial(target, drafter)
    return trained.export(tmp_path_factory.mktemp("run"), target, "embedded", drafter, weights)


def test_table_and_json(run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = tmp_path / "parity.json"
    assert command.main([*OPTIONS, "--drafter", str(run), "--json", str(output)]) == 0
    printed, said = capsys.readouterr()
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in printed
    assert "Loading weights" not in said
    result = json.loads(output.read_text())
    assert result["passed"]
    assert {check["status"] for check in result["checks"]} == {"ok"}
    assert lines[-1] == f"All {len(result['checks'])} checks passed."
    for check, line in zip(result["checks"], lines, strict=False):
        assert line.split() == ["ok", *f"{check['name']} {check['detail']}".split()]


def test_failure_is_status_1(run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    file = copy / "export" / "config.json"
    file.write_text(file.read_text().replace("10000.0", "1000000.0"))
    options = [*OPTIONS, "--drafter", str(copy), "--no-variants"]
    assert command.main(options) == command.FAILED == 1
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("FAIL     as exported: RoPE")
    assert lines[place + 1].split() == ["rope_theta", "is", "1000000.0,", "exported", "10000.0"]
    assert lines[-1].startswith("1 of ")
    assert max(map(len, lines)) <= 80


def test_stored_in_bfloat16(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Training moves scales by less than bfloat16 can tell from 1."""
    monkeypatch.setenv("COLUMNS", "80")
    target = open_target(TargetConfig(path="embedded"))
    drafter = trained.network(target, target_layer_ids=(1, 3), block_size=4)
    moved = jax.tree.map(lambda leaf: leaf * 1.0017, trained.initial(target, drafter))
    run = trained.export(tmp_path, target, "embedded", drafter, moved, dtype="bfloat16")
    options = [*OPTIONS, "--drafter", str(run), "--no-variants"]
    assert command.main(options) == 0, capsys.readouterr().out


def test_without_torch(run: Path, capsys: Any, monkeypatch: Any) -> None:
    def absent(name: str) -> Any:
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return importlib.import_module(name)

    monkeypatch.setattr(sources.importlib, "import_module", absent)
    assert command.main([*OPTIONS, "--drafter", str(run)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not run layers: jaxspec, transformers torch is not installed" in printed
    assert "ok drafts: training, independent" in printed
    assert "checks passed (1 not run)." in printed


def test_what_transformers_refuses_is_not_run(run: Path, capsys: Any, monkeypatch: Any) -> None:
    """transformers 5 checks config.json with errors of its own kind."""

    class Strict(Exception):
        pass

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise Strict("max_window_layers: expected int\nand more")

    transformers = importlib.import_module("transformers")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    assert command.main([*OPTIONS, "--drafter", str(run)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "max_window_layers: expected int" in printed and "(1 not run)" in printed


def message(capsys: Any, monkeypatch: Any, *arguments: str) -> str:
    """What a mistake prints."""
    monkeypatch.setattr(sys, "argv", ["jaxspec", "parity", *arguments])
    with pytest.raises(SystemExit) as caught:
        console.main()
    assert caught.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return str(errors[0])


def test_wrong_folders(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    drafter = str(tmp_path / "absent")
    assert "No folder" in message(capsys, monkeypatch, *OPTIONS, "--drafter", drafter)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "No exported weights" in message(capsys, monkeypatch, *OPTIONS, "--drafter", str(empty))
    options = ["--target", str(empty), "--drafter", str(empty)]
    assert "no config.json" in message(capsys, monkeypatch, *options)


def test_drafter_of_another_kind(capsys: Any, monkeypatch: Any) -> None:
    said = message(capsys, monkeypatch, *OPTIONS, "--drafter", str(EMBEDDED_TARGET))
    assert "is a drafter of kind autoregressive: expected a DFlash drafter" in said


def test_target_of_another_size(run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    tokenizer = Tokenizer.load("embedded")
    shape = TransformerConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1
    )
    init = jax.jit(Transformer(shape).init)
    params = init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    save_target(tmp_path / "small", shape, params, tokenizer_folder=tokenizer.folder)
    options = ["--target", str(tmp_path / "small"), "--drafter", str(run)]
    assert "is for another target: hidden_size" in message(capsys, monkeypatch, *options)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is empty"), (b"\n \n", "is empty"), ("é".encode("latin-1"), "not UTF-8")],
    ids=["empty", "blank", "latin-1"],
)
def test_wrong_texts(
    content: bytes, expected: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    file = tmp_path / "questions.txt"
    file.write_bytes(content)
    options = [*OPTIONS, "--drafter", "x", "--text", str(file)]
    assert expected in message(capsys, monkeypatch, *options)


def test_too_few_tokens(capsys: Any, monkeypatch: Any) -> None:
    options = ["--target", "embedded", "--drafter", "x", "--new-tokens", "1"]
    assert "at least 2: got 1" in message(capsys, monkeypatch, *options)
