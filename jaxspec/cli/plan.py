"""``jaxspec plan``: what a training step needs on each device, before you pay for a pod.

    jaxspec plan --config configs/qwen3_4b.py --topology v5p:2x2x2 --price-per-chip-hour 4.2

The step is compiled from shapes alone: for the named TPU slice (this needs libtpu, but no TPU), for
GPUs on virtual devices of the CPU, or for the devices of this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from jaxspec.cli.configuration import parse_command
from jaxspec.cli.settings import given_names, given_value, is_read
from jaxspec.cli.train import TaskCommand, as_typed
from jaxspec.config import RunConfig
from jaxspec.ranges import NotNegative, check_ranges, fraction, whole

if TYPE_CHECKING:
    from rich.console import Console

    from jaxspec.planning.search import Candidate
    from jaxspec.planning.step import StepPlan
    from jaxspec.planning.topologies import Topology

_OF_TRAINING = (
    *("loss", "data", "optimizer"),
    *("training.steps", "training.epochs", "training.gradient_accumulation"),
)
"""Settings that decoding does not read."""
_OF_COST = ("utilisation", "price_per_chip_hour")
_TRIED_PER_WANTED = 3
"""Settings of a search that are compiled, at most, for each one that is wanted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanCommand(TaskCommand):
    """Compile a run's training step for TPUs or GPUs and print what it needs and what it costs.

    No weights, data or accelerator are needed: the shapes come from target.architecture, or from
    config.json in the folder target.path.
    """

    reads: ClassVar[tuple[str, ...]] = (
        *("name", "target", "drafter", "denoiser", "loss"),
        *("data.sequence_length", "data.batch_size", "data.packing"),
        *("data.anchors", "data.anchor_sampling"),
        *("optimizer", "mesh"),
        *("training.task", "training.steps", "training.epochs"),
        *("training.gradient_accumulation", "training.chunk_tokens"),
        *("evaluation.batch_size", "evaluation.block_size"),
        *("evaluation.max_prompt_tokens", "evaluation.max_new_tokens"),
    )
    common: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype", "drafter.num_layers", "drafter.remat"),
        *("denoiser.path", "denoiser.block_size"),
        *("loss.chunk_blocks", "data.sequence_length", "data.batch_size", "data.anchors"),
        *("mesh.data", "mesh.fsdp", "mesh.tensor"),
        *("training.task", "training.gradient_accumulation"),
    )
    example: ClassVar[str] = (
        "{program} --config configs/qwen3_4b.py --topology v5p:2x2x2\n"
        "{program} --config configs/qwen3_8b.py --topology v5e:4x4 --search\n"
        "{program} --config configs/qwen3_8b.py --topology 8xH100 --decode"
    )

    @classmethod
    def not_from_config_now(cls, argv: Sequence[str]) -> tuple[str, ...]:
        """The programs that decode take no mesh from a config."""
        return ("mesh",) if given_value(argv, "decode") == "True" else ()

    topology: str = ""
    """TPUs and the shape of their slice, such as v5p:2x2x2 (8 chips) or v6e:4x4 (16), or a number
    of GPUs, such as 8xH100; "": the devices of this machine. With `table`, several, separated by
    commas."""
    search: bool = False
    """Print the fastest settings that fit: mesh, accumulation, chunks and remat."""
    best: Annotated[int, whole(0, 20)] = 2
    """How many settings of a search are compiled; the others are estimates. In place of one that
    turns out too large, the next is tried."""
    decode: bool = False
    """Plan eval.py and jaxspec regenerate instead of training, with --evaluation.*, which only this
    plan reads. Like them, it takes its mesh from the command line, and none from the config."""
    table: bool = False
    """Print one line of a Markdown table for each topology. Where the run's own settings do not
    fit, the line is that of the first settings of a search that do."""
    utilisation: Annotated[float, fraction(zero=False)] = 0.4
    """Share of the speed of the roofline (the least time of a step) that hours and cost assume. It
    is not known before the run: train.py says the time after its first steps."""
    price_per_chip_hour: NotNegative = 0.0
    """What a chip costs in an hour, in your currency, for the cost of the run; 0: no cost."""
    json: str = ""
    """File for everything that was counted, as JSON."""
    picture: str = ""
    """PNG or SVG file for a picture of memory and time."""


