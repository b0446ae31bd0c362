"""float32 means float32: products that must be exact are computed in full.

GPUs multiply float32 matrices in TF32 and TPUs in bfloat16 unless told otherwise, which is off by
about 1e-2: enough to change a greedy token. What decodes, verifies or compares in float32 therefore
sets jax's matmul precision to "highest". Training keeps jax's own setting, and so does bfloat16,
whose products are exact in float32 anyway.

>>> with exact_products("float32"):
...     jax.config.jax_default_matmul_precision
'highest'
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

EXACT: Literal["highest"] = "highest"
"""jax's name for products without rounded operands."""


def exact_products(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Programs that are traced inside compute their products in full, if `dtype` is float32."""
    if dtype == "float32":
        return jax.default_matmul_precision(EXACT)
    return contextlib.nullcontext()


def exact_program(
    *, static_argnames: Sequence[str] = (), donate_argnames: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a method of a strategy, or a function of one, with `exact_products`.

    The strategy is the first argument and static; its model's type decides.

    Args:
      static_argnames: as in `jax.jit`.
      donate_argnames: as in `jax.jit`.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def exact(strategy: Any, *arguments: Any, **named: Any) -> Any:
            with exact_products(strategy.model.config.dtype):
                return function(strategy, *arguments, **named)

        first = next(iter(inspect.signature(function).parameters))
        return jax.jit(
            exact, static_argnames=(first, *static_argnames), donate_argnames=donate_argnames
        )

    return compiled


def precision_of(dtype: str) -> str:
    """Jax's name for the precision of products in programs that decode in this type."""
    config: Any = jax.config  # Its type does not know the options.
    return EXACT if dtype == "float32" else str(config.jax_default_matmul_precision or "default")


def products(dtype: str) -> str:
    """A sentence for reports."""
    if dtype == "float32":
        return (
            "Weights and products are float32; products are computed in full (jax's matmul "
            f"precision {EXACT!r}), on GPUs and TPUs too."
        )
    return (
        f"Weights are {dtype}: passes of different shapes (one token, a block, a batch) round "
        "differently, so outputs may differ where two tokens are about equally likely."
    )
