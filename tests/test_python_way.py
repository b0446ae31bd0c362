"""The Python example of the README and of docs/generate.md runs as it stands there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def example(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (found,) = (block for block in blocks if "jaxspec.generate" in block)
    return found


def test_the_example_runs(tmp_path, capsys):
    assert example("README.md") == example("docs/generate.md")
    (tmp_path / "example.py").write_text(example("README.md"))
    runpy.run_path(str(tmp_path / "example.py"))
    assert len(capsys.readouterr().out.splitlines()) >= 2
