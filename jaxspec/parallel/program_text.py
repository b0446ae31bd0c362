"""The text of a compiled program: its computations, its instructions and how often they run.

>>> program = Program('''HloModule step, num_partitions=4
... ENTRY main {
...   p = f32[4,8]{1,0} parameter(0)
...   ROOT s = f32[4,8]{1,0} sine(p)
... }''')
>>> [run] = program.runs(lambda instruction: instruction.opcode == "sine")
>>> run.times, run.instruction.shapes[0].bytes, program.devices
(1, 128, 4)
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
class Instruction:
    """A line of a computation."""

    name: str
    shape: str
    """The text of what it returns: an array or a tuple, with layouts."""
    opcode: str
    rest: str
    """Operands and attributes."""

    def computations(self, attribute: str) -> list[str]:
        """Names in ``attribute=%name`` or ``attribute={%name, ...}``."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest)
        return re.findall(r"[\w.\-]+", found[1]) if found else []

    @property
    def shapes(self) -> list[Shape]:
        """The arrays that it returns."""
        return arrays(self.shape)

    @property
    def operands(self) -> list[str]:
        """Names of what it reads."""
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(self.rest, 0)])

    @property
    def index(self) -> int:
        """Of a get-tuple-element; -1 for other operations."""
        found = re.search(r"\bindex=(\d+)(?!\*)", self.rest)
        return int(found[1]) if found else -1


class Run(NamedTuple):
    """An instruction that runs."""

    instruction: Instruction
    computation: str
    """Where it lies."""
    times: int
    """How often it runs in one run of the program."""


class Program:
    """The computations of a program."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        header = text.partition("\n")[0]
        counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)
        self.devices = math.prod(int(count) for count in counts)
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                is_entry, name = re.match(r"(ENTRY )?%?([\w.\-]+)", line).groups()  # type: ignore[union-attr]
                current = self.computations[name] = {}
                self.entry = name if is_entry else self.entry
            elif instruction := _instruction(line):
                current[instruction.name] = instruction

    def runs(
        self, is_wanted: Callable[[Instruction], bool], *, unknown_turns: int | None = None
    ) -> list[Run]:
        """The wanted instructions that the program runs, with the turns of the loops around them.

        Of several branches each counts. What a wanted instruction calls is not looked into.

        Args:
          is_wanted: chooses instructions.
          unknown_turns: of a loop that does not say how often it turns.

        Raises:
          ValueError: there is such a loop around a wanted instruction, and `unknown_turns` is None.
        """
        wanted: dict[str, bool] = {}

        def has_wanted(computation: str) -> bool:
            if computation not in wanted:
                wanted[computation] = any(
                    is_wanted(instruction) or any(map(has_wanted, _called(instruction)))
                    for instruction in self.computations[computation].values()
                )
            return wanted[computation]

        def walk(computation: str, times: int) -> Iterator[Run]:
            if not has_wanted(computation):
                return
            for instruction in self.computations[computation].values():
                if is_wanted(instruction):
                    yield Run(instruction, computation, times)
                    continue
                inside, turns = _called(instruction), times
                if instruction.opcode == "while" and any(map(has_wanted, inside)):
                    turns = times * self._turns(instruction, computation, unknown_turns)
                for called in inside:
                    yield from walk(called, turns)

        return list(walk(self.entry, 1))

    def shapes(self, name: str, computation: str) -> list[Shape]:
        """What an instruction of a computation returns; [] if there is none of that name."""
        found = self.computations[computation].get(name)
        return found.shapes if found else []

    def _turns(self, loop: Instruction, computation: str, unknown: int | None) -> int:
        """How often a loop turns: as the compiler says, or else from its counter."""
        said = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
        if said:
            return int(said[1])
        [condition], [body] = loop.computations("condition"), loop.computations("body")
        last = self.last(condition)
        if last.opcode == "compare" and "direction=LT" in last.rest:
            counter, end = last.operands
            place = self.computations[condition][counter].index
            first = self._element(loop.operands[0], place, computation)
            step = self._step(self.last(body), place, body)
            numbers = (first, self._constant(end, condition), step)
            if None not in numbers:
                start, stop, each = map(int, numbers)  # type: ignore[arg-type]
                return -((start - stop) // each)
        if unknown is not None:
            return unknown
        raise ValueError(
            f"The loop {loop.name} does not say how often it turns: expected "
            "known_trip_count, or a counter that rises from one constant to another."
        )

    def last(self, computation: str) -> Instruction:
        """What a computation ends with, and mostly returns."""
        return list(self.computations[computation].values())[-1]

    def _origin(self, name: str, computation: str) -> Instruction | None:
        """An instruction, through copies of what it returns."""
        found = self.computations[computation].get(name)
        while found and found.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            found = self.computations[computation].get(found.operands[0])
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

    def _step(self, last: Instruction, place: int, body: str) -> int | None:
        """What a turn adds to the counter at this place of the loop's tuple."""
        added = self._origin(last.operands[place], body) if last.opcode == "tuple" else None
        if added is None or added.opcode != "add":
            return None
        terms = [self._origin(name, body) for name in added.operands]
        if not any(term is not None and term.index == place for term in terms):
            return None
        numbers = [self._constant(name, body) for name in added.operands]
        return next((number for number in numbers if number is not None and number > 0), None)


def _called(instruction: Instruction) -> list[str]:
    if instruction.opcode in ("async-update", "async-done"):  # Named again, but not run again.
        return []
    if instruction.opcode == "call":
        return instruction.computations("to_apply")
    attributes = ("calls", "body", "condition", "branch_computations", "called_computations")
    return [
        name
        for attribute in (*attributes, "true_computation", "false_computation")
        for name in instruction.computations(attribute)
    ]


def _instruction(line: str) -> Instruction | None:
    start = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not start:
        return None
    after = line[start.end() :]
    end = _closing(after, 0) + 1 if after.startswith("(") else after.find(" ")
    opcode = re.match(r"\s*([\w\-]+)(?=\()", after[end:])
    if not opcode:
        return None
    return Instruction(start[1], after[:end], opcode[1], after[end + opcode.end() :])


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)


def arrays(shape: str) -> list[Shape]:
    """The arrays in the text of a shape, of a tuple's elements too."""
    return [
        Shape(dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    ]
