"""Evaluating a diffusion language model: from a folder to files, and figures by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest

import eval as eval_script
from jaxspec.cli.configuration import run_as_command
from jaxspec.config import DiffusionEvaluationConfig, TargetConfig
from jaxspec.decoding import DiffusionResponse, Factor, Scheduled, Threshold, layout
from jaxspec.decoding.diffusion.draft_graph import (
    DraftGraph,
    Node,
    chain,
    nested,
    save_graph,
    star,
)
from jaxspec.evals.diffusion.decoders import diffusion_rules, drafting_decoders
from jaxspec.evals.diffusion.runner import evaluate_diffusion, summarise_passes
from jaxspec.evals.opening import is_diffusion_target, open_diffusion_target
from jaxspec.evals.report import read_json, report_text, write_report
from tests.evals.diffusion_folders import DIFFUSION, EVALUATION, run_config, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="module")
def target(folder):
    return open_diffusion_target(TargetConfig(path=str(folder))).with_weights()


def change(**changes):
    return dataclasses.replace(DIFFUSION, **changes)


@pytest.fixture(scope="module")
def measured(folder, tmp_path_factory):
    """(what was returned, its file, what was printed)."""
    lines, out = [], tmp_path_factory.mktemp("out")
    save_graph(out / "graph.json", star(3))
    settings = change(graph=str(out / "graph.json"), kept_drafts=2)
    config = run_config(folder, diffusion=settings)
    with pytest.MonkeyPatch.context() as patch:
        # Several decoders, and the timing of passes, share one copy of the weights.
        patch.setattr(layout, "_cut_now", lambda stack: pytest.fail("a copy of the weights"))
        result = evaluate_diffusion(config, output=out / "results.json", echo=lines.append)
    return result, out / "results.json", "\n".join(lines)


def test_the_file_holds_every_figure(measured, target):
    result, output, _ = measured
    written = json.loads(output.read_text())
    assert written["results"] == json.loads(json.dumps(result["results"]))
    assert written["provenance"]["config"]["diffusion"]["block_length"] == 4
    rows = written["results"]
    assert [row["decoder"] for row in rows] == ["plain", "ssd", "spiffy"]
    assert [row["graph_size"] for row in rows] == [0, 2, 3]
    assert [row["drafts_per_pass"] for row in rows] == [0, 2, 2]
    for row in rows:
        assert (row["target"], row["benchmark"]) == (target.name, "embedded/math")
        assert (row["prompts"], row["turns"], row["skipped_prompts"]) == (3, 3, 0)
        assert (row["response_length"], row["block_length"], row["caching"]) == (8, 4, "dual")
        assert row["unmasking"] == "Scheduled(steps=4)"
        assert row["nfe"] == sum(row["nfe_by_block"]) <= row["base_nfe"]
        assert row["tokens_per_pass"] == pytest.approx(row["filled_tokens"] / row["nfe"])
        assert row["nfe_reduction"] == pytest.approx(row["base_nfe"] / row["nfe"])
        assert row["tokens_per_s"] > 0 and row["block_pass_ms"] > 0
    plain, *drafted = rows
    assert plain["nfe"] == plain["base_nfe"] == sum(plain["steps_by_block"])
    assert plain["pass_ratio"] is None and plain["accepted_depth"] is None
    for row in drafted:
        assert row["steps_by_block"] == plain["steps_by_block"]
        assert row["below_break_even"] == (row["pass_ratio"] < row["nfe_reduction"])


def test_outputs_are_the_base_decoders(measured):
    assert [row["identical_share"] for row in measured[0]["results"]] == [1.0, 1.0, 1.0]


def test_what_is_said_and_the_table(measured):
    _, output, said = measured
    assert "embedded/math: plain: 3 prompts" in said
    assert "3 of 3 outputs identical" in said and "results.md" in said
    table = output.with_suffix(".md").read_text()
    assert "| embedded/math | spiffy | 2 |" in table
    assert "100%" in table and "Accepted depth by block:" in table
    for text in (said, table):
        assert "Speed-up = reduction of forward passes / cost of a pass with drafts" in text
    assert "- embedded/math, ssd, D 2: " in table and ": drafting " in table


def test_the_file_is_checked_and_read_like_any_other(measured):
    result, output, _ = measured
    record, rows = read_json(output)
    assert record["seed"] == 0
    assert rows == json.loads(json.dumps(result["results"]))
    for row in rows:
        assert row["reached_by_block"] == [3, 3] and row["timed_prompts"] == 1
        for figure in ("nfe_reduction", "tokens_per_pass", "speedup"):
            assert row[f"{figure}_ci95"] is None, "of three prompts, and of one that was timed"


def test_shared_random_numbers_above_temperature_0(folder, tmp_path):
    """Outputs are compared token by token, and are the same."""
    warm = dataclasses.replace(EVALUATION, temperature=0.7, timing_prompts=0)
    config = run_config(
        folder, evaluation=warm, diffusion=change(drafts=("star",), num_drafts=(3,))
    )
    rows = evaluate_diffusion(config, output=tmp_path / "a.json", echo=lambda line: None)["results"]
    assert [row["identical_share"] for row in rows] == [1.0, 1.0]
    assert rows[1]["tokens_per_s"] is None and rows[1]["pass_ratio"] is None


def response(passes, steps, tokens=(1, 2)):
    return DiffusionResponse("a", tokens, False, passes, steps, 4 * len(passes))


def test_figures_by_hand():
    ours = [response((2, 3), (4, 4)), response((4,), (4,), (1,))]
    base = [response((4, 4), (4, 4)), response((4,), (4,), (2,))]
    got = summarise_passes(ours, base, drafts=True)
    assert (got["nfe"], got["base_nfe"], got["filled_tokens"], got["tokens"]) == (9, 12, 12, 3)
    assert got["nfe_per_response"] == 4.5
    assert got["tokens_per_pass"] == pytest.approx(12 / 9)
    assert got["nfe_reduction"] == pytest.approx(12 / 9)
    assert (got["nfe_by_block"], got["steps_by_block"]) == ([6, 3], [8, 4])
    assert got["reached_by_block"] == [2, 1]
    # Of 9 passes 3 opened a block; the other 6 saved 3 steps: 2 of 4 in the first block, 1 of 2.
    assert got["accepted_depth"] == pytest.approx(3 / 6)
    assert got["accepted_depth_by_block"] == [pytest.approx(2 / 4), pytest.approx(1 / 2)]
    assert (got["identical"], got["identical_share"]) == (1, 0.5)
    first = summarise_passes([response((1,), (1,))], base[:1], drafts=True)
    assert first["accepted_depth"] is None
    plain = summarise_passes(ours, base, drafts=False)
    assert plain["accepted_depth"] is None and set(plain["accepted_depth_by_block"]) == {None}


def test_table_of_rows_without_timing():
    with pytest.raises(ValueError, match="nothing to write"):
        write_report("nowhere.json", provenance={}, results=[])
    alike = [response((4,), (4,))]
    figures = summarise_passes(alike, alike, drafts=False)
    row = {"benchmark": "gsm8k", "decoder": "plain", "turns": 1, "drafts_per_pass": 0, **figures}
    table = report_text([row])
    assert "| gsm8k | plain | 0 | 1 | 4.0 | 1.00 | 1.00 | – | – | – | – | 100% |" in table
    assert "Accepted depth by block:" not in table, "nothing was drafted"


def test_rules_are_those_of_the_settings(folder, target):
    def rules(**changes):
        return diffusion_rules(run_config(folder, diffusion=change(**changes)), target)

    assert rules().unmasking == Scheduled(4) and rules(steps=2).unmasking == Scheduled(2)
    assert rules(unmasking="threshold", threshold=0.8).unmasking == Threshold(0.8)
    assert rules(unmasking="factor", factor=0.5).unmasking == Factor(0.5)
    plain = rules(caching="prefix", block_causal=True, guidance=0.5)
    assert (plain.caching, plain.block_causal, plain.guidance) == ("prefix", True, 0.5)
    assert plain.mask_id == target.model.config.mask_id
    assert plain.stop_ids == target.tokenizer.stop_ids
    assert (plain.last_ids, plain.suppressed_ids) == ((), ())
    end = target.tokenizer.eos_id
    assert end in plain.stop_ids
    last, never = rules(end_of_text="last"), rules(end_of_text="never")
    assert (last.last_ids, last.suppressed_ids) == (plain.stop_ids, ())
    assert (never.last_ids, never.suppressed_ids) == ((), (end,))
    assert never.stop_ids == tuple(i for i in plain.stop_ids if i != end)
    assert target.model.config.vocab_size - 2 in target.reserved_ids, "a row without a token"
    assert not {plain.mask_id, *plain.stop_ids} & set(plain.suppressed_ids)


def test_graphs_that_need_no_calibration(folder, target):
    settings = change(drafts=("ssd", "freedave", "star"), num_drafts=(2,), steps=2)
    rules = diffusion_rules(run_config(folder, diffusion=settings), target)
    decoders = drafting_decoders(settings, rules, target)
    graphs = {name: decoder.graph for name, decoder in decoders}
    assert graphs == {"ssd": chain(2), "freedave": nested(2, tokens_per_step=2), "star": star(2)}
    by_threshold = change(drafts=("freedave",), unmasking="threshold", num_drafts=(2,))
    rules = diffusion_rules(run_config(folder, diffusion=by_threshold), target)
    ((_, decoder),) = drafting_decoders(by_threshold, rules, target)
    assert decoder.graph == chain(2)
    uneven = dataclasses.replace(settings, steps=3)
    rules = diffusion_rules(run_config(folder, diffusion=uneven), target)
    with pytest.raises(ValueError, match="3 steps do not divide a block of 4 tokens"):
        drafting_decoders(uneven, rules, target)


def test_graphs_of_several_sizes(folder, target, tmp_path):
    """Of a calibrated graph the first nodes; D = 0 is plain decoding."""
    # Five nodes in a block of four tokens.
    save_graph(tmp_path / "graph.json", DraftGraph((*star(4).nodes, Node(((0, 1),)))))
    settings = change(graph=str(tmp_path / "graph.json"), drafts=("ssd",), num_drafts=(0, 1, 3))
    rules = diffusion_rules(run_config(folder, diffusion=settings), target)
    decoders = drafting_decoders(settings, rules, target)
    assert [name for name, _ in decoders] == ["ssd"] * 3 + ["spiffy"] * 3
    assert [decoder.num_drafts for _, decoder in decoders] == [0, 1, 3] * 2
    assert [decoder.graph for _, decoder in decoders[3:]] == [star(0), star(1), star(3)]
    more = dataclasses.replace(settings, num_drafts=(3, 6))
    with pytest.raises(ValueError, match=r"num_drafts is 6, but .*graph\.json has 5 nodes"):
        drafting_decoders(more, rules, target)
    pruned = drafting_decoders(dataclasses.replace(settings, kept_drafts=2), rules, target)
    assert [(decoder.graph.size, decoder.num_drafts) for _, decoder in pruned[3:]] == [(5, 2)]


def test_a_graph_with_ranks_beyond_the_block_is_refused(folder, target, tmp_path):
    save_graph(tmp_path / "graph.json", star(5))
    settings = change(graph=str(tmp_path / "graph.json"))
    rules = diffusion_rules(run_config(folder, diffusion=settings), target)
    with pytest.raises(ValueError, match=r"graph\.json names the mask of rank 4, .* ranks 0 to 3"):
        drafting_decoders(settings, rules, target)


def test_a_graph_of_another_model_is_refused(folder, tmp_path):
    graph = DraftGraph(chain(2).nodes, {"model": "another", "block_length": "4"})
    save_graph(tmp_path / "graph.json", graph)
    config = run_config(folder, diffusion=change(graph=str(tmp_path / "graph.json")))
    with pytest.raises(ValueError, match=r"graph.json was calibrated .*\n  model: got '[0-9a-f]+'"):
        evaluate_diffusion(config, output=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_llada_folders_are_targets(tmp_path):
    folder = write_model(tmp_path / "llada", llada=True, num_heads=2, num_kv_heads=2)
    assert is_diffusion_target(TargetConfig(path=str(folder)))
    target = open_diffusion_target(TargetConfig(path=str(folder))).with_weights()
    assert target.model.config.num_kv_heads == 2 and target.name == "llada"
    assert target.tokenizer.eos_id in diffusion_rules(run_config(folder), target).stop_ids


def test_targets_that_cannot_be_decoded(tmp_path):
    assert not is_diffusion_target(TargetConfig(path="embedded"))
    with pytest.raises(ValueError, match="goes from left to right"):
        open_diffusion_target(TargetConfig(path="embedded")).with_weights()
    causal = write_model(tmp_path / "causal", context="causal")
    with pytest.raises(ValueError, match="context is 'causal'"):
        open_diffusion_target(TargetConfig(path=str(causal))).with_weights()
    (causal / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"No tokenizer.json"):
        open_diffusion_target(TargetConfig(path=str(causal))).with_weights()
    small = write_model(tmp_path / "small", vocab_size=64)
    with pytest.raises(ValueError, match="do not belong together"):
        open_diffusion_target(TargetConfig(path=str(small))).with_weights()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block_length": -1}, "block_length must be at least 0: got -1"),
        ({"block_length": 32, "steps": 33}, "steps must be 0 or a number of steps per block"),
        ({"unmasking": "threshold", "steps": 4}, "is only for diffusion.unmasking scheduled"),
        ({"threshold": 1.5}, r"diffusion.threshold must be in \(0, 1\]"),
        ({"factor": 0.0}, "diffusion.factor must be finite and positive"),
        ({"guidance": -1.0}, "diffusion.guidance must be finite and not negative"),
        ({"kept_drafts": 3}, "give its file as diffusion.graph"),
        ({"num_drafts": (3, -1)}, "num_drafts must be at least 0"),
        ({"kept_drafts": -1}, "kept_drafts must be at least 0"),
    ],
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        DiffusionEvaluationConfig(**wrong)


def test_the_command_refuses_drafters(folder, tmp_path, capsys):
    arguments = ["--config", "configs/quickstart.py", "--target.path", str(folder)]
    arguments += ["--output", str(tmp_path / "out.json"), "--drafters", "ngram"]
    assert run_as_command(eval_script.main, arguments) == 2
    assert "drafts for itself" in capsys.readouterr().err
    arguments = [*arguments[:-2], "--diffusion.block_length", "24"]
    assert run_as_command(eval_script.main, arguments) == 2
    error = capsys.readouterr().err
    assert "evaluation.max_new_tokens is the length of a response" in error
    assert "the blocks of 24 tokens (diffusion.block_length)" in error
    assert run_as_command(eval_script.main, [*arguments[:-4], "--output", "table.md"]) == 2
    assert "--output must be a .json file: got 'table.md'" in capsys.readouterr().err


def test_blocks_are_the_models_own(tmp_path, folder, target):
    own = DiffusionEvaluationConfig()
    config = run_config(folder, diffusion=own)
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(EVALUATION, max_new_tokens=64)
    )
    assert diffusion_rules(config, target).block_length == 32
    trained = write_model(tmp_path / "blocks", context="block_causal", block_length=8)
    blocks = open_diffusion_target(TargetConfig(path=str(trained)))
    assert blocks.params is None, "weights are read later"
    assert diffusion_rules(config, blocks).block_length == 8
    assert diffusion_rules(config, blocks).unmasking == Scheduled(8)
    with pytest.raises(ValueError, match=r"was trained with blocks of 8 tokens: got .* 4\. Leave"):
        diffusion_rules(run_config(trained), blocks)


def test_two_benchmarks_and_plain_decoding_as_drafts(folder, tmp_path):
    """Programs are compiled once; two equal passes are nothing to judge."""
    settings = dataclasses.replace(EVALUATION, benchmarks=("embedded/math", "embedded/code"))
    config = run_config(folder, evaluation=settings, diffusion=change(num_drafts=(0, 2)))
    rows = evaluate_diffusion(config, output=tmp_path / "a.json", echo=lambda line: None)["results"]
    assert [row["drafts_per_pass"] for row in rows] == [0, 0, 2] * 2
    assert [row["compile_s"] for row in rows[:3]] == [row["compile_s"] for row in rows[3:]]
    assert rows[0]["speedup"] == 1
    assert [row["pass_ratio"] is None for row in rows] == [True, True, False] * 2
    assert [row["below_break_even"] is None for row in rows] == [True, True, False] * 2


def test_a_benchmark_that_cannot_be_asked_is_found_before_anything_is_decoded(
    folder, tmp_path, monkeypatch
):
    """Also where it is not the first one."""

    def decode(*_, **__):
        raise AssertionError("nothing may be decoded")

    monkeypatch.setattr("jaxspec.evals.diffusion.runner.generate_diffusion", decode)
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "word " * 400}) + "\n")
    settings = dataclasses.replace(
        EVALUATION, benchmarks=("embedded/math", str(long)), timing_prompts=0
    )
    config = run_config(folder, evaluation=settings)
    with pytest.raises(ValueError, match=r"^long\.jsonl: No prompts to decode: all 1 are longer"):
        evaluate_diffusion(config, output=tmp_path / "r.json", echo=lambda line: None)
    assert not list(tmp_path.glob("r.*"))
