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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_UNKNOWN = ("ragged-all-to-all", "collective-broadcast")
_IN_SECOND_PLACE = ("all-gather-start", "collective-permute-start", "async-start")
"""Operations that return (operands, results, ...)."""
_BITS = re.compile(r"[a-z]+?(\d+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program, on one device."""

    dtype: str
    """XLA's name: f32, bf16, s32, pred, ..."""
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size; types below a byte are counted as if they were not packed."""
        bits = _BITS.match(self.dtype)
        return math.prod(self.sizes) * (max(8, int(bits[1])) // 8 if bits else 1)


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


def read_collectives(text: str) -> list[Collective]:
    """Every collective of a program that runs at least once.

    Of several branches each counts. A collective that the TPU compiler has spread over several
    fusions, to run beside other work, counts once.

    Args:
      text: what ``compiled.as_text()`` returns, for CPUs, GPUs or TPUs.

    Raises:
      ValueError: a loop around a collective does not say how often it turns, or a collective or
        its groups are of a form that is not known here.
    """
    program = _Program(text)
    found: dict[Any, Collective] = {}
    for instruction, times in program.run(program.entry, 1):
        collective = program.collective(instruction, times)
        # The fusions of one collective share its channel and their chain.
        chain = re.search(r'chain_id="(\d+)"', instruction.rest)
        is_spread = "async_collective_fusion_config" in instruction.rest
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        key: Any = len(found)
        if is_spread and channel:
            key = (channel[1], chain and chain[1])
        if key not in found or found[key].times < times:
            found[key] = collective
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str
    """Operands and attributes."""

    def computations(self, attribute: str) -> list[str]:
        """Names in ``attribute=%name`` or ``attribute={%name, ...}``."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest)
        return re.findall(r"[\w.\-]+", found[1]) if found else []

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(self.rest, 0)])

    @property
    def index(self) -> int:
        """Of a get-tuple-element; -1 for other operations."""
        found = re.search(r"\bindex=(\d+)(?!\*)", self.rest)
        return int(found[1]) if found else -1


class _Program:
    """The computations of a program."""

    def __init__(self, text: str) -> None:
        self._computations: dict[str, dict[str, _Instruction]] = {}
        self.entry = ""
        header = text.partition("\n")[0]
        counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)
        self._devices = math.prod(int(count) for count in counts)
        current: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                is_entry, name = re.match(r"(ENTRY )?%?([\w.\-]+)", line).groups()  # type: ignore[union-attr]
                current = self._computations[name] = {}
                self.entry = name if is_entry else self.entry
            elif instruction := _instruction(line):
                current[instruction.name] = instruction
        self._with_collectives: dict[str, bool] = {}

    def run(self, computation: str, times: int) -> Iterator[tuple[_Instruction, int]]:
        """The collectives that a computation runs, and how often."""
        if not self._has_collectives(computation):
            return
        for instruction in self._computations[computation].values():
            if _kind(instruction):
                yield instruction, times
                continue
            inside = _called(instruction)
            turns = times
            if instruction.opcode == "while" and any(map(self._has_collectives, inside)):
                turns = times * self._turns(instruction, computation)
            for called in inside:
                yield from self.run(called, turns)

    def _has_collectives(self, computation: str) -> bool:
        if computation not in self._with_collectives:
            self._with_collectives[computation] = any(
                _kind(instruction) or any(map(self._has_collectives, _called(instruction)))
                for instruction in self._computations[computation].values()
            )
        return self._with_collectives[computation]

    def _turns(self, loop: _Instruction, computation: str) -> int:
        """How often a loop turns: as the compiler says, or else from its counter."""
        said = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if said:
            return int(said[1])
        [condition], [body] = loop.computations("condition"), loop.computations("body")
        last = self._last(condition)
        if last.opcode == "compare" and "direction=LT" in last.rest:
            counter, end = last.operands
            place = self._computations[condition][counter].index
            first = self._element(loop.operands[0], place, computation)
            step = self._step(self._last(body), place, body)
            numbers = (first, self._constant(end, condition), step)
            if None not in numbers:
                start, stop, each = map(int, numbers)  # type: ignore[arg-type]
                return -((start - stop) // each)
        raise ValueError(
            f"The loop {loop.name} runs collectives and does not say how often it turns: expected "
            "known_trip_count, or a counter that rises from one constant to another."
        )

    def _last(self, computation: str) -> _Instruction:
        return list(self._computations[computation].values())[-1]

    def _origin(self, name: str, computation: str) -> _Instruction | None:
        """An instruction, through copies of what it returns."""
        found = self._computations[computation].get(name)
        while found and found.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            found = self._computations[computation].get(found.operands[0])
        return found

    def _constant(self, name: str, computation: str) -> int | None:
        found = self._origin(name, computation)
        number = re.match(r"\((-?\d+)\)", found.rest) if found else None
        return int(number[1]) if found and found.opcode == "constant" and number else None

    def _element(self, name: str, place: int, computation: str) -> int | None:
        """An element of a tuple, if it is a constant."""
        found = self._origin(name, computation)
        if found is None or found.opcode != "tuple":
            return None
        return self._constant(found.operands[place], computation)

    def _step(self, last: _Instruction, place: int, body: str) -> int | None:
        """What a turn adds to the counter at this place of the loop's tuple."""
        added = self._origin(last.operands[place], body) if last.opcode == "tuple" else None
        if added is None or added.opcode != "add":
            return None
        terms = [self._origin(name, body) for name in added.operands]
        if not any(term is not None and term.index == place for term in terms):
            return None
        numbers = [self._constant(name, body) for name in added.operands]
        return next((number for number in numbers if number is not None and number > 0), None)

    def collective(self, instruction: _Instruction, times: int) -> Collective:
        shapes = instruction.shape
        if instruction.opcode in _IN_SECOND_PLACE:
            shapes = _elements(shapes)[1]
        results = tuple(
            Shape(dtype, tuple(int(size) for size in sizes.split(",") if size))
            for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        )
        source = re.search(r'op_name="([^"]*)"', instruction.rest)
        kind = _kind(instruction)
        size = 2 if kind == "collective-permute" else self._group_size(instruction)
        return Collective(instruction.name, kind, results, size, times, source[1] if source else "")

    def _group_size(self, instruction: _Instruction) -> int:
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
            return self._devices
        raise ValueError(
            f"The groups of {instruction.name} are not understood: {groups[:80]!r}. Expected a "
            "list of lists, an iota or axes of a mesh."
        )


def _kind(instruction: _Instruction) -> str:
    """The kind of a collective; "" for other operations, and for the end of a collective."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in _UNKNOWN:
        raise ValueError(f"{instruction.name} is a collective of a kind not known here: {opcode}.")
    return opcode if opcode in KINDS else ""


def _called(instruction: _Instruction) -> list[str]:
    if instruction.opcode in ("async-update", "async-done"):  # Named again, but not run again.
        return []
    attributes = ("calls", "body", "condition", "branch_computations", "called_computations")
    return [
        name
        for attribute in (*attributes, "true_computation", "false_computation")
        for name in instruction.computations(attribute)
    ]


def _instruction(line: str) -> _Instruction | None:
    start = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not start:
        return None
    after = line[start.end() :]
    end = _closing(after, 0) + 1 if after.startswith("(") else after.find(" ")
    opcode = re.match(r"\s*([\w\-]+)(?=\()", after[end:])
    if not opcode:
        return None
    return _Instruction(start[1], after[:end], opcode[1], after[end + opcode.end() :])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)


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
