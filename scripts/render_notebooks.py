"""Runs the notebooks and writes their rendered copies, Markdown with figures, to docs/notebooks.

    bash scripts/setup_venv.sh notebooks
    .venv/bin/python scripts/render_notebooks.py                 # all of them, some minutes
    .venv/bin/python scripts/render_notebooks.py trees losses    # these

A test compares the copies with the notebooks, so render again after each change of a notebook.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import jupytext
import nbclient
import nbformat
from nbconvert.exporters import MarkdownExporter
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COPIES = ROOT / "docs" / "notebooks"
COLOURS = 48
"""Of a figure: lines and text need few, and the files are a third as large."""


def render(path: Path) -> None:
    """Runs a notebook in an empty folder and writes its copy."""
    started = time.monotonic()
    notebook = jupytext.read(path)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": folder}}
        ).execute()
    drop_unprinted(notebook)
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"unique_key": path.stem}
    )
    for old in COPIES.glob(f"{path.stem}_*.png"):
        old.unlink()
    for name, data in resources["outputs"].items():
        (COPIES / name).write_bytes(with_few_colours(data))
    title = f"<!-- Made from notebooks/{path.name} by scripts/render_notebooks.py -->\n"
    lines = "\n".join(line.rstrip() for line in linked(text).splitlines())
    (COPIES / f"{path.stem}.md").write_text(title + lines.strip() + "\n", encoding="utf-8")
    print(f"{path.stem}: {time.monotonic() - started:.0f} s", flush=True)


def drop_unprinted(notebook: nbformat.NotebookNode) -> None:
    """Keeps what was printed and drawn: no values of last lines, no warnings of libraries."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.output_type != "execute_result" and output.get("name") != "stderr"
            ]


def with_few_colours(data: bytes) -> bytes:
    """A PNG with a palette."""
    file = BytesIO()
    image = Image.open(BytesIO(data)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def linked(text: str) -> str:
    """Links of the notebooks, as seen from the copies."""
    text = re.sub(r"\]\((\w+)\.py\)", r"](\1.md)", text)
    return text.replace("](../docs/", "](../").replace("](../jaxspec/", "](../../jaxspec/")


def main() -> None:
    """Renders the notebooks that are named, or all."""
    names = sys.argv[1:] or sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
    COPIES.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.pop("MPLBACKEND", None)
    for name in names:
        render(ROOT / "notebooks" / f"{name}.py")


if __name__ == "__main__":
    main()
