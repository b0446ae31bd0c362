"""Mutated files of draft graphs: refused in one message, or read as graphs within the bounds."""

from __future__ import annotations

import copy
import json
import random

import pytest

from jaxspec.decoding.diffusion.draft_graph import (
    MOST_NODES,
    MOST_TOKENS,
    OLD_FORMAT,
    PRESENT,
    DraftGraph,
    check_graph,
    from_formulas,
    graph_to_json,
    load_graph,
)
from tests.trust.outcomes import Outcomes

FAST, SLOW = 120, 900
BLOCK = 8
SETTINGS = {"model": "a1", "mask_id": "28", "block_length": str(BLOCK), "unmasking": "threshold"}
A, B = (0, 0), (1, 0)
NODES = from_formulas([[A], [(0, 1)], [B], [A, B], [A, B, (2, 0)], [A, B, (2, 3)]]).nodes
VALUES = (
    *(None, True, 0, -1, -2, 1, 5, 6, 7, 8, 127, 128, 10**6, 10**12, 2**64, -(2**63), 10**400),
    *(0.5, 1e308, float("nan"), float("inf"), "", "x", "0", "é" * 200, [], [[]], [0], [0, 0]),
    *({}, {"a": 1}, [[0, 0], [0, 0]], [[1, 0], [0, 0]], list(range(5000)), [-1], [-1, -1], [3]),
)
"""What a place in the document is replaced with."""
PIECES = (b"\x00", b"\xff", b"\xef\xbb\xbf", b"[", b"{", b"]", b",", b'"', b"-", b"9" * 5000)
"""What is put between two bytes of the file."""


def document(rng: random.Random) -> dict:
    graph = DraftGraph(NODES, SETTINGS, {"calibration": {"node_counts": [9, 4, 4, 2, 1, 1]}})
    raw = graph_to_json(graph)
    if rng.random() < 0.3:
        raw["format"] = OLD_FORMAT
        raw["settings"] = {**SETTINGS, "unmasking": "Threshold(threshold=0.9)"}
    return raw


def places(value, path=()):
    """The paths of everything in a document."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in entries if isinstance(value, (dict, list)) else ():
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))
        else:
            yield (*path, key)


def changed(raw: dict, rng: random.Random) -> dict:
    """A document with one place replaced, removed, renamed or duplicated."""
    path = rng.choice(list(places(raw)))
    holder = raw
    for key in path[:-1]:
        holder = holder[key]
    kind = rng.choice(("replace", "replace", "replace", "remove", "twice", "wrap"))
    last = path[-1]
    if kind == "replace":
        holder[last] = copy.deepcopy(rng.choice(VALUES))
    elif kind == "remove":
        del holder[last]
    elif kind == "wrap":
        holder[last] = [holder[last]]
    elif isinstance(holder, dict):
        holder[f"{last}z"] = holder.pop(last)
    else:
        holder.insert(last, copy.deepcopy(holder[last]))
    return raw


def mutated(rng: random.Random) -> bytes:
    """The bytes of a file with one to three changes."""
    raw = document(rng)
    if rng.random() < 0.6:
        for _ in range(rng.randint(1, 3)):
            raw = changed(raw, rng)
        return json.dumps(raw).encode()
    content = bytearray(json.dumps(raw).encode())
    kind = rng.choice(("flip", "cut", "insert", "nest"))
    at = rng.randrange(len(content))
    if kind == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[at:]
    elif kind == "insert":
        content[at:at] = rng.choice(PIECES)
    else:
        content = bytearray(rng.choice((b"[", b'{"nodes":')) * 100_000)
    return bytes(content)


def wrong_with(graph: DraftGraph) -> str:
    """What is outside a block, a vocabulary or a table; "" if nothing."""
    if graph.size > MOST_NODES or not graph.num_tokens <= MOST_TOKENS:
        return "too large"
    if graph.num_positions > BLOCK:
        return "ranks beyond the block"
    formulas = [node.pairs for node in graph.nodes]
    if len(set(formulas)) != len(formulas) or () in formulas:
        return "a formula twice, or none"
    reached: set[int] = set()
    for _ in formulas:
        for number, node in enumerate(graph.nodes):
            if {PRESENT, *reached} & set(node.parents):
                reached.add(number)
    if len(reached) != graph.size:
        return "a node that nothing leads to"
    for node in graph.nodes:
        ranks = [i for i, _ in node.pairs]
        if ranks != sorted(set(ranks)) or min(min(pair) for pair in node.pairs) < 0:
            return "ranks out of order"
        for parent in set(node.parents) - {PRESENT}:
            if not set(graph.nodes[parent].pairs) < set(node.pairs):
                return "a parent that is no part of its child"
    table_XI = graph.token_ranks()
    if table_XI.shape != (graph.size, graph.num_positions) or table_XI.min(initial=-1) < -1:
        return "a table of the wrong shape"
    return ""


@pytest.mark.parametrize("seed", [13])
def test_mutated_graphs_are_refused_or_decode_within_bounds(is_slow, tmp_path, seed):
    outcomes, opened = Outcomes("draft graphs"), 0
    file = tmp_path / "graph.json"

    def read() -> DraftGraph:
        graph = load_graph(file)
        settings = {**SETTINGS, "threshold": "0.9"}
        check_graph(graph, settings, where=str(file))
        return graph

    for number in range(SLOW if is_slow else FAST):
        content = mutated(random.Random(f"{seed} {number}"))
        file.write_bytes(content)
        case = f"{number}: {content[:2000]!r}"
        graph = outcomes.attempt(case, read)
        if graph is not None:
            opened += 1
            problem = wrong_with(graph)
            outcomes.add("silent" if problem else "clean", f"{problem}: {case}")
    outcomes.check()
    assert opened, "no mutation left a graph: the checks of graphs were not tried"
