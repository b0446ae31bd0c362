"""Python files of the user's own, such as configurations and loss terms, executed as modules.

A file is compiled anew each time. Python's bytecode would be left in the user's folder, and would
still be used after a change within the same second that keeps the file's size.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import CodeType, ModuleType


class _WithoutBytecode(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def module_name(kind: str, file: Path) -> str:
    """A name of its own for each file, so that two files called alike do not share a module."""
    digest = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:12]
    return f"jaxspec_{kind}_{file.stem}_{digest}"


def execute(file: Path, *, name: str) -> ModuleType:
    """Executes a file as the module `name`, which is then in `sys.modules`.

    Raises:
      BaseException: whatever the file raises; the module is then not in `sys.modules`.
    """
    loader = _WithoutBytecode(name, os.fspath(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
