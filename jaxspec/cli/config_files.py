"""Config files: Python files with a ``get_config()``, and what that returns.

>>> from jaxspec.config import RunConfig
>>> returned_config("quickstart", RunConfig).name
'quickstart'
"""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from pathlib import Path
from typing import TypeVar

from jaxspec.cli import shipped_configs
from jaxspec.cli.values import type_problems
from jaxspec.config import RunConfig
from jaxspec.names import did_you_mean
from jaxspec.user_modules import execute, module_name

ConfigT = TypeVar("ConfigT")


def returned_config(path: str | os.PathLike[str], kind: type[ConfigT]) -> ConfigT:
    """Returns what ``get_config()`` of a config file returns.

    The file is executed: it is the user's own program, like train.py itself.

    Args:
      path: a Python file, or the name of a configuration that comes with jaxspec.
      kind: what get_config has to return.

    Raises:
      ValueError: the file is missing or fails, has no get_config, or get_config returns something
        else.
    """
    file = shipped_configs.find(path)
    if not file.is_file():
        raise ValueError(f"Config file not found: {os.fspath(path)!r}. {_available(file)}")
    if file.suffix != ".py":
        raise ValueError(f"A config is a Python file (.py): got {os.fspath(path)!r}.")
    name = module_name("config", file)
    try:
        module = execute(file, name=name)
        get_config = getattr(module, "get_config", None)
        config = get_config() if callable(get_config) else None
    except Exception as error:
        said = _type_problem_behind(error) or f"{type(error).__name__}: {error}"
        raise ValueError(
            f"Config file {os.fspath(path)!r} failed{_line_in(error, file)}: {said}"
        ) from error
    finally:
        sys.modules.pop(name, None)
    expected = f"{kind.__module__}.{kind.__name__}"
    if not callable(get_config):
        raise ValueError(
            f"Config file {os.fspath(path)!r} has no function get_config(). "
            f"It must define one that returns a {expected}."
        )
    if not isinstance(config, kind):
        raise ValueError(
            f"get_config() of {os.fspath(path)!r} must return a {expected}: "
            f"got {type(config).__name__}.{_HINTS.get(type(config).__name__, '')}"
        )
    return config


_HINTS = {
    "StudyConfig": " Run a study with jaxspec study.",
    "RunConfig": " Train it with jaxspec train, or name it in a study.",
}
"""Type that a config file returned instead -> what it is for."""


def _available(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path("configs")
    names = sorted(str(other) for other in folder.glob("*.py") if _has_get_config(other))
    if file.parent == Path():
        names += shipped_configs.shipped()
    if not names:
        return "Name a Python file with a get_config()."
    return f"{did_you_mean(str(file), names).lstrip()} There are: {', '.join(names)}.".lstrip()


def _has_get_config(file: Path) -> bool:
    try:
        return b"def get_config" in file.read_bytes()
    except OSError:
        return False


def _type_problem_behind(error: Exception) -> str:
    """What the types say of a class whose own checks broke on a value of the wrong type."""
    if not isinstance(error, TypeError):
        return ""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        settings = frame.f_locals.get("self")
        if frame.f_code.co_name == "__post_init__" and dataclasses.is_dataclass(settings):
            run = vars(RunConfig())
            groups = [name for name, group in run.items() if type(group) is type(settings)]
            prefix = groups[0] if groups else type(settings).__name__
            return "\n  ".join(type_problems(settings, prefix=f"{prefix}."))
    return ""


def _line_in(error: Exception, file: Path) -> str:
    """Says " at line N": the innermost line of the config file that the error passed through."""
    if isinstance(error, SyntaxError):
        return f" at line {error.lineno}" if error.lineno else ""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == file or Path(frame.filename) == file.resolve()
    ]
    return f" at line {lines[-1]}" if lines else ""
