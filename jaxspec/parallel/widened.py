"""What a program for CPUs sends as float32 although it computes in bfloat16.

XLA for CPUs has no collectives in bfloat16. It converts what goes in to float32 and rounds what
comes out, so that twice the bytes are moved; GPUs and TPUs move bfloat16. The conversions stay in
the text of the program. Those that the model itself asks for do not count: they bear jax's name of
that operation.

>>> program = Program('''HloModule step, num_partitions=4
... ENTRY main {
...   %p = bf16[4,8]{1,0} parameter(0)
...   %w = f32[4,8]{1,0} convert(%p)
...   ROOT %g = f32[16,8]{1,0} all-gather(%w), replica_groups={{0,1,2,3}}, dimensions={0}
... }''')
>>> [run] = program.runs(lambda instruction: instruction.opcode == "all-gather")
>>> before_widening(run, [Shape("f32", (16, 8))], program)
[Shape(dtype='bf16', sizes=(16, 8))]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

from jaxspec.parallel.program_text import Instruction, Program, Run, Shape

_SAME_VALUES = {"bitcast", "copy", "reshape", "transpose"}
"""Operations that move values and do not change them."""


def before_widening(run: Run, results: Sequence[Shape], program: Program) -> list[Shape]:
    """The results of a collective in the types that it has where nothing is widened.

    An array of float32 is one of bfloat16 if the compiler has widened it just before, or rounds it
    wherever it is read.

    Args:
      run: the collective.
      results: the arrays that it returns, one for each operand.
      program: where it runs.
    """
    collective, computation = run.instruction, run.computation
    found = []
    for place, (operand, shape) in enumerate(zip(collective.operands, results, strict=True)):
        is_widened = shape.dtype == "f32" and (
            _comes_from_bfloat16(operand, computation, program)
            or _goes_to_bfloat16(_readers(collective, place, computation, program), program)
        )
        found.append(dataclasses.replace(shape, dtype="bf16") if is_widened else shape)
    return found


def _comes_from_bfloat16(name: str, computation: str, program: Program) -> bool:
    found = program.computations[computation].get(name)
    if found is None:
        return False
    if found.opcode == "fusion":
        [inside] = found.computations("calls")
        return _comes_from_bfloat16(program.last(inside).name, inside, program)
    if found.opcode in _SAME_VALUES:
        return _comes_from_bfloat16(found.operands[0], computation, program)
    return _is_compilers(found) and _has_dtype(found.operands[0], computation, "bf16", program)


def _goes_to_bfloat16(readers: Sequence[tuple[Instruction, str, str]], program: Program) -> bool:
    """Whether all readers, (reader, what it reads, its computation), only round what they read."""

    def rounds(reader: Instruction, name: str, computation: str) -> bool:
        if reader.opcode == "fusion":
            [inside] = reader.computations("calls")
            number = reader.operands.index(name)
            [parameter] = [
                each.name
                for each in program.computations[inside].values()
                if each.opcode == "parameter" and each.rest.startswith(f"({number})")
            ]
            return _goes_to_bfloat16(list(_users(parameter, inside, program)), program)
        if reader.opcode in _SAME_VALUES:
            return _goes_to_bfloat16(list(_users(reader.name, computation, program)), program)
        return _is_compilers(reader) and reader.shapes[0].dtype == "bf16"

    return bool(readers) and all(rounds(*reader) for reader in readers)


def _readers(
    collective: Instruction, place: int, computation: str, program: Program
) -> list[tuple[Instruction, str, str]]:
    """What reads one of the results of a collective."""
    users = list(_users(collective.name, computation, program))
    if not collective.shape.startswith("("):
        return users
    elements = [user for user, *_ in users if user.index == place]
    return [user for each in elements for user in _users(each.name, computation, program)]


def _users(name: str, computation: str, program: Program) -> Iterator[tuple[Instruction, str, str]]:
    for each in program.computations[computation].values():
        if name in each.operands:
            yield each, name, computation


def _is_compilers(instruction: Instruction) -> bool:
    """Whether it is a conversion that the compiler has added."""
    written = re.search(r'op_name="[^"]*convert_element_type"', instruction.rest)
    return instruction.opcode == "convert" and not written


def _has_dtype(name: str, computation: str, dtype: str, program: Program) -> bool:
    shapes = program.shapes(name, computation)
    return len(shapes) == 1 and shapes[0].dtype == dtype
