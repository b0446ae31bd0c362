"""What ``jaxspec plan`` prints and writes: tables for a terminal, lines of Markdown, JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxspec.config import RunConfig
from jaxspec.durations import duration
from jaxspec.names import for_terminal
from jaxspec.parallel.chips import Chip
from jaxspec.parallel.memory import POOL_VARIABLE, pool_bytes, pool_share
from jaxspec.planning.decoding import DecodePlan
from jaxspec.planning.run_cost import RunCost
from jaxspec.planning.search import Candidate
from jaxspec.planning.step import StepPlan
from jaxspec.planning.topologies import Topology

COLUMNS = (
    *("configuration", "topology", "settings", "memory (GiB)", "temporaries (GiB)"),
    *("FLOP / minimum", "wire (analytic), GiB", "least step", "bound by", "tokens/s", "MFU"),
    "chip-hours",
)
TABLE_HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def step_table(plan: StepPlan, run: RunConfig, *, share: float, price: float) -> Table:
    """The plan of one step.

    Args:
      plan: what was counted.
      run: the settings that were planned.
      share: of the roofline's speed, for hours and cost.
      price: of a chip for an hour; 0: no cost.
    """
    table = Table(title=Text(f"{for_terminal(run.name)} on {plan.name}"), show_header=False)
    for name, text in _rows(plan, run, share=share, price=price):
        table.add_row(name, Text(text))
    return table


def _rows(
    plan: StepPlan, run: RunConfig, *, share: float, price: float
) -> Iterator[tuple[str, str]]:
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    yield "mesh", for_terminal(f"{mesh} ({run.mesh.path})")
    parts = run.training.gradient_accumulation
    at_once = f", {plan.rows / parts:g} at a time" if parts > 1 else ""
    yield "batch", f"{run.data.batch_size} rows, {plan.rows:g} on each device{at_once}"
    yield "parameters", f"{plan.trained:,} trained, {plan.frozen:,} frozen"
    yield "memory of a device", f"{_size(plan.needs.memory_bytes)}"
    for name, size in plan.memory.items():
        yield f"  {name}", _size(size)
    if plan.available_bytes is not None:
        verdict = "enough" if plan.fits else "NOT ENOUGH"
        yield "available", f"{_size(plan.available_bytes)}: {verdict}"
    if plan.chip is not None and plan.is_estimate:
        yield "", _pool(plan.chip)
        yield "", "compiled for the CPU: temporaries and traffic are an estimate"
    if not plan.is_read:
        yield (
            "",
            "jax cannot read the program of this libtpu, which is newer: the arithmetic is that of "
            "the traced step, the traffic on the wire an analytic count, and memory traffic is not "
            'known. The libtpu that fits: pip install "jaxspec-decoding[tpu]"',
        )
    yield from _arithmetic_rows(plan)
    if plan.traffic is not None:
        yield "memory traffic", f"{_size(plan.traffic)} per step and device"
    wire = f"{_size(sum(plan.wire.values()))} per step and device"
    if plan.expected_wire is not None:
        wire += f"; {_size(sum(plan.expected_wire.values()))} by an analytic count"
        if plan.is_estimate:
            wire += ", which the time is for: unlike GPUs, a CPU reduces whole gradients"
    yield "on the wire", wire
    for kind, sent in plan.wire.items():
        if sent:
            yield f"  {kind}", _size(sent)
    yield from _time_rows(plan, run, share=share, price=price)
    yield "compiled in", f"{plan.needs.compile_s:.0f} s"


def _arithmetic_rows(plan: StepPlan) -> Iterator[tuple[str, str]]:
    arithmetic = plan.arithmetic
    yield "matrix products", f"{_tflop(arithmetic.compiled)} per step and device"
    if arithmetic.recomputed:
        yield "  recomputed", _tflop(arithmetic.recomputed)
    yield (
        "  minimum",
        f"{_tflop(arithmetic.minimum)}; without what is recomputed, "
        f"{arithmetic.excess:.2f} x as much is computed",
    )
    for name, operations in arithmetic.parts.items():
        yield f"    {name}", _tflop(operations)


def _time_rows(
    plan: StepPlan, run: RunConfig, *, share: float, price: float
) -> Iterator[tuple[str, str]]:
    roofline = plan.roofline
    if roofline is None:
        yield (
            "time",
            f"not known for {plan.device_kind}: train.py says it after its first steps",
        )
        return
    least = run_cost(plan, run, share=1.0, price=price)
    terms = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in roofline.terms.items())
    yield (
        "least time of a step",
        f"{roofline.seconds:.3g} s, bound by {roofline.binding} ({terms})",
    )
    yield "  at most", f"{least.tokens_per_second:,.0f} tokens/s{_mfu(plan, roofline.seconds)}"
    likely = run_cost(plan, run, share=share, price=price)
    speed = f"{likely.tokens_per_second:,.0f} tokens/s"
    yield (
        f"at {share:.0%} of that speed",
        f"{likely.seconds_per_step:.3g} s, {speed}{_mfu(plan, likely.seconds_per_step)}",
    )
    yield (
        "  the run",
        f"{duration(3600 * likely.hours)} for {run.training.steps:,} steps, without checkpoints "
        "and validation",
    )
    if run.training.epochs:
        yield (
            "  but",
            f"training.epochs is {run.training.epochs:g}: train.py takes as many steps as the data "
            f"needs, and not training.steps ({run.training.steps:,})",
        )
    cost = f"{likely.chip_hours:,.1f} chip-hours"
    yield "  cost", cost + (f" x {price:g} = {likely.cost:,.2f}" if price else "")


def _mfu(plan: StepPlan, seconds: float) -> str:
    share = plan.utilisation(seconds)
    return "" if share is None else f", {share:.0%} of the peak speed (MFU)"


def run_cost(plan: StepPlan, run: RunConfig, *, share: float, price: float) -> RunCost:
    """Time and cost at a share of the roofline's speed."""
    roofline = plan.roofline
    assert roofline is not None, "only a known chip has a time"
    return RunCost.of(
        roofline.seconds / share,
        steps=run.training.steps,
        chips=plan.chips,
        tokens=plan.tokens,
        price=price,
    )


