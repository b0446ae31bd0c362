"""What all processes of a run have to agree on before its first step.

>>> check_settings(RunConfig(), {"accept_changes": False})  # A single process agrees with itself.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxspec.config import RunConfig
from jaxspec.files import write_text
from jaxspec.parallel.processes import check_alike, gather
from jaxspec.provenance import jsonable
from jaxspec.training.segments import Record

_APPEARS_WITHIN_S = 10.0
"""How long a file may take to be seen on the other hosts of a shared file system."""


def check_settings(config: RunConfig, options: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same settings.

    Args:
      config: the run.
      options: other options of the command, by name.

    Raises:
      ValueError: on every process, with what differs.
    """
    check_alike(
        {**options, **dict(_leaves(jsonable(config)))},
        advice="Start all of them with the same config file and the same settings.",
    )


def check_contents(fingerprints: Record) -> None:
    """Checks that all processes read the same weights and data, by their fingerprints.

    Raises:
      ValueError: on every process, with what differs.
    """
    check_alike(
        {f"content of {name}": value for name, value in fingerprints.items()},
        advice="Copy the same files to all hosts.",
    )


def check_workdir(workdir: Path) -> None:
    """Checks that all processes see the folder that process 0 writes to.

    Raises:
      ValueError: on every process, with the processes that do not.
    """
    token, file = gather(secrets.token_hex(16))[0], workdir / ".seen-by-all"
    is_first = jax.process_index() == 0
    if len(gather(None)) == 1:
        return
    if is_first:
        write_text(file, token)
    gather("written")
    seen = gather(_holds(file, token))
    if is_first:
        file.unlink(missing_ok=True)
    blind = [str(index) for index, sees in enumerate(seen) if not sees]
    if blind:
        raise ValueError(
            f"--workdir {workdir} is not shared: process {', '.join(blind)} cannot see what "
            "process 0 writes there. Name a folder that all hosts share."
        )


def _holds(file: Path, token: str) -> bool:
    """Whether a file holds a token, or soon does."""
    until = time.monotonic() + _APPEARS_WITHIN_S
    while True:
        try:
            if file.read_text(encoding="utf-8") == token:
                return True
        except OSError:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.5)


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """The settings in nested groups, as `training.steps`."""
    if not isinstance(value, Mapping):
        return [(name, value)]
    prefix = f"{name}." if name else ""
    return [leaf for key, item in value.items() for leaf in _leaves(item, f"{prefix}{key}")]
