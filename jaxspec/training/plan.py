"""Compiles a run's training step, for devices that need not be there, and reports its cost.

Nothing is loaded or allocated: shapes and shardings are enough for the compiler.

>>> plan = compile_plan(config, devices=topology_devices("v5p:2x2x2"))      # doctest: +SKIP
>>> plan.needs.memory_bytes <= 95 * 2**30                                       # doctest: +SKIP
True
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.config import RunConfig
from jaxspec.losses import LossWeights
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import (
    Rules,
    batch_parts,
    batch_sharding,
    check_batch_size,
    replicated,
)
from jaxspec.parallel.step import spread
from jaxspec.training.needs import Needs, compile_step
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.state import TrainState
from jaxspec.training.step import Hyper, make_body
from jaxspec.training.tasks.registry import task_of

MEMORY_BYTES = {
    "TPU v4": 32 * 2**30,
    "TPU v5 lite": 16 * 2**30,
    "TPU v5": 95 * 2**30,
    "TPU v5p": 95 * 2**30,
    "TPU v6 lite": 32 * 2**30,
}
"""High-bandwidth memory of one device, by jax's name of its kind (Cloud TPU documentation)."""
PEAK_OPERATIONS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
"""Operations of one device in a second, in bfloat16 (the same documentation)."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one training step takes of each device."""

    device_kind: str
    devices: int
    mesh: dict[str, int]
    rows: float
    """Rows of the batch on each device."""
    trained: int
    """Parameters that are trained."""
    frozen: int
    """Parameters of the frozen target."""
    needs: Needs

    @property
    def available_bytes(self) -> int | None:
        """Of one device; None where its kind is not known."""
        return MEMORY_BYTES.get(self.device_kind)

    def seconds_per_step(self, *, utilisation: float) -> float | None:
        """Time of a step at a share of the peak speed; None where that is not known."""
        peak = PEAK_OPERATIONS.get(self.device_kind)
        return peak and self.needs.operations / (self.devices * peak * utilisation)


def utilisation(needs: Needs, *, seconds: float) -> float | None:
    """The share of the devices' peak speed that a step reaches (MFU).

    What is computed again to save memory counts as well.

    Args:
      needs: of the step.
      seconds: that it takes.

    Returns:
      0 to 1; None where the peak of these devices is not known.
    """
    devices = jax.devices()
    peak = PEAK_OPERATIONS.get(devices[0].device_kind)
    return peak and needs.operations / (len(devices) * peak * seconds)


def topology_devices(name: str) -> Sequence[jax.Device]:
    """Devices of a TPU slice that this machine does not have, such as "v5p:2x2x2" (8 chips).

    Raises:
      ValueError: libtpu is not installed, or there is no such slice.
    """
    # Otherwise libtpu waits for the metadata server that cloud machines have.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"Cannot describe the topology {name!r}: {error}\nNames are a TPU generation and the "
            "shape of a slice, such as v5p:2x2x2 or v5e:4x4. It needs libtpu: pip install "
            '"jax[tpu]".'
        ) from error


def compile_plan(config: RunConfig, *, devices: Sequence[jax.Device] | None = None) -> Plan:
    """Compiles one step of `config`.

    Args:
      config: a run. Its target's shape is `target.architecture`, or that in `target.path`.
      devices: to compile for; None: those of this process.

    Raises:
      ValueError: no such target, a mesh or batch that does not fit the devices, or a step that
        does not fit into their memory.
    """
    mesh = make_mesh(config.mesh, devices=devices)
    check_batch_size(config, mesh)
    task = task_of(config).build(config)
    transform, _ = make_optimizer(config.optimizer, steps=config.training.steps)
    state = jax.eval_shape(lambda: TrainState.create(task.init(jax.random.key(0)), transform))
    rules = Rules.of(config.mesh)
    state_shardings = rules.shardings(state, mesh)
    frozen_shardings = rules.shardings(task.frozen_shapes, mesh)
    step = spread(
        make_body(
            task.objective, transform, gradient_accumulation=config.training.gradient_accumulation
        ),
        mesh=mesh,
        path=config.mesh.path,
        state_shardings=state_shardings,
        frozen_shardings=frozen_shardings,
    )

    def placed(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            shardings,
        )

    whole, rows = replicated(mesh), batch_sharding(mesh)
    batch, hyper = _batch(config), _hyper(config)
    arguments = (
        placed(state, state_shardings),
        placed(task.frozen_shapes, frozen_shardings),
        placed(batch, jax.tree.map(lambda _: rows, batch)),
        placed(hyper, jax.tree.map(lambda _: whole, hyper)),
    )
    try:
        _, needs = compile_step(jax.jit(step), *arguments)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0]
        raise ValueError(
            f"The step does not fit into the memory of {mesh.devices.flat[0].device_kind}: {first}"
        ) from error
    return Plan(
        device_kind=mesh.devices.flat[0].device_kind,
        devices=mesh.devices.size,
        mesh=dict(mesh.shape),
        rows=config.data.batch_size / batch_parts(mesh),
        trained=_count(state.params),
        frozen=_count(task.frozen_shapes),
        needs=needs,
    )


def _batch(config: RunConfig) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (config.data.batch_size, config.data.sequence_length)
    kinds = {"tokens": jnp.int32, "segments": jnp.int32, "positions": jnp.int32}
    return {
        **{name: jax.ShapeDtypeStruct(shape, kind) for name, kind in kinds.items()},
        "loss_mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
        "rows": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }


def _hyper(config: RunConfig) -> Hyper:
    return jax.eval_shape(
        lambda: Hyper(jnp.float32(0.0), jax.random.key(0), LossWeights.from_config(config.loss))
    )


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
