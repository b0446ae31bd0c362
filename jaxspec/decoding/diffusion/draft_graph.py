"""Draft graphs: which future states of a block are worth drafting, as formulas.

Spiffy (arXiv 2509.18085) drafts whole states of the current block: the present state plus a set of
tokens that the next steps may reveal. What to draft is fixed offline and without tokens: a
*formula* is a set of pairs (i, j), where i is the rank of a masked position by its largest
probability and j the rank of a token there, both counted from 0 and both under the distribution
that led to the present state. Tokens are filled in at run time (`spiffy`).

One formula is a parent of another if the other reveals the same and one step more. A formula with
several parents is one node: the graph is directed and has no cycle. The present state has no
formula but is a parent like others; its number is `PRESENT`.

Dimension key: X nodes, I rows asked for (the ranked positions).

>>> graph = chain(3)
>>> graph.nodes[1].pairs
((0, 0), (1, 0))
>>> save_graph("graph.json", graph)
"""

from __future__ import annotations

import dataclasses
import graphlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from jaxspec.files import write_text
from jaxspec.interruption import is_outage
from jaxspec.paths import user_path

Pair = tuple[int, int]
FORMAT = "jaxspec-draft-graph-2"
OLD_FORMAT = "jaxspec-draft-graph-1"
"""Here the setting "unmasking" was the rule as Python prints it: ``Threshold(threshold=0.9)``."""
PRESENT = -1
"""The present state's number among parents."""

MOST_NODES = 1024
"""The most nodes that a graph in a file may have. Each is a state that a pass may read."""
MOST_POSITIONS = 4096
"""The most ranks of positions in a file. A block has one rank for each of its positions."""
MOST_TOKENS = 128
"""The most ranks of tokens in a file. Each rank takes a search through the vocabulary."""
_MOST_LINES = 10


@dataclasses.dataclass(frozen=True)
class Node:
    """One drafted state."""

    pairs: tuple[Pair, ...]
    """(rank of the position, rank of its token), by position."""
    parents: tuple[int, ...] = (PRESENT,)
    """Numbers of the nodes one step before, or `PRESENT`."""


@dataclasses.dataclass(frozen=True)
class DraftGraph:
    """Drafted states. Without nodes nothing is drafted: plain decoding.

    Raises:
      ValueError: nodes that are not such a graph; all problems at once.
    """

    nodes: tuple[Node, ...] = ()
    # Not compared: equal nodes are one graph to the compiler.
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    """The model and the rules that it was calibrated for, by name and as text; {}: it fits any."""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    """Where it comes from, as in JSON."""

    def __post_init__(self) -> None:
        problems = _problems(self.nodes)
        if problems:
            lines = "".join(f"\n  {problem}" for problem in problems[:_MOST_LINES])
            more = len(problems) - _MOST_LINES
            lines += f"\n  and {more} more" if more > 0 else ""
            raise ValueError(f"These nodes are not a draft graph:{lines}")

    @property
    def size(self) -> int:
        """The number of drafted states."""
        return len(self.nodes)

    @property
    def num_positions(self) -> int:
        """How many ranks of positions occur, from 0."""
        return 1 + max((i for node in self.nodes for i, _ in node.pairs), default=-1)

    @property
    def num_tokens(self) -> int:
        """How many ranks of tokens occur, from 0."""
        return 1 + max((j for node in self.nodes for _, j in node.pairs), default=-1)

    @property
    def depths(self) -> tuple[int, ...]:
        """Steps from the present state to each node, on the shortest way."""
        depths: dict[int, int] = {}
        for number in _order(self.nodes):
            parents = self.nodes[number].parents
            depths[number] = 1 + min(depths.get(parent, 0) for parent in parents)
        return tuple(depths[number] for number in range(self.size))

    def first(self, size: int) -> DraftGraph:
        """The graph of the first nodes; from a calibrated graph, the best one of that size.

        Raises:
          ValueError: a negative size.
        """
        if size < 0:
            raise ValueError(f"size is the number of drafts and must be at least 0: got {size}.")
        nodes = tuple(
            Node(node.pairs, tuple(parent for parent in node.parents if parent < size))
            for node in self.nodes[:size]
        )
        return dataclasses.replace(self, nodes=nodes)

    def token_ranks(self) -> np.ndarray:
        """The formulas as an array: the token's rank at [node, rank of the position], else -1."""
        table_XI = np.full((self.size, self.num_positions), -1, np.int32)
        for number, node in enumerate(self.nodes):
            for i, j in node.pairs:
                table_XI[number, i] = j
        return table_XI


