"""Where a result comes from: command, configuration, commit, versions, devices, seed.

Every file of results contains it, so that each number can be traced and measured again.

>>> from jaxspec.config import RunConfig
>>> record = provenance(config=RunConfig(), seed=0)
>>> write_json("results.json", {"provenance": record, "results": []})
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxspec
from jaxspec.config import RunConfig
from jaxspec.files import try_file, user_path, write_text
from jaxspec.json_files import read_object

PACKAGES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "numpy": "numpy",
}


def provenance(*, config: RunConfig | None, seed: int | None) -> dict[str, Any]:
    """A record of this process that json can write.

    Args:
      config: the settings of the run; None for commands without any.
      seed: the seed of its randomness; None if there is none.

    Returns:
      command, config, commit (None outside jaxspec's repository) and whether the working tree
      differs from it, a digest of jaxspec's own code, versions, devices, host, seed, time in UTC.
    """
    commit, dirty = _commit()
    devices = jax.devices()
    return {
        "command": _command(sys.argv),
        "config": None if config is None else jsonable(config),
        "commit": commit,
        "dirty": dirty,
        "code": code_digest(Path(__file__).parent),
        "versions": _versions(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "host": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "seed": seed,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def short_commit(record: Mapping[str, Any]) -> str:
    """The commit of a record as people write it, with "+" if files differed; "": not known.

    >>> short_commit({"commit": "1b185cd2f0", "dirty": True})
    '1b185cd+'
    """
    commit = str(record.get("commit") or "")[:7]
    return commit + ("+" if commit and record.get("dirty") else "")


def _command(argv: list[str]) -> str:
    """The command in a form that can be typed again, without folders specific to one machine."""
    if not argv:
        return ""
    program = argv[0]
    if os.path.isabs(program):
        program = os.path.basename(program)
    words = ["python", program] if program.endswith(".py") else [program]
    home = os.path.expanduser("~")
    for word in argv[1:]:
        words.append(word.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else word)
    return shlex.join(words)


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "jaxspec": jaxspec.__version__,
    }
    for name, distribution in PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _commit(package: Path | None = None) -> tuple[str | None, bool | None]:
    """Commit of the repository that this file is tracked in, and whether tracked files differ.

    A package that is merely installed inside another project's repository is not tracked there, and
    that project's commit would say nothing about jaxspec.
    """
    package = package or Path(__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "config.py") is None:
        return None, None
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


@functools.cache
def code_digest(package: Path) -> str:
    """A short hash of a package's Python files, their names included; read once in a process."""
    digest = hashlib.sha256()
    files = {file.relative_to(package).as_posix(): file for file in package.rglob("*.py")}
    for name, file in sorted(files.items()):
        content = file.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def jsonable(value: Any) -> Any:
    """`value` in types that JSON has: dataclasses become objects, infinities and NaN strings.

    Raises:
      TypeError: an object that cannot be converted.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return jsonable(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}.")


def check_output(path: str | os.PathLike[str], *, holding: str) -> None:
    """Checks, before hours of work, that a file of results can be written.

    Args:
      path: the file.
      holding: the part that such files have besides "provenance": "results".

    Raises:
      ValueError: not a .json file (files written next to it have other endings), a place that
        cannot be written to, or a file of another kind, which would be lost.
    """
    file = user_path(path)
    if file.suffix != ".json":
        raise ValueError(f"--output must be a .json file: got {str(path)!r}.")
    try_file(file, option="--output")
    if file.exists() and file.stat().st_size and not _holds(file, {"provenance", holding}):
        raise ValueError(
            f"--output {path} is there already and is not an earlier output of this command: "
            f"expected provenance and {holding}. It would be lost: name another file, or move it "
            "away."
        )


def _holds(file: Path, keys: set[str]) -> bool:
    try:
        return keys <= read_object(file).keys()
    except ValueError:
        return False


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` (see `jsonable`) so that readers find either the old or the new file, whole.

    Missing parent folders are made.
    """
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")
