"""The messages that docs/troubleshooting.md explains are those that jaxspec prints."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def texts() -> set[str]:
    """The texts in jaxspec's source, with ``...`` for what is put in when they are printed."""
    found = set()
    for file in (ROOT / "jaxspec").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.add(
                    "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "..."
                        for part in node.values
                    )
                )
    return found


def test_messages_are_real():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    explained = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    explained += ["Unable to initialize backend", "This machine is out of memory"]
    known = texts()
    assert len(explained) > 10
    unknown = [message for message in explained if not any(message in text for text in known)]
    assert not unknown