def document(plan: StepPlan, run: RunConfig, *, share: float, price: float) -> dict[str, Any]:
    """Everything that was counted, for a JSON file; sizes in bytes, times in seconds."""
    roofline, arithmetic = plan.roofline, plan.arithmetic
    found: dict[str, Any] = {
        "topology": plan.name,
        "chips": plan.chips,
        "devices": plan.devices,
        "mesh": plan.mesh,
        "rows_per_device": plan.rows,
        "tokens_per_step": plan.tokens,
        "parameters": {"trained": plan.trained, "frozen": plan.frozen},
        "memory": {
            "total": plan.needs.memory_bytes,
            "available": plan.available_bytes,
            "fits": plan.fits,
            "is_estimate": plan.is_estimate,
            "by_kind": dict(plan.memory),
        },
        "operations": {
            **dataclasses.asdict(arithmetic),
            "parts": dict(arithmetic.parts),
            "excess": arithmetic.excess,
        },
        "is_read": plan.is_read,
        "memory_traffic": plan.traffic,
        "wire": dict(plan.wire),
        "expected_wire": None if plan.expected_wire is None else dict(plan.expected_wire),
        "compile_s": plan.needs.compile_s,
    }
    if roofline is not None:
        found["roofline"] = {
            "terms": dict(roofline.terms),
            "seconds": roofline.seconds,
            "binding": roofline.binding,
            "mfu": plan.utilisation(roofline.seconds),
        }
        likely = run_cost(plan, run, share=share, price=price)
        found["run"] = {
            "share_of_roofline": share,
            "steps": run.training.steps,
            "mfu": plan.utilisation(likely.seconds_per_step),
            **dataclasses.asdict(likely),
        }
    return found


def candidate_lines(candidates: Sequence[Candidate]) -> str:
    """One line for each of the settings, with its estimate."""
    return "\n".join(
        f"  {found.seconds:.3g} s a step ({found.estimate.roofline.binding}), "
        f"{_size(found.estimate.memory_bytes)}: {found.overrides or 'as it is'}"
        for found in candidates
    )


