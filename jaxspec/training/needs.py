"""What a compiled step needs of each device, and how much arithmetic it does.

>>> import jax, jax.numpy as jnp
>>> def step(x_DF):
...     return jax.lax.scan(lambda carry, _: (carry @ carry, None), x_DF, None, length=3)[0]
>>> matmul_operations(jax.make_jaxpr(step)(jnp.ones((8, 8))))
3072.0
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from jaxspec.ops.attention_kernels import is_kernel, kernel_operations


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one step takes."""

    argument_bytes: int
    """State, frozen weights and batch, on each device."""
    temporary_bytes: int
    """What the step needs in addition, on each device."""
    result_bytes: int
    """Results that do not overwrite an argument, on each device: the new state of a step that gives
    the old one away needs no room of its own."""
    operations: float
    """Multiplications and additions of the matrix products, over all devices."""
    compile_s: float

    @property
    def memory_bytes(self) -> int:
        """Of one device."""
        return self.argument_bytes + self.temporary_bytes + self.result_bytes

    @property
    def summary(self) -> str:
        """One line for a log."""
        return (
            f"A step needs {_size(self.memory_bytes)} on each device (state, weights and batch "
            f"{_size(self.argument_bytes)}, temporaries {_size(self.temporary_bytes)}) and "
            f"{self.operations / 1e9:,.2f} GFLOP in matrix products; compiled in "
            f"{self.compile_s:.0f} s."
        )


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def compile_step(step: Any, *arguments: Any) -> tuple[Any, Needs]:
    """Compiles a jitted function for its arguments (arrays or their shapes).

    Returns:
      (the compiled function, what it needs).
    """
    started = time.monotonic()
    traced = step.trace(*arguments)
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend does not say what a program needs"
    return compiled, Needs(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        result_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        operations=matmul_operations(traced.jaxpr),
        compile_s=time.monotonic() - started,
    )


def matmul_operations(jaxpr: Any) -> float:
    """Operations of the matrix products in a jaxpr: 2 x batch x rows x inner x columns each.

    A loop of known length counts once for each turn; the compiler's own analysis counts it once. A
    loop of unknown length counts once, and of several branches the largest counts, or, where they
    are for different platforms, the one for a CPU: others may pad.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
            continue
        called = str(parameters.get("name", "")) if name == "pallas_call" else name
        if is_kernel(called):
            operands = [(each.aval.dtype.name, each.aval.shape) for each in equation.invars]
            total += kernel_operations(called, operands)
            continue
        inside = [matmul_operations(inner) for inner in _jaxprs(parameters)]
        if name == "cond":
            platforms = parameters.get("branches_platforms")
            total += max(inside) if platforms is None else inside[_on_cpu(platforms)]
            continue
        times = 1
        if name == "scan":
            times = parameters["length"]
        elif name == "shard_map":
            # Its body is that of one device along the axes that it names, as is that of pmap.
            named = parameters.get("newly_manual_axes", parameters.get("manual_axes"))
            times = math.prod(parameters["mesh"].shape[axis] for axis in named)
        elif name == "xla_pmap":
            times = parameters["global_axis_size"]
        total += times * sum(inside)
    return total


def _on_cpu(platforms: Sequence[Sequence[str] | None]) -> int:
    """The branch that a CPU takes; None stands for all other platforms."""
    named = [number for number, names in enumerate(platforms) if names and "cpu" in names]
    return named[0] if named else list(platforms).index(None)


def _jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(each, "jaxpr", each), "eqns"):
                yield each
