"""A disk, network share or bucket that does not answer now: no file is called damaged for that.

The command ends with a status that says so, and the same command may succeed later.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxspec import paths
from jaxspec.checkpoints import safetensors_io
from jaxspec.checkpoints.families.registry import open_folder
from jaxspec.checkpoints.folders import EMBEDDED_TARGET, target_folder
from jaxspec.checkpoints.safetensors_io import TensorFolder
from jaxspec.cli.configuration import run_as_command
from jaxspec.data.builders import base
from jaxspec.data.imports import table_rows
from jaxspec.data.imports.open_rows import open_rows
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.decoding.diffusion.draft_graph import load_graph
from jaxspec.files import refusing
from jaxspec.interruption import UNREACHABLE, is_outage
from jaxspec.json_files import read_bytes
from jaxspec.parity.texts import read_questions


def raise_stale(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.mark.parametrize(
    "read",
    [
        read_bytes,
        read_questions,
        load_graph,
        lambda file: list(open_rows(file)),
        lambda file: base._digest([file]),
        lambda file: open_folder(file.parent),
        lambda file: Tokenizer.load(file.parent),
        lambda file: TensorFolder(file.parent),
    ],
    ids=["json", "questions", "graph", "rows", "raw data", "model", "tokenizer", "weights"],
)
def test_a_file_that_is_not_read_now_is_not_damaged(
    read: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("open", "read_bytes", "read_text"):
        monkeypatch.setattr(Path, method, raise_stale)
    with pytest.raises(OSError, match="Stale") as caught:
        read(EMBEDDED_TARGET / "config.json")
    assert is_outage(caught.value)


def test_weights_that_stop_answering_while_they_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with TensorFolder(EMBEDDED_TARGET) as tensors:
        name = next(iter(tensors.shapes))
        monkeypatch.setattr(safetensors_io.os, "preadv", raise_stale)
        assert run_as_command(lambda argv: len(tensors.read(name)), []) == UNREACHABLE
    message = capsys.readouterr().err
    assert name in message and "Stale" in message and "Download" not in message


def test_tables_that_are_not_read_now_are_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a"]}), file)
    monkeypatch.setattr(table_rows, "local_copy", raise_stale)
    for rows in (
        table_rows.read_parquet(file, fields={"text"}),
        table_rows.read_arrow(file, is_stream=True),
    ):
        with pytest.raises(OSError, match="Stale") as caught:
            list(rows)
        assert is_outage(caught.value)


def test_what_is_not_seen_now_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.os, "stat", raise_stale)
    for look in (paths.exists, paths.is_file, lambda path: target_folder(str(path))):
        with pytest.raises(OSError, match="Stale"):
            look(EMBEDDED_TARGET)


def test_a_place_that_does_not_answer_is_not_refused() -> None:
    with pytest.raises(OSError, match="Stale"), refusing("runs/full", option="--workdir"):
        raise_stale()
    refused = pytest.raises(ValueError, match="cannot be written to: Permission denied")
    with refused, refusing("runs/full", option="--workdir"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
