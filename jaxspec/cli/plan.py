"""``jaxspec plan``: what a training step needs on each device, before you pay for a pod.

    jaxspec plan --config configs/qwen3_4b.py --topology v5p:2x2x2 --price-per-chip-hour 4.2

The step is compiled from shapes alone, for the named TPU slice (this needs libtpu, but no TPU) or
for the devices of this machine.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from jaxspec.cli.configuration import parse_command
from jaxspec.cli.train import TaskCommand
from jaxspec.names import for_terminal
from jaxspec.ranges import NotNegative, check_ranges, fraction

if TYPE_CHECKING:
    from jaxspec.training.plan import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanCommand(TaskCommand):
    """Compile a run's training step for a TPU slice and print what it needs on each device.

    No weights, data or TPU are needed: the shapes come from target.architecture, or from
    config.json in the folder target.path.
    """

    reads: ClassVar[tuple[str, ...]] = (
        *("name", "target", "drafter", "denoiser", "loss"),
        *("data.sequence_length", "data.batch_size", "data.packing"),
        *("data.anchors", "data.anchor_sampling"),
        *("optimizer", "mesh"),
        *("training.task", "training.steps", "training.gradient_accumulation"),
    )
    common: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype", "drafter.block_size", "drafter.num_layers"),
        *("drafter.remat", "drafter.chunk_blocks", "denoiser.path", "denoiser.block_size"),
        *("loss.objective", "loss.chunk_blocks"),
        *("data.sequence_length", "data.batch_size", "data.anchors"),
        *("mesh", "training.task", "training.gradient_accumulation"),
    )
    example: ClassVar[str] = "{program} --config configs/qwen3_4b.py --topology v5p:2x2x2"

    topology: str = ""
    """TPU generation and shape of the slice, such as v5p:2x2x2 (8 chips) or v6e:4x4 (16); "": the
    devices of this machine."""
    utilisation: Annotated[float, fraction(zero=False)] = 0.4
    """Share of the chips' peak speed that the time and cost assume. It is not known before the run:
    train.py says the time after its first steps."""
    price_per_chip_hour: NotNegative = 0.0
    """What a chip costs in an hour, in your currency, for the cost of the run; 0: no cost."""


def main(argv: Sequence[str]) -> int:
    """Parses the command line, compiles and prints.

    Returns:
      0, or 1 if the step needs more memory than a device has.
    """
    command = parse_command(PlanCommand, argv, program="jaxspec plan")
    check_ranges(command)
    if command.topology:
        # The slice is only described; this process computes nothing.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from jaxspec.training.plan import compile_plan, topology_devices

    console = Console()
    with console.status("Compiling the step ..."):
        devices = topology_devices(command.topology) if command.topology else None
        plan = compile_plan(command.run, devices=devices)
    name = for_terminal(command.run.name)
    table = Table(title=Text(f"{name} on {plan.devices} x {plan.device_kind}"), show_header=False)
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    table.add_row("mesh", Text(for_terminal(f"{mesh} ({command.run.mesh.path})")))
    table.add_row("batch", f"{command.run.data.batch_size} rows, {plan.rows:g} on each device")
    table.add_row("parameters", f"{plan.trained:,} trained, {plan.frozen:,} frozen")
    needs, available = plan.needs, plan.available_bytes
    table.add_row("state, frozen weights, batch", f"{_gib(needs.argument_bytes)} on each device")
    table.add_row("temporaries", f"{_gib(needs.temporary_bytes)} on each device")
    fits = available is None or needs.memory_bytes <= available
    table.add_row("total", _gib(needs.memory_bytes))
    if available is not None:
        table.add_row("available", f"{_gib(available)}: {'enough' if fits else 'NOT ENOUGH'}")
    operations = needs.operations / plan.devices
    table.add_row("matrix products", f"{operations / 1e12:,.3g} TFLOP per step and device")
    for name, text in _time_and_cost(plan, command):
        table.add_row(name, text)
    table.add_row("compiled in", f"{needs.compile_s:.0f} s")
    console.print(table)
    return 0 if fits else 1


def _time_and_cost(plan: Plan, command: PlanCommand) -> Iterator[tuple[str, str]]:
    """Rows of the table: an estimate from the operations, where the chips' speed is known."""
    from jaxspec.training.progress import duration

    steps, share = command.run.training.steps, command.utilisation
    seconds = plan.seconds_per_step(utilisation=share)
    if seconds is None:
        yield "time", f"not known for {plan.device_kind}: train.py says it after its first steps"
        return
    hours = steps * seconds * plan.devices / 3600
    yield (
        "time",
        f"{duration(steps * seconds)} for {steps:,} steps of {seconds:.2g} s, if the chips reach "
        f"{share:.0%} of their peak speed",
    )
    cost = f"{hours:,.1f} chip-hours"
    if command.price_per_chip_hour:
        price = command.price_per_chip_hour
        cost += f" x {price:g} = {hours * price:,.2f}"
    yield "cost", cost


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
