"""The time that `jaxspec plan` computes for a training step, beside the time that the step takes.

    python benchmarks/plan_against_step.py --config configs/quickstart.py
    python benchmarks/plan_against_step.py --config configs/qwen3_4b.py --mesh.fsdp -1

It takes the settings of `jaxspec plan`, on the devices of this machine, with random weights and
tokens. The speed of a device is measured first: one large product in the type that the model
computes in, an addition to a large array, and an all-gather if there are several devices. The least
time follows from these and from what the compiled step computes, reads, writes and sends; where the
published figures of the chip are known, a second line says what follows from those. Times are
medians.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxspec.cli.configuration import parse_command
from jaxspec.cli.plan import PlanCommand
from jaxspec.config import RunConfig
from jaxspec.losses import LossWeights
from jaxspec.parallel.chips import Chip
from jaxspec.parallel.collectives import ring_bytes
from jaxspec.parallel.mesh import make_mesh
from jaxspec.parallel.rules import batch_sharding, replicated
from jaxspec.planning.step import TracedStep, plan_step
from jaxspec.training.objectives import DrafterObjective
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.passes import reading
from jaxspec.training.state import TrainState
from jaxspec.training.step import Hyper
from jaxspec.training.tasks.registry import task_of

REPEATS, WARM_UP = 10, 2
WIDTH = 2048
"""Of the product."""
ARRAY_BYTES = 2**28


def main(argv: Sequence[str]) -> None:
    """Measures, plans and prints."""
    command = parse_command(PlanCommand, argv, program="benchmarks/plan_against_step.py")
    if command.topology:
        sys.exit("The step runs on the devices of this machine: leave --topology out.")
    run: RunConfig = command.run
    plan = plan_step(run)
    mesh = make_mesh(run.mesh)
    measured = measured_chip(mesh, dtype=dtype_of(run))
    seconds = step_seconds(run, mesh)
    print(f"{run.name} on {plan.name}: a step takes {1e3 * seconds:,.1f} ms (median of {REPEATS})")
    print(
        f"measured: {measured.peak_operations / 1e9:,.1f} GFLOP/s in a product, "
        f"{measured.memory_bandwidth / 1e9:,.1f} GB/s to and from memory"
        + (f", {measured.link_bandwidth / 1e9:,.1f} GB/s on the wire" if mesh.size > 1 else "")
    )
    for source, chip in (("measured", measured), ("published", plan.chip)):
        line = dataclasses.replace(plan, chip=chip).roofline
        if line is None:
            continue
        terms = ", ".join(f"{name} {1e3 * term:,.1f}" for name, term in line.terms.items())
        print(
            f"least time by {source} figures: {1e3 * line.seconds:,.1f} ms, bound by "
            f"{line.binding} ({terms}); the step takes {seconds / line.seconds:.2f} x as long"
        )


def dtype_of(run: RunConfig) -> str:
    """What the largest model of the run computes in."""
    objective = task_of(run).build(run).objective
    if isinstance(objective, DrafterObjective):
        return objective.target.config.dtype
    read = reading(objective, length=run.data.sequence_length)
    assert read is not None, "another objective trains one model"
    return str(read.model.dtype)


def measured_chip(mesh: Mesh, *, dtype: str) -> Chip:
    """A device of the mesh, by its measured speeds."""
    device = mesh.devices.flat[0]
    with jax.default_device(device):
        left = jnp.ones((WIDTH, WIDTH), dtype)
        _, product = repeated(jax.jit(lambda x: x @ x / WIDTH), left)
        array = jnp.ones(ARRAY_BYTES // 4, jnp.float32)
        # In place: new memory would have to be asked for first.
        addition = jax.jit(lambda x: x + 1, donate_argnums=0)
        array, copy = repeated(addition, array)
    wire = float("inf")
    if mesh.size > 1:
        rows = jax.device_put(array.reshape(mesh.size * 64, -1), batch_sharding(mesh))
        whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))
        _, gather = repeated(lambda _: whole(rows), None)
        wire = ring_bytes("all-gather", ARRAY_BYTES, group_size=mesh.size) / gather
    return Chip(
        name=device.device_kind,
        kinds=(device.device_kind,),
        peak_operations=2 * WIDTH**3 / product,
        memory_bytes=0,
        memory_bandwidth=2 * ARRAY_BYTES / copy,
        link_bandwidth=wire,
    )


def step_seconds(run: RunConfig, mesh: Mesh) -> float:
    """Of the run's own compiled step."""
    traced = TracedStep(run, mesh)
    step, _ = traced.compile()
    state, frozen, batch, hyper = (
        jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in traced.arguments
    )
    transform, _ = make_optimizer(run.optimizer, steps=run.training.steps)
    key = jax.random.key(0)

    def start() -> TrainState:
        return TrainState.create(traced.task.init(key), transform)

    def weights() -> Any:
        leaves, structure = jax.tree.flatten(traced.task.frozen_shapes)
        keys = jax.random.split(key, max(1, len(leaves)))
        return structure.unflatten(
            [
                0.02 * jax.random.normal(own, leaf.shape, leaf.dtype)
                for own, leaf in zip(keys, leaves, strict=False)
            ]
        )

    def tokens() -> dict[str, jax.Array]:
        shape = (run.data.batch_size, run.data.sequence_length)
        return {
            "tokens": jax.random.randint(key, shape, 0, 64),
            "segments": jnp.ones(shape, jnp.int32),
            "positions": jnp.broadcast_to(jnp.arange(shape[1]), shape),
            "loss_mask": jnp.ones(shape, bool),
            "rows": jnp.arange(shape[0]),
        }

    def settings() -> Hyper:
        return Hyper(jnp.float32(1e-4), jax.random.key(1), LossWeights.from_config(run.loss))

    made = (
        jax.jit(make, out_shardings=placed)()
        for make, placed in ((start, state), (weights, frozen), (tokens, batch), (settings, hyper))
    )
    current, *rest = made
    (current, _), seconds = repeated(lambda both: step(both[0], *rest), (current, None))
    assert int(jax.device_get(current.bad_step)) < 0, "the step has computed something infinite"
    return seconds


def repeated(function: Callable[[Any], Any], value: Any) -> tuple[Any, float]:
    """Calls a function on what it returned before: the last value, and the median seconds."""
    times = []
    for _ in range(WARM_UP + REPEATS):
        started = time.perf_counter()
        value = jax.block_until_ready(function(value))
        times.append(time.perf_counter() - started)
    return value, statistics.median(times[WARM_UP:])


if __name__ == "__main__":
    main(sys.argv[1:])
