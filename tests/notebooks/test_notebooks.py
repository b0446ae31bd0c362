"""Every notebook runs from top to bottom in a fresh kernel of this interpreter."""

import json
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbclient
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    # A kernel of this very interpreter, whether or not one is installed for it.
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # One device, as on a reader's machine, and not the virtual ones of the other tests.
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("PYTHONWARNINGS", "error::DeprecationWarning:jaxspec")

    notebook = jupytext.read(path)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    started = time.monotonic()
    client.execute()
    print(f"{path.stem}: {time.monotonic() - started:.0f} s")
    assert sum(cell.cell_type == "code" for cell in notebook.cells) > 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_text_and_imports_the_library_only(path):
    notebook = jupytext.read(path)
    assert notebook.cells[0].cell_type == "markdown"
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for forbidden in ("from tests", "import tests", "sys.path", "!pip", "%pip"):
        assert forbidden not in source
    assert "jaxspec" in source
    assert "ipynb,py:percent" in notebook.metadata["jupytext"]["formats"]
