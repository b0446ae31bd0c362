"""The compiled training step of a run, with everything that stays the same between steps.

>>> stepper = Stepper(step, frozen=frozen, mesh=mesh, key=key, weights=weights)  # doctest: +SKIP
>>> needs = stepper.compile(state, batch, rate)                               # doctest: +SKIP
>>> state, metrics = stepper(state, batch, rate)                              # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.losses import LossWeights
from jaxspec.parallel.rules import global_batch
from jaxspec.training.metrics import Sums
from jaxspec.training.needs import Needs, compile_step
from jaxspec.training.state import TrainState
from jaxspec.training.step import Hyper


class Stepper:
    """Takes steps.

    Args:
      step: what `jaxspec.parallel.step.spread` returns.
      frozen: the frozen parameters, placed.
      mesh: the devices.
      key: the run's random key.
      weights: of the loss.
    """

    def __init__(
        self,
        step: Callable[..., tuple[Any, Any]],
        *,
        frozen: Any,
        mesh: Mesh,
        key: jax.Array,
        weights: LossWeights,
    ) -> None:
        self._step = step
        self.needs: Needs | None = None
        """What a step needs, once it is compiled."""
        self._frozen, self._mesh, self._key, self._weights = frozen, mesh, key, weights

    def compile(
        self, state: TrainState, batch: dict[str, np.ndarray], rate: np.float32
    ) -> Needs | None:
        """Compiles the step ahead of the first call.

        Returns:
          What a step needs; None if that is known already, or on the path "pmap", which compiles at
          the first call.
        """
        if self.needs is not None or not hasattr(self._step, "trace"):
            return None
        self._step, self.needs = compile_step(self._step, *self._arguments(state, batch, rate))
        return self.needs

    def __call__(
        self, state: TrainState, batch: dict[str, np.ndarray], rate: np.float32
    ) -> tuple[TrainState, Sums]:
        """Takes one step; the state is used up.

        Args:
          state: before the step.
          batch: this process's rows, with their numbers in the global batch ("rows").
          rate: learning rate.
        """
        stepped: tuple[TrainState, Sums] = self._step(*self._arguments(state, batch, rate))
        return stepped

    def _arguments(self, state: TrainState, batch: dict[str, np.ndarray], rate: np.float32) -> Any:
        hyper = Hyper(jnp.float32(rate), self._key, self._weights)
        return state, self._frozen, global_batch(batch, self._mesh), hyper
