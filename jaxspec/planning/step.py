"""Compiles a run's training step, for devices that need not be there, and counts what it takes.

Nothing is loaded or allocated: shapes and shardings are enough for the compiler.

>>> plan = plan_step(config, topology=parse_topology("v5p:2x2x2"))             # doctest: +SKIP
>>> plan.memory["optimizer"], plan.roofline.binding                            # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.config import RunConfig
from jaxspec.losses import LossWeights
from jaxspec.ops.mesh_axes import batch_parts
from jaxspec.parallel.chips import Chip, chip_of
from jaxspec.parallel.collectives import read_collectives, wire_bytes_by_kind
from jaxspec.parallel.divisibility import check_models_fit
from jaxspec.parallel.memory import OutOfMemory, check_rows_fit, memory_here, pool_bytes
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import (
    Rules,
    batch_sharding,
    check_batch_size,
    replicated,
)
from jaxspec.parallel.step import spread
from jaxspec.planning.memory import memory_by_kind
from jaxspec.planning.minimum import least_operations, parameters, without_recomputation
from jaxspec.planning.program_costs import program_costs
from jaxspec.planning.roofline import Roofline
from jaxspec.planning.topologies import Topology, compiling_for, topology_devices
from jaxspec.training.needs import Needs, compile_step, matmul_operations
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.state import initial_state
from jaxspec.training.step import Hyper, make_body
from jaxspec.training.tasks.registry import task_of
from jaxspec.training.tasks.task import Task
from jaxspec.training.traffic import StepTraffic, step_traffic


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Operations of matrix products in a step, on each device."""

    compiled: float
    """In the compiled program, loops included."""
    recomputed: float
    """Of these, what the backward pass computes a second time to save memory."""
    minimum: float
    """What the mathematics asks for."""
    parts: Mapping[str, float]
    """The minimum, by what it is for."""

    @property
    def excess(self) -> float:
        """What is computed once, divided by the minimum."""
        return (self.compiled - self.recomputed) / self.minimum


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What one training step takes of each device."""

    name: str
    """Of the topology, or "8 x cpu" for devices of this machine."""
    device_kind: str
    """jax's name of the devices that it was compiled for."""
    chip: Chip | None
    """None: its figures are not known."""
    devices: int
    mesh: dict[str, int]
    rows: float
    """Rows of the batch on each device."""
    tokens: int
    """Of a step, over all devices."""
    trained: int
    """Parameters that are trained."""
    frozen: int
    """Parameters of the frozen target."""
    needs: Needs
    available_bytes: int | None
    """Memory of one device that jax takes; None: not known, or that of a machine, which its virtual
    devices share."""
    memory: Mapping[str, int]
    """Bytes on each device by kind; they sum up to `needs.memory_bytes`."""
    arithmetic: Arithmetic
    traffic: float | None
    """Bytes that each device reads from and writes to its memory; None: the program is not read."""
    wire: Mapping[str, float]
    """Bytes that each device sends, by kind of collective."""
    expected_wire: Mapping[str, float] | None
    """What an analytic count expects of that; None: not counted for this path (mesh.path)."""
    wire_by_group: Mapping[tuple[int, ...], float]
    """Bytes that each device sends, by the places of the devices that exchange them: of virtual
    devices in place of GPUs, as they are expected."""
    is_read: bool
    """Whether jax can read the compiled program. If not, the arithmetic is that of the traced step
    and the wire that of the analytic count."""

    @property
    def fits(self) -> bool:
        """Whether the step fits, as far as that is known."""
        return self.available_bytes is None or self.needs.memory_bytes <= self.available_bytes

    @property
    def is_estimate(self) -> bool:
        """Whether another compiler than the chip's own has counted the temporaries."""
        return self.chip is not None and self.device_kind == "cpu"

    @property
    def chips(self) -> int:
        """How many the run occupies."""
        return self.devices // (self.chip.cores if self.chip else 1)

    @property
    def roofline(self) -> Roofline | None:
        """The least time of a step; None where the chip is not known."""
        if self.chip is None:
            return None
        return Roofline.of(
            self.chip,
            operations=self.arithmetic.compiled,
            memory_bytes=self.traffic,
            wire_bytes=self.wire_by_group,
        )

    def utilisation(self, seconds: float) -> float | None:
        """The share of the chips' peak speed that useful arithmetic reaches in such a step (MFU).

        Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B: recomputation does not count.
        """
        if self.chip is None:
            return None
        return self.arithmetic.minimum * self.chip.cores / (self.chip.peak_operations * seconds)