def main(argv: Sequence[str]) -> int:
    """Parses the command line, plans and prints.

    Returns:
      0, or 1 if what was planned needs more memory than a device has.
    """
    command = parse_command(PlanCommand, argv, program="jaxspec plan")
    command = dataclasses.replace(command, run=as_typed(command.run, argv))
    check_ranges(command)
    _check_combination(command)
    _refuse_unused(command, argv)
    from jaxspec.planning.topologies import parse_topology, prepare_platform

    names = command.topology.split(",") if command.table else [command.topology]
    topologies = [parse_topology(name.strip()) for name in names if name]
    if topologies:
        # The slice is only described; this process computes nothing.
        prepare_platform(topologies)
    _try_files(command)
    from rich.console import Console

    console = Console()
    if command.table:
        return _print_table(command, topologies, console)
    topology = topologies[0] if topologies else None
    if topology is not None and command.decode:
        return _print_decoding(command, topology, console)
    if topology is not None and command.search:
        return _print_search(command, topology, console)
    return _print_step(command, topology, console)


def _check_combination(command: PlanCommand) -> None:
    """Raises ValueError for options that do not go together."""
    modes = [name for name in ("search", "decode", "table") if getattr(command, name)]
    if len(modes) > 1:
        raise ValueError(
            f"--{modes[0]} and --{modes[1]} are two different plans: ask for one at a time."
        )
    if modes and not command.topology:
        raise ValueError(
            f"--{modes[0]} needs the chips to plan for: add --topology, such as v5p:2x2x2 or "
            "8xH100."
        )
    if modes and (command.json or command.picture):
        raise ValueError(f"--json and --picture show the plan of one step: leave --{modes[0]} out.")


def _refuse_unused(command: PlanCommand, argv: Sequence[str]) -> None:
    """Raises ValueError for what is typed and changes nothing in the plan that is asked for."""
    for name in given_names(argv):
        if command.decode and is_read(name, _OF_TRAINING):
            why, advice = "training, and --decode plans none", "Leave one of the two out"
        elif command.decode and name in _OF_COST:
            why, advice = "a training's hours, and --decode counts none", "Leave one of the two out"
        elif is_read(name, ("evaluation",)) and not command.decode:
            why, advice = "the plan of decoding", "Add --decode, or leave it out"
        elif name == "best" and not command.search:
            why, advice = "the settings that a search finds", "Add --search, or leave it out"
        else:
            continue
        raise ValueError(f"--{name} changes nothing here: it is for {why}. {advice}.")


def _try_files(command: PlanCommand) -> None:
    """Finds out before the compilation whether the files can be written."""
    from jaxspec.files import try_file, user_path

    if command.json:
        try_file(user_path(command.json), option="--json")
    if command.picture:
        from jaxspec.plot_style import picture_format

        picture_format(command.picture)
        try_file(user_path(command.picture), option="--picture")


def _print_step(command: PlanCommand, topology: Topology | None, console: Console) -> int:
    """Plans the run's own settings."""
    from jaxspec.cli.plan_report import document, step_table
    from jaxspec.files import user_path
    from jaxspec.parallel.memory import OutOfMemory
    from jaxspec.planning.step import plan_step
    from jaxspec.provenance import provenance, write_json

    run = command.run
    try:
        with console.status("Compiling the step ..."):
            plan = plan_step(run, topology=topology)
    except OutOfMemory as error:
        console.print(str(error), markup=False)
        _print_what_fits(run, topology, console)
        return 1
    price, share = command.price_per_chip_hour, command.utilisation
    console.print(step_table(plan, run, share=share, price=price))
    if command.json:
        record = {"provenance": provenance(config=run, seed=None)}
        write_json(user_path(command.json), record | document(plan, run, share=share, price=price))
    if command.picture:
        from jaxspec.planning.picture import plot_plan

        plot_plan(plan, user_path(command.picture), title=run.name)
    if plan.fits:
        return 0
    _print_what_fits(run, topology, console)
    return 1


