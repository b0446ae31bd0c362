"""The configurations that come with jaxspec: by name, wherever jaxspec is installed.

In a checkout they are in ``configs/``; a wheel carries a copy of that folder.

>>> "quickstart" in shipped()
True
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Of a wheel, and of a checkout."""


def shipped() -> dict[str, Path]:
    """Name -> file of each shipped configuration, sorted by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        return {}
    return {file.stem: file for file in sorted(folder.glob("*.py")) if file.stem != "__init__"}


def find(config: str | os.PathLike[str]) -> Path:
    """The file that ``--config`` names: a path, or the name of a shipped configuration.

    A file of the user's comes first. If there is none, what is returned need not exist.
    """
    path = Path(config)
    if not path.is_file() and path.parent == Path():
        return shipped().get(path.name.removesuffix(".py"), path)
    return path


def summary(file: Path) -> str:
    """The first line of a configuration's docstring; "" if it has none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
