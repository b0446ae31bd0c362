"""The README.md of an exported drafter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jaxspec.checkpoints.folders import fingerprint
from jaxspec.cli.model_card import model_card
from tests.cli.stopped_runs import exported, rewrite_progress, save_drafter_run
from tests.data.templates import THINKING


@pytest.fixture(scope="module")
def drafter_run(tmp_path_factory):
    """See `save_drafter_run`."""
    return save_drafter_run(tmp_path_factory.mktemp("stopped"))


ROW = {
    "target": "target", "drafter": "run", "loss": "full", "benchmark": "gsm8k", "prompts": 40,
    "temperature": 0.0, "block_size": 4, "verifier": "greedy", "tau_micro": 2.314,
    "tau_macro": 2.456, "tau_ci95": [2.2, 2.7], "accepted_per_round": 1.3,
    "accept_at": [0.8, 0.4, 0.1], "rounds": 900, "tokens": 2000, "tokens_per_s": None,
    "baseline_tokens_per_s": None, "speedup": None, "compile_s": None, "mismatched_prompts": 0,
}  # fmt: skip


def test_the_model_card_tells_where_it_comes_from_and_how_to_serve_it(drafter_run, tmp_path):
    results = tmp_path / "results.json"
    rows = [
        ROW,
        # As where two drafters of one evaluation are called my-drafter.
        {
            **ROW,
            "drafter": f"{tmp_path.name}/my-drafter",
            **{"verifier": "tree", "tree_nodes": 32, "tau_micro": 3.0},
        },
        {**ROW, "drafter": "other", "tau_micro": 5.9},
        {**ROW, "drafter": "elsewhere/my-drafter", "tau_micro": 5.9},
        {**ROW, "drafter": "none", "verifier": "none", "tau_micro": 1.0},
    ]
    results.write_text(json.dumps({"provenance": {}, "results": rows}))
    options = {"target_name": "some/model", "results": str(results)}
    exported(drafter_run, tmp_path / "my-drafter", **options)
    card = (tmp_path / "my-drafter" / "README.md").read_text()
    for line in (
        "# my-drafter",
        "| Target | some/model |",
        "| Data | embedded |",
        "| Loss | focal+chain (decay inf, focal 0.3, chain 40.0) |",
        "| Steps | 5 |",
        "| gsm8k | greedy | 40 | 0 | 4 | 2.31 | 2.46 | 2.20 to 2.70 |",
        "| gsm8k | tree, tree of 32 | 40 | 0 | 4 | 3.00 | 2.46 | 2.20 to 2.70 |",
        "Run the commands in the folder that holds my-drafter",
        '"method": "dflash", "model": "my-drafter", "num_speculative_tokens": 3}',
        "--speculative-num-draft-tokens 4",
        "--speculative-algorithm DFLASH",
        "dflash benchmark transformers --model some/model",
        "--draft my-drafter --block-size 4",
    ):
        assert line in card, line
    assert card.count("gsm8k |") == 2, "other drafters' figures are not this one's"
    exported(drafter_run, tmp_path / "my-drafter", target_name="some/model")
    assert "Not measured." in (tmp_path / "my-drafter" / "README.md").read_text()
    results.write_text(json.dumps({"provenance": {}, "results": rows[2:]}))
    with pytest.raises(
        ValueError,
        match=r"no row of my-drafter or run\. It has rows of elsewhere/my-drafter, none, other",
    ):
        exported(drafter_run, tmp_path / "my-drafter", **options)


def test_figures_of_other_weights_stay_out(drafter_run, tmp_path):
    results, output = tmp_path / "results.json", tmp_path / "my-drafter"
    options = {"target_name": "some/model", "results": str(results)}
    exported(drafter_run, output, target_name="some/model")

    def measured(weights):
        row = {**ROW, "drafter": "my-drafter", "drafter_weights": weights}
        results.write_text(json.dumps({"provenance": {}, "results": [row]}))

    measured(fingerprint(output))
    exported(drafter_run, output, **options)
    exported(drafter_run, output, **options)
    assert "| gsm8k |" in (output / "README.md").read_text()
    # Another checkpoint's weights, though the folder still holds what was measured.
    with pytest.raises(ValueError, match=r"other weights than those that are exported \(step 3\)"):
        exported(drafter_run, output, step="3", **options)
    measured("0123456789abcdef")
    with pytest.raises(ValueError, match=r"my-drafter was measured on gsm8k with other weights"):
        exported(drafter_run, output, **options)
    assert "| gsm8k |" in (output / "README.md").read_text()


def test_commands_of_the_card_work_where_both_are_folders(drafter_run, tmp_path):
    exported(drafter_run, tmp_path / "nested" / "my-drafter")
    card = (tmp_path / "nested" / "my-drafter" / "README.md").read_text()
    assert f'"model": "{tmp_path}/nested/my-drafter"' in card and "# my-drafter\n" in card
    assert f"--draft {tmp_path}/nested/my-drafter " in card and "Run the commands in" not in card


@pytest.mark.parametrize(
    ("mode", "has_modes", "named", "script"),
    [
        (False, True, "| Thinking (enable_thinking) | false |", "--block-size 4 --reasoning off"),
        (True, True, "| Thinking (enable_thinking) | true |", "--block-size 4 --reasoning on"),
        (None, True, "| the chat template's default |", "--block-size 4 \\"),
        # z-lab's script refuses the option where the template does not read the mode.
        (False, False, "", "--block-size 4 \\"),
    ],
)
def test_the_card_names_the_thinking_mode_of_training(mode, has_modes, named, script):
    record = {"config": {"target": {"enable_thinking": mode}}}
    document = {"block_size": 4, "dflash_config": {"target_layer_ids": [0, 1]}}
    card = model_card(
        document,
        format="zlab",
        record=record,
        target="some/model",
        drafter=Path("my-drafter"),
        results=[],
        warnings=[],
        has_thinking_mode=has_modes,
    )
    assert named in card and script in card
    asked = f'"chat_template_kwargs": {{"enable_thinking": {str(mode).lower()}}}'
    assert (asked in card) == (has_modes and mode is not None)
    assert ("Thinking" in card) == has_modes


def test_an_export_finds_out_whether_the_template_reads_the_thinking_mode(drafter_run, tmp_path):
    workdir = Path(shutil.copytree(drafter_run[0], tmp_path / "run"))
    record = json.loads((workdir / "provenance.json").read_text())
    target = Path(shutil.copytree(record["config"]["target"]["path"], tmp_path / "target"))
    (target / "chat_template.jinja").write_text(THINKING)
    record["config"]["target"] |= {"path": str(target), "enable_thinking": False}
    rewrite_progress(workdir, 5, record=record)
    exported((workdir, None), tmp_path / "out", target_name="some/model", record_drafts=False)
    assert "--reasoning off" in (tmp_path / "out" / "README.md").read_text()


def test_each_checkpoint_is_exported_with_the_settings_of_its_own(drafter_run, tmp_path):
    """A run that was continued: the record that lies beside it is that of its last part."""
    workdir = Path(shutil.copytree(drafter_run[0], tmp_path / "run"))
    file = workdir / "provenance.json"
    first = json.loads(file.read_text())
    last = json.loads(file.read_text())
    last["config"]["drafter"]["rope_theta"] = 500.0
    last["config"]["loss"] |= {"focal": 0.0, "chain": 0.0}
    last["config"]["data"]["sources"] = ["embedded/code"]
    parts = [
        {"from_step": step, "config": record["config"], "command": f"train {step}"}
        for step, record in ((0, first), (4, last))
    ]
    last["segments"] = parts
    file.write_text(json.dumps(last))
    rewrite_progress(workdir, 5, record=last)
    theta = first["config"]["drafter"]["rope_theta"]
    run = (workdir, None)
    for step, expected in (("3", theta), ("5", 500.0)):
        document = exported(run, tmp_path / step, step=step, target_name="some/model")
        assert document["rope_theta"] == expected
    card = (tmp_path / "5" / "README.md").read_text()
    for line in (
        "| Loss | focal+chain (decay inf, focal 0.3, chain 40.0), then uniform (decay inf, ",
        "| Data | embedded, then embedded/code |",
        "| Steps | 5 (continued with other settings after 4) |",
        "| Command | `train 0`, then `train 4` |",
    ):
        assert line in card, line
    assert "then" not in (tmp_path / "3" / "README.md").read_text().partition("## Accepted")[0]


def test_the_card_of_the_speculators_format_names_only_its_server(drafter_run, tmp_path):
    options = {"target_name": "some/model", "format": "speculators"}
    exported(drafter_run, tmp_path / "my-drafter", **options)
    card = (tmp_path / "my-drafter" / "README.md").read_text()
    assert "vllm serve some/model" in card and "export the zlab format" in card
    assert "sglang.launch_server" not in card and "dflash benchmark" not in card


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"provenance": {}, "results": []}', "has no row of a drafter|holds no"),
        ("no JSON", "is not JSON"),
    ],
)
def test_results_that_are_none(drafter_run, tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        exported(drafter_run, tmp_path / "out", results=str(tmp_path / "results.json"))
    assert not (tmp_path / "out").exists()
