"""Keeps compiled programs between runs: a run that is started again begins within seconds.

>>> cache_folder("gs://bucket/programs", platform="tpu")
'gs://bucket/programs'
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def cache_folder(setting: str | None, *, platform: str) -> str | None:
    """Where compiled programs are kept; None: nowhere.

    Args:
      setting: `training.compile_cache`.
      platform: of the devices: "cpu", "gpu", "tpu".
    """
    if setting is not None:
        return os.path.expanduser(setting) or None
    if _VARIABLE in os.environ:
        return os.environ[_VARIABLE] or None
    if platform == "cpu":  # Programs may need instructions that another machine lacks.
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(home) / "jaxspec" / "programs")


def use_compile_cache(setting: str | None) -> None:
    """Makes jax keep compiled programs where `training.compile_cache` says."""
    folder = cache_folder(setting, platform=jax.default_backend())
    config: Any = jax.config  # Its type does not know the options.
    if folder != config.jax_compilation_cache_dir:
        config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
