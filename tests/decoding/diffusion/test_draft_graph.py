"""Draft graphs: edges, files, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jaxspec.decoding.diffusion.calibration import graph_settings
from jaxspec.decoding.diffusion.decoder import DiffusionRules
from jaxspec.decoding.diffusion.draft_graph import (
    DraftGraph,
    Node,
    chain,
    check_graph,
    from_formulas,
    graph_from_json,
    graph_to_json,
    load_graph,
    nested,
    save_graph,
    star,
)
from jaxspec.decoding.diffusion.unmasking import Factor, Scheduled, Threshold

A, B = (0, 0), (1, 0)
DIAMOND = from_formulas([[A], [B], [B, A], [(0, 1)]], provenance={"model": "tiny"})


def test_a_formula_that_two_parents_reach_is_one_node():
    assert [node.pairs for node in DIAMOND.nodes] == [(A,), ((0, 1),), (B,), (A, B)]
    assert DIAMOND.nodes[3].parents == (0, 2)
    assert DIAMOND.depths == (1, 1, 1, 2)
    assert DIAMOND.token_ranks().tolist() == [[0, -1], [1, -1], [-1, 0], [0, 0]]
    assert (DIAMOND.size, DIAMOND.num_positions, DIAMOND.num_tokens) == (4, 2, 2)


def test_chain_and_star():
    assert [node.pairs for node in chain(3).nodes] == [(A,), (A, B), (A, B, (2, 0))]
    assert chain(3).depths == (1, 2, 3)
    assert [node.pairs for node in star(3).nodes] == [(A,), (B,), ((2, 0),)]
    assert star(3).depths == (1, 1, 1)
    assert chain(0) == DraftGraph() and DraftGraph().size == 0
    assert DraftGraph().token_ranks().shape == (0, 0)


def test_nested_drafts():
    assert nested(3, tokens_per_step=1) == chain(3)
    wide = nested(2, tokens_per_step=2)
    assert [node.pairs for node in wide.nodes] == [(A, B), (A, B, (2, 0), (3, 0))]
    assert wide.depths == (1, 2)
    with pytest.raises(ValueError, match="tokens_per_step"):
        nested(2, tokens_per_step=0)


def test_a_graph_for_something_else_is_refused(tmp_path):
    graph = DraftGraph(chain(2).nodes, {"model": "a1", "mask_id": "28", "block_length": "32"})
    save_graph(tmp_path / "graph.json", graph)
    read = load_graph(tmp_path / "graph.json")
    assert read.settings == graph.settings
    check_graph(read, {**graph.settings, "caching": "dual"}, where="graph.json")
    check_graph(chain(2), {"model": "b2"}, where="nobody's own")
    with pytest.raises(ValueError) as caught:
        check_graph(read, {"model": "b2", "mask_id": "28", "block_length": "8"}, where="graph.json")
    message = str(caught.value)
    assert message.startswith("graph.json was calibrated for another model or other rules.")
    assert "model: got 'b2', expected 'a1'" in message
    assert "block_length: got '8', expected '32'" in message and "mask_id" not in message


OLD_FILE = """{
  "format": "jaxspec-draft-graph-1",
  "settings": {
    "model": "a1",
    "mask_id": "28",
    "block_length": "8",
    "block_causal": "False",
    "unmasking": "Threshold(threshold=0.9)",
    "guidance": "0.0"
  },
  "nodes": [
    {"pairs": [[0, 0]], "parents": [-1]}
  ],
  "provenance": {}
}
"""


def test_files_of_the_old_format_open_and_match(tmp_path):
    (tmp_path / "old.json").write_text(OLD_FILE)
    old = load_graph(tmp_path / "old.json")
    assert old == chain(1)
    rules = DiffusionRules(mask_id=28, response_length=16, block_length=8, unmasking=Threshold(0.9))
    assert old.settings == graph_settings(rules, model="a1")
    check_graph(old, graph_settings(rules, model="a1"), where="old.json")
    for unmasking, message in (
        (Threshold(0.8), "threshold: got '0.8', expected '0.9'"),
        (Scheduled(8), "unmasking: got 'scheduled', expected 'threshold'"),
    ):
        other = dataclasses.replace(rules, unmasking=unmasking)
        with pytest.raises(ValueError, match=message):
            check_graph(old, graph_settings(other, model="a1"), where="old.json")
    save_graph(tmp_path / "new.json", old)
    assert load_graph(tmp_path / "new.json").settings == old.settings
    assert '"jaxspec-draft-graph-2"' in (tmp_path / "new.json").read_text()


def test_tokens_that_are_held_back_must_be_the_same_on_both_sides():
    plain = DiffusionRules(mask_id=28, response_length=16, block_length=8, unmasking=Threshold(0.9))
    last = dataclasses.replace(plain, last_ids=(3,))
    for calibrated, decoded, message in (
        (plain, last, r"last_ids: got '\(3,\)', expected '\(\)'"),
        (last, plain, r"last_ids: got '\(\)', expected '\(3,\)'"),
    ):
        made_for, used_for = (graph_settings(rules, model="a1") for rules in (calibrated, decoded))
        graph = dataclasses.replace(chain(1), settings=made_for)
        check_graph(graph, made_for, where="graph.json")
        with pytest.raises(ValueError, match=message):
            check_graph(graph, used_for, where="graph.json")


@pytest.mark.parametrize("rule", [Scheduled(4), Threshold(1), Factor(0.5), Factor(1e-7)])
def test_settings_of_the_old_format_name_the_rule_as_python_prints_it(rule):
    rules = DiffusionRules(mask_id=28, response_length=16, block_length=8, unmasking=rule)
    new = graph_settings(rules, model="a1")
    old = {name: value for name, value in new.items() if name not in vars(rule)}
    raw = {**graph_to_json(chain(1)), "format": "jaxspec-draft-graph-1"}
    raw["settings"] = {**old, "unmasking": str(rule)}
    assert graph_from_json(raw, where="old.json").settings == new


def test_steps_of_several_tokens():
    graph = DraftGraph((Node((A, B)), Node((A, B, (2, 0), (3, 1)), (0,))))
    assert graph.depths == (1, 2)


def test_files_are_read_back(tmp_path):
    save_graph(tmp_path / "graph.json", DIAMOND)
    assert load_graph(tmp_path / "graph.json") == DIAMOND
    assert json.loads((tmp_path / "graph.json").read_text()) == graph_to_json(DIAMOND)
    save_graph(tmp_path / "none.json", DraftGraph())
    assert load_graph(tmp_path / "none.json") == DraftGraph()


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([Node((A,), (1,)), Node((A, B), (0,))], "a cycle: "),
        ([Node((A,), (0,))], "a cycle: 0 -> 0"),
        ([Node(())], "present state"),
        ([Node((A,)), Node((A,))], "the same as node 0"),
        ([Node((A, (0, 1)))], "each of them once"),
        ([Node((B, A))], "positions must rise"),
        ([Node(((0, -1),))], "count from 0"),
        ([Node((A,)), Node((A, B), ())], r"node 1 .*: not connected: no parents"),
        ([Node((A, B), (4,))], "no node 4"),
        ([Node((A,)), Node((B, (2, 0)), (0,))], "is not a part of it"),
        ([Node((A,), (-1, -1))], "a parent occurs twice"),
        ([Node((A,), (-2,))], "there is no node"),
        ([Node((A,), (number,)) for number in range(2000)], "and 1.* more"),
    ],
)
def test_what_is_no_graph_is_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        DraftGraph(tuple(nodes))


def test_formulas_that_nothing_leads_to_are_refused():
    with pytest.raises(ValueError, match=r"one pair short of \[\[\(1, 0\), \(2, 0\)\]\]"):
        from_formulas([[A], [A, B], [B, (2, 0)]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"nodes": [{"pairs": [[0]]}]}, "node 0 is"),
        ({"nodes": [{"pairs": [[0, "a"]]}]}, "node 0 is"),
        ({"nodes": [{"pairs": [[0, 0]], "parents": [True]}]}, "node 0 is"),
        ({"nodes": "none"}, "nodes is 'none', expected a list"),
        ({"nodes": [{"pairs": [[0, 0]], "parents": [0]}]}, "a cycle"),
        ({"nodes": [{"pairs": [[0, 0]]}]}, "node 0 is"),
        ({"nodes": [{"pairs": [[0, 0]], "parents": []}]}, "not connected"),
        ({"provenance": [1]}, "provenance"),
        ({"settings": {"mask_id": 3}}, "settings"),
    ],
)
def test_files_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"graph.json: .*{message}|graph.json.*\n.*{message}"):
        graph_from_json({**graph_to_json(DIAMOND), **change}, where="graph.json")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "missing.json"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            load_graph(tmp_path / name)
    with pytest.raises(ValueError, match="format is \\[\\]"):
        graph_from_json([], where="graph.json")


def test_ranks_beyond_the_block_are_refused():
    settings = {"model": "a1", "block_length": "4"}
    check_graph(chain(4), settings, where="graph.json")
    with pytest.raises(ValueError, match=r"graph.json names the mask of rank 4, .* ranks 0 to 3"):
        check_graph(chain(5), settings, where="graph.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": None}, "nodes is None, expected a list"),
        ({"nodes": [[0, 0]]}, r"node 0 is \[0, 0\]"),
        ({"nodes": [{"pairs": [[0, 0.0]], "parents": [-1]}]}, "node 0 is"),
        ({"nodes": [{"pairs": [[10**12, 0]], "parents": [-1]}]}, "a rank is too large"),
        ({"nodes": [{"pairs": [[0, 128]], "parents": [-1]}]}, "tokens below 128"),
        ({"nodes": [{"pairs": [[0, 0]], "parents": [-1]}] * 1025}, "1,025 nodes, expected at most"),
        ({"settings": ""}, "settings is '', expected an object"),
        ({"settingz": {}}, "unknown keys"),
        ({"format": "jaxspec-draft-graph-3"}, "format is 'jaxspec-draft-graph-3'"),
        ({"provenance": {"count": float("nan")}}, "NaN is not a number"),
    ],
)
def test_damaged_files_are_refused(tmp_path, changes, message):
    file = tmp_path / "graph.json"
    file.write_text(json.dumps({**graph_to_json(DIAMOND), **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        load_graph(file)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 100_000, b"\xff{}", b"7", b"null", b"1" * 10_000, b"{" + b'"a":{' * 9999],
)
def test_files_that_are_no_json_are_refused(tmp_path, content):
    (tmp_path / "graph.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"graph\.json(:| cannot be read)"):
        load_graph(tmp_path / "graph.json")
