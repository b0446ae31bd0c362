"""What one run of a compiled program costs each device: arithmetic, and traffic with its memory.

XLA's own analysis counts the body of a loop once. Here each instruction counts for every turn of
the loops around it.

>>> text = '''HloModule step
... ENTRY main {
...   %x = f32[4,8]{1,0} parameter(0)
...   %y = f32[8,2]{1,0} parameter(1)
...   ROOT %z = f32[4,2]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
... }'''
>>> costs = program_costs(text)
>>> costs.operations, costs.memory_bytes
(128.0, 224.0)
"""

from __future__ import annotations

import dataclasses
import math
import re

from jaxspec.ops.attention_kernels import is_kernel, kernel_operations
from jaxspec.parallel.program_text import Instruction, Program, Run, Shape, arrays

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "domain"),
}
"""Instructions that move nothing."""
_CONTROL = {"while", "call", "conditional", "async-start", "async-update", "async-done"}
"""Instructions whose cost is that of what they run."""
_PRODUCTS = {"dot", "convolution"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Instructions that may change their first operand in place, and which operand is new."""


@dataclasses.dataclass(frozen=True)
class ProgramCosts:
    """Of one device, in one run of the program."""

    operations: float
    """Multiplications and additions of the matrix products."""
    memory_bytes: float
    """Read from and written to its memory: operands and results of every instruction that the
    compiler left (a fusion is one), without what stays on the chip."""


def program_costs(text: str) -> ProgramCosts:
    """Counts the instructions of a program; a loop of unknown length counts once.

    Args:
      text: what ``compiled.as_text()`` returns, for CPUs, GPUs or TPUs.
    """
    program = Program(text)
    products = program.runs(_is_product, unknown_turns=1)
    return ProgramCosts(
        operations=sum(run.times * _operations(run, program) for run in products),
        memory_bytes=sum(run.times * traffic(run, program) for run in moving(program)),
    )


def moving(program: Program) -> list[Run]:
    """The instructions that read or write; loops of unknown length are counted once."""
    return [
        run
        for run in program.runs(lambda each: each.opcode not in _CONTROL, unknown_turns=1)
        if run.instruction.opcode not in _FREE and not run.instruction.opcode.endswith("-done")
    ]


def _is_product(instruction: Instruction) -> bool:
    return (
        instruction.opcode in _PRODUCTS
        or _is_library_product(instruction)
        or (instruction.opcode == "custom-call" and is_kernel(instruction.name))
    )


def _is_library_product(instruction: Instruction) -> bool:
    """On a GPU or CPU, a product may be a call of a library."""
    target = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    return bool(target and re.search(r"gemm|matmul", target[1]))


def _operations(run: Run, program: Program) -> float:
    instruction = run.instruction
    if instruction.opcode == "custom-call" and is_kernel(instruction.name):
        operands = [
            (shape.dtype, shape.sizes)
            for name in instruction.operands
            for shape in program.shapes(name, run.computation)
        ]
        return kernel_operations(instruction.name, operands)
    results = math.prod(instruction.shapes[0].sizes)
    left, right = (
        program.shapes(operand, run.computation)[0].sizes for operand in instruction.operands[:2]
    )
    if instruction.opcode == "convolution":
        return 2.0 * results * _convolved(instruction, left, right)
    found = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([^}\]]*)', instruction.rest)
    axes = [int(axis) for axis in re.findall(r"\d+", found[1])] if found else [len(left) - 1]
    return 2.0 * results * math.prod(left[axis] for axis in axes)


def _convolved(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Products that are summed up for an element of the result, on average.

    The TPU compiler writes every matrix product as a convolution; batch axes are then spatial axes
    whose window meets one element at a time.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    assert labels, f"{instruction.name} is a convolution without dim_labels"
    inner = right[labels[2].index("i")]
    window = {
        name: values.split("x")
        for name, values in re.findall(
            r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.rest) or ["", ""])[1]
        )
    }
    sums = float(inner)
    for axis in range(len(labels[1]) - 2):
        size_in, size_out = (
            left[labels[1].index(str(axis))],
            instruction.shapes[0].sizes[labels[3].index(str(axis))],
        )

        def part(name: str, default: str = "1", axis: int = axis) -> str:
            return window[name][axis] if name in window else default

        low = int(part("pad", "0_0").split("_")[0])
        stride, spread, apart = (int(part(name)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
        places = (
            out * stride - low + slot * apart
            for out in range(size_out)
            for slot in range(int(part("size")))
        )
        met = sum(place % spread == 0 and 0 <= place // spread < size_in for place in places)
        sums *= met / size_out
    return sums


def traffic(run: Run, program: Program) -> float:
    """Bytes that one turn of an instruction moves; of an array that it slices, only the slice."""
    instruction = run.instruction
    if instruction.opcode == "fusion":
        [name] = instruction.computations("calls")
        inside = program.computations[name]
        reads = _fusion_reads(run, program, inside)
        return reads + _written(list(inside.values())[-1], instruction.shape, inside)
    operands = [_bytes(run, program, operand) for operand in instruction.operands]
    result = _memory_bytes(instruction.shape)
    match instruction.opcode:
        case "dynamic-slice" | "slice" | "gather":
            return result + (sum(map(_size, instruction.shapes)) if operands[0] else 0.0)
        case "slice-start":  # It returns ((original), slice, context).
            written = memory_parts(instruction.shape)[1]
            return written + (_size(instruction.shapes[1]) if operands[0] else 0.0)
        case "dynamic-update-slice":
            return 2.0 * operands[1]
        case "scatter":
            return 3.0 * operands[2]
        case "copy-start":  # It returns (copy, original, context).
            return operands[0] + memory_parts(instruction.shape)[0]
        case "broadcast":
            return result
    return result + sum(operands)


def _fusion_reads(run: Run, program: Program, inside: dict[str, Instruction]) -> float:
    """What a fusion reads of its operands."""
    sizes = [_bytes(run, program, operand) for operand in run.instruction.operands]
    return sum(_read_of(number, size, inside, program) for number, size in enumerate(sizes))


def _read_of(number: int, whole: float, inside: dict[str, Instruction], program: Program) -> float:
    """Bytes that a fusion reads of the operand with this number, of `whole` ones at most."""
    name = next((each.name for each in inside.values() if _parameter_number(each) == number), None)
    if name is None or not whole:
        return 0.0
    read = sum(
        _read_by(user, place, whole, program)
        for user in inside.values()
        for place, operand in enumerate(user.operands)
        if operand == name and user.opcode != "parameter"
    )
    return min(whole, read)


def _parameter_number(instruction: Instruction) -> int | None:
    found = re.match(r"\((\d+)\)", instruction.rest)
    return int(found[1]) if instruction.opcode == "parameter" and found else None


def _read_by(user: Instruction, place: int, whole: float, program: Program) -> float:
    """Bytes that an instruction within a fusion reads of its operand at this place."""
    if user.opcode == "fusion":  # A fusion within a fusion.
        [called] = user.computations("calls")
        return _read_of(place, whole, program.computations[called], program)
    if place == 0 and user.opcode in ("dynamic-slice", "slice", "gather"):
        return sum(shape.bytes for shape in user.shapes)
    if place == 0 and user.opcode in _UPDATES:
        return 0.0
    return whole


def _written(root: Instruction, shape: str, inside: dict[str, Instruction]) -> float:
    """What a fusion writes: of an array that it updates in place, only the update."""
    roots = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if not any(each.opcode in _UPDATES for each in roots):
        return _memory_bytes(shape)
    return sum(
        sum(part.bytes for part in inside[each.operands[_UPDATES[each.opcode]]].shapes)
        if each.opcode in _UPDATES
        else _memory_bytes(each.shape)
        for each in roots
    )


def _size(shape: Shape) -> float:
    return float(shape.bytes)


def _bytes(run: Run, program: Program, operand: str) -> float:
    found = program.computations[run.computation].get(operand)
    return _memory_bytes(found.shape) if found else 0.0


def _memory_bytes(shape: str) -> float:
    return sum(memory_parts(shape))


def memory_parts(shape: str) -> list[float]:
    """Bytes of each array of a shape in the device's memory: one in S(1) is on the chip."""
    layouts = re.findall(r"\w+\[[\d,]*\](\{[^}]*\})?", shape)
    return [
        0.0 if re.search(r"S\([1-9]\)", layout) else float(array.bytes)
        for array, layout in zip(arrays(shape), layouts, strict=True)
    ]
