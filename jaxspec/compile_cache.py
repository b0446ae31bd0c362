"""Keeps compiled programs between runs: what is started again begins within seconds.

jax names a program by its text, its options, the versions of jax and of the compiler, and the
devices. A program for a CPU also needs that CPU's instructions, and a home may be shared by several
machines: each kind of CPU has a folder of its own. Of several processes, only the first one writes.

>>> cache_folder("gs://bucket/programs", platform="tpu")
'gs://bucket/programs'
>>> cache_folder("none", platform="tpu") is None
True
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform as machine
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxspec.files import try_file
from jaxspec.paths import is_remote

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SHORTEST = ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0.1)
"""jax keeps programs that took a second to compile; many of a small model take less."""
_CPU = Path("/proc/cpuinfo")


def cache_folder(setting: str | None, *, platform: str) -> str | None:
    """Where compiled programs are kept; None: nowhere.

    Args:
      setting: a folder or bucket; "none" or "": nowhere; "auto" or None: where jax's variable says,
        or else in the user's cache.
      platform: of the devices: "cpu", "gpu", "tpu".
    """
    if setting not in (None, "auto"):
        return None if setting in ("", "none") else os.path.expanduser(setting)
    if _VARIABLE in os.environ:
        return os.environ[_VARIABLE] or None
    kind = _kind_of_cpu() if platform == "cpu" else platform
    if kind is None:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return str(Path(home) / "jaxspec" / "programs" / kind) if os.path.isabs(home) else None


def use_compile_cache(setting: str | None, *, option: str) -> None:
    """Makes jax keep compiled programs where `cache_folder` says, if that can be written to.

    Args:
      setting: see `cache_folder`.
      option: what messages call it: "--compile_cache".

    Raises:
      ValueError: the setting names a folder that cannot be written to.
    """
    folder = cache_folder(setting, platform=jax.default_backend())
    is_named = setting not in (None, "auto")
    if folder is not None and not is_remote(folder) and (is_named or _VARIABLE not in os.environ):
        try:
            try_file(Path(folder) / "program", option=option)
        except ValueError:
            if is_named:
                raise
            folder = None
    config: Any = jax.config  # Its type does not know the options.
    variable, seconds = _SHORTEST
    if folder is not None and variable not in os.environ:
        config.update(variable.lower(), seconds)
    if folder != config.jax_compilation_cache_dir:
        config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


def _kind_of_cpu() -> str | None:
    """Distinguishes CPUs with other instructions; None: unknown."""
    instructions = ""
    with contextlib.suppress(OSError):
        lines = _CPU.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line for line in lines if line.startswith(("flags", "Features"))]
        instructions = found[0] if found else ""
    if not instructions:
        return None
    text = f"{machine.machine()} {instructions}"
    return f"cpu-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
