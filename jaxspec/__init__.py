"""jaxspec: diffusion drafters for speculative decoding, trained and measured in JAX.

>>> import jaxspec
>>> target = jaxspec.open_target("embedded")
>>> print(jaxspec.generate(target, "What is 12 + 30?").text)                   # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxspec.api import Generation, generate, open_drafter, open_target

__version__ = "0.1.0"
__all__ = ["Generation", "__version__", "generate", "open_drafter", "open_target"]


def __getattr__(name: str) -> Any:
    """Imports what is used: jax takes a second, and a command line is to be answered at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxspec import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
