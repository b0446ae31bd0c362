"""What one turn of a compiled decoding loop moves, and which large arrays it copies.

Decoding reads all weights in every turn, so its speed is that of the memory as long as nothing
else is moved. A loop that cuts its weights out of a stack, or that writes its cache anew, shows up
as an instruction whose result has the shape of a weight or of a cache.

>>> text = '''HloModule run
... body {
...   %p = (f32[], f32[64,64]{1,0}) parameter(0)
...   %x = f32[] get-tuple-element(%p), index=0
...   %w = f32[64,64]{1,0} get-tuple-element(%p), index=1
...   %again = f32[64,64]{1,0} copy(%w)
...   ROOT %r = (f32[], f32[64,64]{1,0}) tuple(%x, %again)
... }
... ENTRY main {
...   %start = (f32[], f32[64,64]{1,0}) parameter(0)
...   ROOT %loop = (f32[], f32[64,64]{1,0}) while(%start), condition=%test, body=%body
... }'''
>>> turn = loop_turn(text, large=[(64, 64)])
>>> turn.memory_bytes, turn.copied_bytes, turn.instructions
(32768.0, 16384.0, 1)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from jaxspec.parallel.program_text import Program, Run
from jaxspec.planning.program_costs import memory_parts, moving, traffic

LARGE = 2**10
"""Elements of an array that counts as a weight or a cache."""
_IN_PLACE = {"dynamic-update-slice", "scatter"}


@dataclasses.dataclass(frozen=True)
class LoopTurn:
    """One turn of the loop, on one device."""

    memory_bytes: float
    """Read from and written to its memory (`ProgramCosts.memory_bytes`)."""
    instructions: int
    """Instructions that run, loops inside included: the kernels of a GPU."""
    copied_bytes: float
    """Size of the results that have the shape of a weight or a cache and are not updates in
    place."""
    copies: tuple[str, ...]
    """The names of these instructions, with what they return."""


def loop_turn(text: str, *, large: Iterable[tuple[int, ...]]) -> LoopTurn:
    """Reads a turn of the program's main loop, the one that moves most.

    Args:
      text: what ``compiled.as_text()`` returns.
      large: shapes of the weights and caches; axes of one element do not matter. Those below
        `LARGE` elements are left out.

    Raises:
      ValueError: the program has no loop.
    """
    program = Program(text)
    loops = program.runs(lambda each: each.opcode == "while", unknown_turns=1)
    bodies = [loop.instruction.computations("body")[0] for loop in loops]
    if not bodies:
        raise ValueError("The program has no loop: expected one that decodes.")

    def runs_of(body: str) -> list[Run]:
        program.entry = body
        return moving(program)

    def moved(runs: list[Run]) -> float:
        return sum(run.times * traffic(run, program) for run in runs)

    runs = max(map(runs_of, bodies), key=moved)
    kinds = {_kind(sizes) for sizes in large if math.prod(sizes) >= LARGE}
    copies = [run for run in runs if _copied(run, program, kinds)]
    return LoopTurn(
        memory_bytes=moved(runs),
        instructions=sum(run.times for run in runs),
        copied_bytes=float(sum(run.times * _copied(run, program, kinds) for run in copies)),
        copies=tuple(f"{run.instruction.name}: {run.instruction.shape}" for run in copies),
    )


def _kind(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """What stays of a shape when compilers turn it, or add and remove axes of one element."""
    return tuple(sorted(size for size in sizes if size != 1))


def _copied(run: Run, program: Program, kinds: set[tuple[int, ...]]) -> int:
    """Bytes that an instruction writes in the shape of a weight or a cache; 0: none."""
    instruction = run.instruction
    if _changes_a_part(run, program):
        return 0
    found = [
        shape.bytes
        for shape, written in zip(instruction.shapes, memory_parts(instruction.shape), strict=True)
        if written and _kind(shape.sizes) in kinds
    ]
    # What starts in the background also returns what it reads.
    return sum(found[1:] if instruction.opcode.endswith("-start") else found)


def _changes_a_part(run: Run, program: Program) -> bool:
    """Whether an instruction updates its operand in place."""
    if run.instruction.opcode != "fusion":
        return run.instruction.opcode in _IN_PLACE
    [name] = run.instruction.computations("calls")
    return any(each.opcode in _IN_PLACE for each in program.computations[name].values())
