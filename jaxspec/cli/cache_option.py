"""The option of a command that keeps its compiled programs.

>>> CacheOption(compile_cache="none").compile_cache
'none'
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheOption:
    """Where a command keeps compiled programs; commands inherit it."""

    compile_cache: str = "auto"
    """Folder or bucket (gs://) that keeps compiled programs; "none": nowhere. "auto": what
    JAX_COMPILATION_CACHE_DIR says, or else ~/.cache/jaxspec/programs, if that can be written to."""

    def keep_programs(self) -> None:
        """See `jaxspec.compile_cache.use_compile_cache`."""
        from jaxspec.compile_cache import use_compile_cache  # It imports jax.

        use_compile_cache(self.compile_cache, option="--compile_cache")