def _problems(nodes: Sequence[Node]) -> list[str]:
    problems = []
    first: dict[frozenset[Pair], int] = {}
    for number, node in enumerate(nodes):
        name, places = f"node {number} {_short(repr(list(node.pairs)))}", [i for i, _ in node.pairs]
        if not node.pairs:
            problems.append(f"{name}: no pairs; that is the present state, which is not a draft")
        if any(min(pair) < 0 for pair in node.pairs):
            problems.append(f"{name}: ranks count from 0")
        if places != sorted(set(places)):
            problems.append(f"{name}: positions must rise, each of them once")
        if (same := first.setdefault(frozenset(node.pairs), number)) != number:
            problems.append(f"{name}: the same as node {same}")
        if len(set(node.parents)) != len(node.parents):
            problems.append(f"{name}: a parent occurs twice in {_short(repr(list(node.parents)))}")
        missing = [parent for parent in node.parents if not PRESENT <= parent < len(nodes)]
        if not node.parents:
            problems.append(f"{name}: not connected: no parents, and not the present state (-1)")
        if missing:
            problems.append(f"{name}: there is no node {_short(', '.join(map(str, missing)))}")
    if problems:
        return problems
    try:
        _order(nodes)
    except graphlib.CycleError as error:
        return [f"a cycle: {_short(' -> '.join(map(str, error.args[1])))}"]
    for number, node in enumerate(nodes):
        for parent in set(node.parents) - {PRESENT}:
            if not set(nodes[parent].pairs) < set(node.pairs):
                problems.append(
                    f"node {number} {_short(repr(list(node.pairs)))}: parent {parent} "
                    f"{_short(repr(list(nodes[parent].pairs)))} is not a part of it"
                )
    return problems


def _short(text: str) -> str:
    """A text that fits into a message."""
    return text if len(text) <= 100 else f"{text[:100]}..."


def _order(nodes: Sequence[Node]) -> tuple[int, ...]:
    """Parents before children."""
    graph = {number: set(node.parents) - {PRESENT} for number, node in enumerate(nodes)}
    return tuple(graphlib.TopologicalSorter(graph).static_order())


def from_formulas(
    formulas: Sequence[Sequence[Pair]], *, provenance: Mapping[str, Any] | None = None
) -> DraftGraph:
    """A graph in which every step reveals one token; parents are found from the sets.

    Args:
      formulas: sets of pairs, in any order.
      provenance: see `DraftGraph`.

    Raises:
      ValueError: sets that cannot be reached from the present state through the others, one pair
        at a time; or nodes that are not a graph.
    """
    ordered = sorted({tuple(sorted(formula)) for formula in formulas}, key=lambda f: (len(f), f))
    number_of = {formula: number for number, formula in enumerate(ordered)}
    nodes, lost = [], []
    for formula in ordered:
        smaller = [tuple(pair for pair in formula if pair != left) for left in formula]
        parents = tuple(sorted(number_of[each] for each in smaller if each in number_of))
        if len(formula) > 1 and not parents:
            lost.append(list(formula))
        nodes.append(Node(formula, parents or (PRESENT,)))
    if lost:
        raise ValueError(
            f"Not connected: no formula in the graph is one pair short of {lost}. Add those that "
            "lead there."
        )
    return DraftGraph(tuple(nodes), provenance=dict(provenance or {}))


def chain(size: int) -> DraftGraph:
    """The likeliest token at the likeliest position, then at the next one, and so on (SSD)."""
    return nested(size, tokens_per_step=1)


def nested(size: int, *, tokens_per_step: int) -> DraftGraph:
    """The states after the next steps, if the model's mind does not change (FreeDave).

    Every draft reveals the likeliest token at `tokens_per_step` more of the likeliest positions.

    Raises:
      ValueError: a step that reveals nothing.

    Limiting case: one token per step is `chain`.
    """
    if tokens_per_step < 1:
        raise ValueError(f"tokens_per_step must be at least 1: got {tokens_per_step}.")
    return DraftGraph(
        tuple(
            Node(
                tuple((i, 0) for i in range((number + 1) * tokens_per_step)),
                (number - 1 if number else PRESENT,),
            )
            for number in range(size)
        )
    )


def star(size: int) -> DraftGraph:
    """One step ahead: the likeliest token at each of the likeliest positions."""
    return from_formulas([[(i, 0)] for i in range(size)])


def graph_to_json(graph: DraftGraph) -> dict[str, Any]:
    """The content of a graph's file."""
    return {
        "format": FORMAT,
        "settings": dict(graph.settings),
        "provenance": dict(graph.provenance),
        "nodes": [
            {"pairs": [list(pair) for pair in node.pairs], "parents": list(node.parents)}
            for node in graph.nodes
        ],
    }


