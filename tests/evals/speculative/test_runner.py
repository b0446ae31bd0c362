"""evaluate() from folders to files, on random tiny weights."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoints.folders import fingerprint
from jaxspec.checkpoints.huggingface import save_target
from jaxspec.config import (
    LossConfig,
    RunConfig,
    TargetConfig,
)
from jaxspec.data.examples import Example
from jaxspec.decoding import Adaptive, Autoregressive
from jaxspec.evals.opening import open_drafter, open_target, untrained_drafter
from jaxspec.evals.report import read_json
from jaxspec.evals.speculative import runner, timing
from jaxspec.evals.speculative.choice import Case
from jaxspec.evals.speculative.runner import Evaluation, evaluate
from jaxspec.evals.speculative.strategies import build_autoregressive, build_strategy
from jaxspec.models.transformer import Transformer
from jaxspec.ops.sampling import Sampling
from jaxspec.provenance import jsonable, write_json
from tests.data import templates
from tests.evals.drafter_folders import SETTINGS, write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(target, drafters): exported folders, as training leaves them."""
    return write_folders(tmp_path_factory.mktemp("runs"))


def run_config(folders, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return RunConfig(name="test", target=TargetConfig(path=str(folders[0])), evaluation=settings)


@pytest.fixture(scope="module")
def measured(folders, tmp_path_factory):
    """(what evaluate returned, its file, what it printed)."""
    lines = []
    output = tmp_path_factory.mktemp("out") / "results.json"
    opened = []

    def open_and_keep(*args, **settings):
        opened.append(open_target(*args, **settings))
        return opened[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "open_target", open_and_keep)
        result = evaluate(
            run_config(folders), workdirs=folders[1], output=output, echo=lines.append
        )
    # The target alone and with its drafters: one copy of its weights.
    weights = opened[0].params
    prepared = build_autoregressive(SETTINGS, opened[0]).prepare(weights)
    pairs = zip(jax.tree.leaves(prepared), jax.tree.leaves(weights), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)
    return result, output, "\n".join(lines)


def test_the_file_holds_every_figure(measured):
    result, output, _ = measured
    record, rows = read_json(output)
    assert rows == json.loads(json.dumps(result["results"]))
    assert record["config"]["evaluation"]["prompts"] == 2
    assert [row["loss"] for row in rows] == ["uniform", "focal+chain"]
    assert [row["drafter"] for row in rows] == ["run0", "run1"]
    assert [row["seed"] for row in rows] == [7, 8]
    for row in rows:
        assert (row["target"], row["benchmark"]) == ("target", "embedded/math")
        assert (row["prompts"], row["turns"], row["skipped_prompts"]) == (2, 2, 0)
        assert (row["temperature"], row["verifier"], row["block_size"]) == (0.0, "greedy", 3)
        assert row["mismatched_prompts"] == 0
        assert len(row["accept_at"]) == len(row["accept_at_intervals"]) == 2
        # Every round looks at the first slot, and those that accept it at the second.
        assert row["rounds"] == row["reached_at"][0] >= row["reached_at"][1]
        assert (row["tau_ci95"], row["speedup_ci95"], row["timed_prompts"]) == (None, None, 1)
        assert 1 <= row["tau_micro"] <= 3
        assert row["tokens"] <= 2 * 11
        assert row["tau_micro"] == pytest.approx(row["tokens"] / row["rounds"])
        assert len({each["prompt_id"] for each in row["by_prompt"]}) == 2
        for count in ("tokens", "rounds"):
            assert sum(each[count] for each in row["by_prompt"]) == row[count]
        assert all(each["prompt_tokens"] > 1 for each in row["by_prompt"])
        taus = row["tau_definitions"]
        assert taus["micro"] == pytest.approx(row["tau_micro"])
        # Rounds that the limit cut count in full there.
        assert taus["micro"] <= taus["deepspec"] <= taus["vllm"] <= 3
        assert row["speedup"] == pytest.approx(row["tokens_per_s"] / row["baseline_tokens_per_s"])
        # 0: the program was compiled before, and the first call took no longer than the second.
        assert row["compile_s"] >= 0
        for field in ("prefill_ms", "draft_ms", "verify_ms"):
            assert row[field] > 0
        assert row["autoregressive_step_ms"] > 0 and row["looped_round_ms"] > 0
        assert row["rest_ms"] is None or row["rest_ms"] > 0
    # Both drafters share one program.
    assert rows[0]["compile_s"] == rows[1]["compile_s"]
    for ending in (".md", "_accepted_length.png", "_acceptance_by_position.png"):
        assert output.with_name(f"results{ending}").stat().st_size > 0


def test_tokens_and_rounds_are_told_by_prompt_and_by_length(measured):
    for row in measured[0]["results"]:
        prompts = row["by_prompt"]
        assert len({each["prompt_id"] for each in prompts}) == row["turns"]
        for field in ("tokens", "rounds"):
            for records in (prompts, row["by_context"]):
                assert sum(each[field] for each in records) == row[field]
        # A round begins after the prompt and the first token.
        shortest = min(each["prompt_tokens"] for each in prompts) + 1
        first = row["by_context"][0]
        assert first["tokens_from"] <= shortest < first["tokens_below"]


def test_an_answer_is_recorded_round_by_round(folders, measured):
    target = open_target(TargetConfig(path=str(folders[0])))
    for row in measured[0]["results"]:
        trace = row["trace"]
        (prompt,) = (each for each in row["by_prompt"] if each["prompt_id"] == trace["prompt_id"])
        assert prompt["prompt_tokens"] == trace["prompt_tokens"]
        assert target.tokenizer.encode(trace["prompt"])
        assert prompt["rounds"] == len(trace["rounds"])
        added = [len(each["accepted"]) + len(each["bonus"]) for each in trace["rounds"]]
        assert sum(added) == prompt["tokens"]
        for each in trace["rounds"]:
            assert each["drafted"] == 2
            judged = len(each["accepted"]) + len(each["rejected"])
            assert judged == 2 or not each["bonus"]
    texts = [
        row["trace"]["first"]
        + "".join("".join(e["accepted"] + e["bonus"]) for e in row["trace"]["rounds"])
        for row in measured[0]["results"]
    ]
    # Both drafters give the target's own answer.
    assert texts[0] == texts[1]


def test_recording_an_answer_compiles_nothing(folders, monkeypatch):
    """Its programs are those that were timed, also where the first prompt is the shorter one."""
    # The parts of a round are programs of their own.
    parts = timing.RoundParts(1.0, 1.0, 1.0, 1.0, 1.0, None)
    monkeypatch.setattr(timing, "measure_round_parts", lambda *_, **__: parts)
    target = open_target(TargetConfig(path=str(folders[0])))
    drafter = open_drafter(folders[1][0], target=target)
    settings = dataclasses.replace(SETTINGS, timing_prompts=2)
    evaluation = Evaluation(settings, target, print)
    case = Case(drafter, settings, build_strategy(settings, target, drafter))
    turns = ("Add two and two.", "Add two and two. " * 25)
    examples = [Example(str(number), (("user", text),), "own") for number, text in enumerate(turns)]
    reference = evaluation.reference("two", examples)
    assert evaluation.time("two", case, reference) is not None
    strategy = type(case.strategy)
    before = strategy.start._cache_size(), strategy.run._cache_size()
    trace = evaluation.trace(case, reference)
    assert trace["prompt_id"] == "1"
    assert (strategy.start._cache_size(), strategy.run._cache_size()) == before


def test_the_speed_is_explained(measured):
    _, output, printed = measured
    for text in (printed, output.with_suffix(".md").read_text(encoding="utf-8")):
        assert "Speed-up = tau x autoregressive step / round. Here a draft costs" in text
        assert "verification of 3 rows" in text
        assert "x (no interval: fewer than 6 timed prompts) measured; tau" in text
    assert "(no interval: fewer than 6 responses) on 2 responses" in printed
    assert "0 of 2 outputs differ" in printed


def test_turns_build_on_the_targets_answers(folders, tmp_path, monkeypatch):
    examples = [
        Example(f"mt/{number}", (("user", f"Say {number}."), ("user", "Again.")), "mt")
        for number in range(2)
    ]
    monkeypatch.setattr("jaxspec.evals.benchmarks.load_examples", lambda *_, **__: examples)
    config = run_config(folders, benchmarks=("mt_bench",), timing_prompts=0)
    lines = []
    result = evaluate(
        config, workdirs=folders[1][:1], output=tmp_path / "r.json", echo=lines.append
    )
    (row,) = result["results"]
    assert (row["prompts"], row["turns"]) == (2, 4)
    assert row["mismatched_prompts"] == 0
    # Nothing was timed.
    assert row["speedup"] is row["compile_s"] is row["draft_ms"] is None
    assert "Speed-up" not in "\n".join(lines)


def test_the_verifier_follows_from_the_temperature(folders):
    target = open_target(TargetConfig(path=str(folders[0])))
    drafter = open_drafter(folders[1][0], target=target)
    warm = {"temperature": 0.7}
    for changes, verifier, is_sampled in (
        ({}, "greedy", False),
        (warm, "token", True),
        ({**warm, "verifier": "block"}, "block", True),
        ({"tree_nodes": 8}, "tree", False),
        ({**warm, "tree_nodes": 8}, "tree", False),
        ({**warm, "verifier": "point_mass"}, "point_mass", False),
    ):
        settings = dataclasses.replace(SETTINGS, **changes)
        strategy = build_strategy(settings, target, drafter)
        assert strategy.verifier == verifier
        assert strategy.sampling.temperature == settings.temperature
        assert strategy.proposer.sampling.temperature == (0.7 if is_sampled else 0.0)
        assert strategy.round_tokens == 3


def test_every_setting_reaches_the_strategy(folders):
    target = open_target(TargetConfig(path=str(folders[0])))
    dflash = open_drafter(folders[1][0], target=target)
    language_model = open_drafter(folders[0], target=target)
    assert (dflash.kind, language_model.kind) == ("dflash", "autoregressive")
    warm = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01}

    def built(drafter=dflash, **changes):
        return build_strategy(dataclasses.replace(SETTINGS, **changes), target, drafter)

    filtered = Sampling(0.7, 9, 0.9, 0.01)
    strategy = built(**warm)
    assert strategy.sampling == strategy.proposer.sampling == filtered
    cooler = dataclasses.replace(filtered, temperature=0.4)
    assert built(**warm, draft_temperature=0.4).proposer.sampling == cooler
    for drafter in (dflash, language_model):
        strategy = built(drafter, **warm, draft_temperature=0.0)
        assert (strategy.verifier, strategy.proposer.sampling.greedy) == ("point_mass", True)
    assert built(untrained_drafter("ngram"), **warm).verifier == "point_mass"
    assert built(untrained_drafter("ngram")).verifier == "greedy"
    assert built(untrained_drafter("ngram"), tree_nodes=16, block_size=8).verified_rows == 15
    assert isinstance(built(untrained_drafter("none"), **warm), Autoregressive)
    strategy = built(chains=3, **warm)
    assert (strategy.verifier, strategy.num_chains, strategy.num_nodes) == ("recursive", 3, 6)
    assert built(chains=3, draft_temperature=1.0).verifier == "tree"
    assert built(language_model, block_size=0).round_tokens == 5
    adaptive = built(adaptive_sizes=(1, 2, 3), block_size=0, **warm)
    assert adaptive.sizes == [1, 2, 3]
    assert [s.proposer.block_size for s in adaptive.strategies] == [1, 2, 3]
    trees = built(adaptive_sizes=(1, 5, 9), tree_nodes=8, **warm)
    assert [s.verifier for s in trees.strategies] == ["point_mass", "tree", "tree"]
    for changes, message in (
        ({"draft_temperature": 0.4}, "is for sampled drafts: verifier 'greedy'"),
        ({**warm, "tree_nodes": 4, "draft_temperature": 0.4}, "verifier 'tree' takes"),
        ({"chains": 2}, "give the drafts a temperature above 0"),
        ({"chains": 2, "tree_nodes": 4}, "best-first tree or sampled chains"),
        ({"block_size": 5000}, "block_size is 5000, but the target has only .* positions"),
        ({"tree_nodes": 4000}, "tree_nodes is 4000, but the target has only .* positions"),
        ({"adaptive_sizes": (2, 5000), "block_size": 0}, "adaptive_sizes is 5000, but the target"),
        ({**warm, "verifier": "recursive"}, "set evaluation.chains"),
        ({**warm, "verifier": "token", "tree_nodes": 4}, "verified by 'tree': got 'token'"),
        ({"chains": 2, "adaptive_sizes": (1, 2)}, "for blocks and trees"),
        ({"adaptive_sizes": (2, 2)}, "must differ"),
        ({"adaptive_sizes": (1, 4), "block_size": 8}, "leave out evaluation.block_size"),
        ({"draft_temperature": -1.0}, "draft_temperature must be finite"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            built(**changes)
    with pytest.raises(ValueError, match="continuations of prompt look-up: got Autoregressive"):
        built(language_model, tree_nodes=4)


def test_all_kinds_of_drafters_side_by_side(folders, tmp_path):
    """The target drafting for itself, a DFlash drafter, prompt look-up, and the target alone."""
    result = evaluate(
        run_config(folders),
        workdirs=[folders[1][0], folders[0]],
        output=tmp_path / "r.json",
        kinds=["dflash", "autoregressive", "ngram", "none"],
        echo=lambda line: None,
    )
    rows = {row["kind"]: row for row in result["results"]}
    assert list(rows) == ["dflash", "autoregressive", "ngram", "none"]
    assert all(row["mismatched_prompts"] == 0 for row in rows.values())
    # All its drafts are accepted; the limit may cut the last round.
    assert rows["autoregressive"]["tau_definitions"]["vllm"] == 3
    assert rows["none"]["tau_micro"] == 1
    assert rows["none"]["accepted_per_round"] == 0
    assert (rows["none"]["accept_at"], rows["none"]["reached_at"]) == ([None], [0])
    assert rows["none"]["tokens"] == rows["ngram"]["tokens"]
    assert all(row["tokens_per_s"] > 0 for row in rows.values())
    assert rows["none"]["draft_ms"] == 0
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert all(kind in text for kind in ("ngram", "none", "autoregressive"))


def test_adaptive_sizes_start_anew_with_each_benchmark(folders, tmp_path, monkeypatch):
    begun = []
    forget = Adaptive.forget
    monkeypatch.setattr(
        Adaptive, "forget", lambda self: (begun.append(self.history[-1:]), forget(self))
    )
    benchmarks = ("embedded/math", "embedded/code")
    config = run_config(folders, adaptive_sizes=(1, 3), block_size=0, benchmarks=benchmarks)
    evaluate(
        config, workdirs=[], output=tmp_path / "r.json", kinds=["ngram"], echo=lambda line: None
    )
    # One is made to check the settings and one to be used; then figures and timing, twice each.
    assert begun[:3] == [[]] * 3
    assert len(begun) == 6 and all(begun[3:]), "there was something to forget"


def test_a_drafter_needs_the_targets_tokens(folders, tmp_path):
    target = open_target(TargetConfig(path=str(folders[0])))
    other = tmp_path / "other"
    shutil.copytree(folders[0], other)
    file = other / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    tokens = content["model"]["vocab"]
    first, second = list(tokens)[300:302]
    tokens[first], tokens[second] = tokens[second], tokens[first]
    file.write_text(json.dumps(content), encoding="utf-8")
    ids = f"{min(tokens[first], tokens[second])}, {max(tokens[first], tokens[second])}"
    with pytest.raises(ValueError, match=f"ids {ids} mean different tokens"):
        open_drafter(other, target=target)
    # Rows that only pad an embedding may differ, but no token may lack one.
    embeddings = {"wide": target.config.vocab_size + 5, "narrow": target.num_tokens - 1}
    for name, rows in embeddings.items():
        architecture = dataclasses.replace(target.config, vocab_size=rows)
        shapes = jax.eval_shape(
            Transformer(architecture).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
        )
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes["params"])
        folder = target.tokenizer.folder
        save_target(tmp_path / name, architecture, params, tokenizer_folder=folder)
    wide = open_drafter(tmp_path / "wide", target=target)
    proposer = wide.proposer(target, block_size=3, sampling=Sampling(1.0))
    assert wide.model.config.vocab_size == embeddings["wide"]
    assert proposer.vocabulary == target.config.vocab_size
    with pytest.raises(ValueError, match=r"embedding of \d+ rows, but the tokenizer"):
        open_drafter(tmp_path / "narrow", target=target)


def test_reserved_and_stop_tokens_of_a_target(folders):
    target = open_target(TargetConfig(path=str(folders[0])))
    tokenizer = target.tokenizer
    assert target.stop_ids == tokenizer.stop_ids
    padded_rows = range(tokenizer.vocab_size, tokenizer.vocab_size + 3)
    assert {tokenizer.mask_id, *padded_rows} <= set(target.reserved_ids)
    assert not set(target.reserved_ids) & set(target.stop_ids)
    assert target.suppressed_ids("none") == ()
    assert target.suppressed_ids("unused") == tuple(padded_rows)
    assert target.suppressed_ids("special") == target.reserved_ids


def test_a_drafter_is_found_with_and_without_its_run(folders):
    target = open_target(TargetConfig(path=str(folders[0])))
    run = folders[1][0]
    whole = open_drafter(run, target=target)
    export = open_drafter(run / "export", target=target)
    assert (whole.name, whole.loss, whole.seed) == ("run0", "uniform", 7)
    # Weights alone do not say what they were trained with.
    assert (export.name, export.loss, export.seed) == ("run0", "run0", None)


def record_of(run, **changes):
    """Changes what a run records of itself."""
    file = run / "provenance.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, record | changes)
    return record


def test_a_drafter_of_other_weights_is_marked(folders, tmp_path):
    target = open_target(TargetConfig(path=str(folders[0])))
    run = tmp_path / "run0"
    shutil.copytree(folders[1][0], run)
    config = run_config(folders, timing_prompts=0, prompts=1)
    for recorded, is_other, loss in (
        (None, None, "uniform"),
        (target.fingerprint, False, "uniform"),
        ("0123456789abcdef", True, "uniform (other target)"),
    ):
        record_of(run, **({} if recorded is None else {"fingerprints": {"target.path": recorded}}))
        lines = []
        output = tmp_path / "r.json"
        (row,) = evaluate(config, workdirs=[run], output=output, echo=lines.append)["results"]
        assert (row["trained_on_other_target"], row["loss"]) == (is_other, loss)
        assert row["drafter_weights"] == fingerprint(run / "export")
        warnings = [line for line in lines if "other weights than those of target" in line]
        assert len(warnings) == bool(is_other)
        if is_other:
            assert lines.index(warnings[0]) < lines.index("embedded/math: target alone: 1 prompts")
        assert f"| {loss} |" in output.with_suffix(".md").read_text(encoding="utf-8")


def test_a_run_that_was_continued_with_another_loss_says_so(folders, tmp_path):
    target = open_target(TargetConfig(path=str(folders[0])))
    run = tmp_path / "run0"
    shutil.copytree(folders[1][0], run)
    first = record_of(run)["config"]
    second = jsonable(RunConfig(loss=LossConfig(decay=math.inf)))
    for configs, loss in (
        ([first], "uniform"),
        ([first, first], "uniform"),
        ([second, first, first], "focal+chain -> uniform"),
        ([{}, first], "unknown -> uniform"),
    ):
        segments = [{"from_step": 10 * n, "config": each} for n, each in enumerate(configs)]
        record_of(run, segments=segments)
        assert open_drafter(run, target=target).loss == loss


def refusing_target(folder, copied):
    """A target whose chat template refuses the system's turns."""
    shutil.copytree(folder, copied)
    file = copied / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["chat_template"] = templates.BRACKETS
    file.write_text(json.dumps(content), encoding="utf-8")
    return copied


def test_mistakes_are_found_before_anything_is_decoded(folders, tmp_path, monkeypatch):
    def decode(*_, **__):
        raise AssertionError("nothing may be decoded")

    monkeypatch.setattr("jaxspec.evals.speculative.runner.generate", decode)
    output = tmp_path / "results.json"
    config = run_config(folders)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    second = tmp_path / "second.jsonl"
    second.write_text(json.dumps({"prompt": "word " * 400}) + "\n")
    two = ("embedded/math", str(second))
    roles = tmp_path / "roles.jsonl"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    roles.write_text(json.dumps({"messages": turns}) + "\n")
    refusing = [refusing_target(folders[0], tmp_path / "refusing"), folders[1]]
    cases = [
        (config, [], "No drafters to measure"),
        (config, [tmp_path / "nowhere"], "No folder .*nowhere"),
        (config, [folders[1][0], unfinished], "No exported weights in .*unfinished"),
        (run_config(folders, benchmarks=("nonsense",)), folders[1], "Unknown data set"),
        (run_config(folders, max_prompt_tokens=5), folders[1], "No prompts to decode"),
        (run_config(folders, max_new_tokens=255), folders[1], "No prompts to decode"),
        (
            run_config(folders, max_new_tokens=256),
            folders[1],
            "max_new_tokens is 256, but target has only 256 positions: lower it",
        ),
        # Of the second benchmark, before the first one.
        (run_config(folders, benchmarks=two), folders[1], r"^second\.jsonl: No prompts to decode"),
        (
            run_config(refusing, benchmarks=("embedded/math", str(roles))),
            folders[1],
            r"^roles\.jsonl: Example .* cannot be asked: .*only user and assistant",
        ),
        (
            run_config(folders, strategy="auto", block_size=0, calibration=str(second)),
            folders[1],
            r"second\.jsonl, calibration: No prompts to decode",
        ),
        (
            run_config(folders, verifier="token"),
            folders[1],
            "'token' does not fit temperature 0.0",
        ),
    ]
    for run, workdirs, message in cases:
        with pytest.raises(ValueError, match=message):
            evaluate(run, workdirs=workdirs, output=output, echo=lambda line: None)
    assert not output.exists()
    with pytest.raises(ValueError, match="temperature must be finite"):
        run_config(folders, temperature=math.inf)


def test_an_output_that_differs_is_counted_with_its_gap(folders):
    target = open_target(TargetConfig(path=str(folders[0])))
    drafter = open_drafter(folders[1][0], target=target)
    settings = dataclasses.replace(SETTINGS, timing_prompts=0)
    lines = []
    evaluation = Evaluation(settings, target, lines.append)
    examples = [Example("one", (("user", "What is 1 + 1?"),), "own")]
    reference = evaluation.reference("own", examples)
    case = Case(drafter, settings, build_strategy(settings, target, drafter))
    row, _ = evaluation.measure("own", reference, case)
    assert (row["mismatched_prompts"], row["mismatch_gaps"], row["mismatch_gap"]) == (0, [], None)
    assert row["mismatched_ids"] == []
    (right,) = reference.responses
    wrong = dataclasses.replace(right, tokens=(right.tokens[0] ^ 1, *right.tokens[1:]))
    reference = dataclasses.replace(reference, responses=(wrong,))
    row, _ = evaluation.measure("own", reference, case)
    # Here the reference is at fault: what was emitted is the target's best.
    assert (row["mismatched_prompts"], row["mismatch_gaps"], row["mismatch_gap"]) == (1, [0.0], 0.0)
    assert row["mismatched_ids"] == ["one"]
    assert "is up to 0 below the target's best" in lines[-1]
