"""``jaxspec plan``: what a training step needs on each device, before you pay for a pod.

    jaxspec plan --config configs/qwen3_4b.py --topology v5p:2x2x2

The step is compiled from shapes alone, for the named TPU slice (this needs libtpu, but no TPU) or
for the devices of this machine.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import ClassVar

from jaxspec.cli.configuration import parse_command
from jaxspec.cli.train import TaskCommand
from jaxspec.names import for_terminal


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


def main(argv: Sequence[str]) -> int:
    """Parses the command line, compiles and prints.

    Returns:
      0, or 1 if the step needs more memory than a device has.
    """
    command = parse_command(PlanCommand, argv, program="jaxspec plan")
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
    table.add_row("state, frozen weights, batch", f"{_gib(plan.argument_bytes)} on each device")
    table.add_row("temporaries", f"{_gib(plan.temporary_bytes)} on each device")
    available = plan.available_bytes
    fits = available is None or plan.memory_bytes <= available
    table.add_row("total", _gib(plan.memory_bytes))
    if available is not None:
        table.add_row("available", f"{_gib(available)}: {'enough' if fits else 'NOT ENOUGH'}")
    if plan.flops:
        table.add_row("operations", f"{plan.flops / 1e12:,.2f} TFLOP per step and device")
    table.add_row("compiled in", f"{plan.compile_s:.0f} s")
    console.print(table)
    return 0 if fits else 1


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