def graph_from_json(raw: Any, *, where: str) -> DraftGraph:
    """The graph in a file's content.

    Raises:
      ValueError: another format, fields of the wrong kind, or nodes that are not a graph.
    """
    if not isinstance(raw, Mapping) or raw.get("format") not in (FORMAT, OLD_FORMAT):
        got = raw.get("format") if isinstance(raw, Mapping) else raw
        raise ValueError(
            f"{where}: not a draft graph; its format is {_short(repr(got))}, expected {FORMAT!r} "
            f"or {OLD_FORMAT!r}."
        )
    # A misspelt "settings" would make the graph fit every decoder.
    unknown = sorted(set(raw) - {"format", "settings", "nodes", "provenance"})
    if unknown:
        raise ValueError(
            f"{where}: got the unknown keys {_short(repr(unknown))}, expected only format, "
            "settings, nodes and provenance."
        )
    nodes = _nodes_from_json(raw.get("nodes"), where=where)
    provenance, settings = raw.get("provenance", {}), raw.get("settings", {})
    if not isinstance(provenance, Mapping):
        raise ValueError(f"{where}: provenance is {_short(repr(provenance))}, expected an object.")
    if not (isinstance(settings, Mapping) and all(isinstance(v, str) for v in settings.values())):
        raise ValueError(
            f"{where}: settings is {_short(repr(settings))}, expected an object of strings."
        )
    if raw["format"] == OLD_FORMAT:
        settings = _with_fields(settings)
    try:
        return DraftGraph(nodes, settings, provenance)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _nodes_from_json(listed: Any, *, where: str) -> tuple[Node, ...]:
    """The nodes in a file, with ranks that the format allows; the graph is not yet checked."""
    if not isinstance(listed, list):
        raise ValueError(f"{where}: nodes is {_short(repr(listed))}, expected a list.")
    if len(listed) > MOST_NODES:
        raise ValueError(f"{where}: got {len(listed):,} nodes, expected at most {MOST_NODES:,}.")

    def integers(value: Any) -> bool:
        return isinstance(value, list) and all(type(each) is int for each in value)

    nodes = []
    for number, entry in enumerate(listed):
        pairs = entry.get("pairs") if isinstance(entry, Mapping) else None
        parents = entry.get("parents") if isinstance(entry, Mapping) else None
        sound = isinstance(pairs, list) and all(integers(pair) and len(pair) == 2 for pair in pairs)
        if not (sound and integers(parents)):
            raise ValueError(
                f"{where}: node {number} is {_short(repr(entry))}, expected "
                '{"pairs": [[rank of the position, rank of the token], ...], "parents": [...]} '
                "with -1 for the present state."
            )
        assert pairs is not None and parents is not None
        if any(i >= MOST_POSITIONS or j >= MOST_TOKENS for i, j in pairs):
            raise ValueError(
                f"{where}: node {number} {_short(repr(pairs))}: a rank is too large, expected "
                f"positions below {MOST_POSITIONS:,} and tokens below {MOST_TOKENS}."
            )
        nodes.append(Node(tuple((i, j) for i, j in pairs), tuple(parents)))
    return tuple(nodes)


def _with_fields(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings of the old format with the fields of today's unmasking rules."""
    printed = re.fullmatch(
        r"(Scheduled|Threshold|Factor)\((steps|threshold|factor)=(.+)\)",
        settings.get("unmasking", ""),
    )
    if printed is None:
        return dict(settings)
    rule, parameter, value = printed.groups()
    return {**settings, "unmasking": rule.lower(), parameter: value}


def save_graph(path: str | os.PathLike[str], graph: DraftGraph) -> None:
    """Writes a graph as JSON, one node per line, whole or not at all."""
    content = graph_to_json(graph)
    nodes = ",\n    ".join(json.dumps(node) for node in content["nodes"])
    settings, provenance = (
        json.dumps(content[name], indent=2).replace("\n", "\n  ")
        for name in ("settings", "provenance")
    )
    text = (
        f'{{\n  "format": {json.dumps(FORMAT)},\n  "settings": {settings},\n'
        f'  "nodes": [\n    {nodes}\n  ],\n  "provenance": {provenance}\n}}\n'
    )
    write_text(path, text)


def load_graph(path: str | os.PathLike[str]) -> DraftGraph:
    """Reads a graph.

    Raises:
      ValueError: no such file, not JSON, or not a graph.
      OSError: a disk, network share or bucket does not answer now.
    """
    try:
        text = user_path(path).read_text(encoding="utf-8")
        raw = json.loads(text, parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        if is_outage(error):
            raise
        raise ValueError(f"{path} cannot be read as a draft graph: {error}") from error
    return graph_from_json(raw, where=str(path))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON.")


_LEFT_OUT = {"last_ids": "()"}
"""Settings that are recorded only if they are used, and what they are otherwise."""


def check_graph(graph: DraftGraph, settings: Mapping[str, str], *, where: str) -> None:
    """Refuses a graph that was calibrated for other settings, or does not fit into a block.

    Args:
      graph: one without settings goes with any decoder.
      settings: those of the decoder that is going to use it (`calibration.graph_settings`).
      where: what to call the graph in messages.

    Raises:
      ValueError: a setting differs (the message names each one), or the block has no such rank.
    """
    got = {**_LEFT_OUT, **settings}
    expected = {**_LEFT_OUT, **graph.settings} if graph.settings else {}
    wrong = [
        f"{name}: got {got.get(name)!r}, expected {value!r}"
        for name, value in expected.items()
        if got.get(name) != value
    ]
    if wrong:
        raise ValueError(
            f"{where} was calibrated for another model or other rules. Use those, or calibrate "
            "again:\n  " + "\n  ".join(wrong)
        )
    block_length = settings.get("block_length")
    if block_length is not None and graph.num_positions > int(block_length):
        raise ValueError(
            f"{where} names the mask of rank {graph.num_positions - 1}, but a block of "
            f"{block_length} tokens has only ranks 0 to {int(block_length) - 1}: calibrate a graph "
            "for these settings."
        )