def _print_what_fits(run: RunConfig, topology: Topology | None, console: Console) -> None:
    """Settings, or else a slice, with which a run that is too large would fit."""
    if topology is None or run.mesh.path != "jit":
        return
    from jaxspec.cli.plan_report import candidate_lines
    from jaxspec.planning.search import NoMesh, larger_topologies, search

    found: list[Candidate] = []
    with console.status("Looking for settings that fit ..."):
        with contextlib.suppress(NoMesh):
            found = search(run, topology)
        larger = [] if found else larger_topologies(run, topology)
    if found:
        text = "These settings would fit, by estimate:\n" + candidate_lines(found[:3])
    elif larger:
        text = f"No settings were found that fit. By estimate, {larger[0].name} is large enough."
    else:
        text = f"No settings were found that fit, nor a larger slice of {topology.chip.name}."
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_search(command: PlanCommand, topology: Topology, console: Console) -> int:
    """Estimates many settings and compiles the best ones."""
    from jaxspec.cli.plan_report import candidate_lines, step_table
    from jaxspec.planning.search import search

    with console.status("Estimating settings ..."):
        found = search(command.run, topology)
    if not found:
        _print_what_fits(command.run, topology, console)
        return 1
    console.print(
        f"{len(found)} settings fit {topology.name} by estimate. The fastest:\n"
        + candidate_lines(found[:10]),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    # An estimate can be too low: others are tried for those that do not fit when compiled.
    tried = found[: _TRIED_PER_WANTED * command.best]
    compiled = _compile_candidates(tried, topology, console, wanted=command.best)
    if tried and not compiled:
        console.print(
            f"None of these {len(tried)} fits. Plan for a larger slice, or a smaller run."
        )
    for candidate, plan in compiled:
        console.print()
        console.print(candidate.overrides or "The run's own settings", markup=False)
        console.print(
            step_table(
                plan,
                candidate.config,
                share=command.utilisation,
                price=command.price_per_chip_hour,
            )
        )
    return 0 if compiled or not command.best else 1


def _compile_candidates(
    candidates: Sequence[Candidate], topology: Topology, console: Console, *, wanted: int
) -> list[tuple[Candidate, StepPlan]]:
    """The first of the candidates that fit when they are compiled."""
    from jaxspec.parallel.memory import OutOfMemory
    from jaxspec.planning.step import plan_step

    fitting: list[tuple[Candidate, StepPlan]] = []
    for number, candidate in enumerate(candidates, start=1):
        said = f"Compiling number {number}: {candidate.overrides or 'as it is'} ..."
        try:
            with console.status(said):
                plan = plan_step(candidate.config, topology=topology)
        except OutOfMemory:
            plan = None
        if plan is not None and plan.fits:
            fitting.append((candidate, plan))
            if len(fitting) == wanted:
                break
        else:
            named = candidate.overrides or "the run's own settings"
            console.print(f"Too large when compiled: {named}", markup=False)
    return fitting


def _print_decoding(command: PlanCommand, topology: Topology, console: Console) -> int:
    from jaxspec.cli.plan_report import decode_table
    from jaxspec.planning.decoding import plan_decoding, smallest_tensor

    plans = plan_decoding(command.run, topology)
    console.print(decode_table(plans, command.run, topology))
    if all(plan.fits for plan in plans):
        return 0
    tensor = smallest_tensor(command.run, topology)
    console.print(
        f"It fits with --mesh.tensor {tensor}."
        if tensor
        else "It fits with no --mesh.tensor: lower --evaluation.batch_size or the lengths, or take "
        "a larger slice.",
        markup=False,
        highlight=False,
    )
    return 1


def _print_table(command: PlanCommand, topologies: Sequence[Topology], console: Console) -> int:
    """One line for each topology; 1 if no settings fit one of them."""
    from rich.console import Console

    from jaxspec.cli.plan_report import TABLE_HEAD, table_row, unfit_row
    from jaxspec.planning.search import NoMesh, as_asked, larger_topologies, search

    run, status = command.run, 0
    progress = Console(stderr=True)
    console.print(TABLE_HEAD, markup=False, highlight=False, soft_wrap=True)
    for topology in topologies:
        try:
            found = [*as_asked(run, topology), *search(run, topology)]
        except NoMesh as error:
            progress.print(str(error), markup=False, highlight=False, soft_wrap=True)
            console.print(unfit_row(run, topology, "no mesh"), markup=False, soft_wrap=True)
            status = 1
            continue
        fitting = _compile_candidates(found[:4], topology, progress, wanted=1)
        if fitting:
            candidate, plan = fitting[0]
            row = table_row(
                candidate, plan, share=command.utilisation, price=command.price_per_chip_hour
            )
        else:
            larger = larger_topologies(run, topology)
            row = unfit_row(run, topology, f"needs {larger[0].name}" if larger else "does not fit")
            status = 1
        console.print(row, markup=False, highlight=False, soft_wrap=True)
    return status
