"""A training step of the shape of a 1.5B target, compiled for one chip and read: nothing runs.

    python -m benchmarks.train_step_compiled --chip v6e
    python -m benchmarks.train_step_compiled --chip cpu --target-layers 4 --rows 4

The target has the shape of Qwen2.5-Coder-1.5B in bfloat16, the drafter 3 layers; rows of 1,024
tokens have 96 blocks of 16 slots. A TPU's program needs libtpu, but no TPU. Printed are the
operations of the matrix products, over the least that the mathematics asks for; the temporaries;
the bytes that the instructions of the program read and write; and, for a TPU, how often all float32
logits (one row of the vocabulary for each drafted slot) are written and read. To gather the labels'
logits counts as one reading, although it reads few of them. Few target layers compile faster and
change nothing about the head.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from typing import Any

from benchmarks.shapes import SHAPES
from jaxspec.config import (
    DataConfig,
    DrafterConfig,
    LossConfig,
    MeshConfig,
    RunConfig,
    TargetConfig,
)
from jaxspec.parallel.memory import OutOfMemory
from jaxspec.parallel.program_text import Instruction, Program
from jaxspec.planning.program_costs import program_costs
from jaxspec.planning.topologies import (
    Topology,
    compiling_for,
    parse_topology,
    prepare_platform,
    topology_devices,
)

VOCABULARY = 151_936
_ALIASES = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional"}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", default="v6e", help='v5e, v6e, ..., or "cpu" (v6e)')
    parser.add_argument("--rows", type=int, default=32, help="rows of a step (32)")
    parser.add_argument("--target-layers", type=int, default=28, help="of the target (28)")
    parser.add_argument("--chunk", type=int, default=4, help="loss.chunk_blocks (4)")
    parser.add_argument("--attention-chunk", type=int, help="drafter.chunk_blocks (as it chooses)")
    parser.add_argument("--remat", action="store_true", help="drafter.remat")
    parser.add_argument("--objective", default="cross_entropy", help="loss.objective")
    parser.add_argument("--text", help="file for the program")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def run_config(args: argparse.Namespace) -> RunConfig:
    """The run whose step is compiled."""
    target, _ = SHAPES["1.5B"]().for_decoding("bfloat16")
    target = dataclasses.replace(target, num_layers=args.target_layers, unroll_layers=False)
    return RunConfig(
        target=TargetConfig(path="", architecture=target, dtype="bfloat16"),
        drafter=DrafterConfig(
            num_layers=3,
            mask_token_id=VOCABULARY - 1,
            dtype="bfloat16",
            remat=args.remat,
            chunk_blocks=args.attention_chunk,
        ),
        loss=LossConfig(chunk_blocks=args.chunk, objective=args.objective),
        data=DataConfig(sequence_length=1024, batch_size=args.rows, anchors=96),
        mesh=MeshConfig(data=1),
    )


def logits_traffic(text: str, *, elements: float) -> tuple[float, float]:
    """How often float32 arrays over the vocabulary are written and read, in units of all logits.

    Args:
      text: of the compiled program.
      elements: of all logits of a step.
    """
    program = Program(text)
    written = read = 0.0

    def size(instruction: Instruction | None) -> float:
        if instruction is None or instruction.opcode in ("constant", "iota"):
            return 0.0
        return sum(
            math.prod(shape.sizes)
            for shape in instruction.shapes
            if shape.dtype == "f32" and VOCABULARY in shape.sizes
        )

    for run in program.runs(
        lambda instruction: instruction.opcode not in _ALIASES, unknown_turns=1
    ):
        inside = program.computations[run.computation]
        written += run.times * size(run.instruction)
        read += run.times * sum(size(inside.get(name)) for name in run.instruction.operands)
    return written / elements, read / elements


def measure(args: argparse.Namespace, topology: Topology | None) -> dict[str, Any]:
    """Everything that is printed about the step."""
    import jax

    from jaxspec.parallel.mesh import make_mesh
    from jaxspec.planning.minimum import least_operations, without_recomputation
    from jaxspec.planning.step import TracedStep

    config = run_config(args)
    with compiling_for(topology):
        devices = jax.devices() if topology is None else topology_devices(topology)
        mesh = make_mesh(config.mesh, devices=list(devices)[:1])
        step = TracedStep(config, mesh)
        compiled, needs = step.compile()
        text = compiled.as_text()
    if args.text:
        with open(args.text, "w", encoding="utf-8") as file:
            file.write(text)
    least = least_operations(step.task)
    assert least is not None, "a drafter's step is counted"
    again = step.operations - TracedStep(without_recomputation(config), mesh).operations
    costs = program_costs(text)
    elements = args.rows * 96 * 15 * VOCABULARY
    written, read = logits_traffic(text, elements=elements)
    minimum = sum(least.values())
    result = {
        "operations": costs.operations,
        "minimum": minimum,
        "over_minimum": costs.operations / minimum,
        "recomputed": again,
        "over_minimum_without_recomputation": (costs.operations - again) / minimum,
        "head_minimum": least["head"],
        "temporary_bytes": needs.temporary_bytes,
        "memory_bytes": needs.memory_bytes,
        "bytes_accessed": costs.memory_bytes,
        "logits_written": written,
        "logits_read": read,
        "compile_s": needs.compile_s,
    }
    if topology is not None:
        result["arithmetic_ms"] = 1e3 * costs.operations / topology.chip.peak_operations
        result["memory_ms"] = 1e3 * costs.memory_bytes / topology.chip.memory_bandwidth
    return {**result, "settings": dataclasses.asdict(config) if args.json else vars(args)}


def main() -> None:
    """Prints the figures."""
    args = parse()
    topology = None if args.chip == "cpu" else parse_topology(f"{args.chip}:2x2")
    if topology is not None:
        prepare_platform([topology])
    try:
        result = measure(args, topology)
    except OutOfMemory as error:
        sys.exit(str(error))
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"operations        {result['operations'] / 1e12:.1f} T, {result['over_minimum']:.2f} x "
        f"the least ({result['over_minimum_without_recomputation']:.2f} x without recomputation)"
    )
    print(f"temporaries       {result['temporary_bytes'] / 1e9:.1f} GB")
    print(f"bytes accessed    {result['bytes_accessed'] / 1e9:.0f} GB")
    if topology is not None:
        # The parts of a CPU's program pass whole arrays on to each other, and read little of them.
        print(
            f"float32 logits    written {result['logits_written']:.2f} times, "
            f"read {result['logits_read']:.2f} times"
        )
        print(
            f"at full speed     arithmetic {result['arithmetic_ms']:.0f} ms, "
            f"memory {result['memory_ms']:.0f} ms on one {topology.chip.name}"
        )
    print(f"compiled in       {result['compile_s']:.0f} s")


if __name__ == "__main__":
    main()
