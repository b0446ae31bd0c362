"""The collectives of a compiled program, read from its text, and the bytes that they move.

A collective inside a loop counts once for each turn. Bytes on the wire are those that one device
sends when the collective runs as a ring, which is the least that any algorithm sends (Patarasuk and
Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations").

>>> text = '''HloModule step, num_partitions=4
... ENTRY main {
...   p = f32[4,8]{1,0} parameter(0)
...   ROOT g = f32[16,8]{1,0} all-gather(p), replica_groups={{0,1,2,3}}, dimensions={0}
... }'''
>>> [collective] = read_collectives(text)
>>> collective.kind, collective.group_size, collective.result_bytes, collective.wire_bytes
('all-gather', 4, 512, 384.0)
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jaxspec.parallel.program_text import Instruction, Program, Run, Shape, arrays
from jaxspec.parallel.widened import before_widening

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_UNKNOWN = ("ragged-all-to-all", "collective-broadcast")
_IN_SECOND_PLACE = ("all-gather-start", "collective-permute-start", "async-start")
"""Operations that return (operands, results, ...)."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """An operation in which devices exchange data."""

    name: str
    kind: str
    """One of `KINDS`."""
    results: tuple[Shape, ...]
    """What each device has afterwards; several where the compiler has combined collectives."""
    group_size: int
    """Devices that exchange data with each other."""
    times: int
    """How often it runs in one run of the program."""
    source: str
    """The operation of the source that it comes from, as the compiler names it; "" if unknown."""

    @property
    def result_bytes(self) -> int:
        """Of one run, on one device."""
        return sum(shape.bytes for shape in self.results)

    @property
    def wire_bytes(self) -> float:
        """What a device sends in one run of the program, over all turns of the loops around it."""
        return self.times * ring_bytes(self.kind, self.result_bytes, group_size=self.group_size)


def ring_bytes(kind: str, result_bytes: float, *, group_size: int) -> float:
    """Bytes that each device of a ring sends in one collective.

    With R bytes of results on g devices: (g - 1) / g R to gather or to exchange, (g - 1) R to
    reduce g R bytes to R of each device, and the sum of both, 2 (g - 1) / g R, to reduce to all.
    """
    others = group_size - 1
    factor = {
        "all-gather": others / group_size,
        "all-to-all": others / group_size,
        "reduce-scatter": others,
        "all-reduce": 2 * others / group_size,
        "collective-permute": 1,
    }[kind]
    return factor * result_bytes


def wire_bytes_by_kind(collectives: Iterable[Collective]) -> dict[str, float]:
    """What a device sends in one run of the program, for each of `KINDS`."""
    sums = dict.fromkeys(KINDS, 0.0)
    for collective in collectives:
        sums[collective.kind] += collective.wire_bytes
    return sums


def collectives_of(compiled: jax.stages.Compiled) -> list[Collective]:
    """Those of a compiled program; see `read_collectives`."""
    text = compiled.as_text()
    assert text is not None, "this backend does not show its programs"
    return read_collectives(text)


def read_collectives(text: str, *, narrows: bool = False) -> list[Collective]:
    """Every collective of a program that runs at least once.

    Of several branches each counts. A collective that the TPU compiler has spread over several
    fusions, to run beside other work, counts once.

    Args:
      text: what ``compiled.as_text()`` returns, for CPUs, GPUs or TPUs.
      narrows: counts what XLA for CPUs has widened to float32 as bfloat16: what GPUs would send.

    Raises:
      ValueError: a loop around a collective does not say how often it turns, or a collective or
        its groups are of a form that is not known here.
    """
    program = Program(text)
    found: dict[Any, Collective] = {}
    for run in program.runs(lambda instruction: bool(_kind(instruction))):
        instruction = run.instruction
        collective = _collective(run, program, narrows=narrows)
        # The fusions of one collective share its channel and their chain.
        chain = re.search(r'chain_id="(\d+)"', instruction.rest)
        is_spread = "async_collective_fusion_config" in instruction.rest
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        key: Any = len(found)
        if is_spread and channel:
            key = (channel[1], chain and chain[1])
        if key not in found or found[key].times < run.times:
            found[key] = collective
    return list(found.values())


def _collective(run: Run, program: Program, *, narrows: bool) -> Collective:
    instruction = run.instruction
    shapes = instruction.shape
    if instruction.opcode in _IN_SECOND_PLACE:
        shapes = _elements(shapes)[1]
    results = arrays(shapes)
    if narrows:
        results = before_widening(run, results, program)
    source = re.search(r'op_name="([^"]*)"', instruction.rest)
    kind = _kind(instruction)
    size = 2 if kind == "collective-permute" else _group_size(instruction, devices=program.devices)
    name, came_from = instruction.name, source[1] if source else ""
    return Collective(name, kind, tuple(results), size, run.times, came_from)


def _group_size(instruction: Instruction, *, devices: int) -> int:
    """Of ``{{0,1},{2,3}}``, ``[2,4]<=[8]`` or ``mesh['a'=2,'b'=4] {'b'}``."""
    groups = instruction.rest.partition("replica_groups=")[2]
    if axes := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\([^ ]*\))? \{([^}]*)\}", groups):
        sizes: Mapping[str, str] = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        # 'a':(2)4 is the part of an axis of size 4 below a part of size 2.
        used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[axis]) for axis, part in used)
    if iota := re.match(r"\[(\d+,)*(\d+)\]<=", groups):
        return int(iota[2])
    if first := re.match(r"\{\{([\d,]+)\}", groups):
        return len(first[1].split(","))
    if groups.startswith("{}"):
        return devices
    raise ValueError(
        f"The groups of {instruction.name} are not understood: {groups[:80]!r}. Expected a "
        "list of lists, an iota or axes of a mesh."
    )


def _kind(instruction: Instruction) -> str:
    """The kind of a collective; "" for other operations, and for the end of a collective."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in _UNKNOWN:
        raise ValueError(f"{instruction.name} is a collective of a kind not known here: {opcode}.")
    return opcode if opcode in KINDS else ""


def _elements(shape: str) -> list[str]:
    """The elements of the outermost tuple of a shape."""
    elements, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += letter
    return elements
