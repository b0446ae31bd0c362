"""The copies in docs/notebooks, made by scripts/render_notebooks.py, are those of the notebooks."""

import re
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
COPIES = ROOT / "docs" / "notebooks"
LARGEST_FIGURE = 45_000
CODE = re.compile(r"^```python\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
RENDER = "Run scripts/render_notebooks.py."


def without_links(text: str) -> str:
    """The words of a text: links of the copies lead elsewhere, and ends of lines are stripped."""
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))


def differences(path: Path, copy: str) -> list[str]:
    """Cells of a notebook that its copy lacks, has in another order, or has in other words."""
    cells = jupytext.read(path).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    found = [cell for cell, shown in zip(code, CODE.findall(copy), strict=False) if cell != shown]
    if len(code) != len(CODE.findall(copy)):
        found.append(f"{len(code)} cells of code, but {len(CODE.findall(copy))} in the copy")
    rest = without_links(copy)
    for cell in cells:
        if cell.cell_type == "markdown":
            before, is_there, rest = rest.partition(without_links(cell.source))
            if not is_there:
                found.append(cell.source)
                rest = before
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_copy_has_the_same_cells(path):
    copy = (COPIES / f"{path.stem}.md").read_text(encoding="utf-8")
    assert not differences(path, copy), RENDER


def test_a_changed_cell_is_found():
    path = NOTEBOOKS[0]
    copy = (COPIES / f"{path.stem}.md").read_text(encoding="utf-8")
    code = CODE.findall(copy)
    for old, new in (
        (code[1], f"{code[1]}\nprint()"),
        (f"```python\n{code[-1]}\n```", ""),
        ("\n# ", "\n# Another title: "),
    ):
        assert old in copy
        assert differences(path, copy.replace(old, new, 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_are_there_and_small(path):
    copy = (COPIES / f"{path.stem}.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", copy))
    stored = {file.name for file in COPIES.glob(f"{path.stem}_*.png")}
    assert shown and shown == stored, RENDER
    large = {name for name in shown if (COPIES / name).stat().st_size > LARGEST_FIGURE}
    assert not large


def test_index_lists_every_notebook():
    index = (COPIES / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[([^]]+)\]\((\w+)\.md\) \|", index, re.MULTILINE)
    assert {name for _, name in listed} == {path.stem for path in NOTEBOOKS}
    for title, name in listed:
        heading = (COPIES / f"{name}.md").read_text(encoding="utf-8").splitlines()[1]
        assert heading.startswith(f"# {title}"), f"{name}: {heading}"
