"""Every notebook runs from top to bottom in a kernel of this interpreter.

With ``--slow`` each has a kernel of its own. Otherwise all run in one kernel, which keeps compiled
programs and forgets names between them.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
FORGET = """
import jax, matplotlib.pyplot as plt
jax.config.update("jax_enable_x64", False)
plt.close("all")
plt.rcdefaults()
%reset -f
"""


def test_there_are_notebooks():
    assert NOTEBOOKS


def run(notebook: nbformat.NotebookNode, folder: Path, **options) -> None:
    """Runs all cells in a new kernel."""
    # A kernel of this very interpreter, whether or not one is installed for it.
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    # One device, as on a reader's machine, and not the virtual ones of the other tests.
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("MPLCONFIGDIR", str(folder / "matplotlib"))
        patch.setenv("MPLBACKEND", "Agg")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("XLA_FLAGS", flags)
        patch.setenv("PYTHONWARNINGS", "error::DeprecationWarning:jaxspec")
        client = nbclient.NotebookClient(
            notebook, timeout=300, resources={"metadata": {"path": str(folder)}}, **options
        )
        client.execute()


@pytest.fixture(scope="module")
def ran(tmp_path_factory, is_slow) -> dict[Path, list[nbformat.NotebookNode]]:
    """The cells of each notebook after they ran in one kernel; {} with ``--slow``."""
    if is_slow:
        return {}
    together = jupytext.read(NOTEBOOKS[0])
    cells = {path: jupytext.read(path).cells for path in NOTEBOOKS}
    together.cells = [
        cell
        for part in cells.values()
        for cell in (*part, nbformat.v4.new_code_cell(FORGET.strip()))
    ]
    started = time.monotonic()
    run(together, tmp_path_factory.mktemp("together"), allow_errors=True)
    print(f"{len(cells)} notebooks: {time.monotonic() - started:.0f} s")
    return cells


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, ran, tmp_path, is_slow):
    if is_slow:
        notebook = jupytext.read(path)
        started = time.monotonic()
        run(notebook, tmp_path)
        print(f"{path.stem}: {time.monotonic() - started:.0f} s")
        cells = notebook.cells
    else:
        cells = ran[path]
    code = [cell for cell in cells if cell.cell_type == "code"]
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", "\n".join([cell.source, *output.traceback])
    assert all(cell.execution_count for cell in code)
    assert len(code) > 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_text_and_imports_the_library_only(path):
    notebook = jupytext.read(path)
    assert notebook.cells[0].cell_type == "markdown"
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for forbidden in ("from tests", "import tests", "sys.path", "!pip", "%pip"):
        assert forbidden not in source
    assert "jaxspec" in source
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert "ipynb,py:percent" in notebook.metadata["jupytext"]["formats"]