def plan_step(config: RunConfig, *, topology: Topology | None = None) -> StepPlan:
    """Compiles one step of `config` and counts.

    Args:
      config: a run. Its target's shape is `target.architecture`, or that in `target.path`.
      topology: what to compile for; None: the devices of this process.

    Raises:
      OutOfMemory: the step does not fit into the memory of a device.
      ValueError: no such target, or a mesh or batch that does not fit the devices.
    """
    with compiling_for(topology):
        devices = None if topology is None else topology_devices(topology)
        mesh = make_mesh(config.mesh, devices=devices)
        check_batch_size(config, mesh)
        computed_as = task_of(config).computed_as(config)
        available = _available(topology, mesh.devices.flat)
        check_rows_fit(config, mesh, computed_as=computed_as, available=available)
        step = TracedStep(config, mesh)
        check_models_fit(step.task.models, mesh.shape)
        compiled, needs = step.compile()
        text = _text_of(compiled)
    kind = mesh.devices.flat[0].device_kind
    chip = chip_of(kind) if topology is None else topology.chip
    count = mesh.devices.size
    costs = None if text is None else program_costs(text)
    # GPUs send bfloat16, which the compiler for CPUs widens, and reduce a gradient to the part of
    # each device, which it does not.
    is_stand_in = topology is not None and not topology.chip.is_tpu
    scatters = is_stand_in or mesh.devices.flat[0].platform != "cpu"
    expected = _expected_wire(step, config, mesh, scatters=scatters)
    expected_wire = None if expected is None else expected.by_kind
    least = least_operations(step.task)
    kept = without_recomputation(config)
    again = 0.0 if kept == config else step.operations - TracedStep(kept, mesh).operations
    wire: Mapping[str, float] = expected_wire or {}
    if text is not None:
        wire = wire_bytes_by_kind(read_collectives(text, narrows=is_stand_in))
    wire_by_group: Mapping[tuple[int, ...], float] = {tuple(range(count)): sum(wire.values())}
    if expected is not None and is_stand_in:
        wire_by_group = expected.by_group
    return StepPlan(
        name=f"{count} x {kind}" if topology is None else topology.name,
        device_kind=kind,
        chip=chip,
        devices=count,
        mesh=dict(mesh.shape),
        rows=config.data.batch_size / batch_parts(mesh.shape),
        tokens=config.data.batch_size * config.data.sequence_length,
        trained=parameters(step.state.params),
        frozen=parameters(step.task.frozen_shapes),
        needs=needs,
        available_bytes=None if topology is None and kind == "cpu" else available,
        memory=memory_by_kind(
            needs,
            task=step.task,
            state=step.placed_state,
            frozen=step.placed_frozen,
            batch=step.placed_batch,
            rows=config.data.batch_size
            // (batch_parts(mesh.shape) * config.training.gradient_accumulation),
            mesh=mesh.shape,
        ),
        arithmetic=Arithmetic(
            compiled=needs.operations / count if costs is None else costs.operations,
            recomputed=max(0.0, again) / count,
            minimum=sum(least.values()) / count,
            parts={name: operations / count for name, operations in least.items()},
        ),
        traffic=None if costs is None else costs.memory_bytes,
        wire=wire,
        expected_wire=expected_wire,
        wire_by_group=wire_by_group,
        is_read=text is not None,
    )


class TracedStep:
    """A run's step for a mesh, traced.

    Args:
      config: the run.
      mesh: the devices.
    """

    def __init__(self, config: RunConfig, mesh: Mesh) -> None:
        self.task: Task = task_of(config).build(config)
        transform, _ = make_optimizer(config.optimizer, steps=config.training.steps)
        self.state = jax.eval_shape(initial_state(self.task.init, transform), jax.random.key(0))
        rules = Rules.of(config.mesh)
        state_shardings = rules.shardings(self.state, mesh)
        frozen_shardings = rules.shardings(self.task.frozen_shapes, mesh)
        step = spread(
            make_body(
                self.task.objective,
                transform,
                gradient_accumulation=config.training.gradient_accumulation,
            ),
            mesh=mesh,
            path=config.mesh.path,
            state_shardings=state_shardings,
            frozen_shardings=frozen_shardings,
        )
        whole, rows = replicated(mesh), batch_sharding(mesh)
        batch, hyper = _batch(config), _hyper(config)
        self.placed_state = _placed(self.state, state_shardings)
        self.placed_frozen = _placed(self.task.frozen_shapes, frozen_shardings)
        self.placed_batch = _placed(batch, jax.tree.map(lambda _: rows, batch))
        self.arguments = (
            self.placed_state,
            self.placed_frozen,
            self.placed_batch,
            _placed(hyper, jax.tree.map(lambda _: whole, hyper)),
        )
        # A jit around the step would forget that the state is donated; pmap's has no jit.
        self._step = step if hasattr(step, "trace") else jax.jit(step)

    @property
    def operations(self) -> float:
        """Of the matrix products, over all devices."""
        return matmul_operations(self._step.trace(*self.arguments).jaxpr)

    def compile(self) -> tuple[Any, Needs]:
        """The compiled step, and what it needs.

        Raises:
          OutOfMemory: it is larger than the memory of a device.
        """
        try:
            return compile_step(self._step, *self.arguments)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfMemory(
                "The step does not fit into the memory of the device: " + str(error).splitlines()[0]
            ) from error


def _available(topology: Topology | None, devices: Iterable[jax.Device]) -> int | None:
    """Bytes that each device has; None: not known."""
    # Virtual devices stand in for GPUs: the memory of this machine is not what they have.
    return memory_here(devices) if topology is None else pool_bytes(topology.chip)


def _expected_wire(
    step: TracedStep, config: RunConfig, mesh: Mesh, *, scatters: bool
) -> StepTraffic | None:
    """What a device sends by an analytic count; None: there is none for this path."""
    if config.mesh.path != "jit":
        return None
    return step_traffic(
        step.task.objective,
        params=step.state.params,
        frozen=step.task.frozen_shapes,
        rows=config.data.batch_size,
        length=config.data.sequence_length,
        mesh=mesh,
        gradient_accumulation=config.training.gradient_accumulation,
        scatters=scatters,
    )


def _text_of(compiled: Any) -> str | None:
    """The compiled program as text; None where its compiler (libtpu) is newer than this jax."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return None
    assert isinstance(text, str), "this backend does not show its programs"
    return text


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
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