def decode_table(plans: Sequence[DecodePlan], run: RunConfig, topology: Topology) -> Table:
    """Ways of decoding, side by side."""
    lengths = run.evaluation
    table = Table(
        "",
        *(plan.name for plan in plans),
        title=Text(f"Decoding with {for_terminal(run.name)} on {topology.name}"),
        caption=f"prompts of {lengths.max_prompt_tokens:,} tokens and answers of "
        f"{lengths.max_new_tokens:,} (--evaluation.max_prompt_tokens, max_new_tokens)"
        + ("" if topology.chip.is_tpu else f"; {_pool(topology.chip)}"),
    )
    available = _size(pool_bytes(topology.chip))
    rows: list[tuple[str, list[str]]] = [
        (
            "a copy of the weights lies on",
            [f"{p.tensor} of {topology.devices} devices" for p in plans],
        ),
        ("copies, over which a batch is spread", [f"{p.data}" for p in plans]),
        ("processes, each with its own batch", [f"{p.processes}" for p in plans]),
        (
            f"weights, of {available} of a device",
            [", ".join(f"{name} {_size(size)}" for name, size in p.weights.items()) for p in plans],
        ),
        ("cache of a row", [_size(p.cache_bytes) for p in plans]),
        ("prompts while they are read", [_size(p.prompt_bytes) for p in plans]),
        ("rows that fit", [f"{p.most_rows:,}" for p in plans]),
        (
            "rows asked for (--evaluation.batch_size)",
            [f"{p.batch}: {'enough room' if p.fits else 'NOT ENOUGH ROOM'}" for p in plans],
        ),
        (
            "least time of a round",
            [f"{1e3 * p.pass_seconds:.3g} ms, bound by {p.binding}" for p in plans],
        ),
        (
            "least time of a token of a row",
            [
                f"{1e3 * p.pass_seconds:.3g} ms" + (" / tau" if "drafter" in p.weights else "")
                for p in plans
            ],
        ),
        (
            "tokens/s of all processes, at most",
            [
                f"{p.tokens_per_second:,.0f}" + (" x tau" if "drafter" in p.weights else "")
                for p in plans
            ],
        ),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def table_row(candidate: Candidate, plan: StepPlan, *, share: float, price: float) -> str:
    """A line of the Markdown table."""
    run, roofline = candidate.config, plan.roofline
    assert roofline is not None, "a topology has a known chip"
    least = run_cost(plan, run, share=1.0, price=price)
    likely = run_cost(plan, run, share=share, price=price)
    mfu = plan.utilisation(roofline.seconds)
    settings = f"`{candidate.overrides}`" if candidate.overrides else "its own"
    kept = sum(plan.memory[name] for name in ("gradients", "logits", "activations"))
    cells = [
        run.name,
        plan.name,
        settings,
        f"{plan.needs.memory_bytes / 2**30:.1f} of {(plan.available_bytes or 0) / 2**30:.0f}"
        + (" (estimate)" if plan.is_estimate else ""),
        f"{kept / 2**30:.1f}",
        f"{plan.arithmetic.excess:.2f}",
        _wire_cell(plan),
        f"{roofline.seconds:.2f} s",
        roofline.binding,
        f"{least.tokens_per_second:,.0f}",
        "" if mfu is None else f"{mfu:.0%}",
        f"{likely.chip_hours:,.0f}" + (f" ({likely.cost:,.0f})" if price else ""),
    ]
    return "| " + " | ".join(cells) + " |"


def _wire_cell(plan: StepPlan) -> str:
    wire = f"{sum(plan.wire.values()) / 2**30:.1f}"
    if plan.expected_wire is None:
        return wire
    return f"{wire} ({sum(plan.expected_wire.values()) / 2**30:.1f})"


def unfit_row(run: RunConfig, topology: Topology, reason: str) -> str:
    """The line of a topology that no settings fit."""
    return f"| {run.name} | {topology.name} | {reason} |" + " |" * (len(COLUMNS) - 3)


def _pool(chip: Chip) -> str:
    """What a plan counts of a GPU's memory."""
    return (
        f"jax takes {pool_share(chip):.0%} of the {_size(chip.device_memory())} of an {chip.name}: "
        f"{POOL_VARIABLE} changes that, here and in the run (.92, for example)"
    )


def _size(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:,.1f} MiB"


def _tflop(operations: float) -> str:
    return f"{operations / 1e12:,.3g} TFLOP"
