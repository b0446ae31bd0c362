"""What training carries from step to step.

>>> state = TrainState.create({"kernel": jnp.ones((2, 2))}, optax.scale_by_adam())
>>> int(state.step), int(state.bad_step)
(0, -1)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxspec.ops.array_dataclass import array_dataclass


@array_dataclass
class TrainState:
    """Parameters, optimizer state and counters; a tree of arrays that orbax saves as it is."""

    step: jax.Array
    """int32, steps taken."""
    params: Any
    opt_state: optax.OptState
    bad_step: jax.Array
    """int32, the first step whose loss or gradient was not finite; -1 while there is none. From
    that step on the parameters stay as they were: the loop looks at this only when it writes a log
    line, and must never save or export a broken model."""

    @classmethod
    def create(cls, params: Any, transform: optax.GradientTransformation) -> TrainState:
        """The state before the first step."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=transform.init(params),
            bad_step=jnp.full((), -1, jnp.int32),
        )


@functools.lru_cache(maxsize=8)
def initial_state(
    init: Callable[[jax.Array], Any], transform: optax.GradientTransformation
) -> Callable[[jax.Array], TrainState]:
    """A function of a key: the state before the first step. Equal arguments give the same one."""

    def create(key: jax.Array) -> TrainState:
        return TrainState.create(init(key), transform)

    return create
