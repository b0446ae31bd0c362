from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from jaxspec.evals.report import (
    definitions_table,
    depths_table,
    read_json,
    seeds_table,
    write_json,
    write_report,
)
from jaxspec.evals.tables import console_table, markdown_table
from tests.evals.rows import diffusion_row, result_row

ROWS = [
    result_row("full", tau_micro=2.5, speedup=1.75),
    result_row(),
    result_row("uniform", "mbpp", tau_micro=1.5, mismatched_prompts=2),
    result_row("full", "mbpp", tau_micro=1.65, speedup=None),
]


def test_json_round_trip(tmp_path):
    file = write_json(tmp_path / "new" / "r.json", provenance={"seed": 0}, results=ROWS)
    assert read_json(file) == ({"seed": 0}, ROWS)
    assert list(json.loads(file.read_text())) == ["provenance", "results"]


def test_refused_rows_leave_the_old_file(tmp_path):
    file = write_json(tmp_path / "r.json", provenance={}, results=ROWS)
    with pytest.raises(ValueError, match="tau_micro is nan"):
        write_json(file, provenance={}, results=[result_row(tau_micro=float("nan"))])
    assert read_json(file)[1] == ROWS
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_what_is_no_result_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No result file"):
        read_json(tmp_path / "none.json")
    for text, message in [
        ("[]", "expected a JSON object"),
        ('{"a": 1}', "is not a result file"),
        ("{", "bad.json is not JSON"),
    ]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_json(tmp_path / "bad.json")


def test_markdown_by_hand():
    lines = markdown_table(ROWS).splitlines()
    assert lines[:8] == [
        "| benchmark | loss | prompts | tau (95%) | macro | accepted | gain | speedup | differ |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| gsm8k | uniform | 40 | 2.00 (1.80–2.25) | 1.90 | 1.00 | – | 1.50x | 0 |",
        "| gsm8k | full | 40 | 2.50 (1.80–2.25) | 1.90 | 1.00 | +25.0% | 1.75x | 0 |",
        "| mbpp | uniform | 40 | 1.50 (1.80–2.25) | 1.90 | 1.00 | – | 1.50x | 2 |",
        "| mbpp | full | 40 | 1.65 (1.80–2.25) | 1.90 | 1.00 | +10.0% | – | 0 |",
        "| mean | uniform | 80 | 1.75 | 1.90 | 1.00 | – | 1.50x | 2 |",
        "| mean | full | 80 | 2.08 | 1.90 | 1.00 | +17.5% | 1.75x | 0 |",
    ]
    assert any(line.startswith("tau: tokens emitted per draft-verify round") for line in lines)


def test_drafters_of_one_name_have_means_of_their_own():
    """eval.py calls them by the folders above theirs."""
    rows = [
        result_row("full", benchmark, drafter=f"{folder}/full", tau_micro=tau)
        for folder, tau in (("lrA", 2.0), ("lrB", 3.0))
        for benchmark in ("gsm8k", "mbpp")
    ]
    means = [line for line in markdown_table(rows).splitlines() if line.startswith("| mean")]
    assert [line.split(" | ")[1:4:2] for line in means] == [
        ["full (lrA/full)", "2.00"],
        ["full (lrB/full)", "3.00"],
    ]


def test_seeds_by_hand():
    taus = {("uniform", 0): 2.0, ("uniform", 1): 1.6, ("full", 0): 2.5, ("full", 1): 2.4}
    rows = [
        result_row(loss, benchmark, seed=seed, drafter=f"{loss}{seed}", tau_micro=tau * factor)
        for benchmark, factor in (("gsm8k", 1.0), ("mbpp", 0.5))
        for (loss, seed), tau in taus.items()
    ]
    assert seeds_table(rows).splitlines()[2:] == [
        "| benchmark | loss | seeds | tau | gain |",
        "| --- | --- | ---: | ---: | ---: |",
        "| gsm8k | uniform | 2 | 1.80 (1.60 to 2.00) | – |",
        "| gsm8k | full | 2 | 2.45 (2.40 to 2.50) | +37.5% (+25.0 to +50.0%) |",
        "| mbpp | uniform | 2 | 0.90 (0.80 to 1.00) | – |",
        "| mbpp | full | 2 | 1.23 (1.20 to 1.25) | +37.5% (+25.0 to +50.0%) |",
        "| mean | uniform | 2 | 1.35 (1.20 to 1.50) | – |",
        "| mean | full | 2 | 1.84 (1.80 to 1.88) | +37.5% (+25.0 to +50.0%) |",
    ]
    assert not seeds_table(rows[::2])
    again = {**rows[2], "drafter": "full0 again", "tau_micro": 9.0}
    assert not seeds_table([*rows, again]), "which of the two stands for the seed?"
    assert not seeds_table(ROWS)
    look_up = result_row("ngram", "gsm8k", seed=None, drafter="ngram", block_size=8)
    assert rows[0]["block_size"] != 8
    assert seeds_table([*rows, look_up]) == seeds_table(rows), "it has no seeds"
    of_a_study = {**look_up, "loss": "look-up", "trained_loss": "ngram", "kind": "ngram", "seed": 0}
    assert seeds_table([*rows, of_a_study]) == seeds_table(rows), "a study gives it one"
    mixed = {**rows[2], "seed": None, "drafter": "other", "block_size": 8}
    assert not seeds_table([*rows, mixed]), "one loss with two settings"


def test_definitions_by_hand(tmp_path):
    rows = [
        result_row("full", tau_definitions={"deepspec": 2.25, "micro": 2.0, "vllm": 2.5}),
        result_row(tau_definitions={"micro": 1.5, "vllm": 1.75}),
        result_row("decay"),
    ]
    text = definitions_table(rows)
    assert text.splitlines()[2:6] == [
        "| benchmark | loss | micro | vllm | deepspec |",
        "| --- | --- | ---: | ---: | ---: |",
        "| gsm8k | uniform | 1.50 | 1.75 | – |",
        "| gsm8k | full | 2.00 | 2.50 | 2.25 |",
    ]
    legend = [line for line in text.splitlines() if line.startswith("- ")]
    assert [line.split("`")[1] for line in legend] == ["micro", "vllm", "deepspec"]
    assert "- `vllm`: vLLM's mean acceptance length: 1 + sum of v / rounds that drafted." in legend
    file = write_report(tmp_path / "results.json", provenance={}, results=rows)[1]
    assert text in file.read_text()


def test_definitions_name_the_settings_that_differ():
    taus = {"micro": 2.0}
    rows = [result_row(temperature=warm, tau_definitions=taus) for warm in (0.0, 1.0)]
    assert "| gsm8k | uniform | 1 | 2.00 |" in definitions_table(rows)


def test_files_without_definitions_have_no_table_of_them(tmp_path):
    assert definitions_table(ROWS) == ""
    file = write_report(tmp_path / "results.json", provenance={}, results=ROWS)[1]
    assert "definition" not in file.read_text()


def test_one_benchmark_has_no_mean():
    assert "mean |" not in markdown_table(ROWS[:2]).split("\n\n")[0]


def test_mean_only_over_all_benchmarks():
    table = markdown_table([*ROWS, result_row("decay")])
    assert "| mean | uniform |" in table
    assert "| mean | decay |" not in table


def test_settings_that_differ_become_columns():
    table = markdown_table([result_row(), result_row(temperature=1.0, verifier="token")])
    assert "| benchmark | loss | temperature | prompts |" in table
    assert "| gsm8k | uniform | 0 | 40 |" in table
    assert "| gsm8k | uniform | 1 | 40 |" in table


def test_repetitive_share_is_shown_and_explained_when_known():
    table = markdown_table([result_row(repetitive_share=0.325), result_row("full")])
    assert "differ | repetitive |" in table
    assert "| 32% |" in table
    assert table.rstrip().endswith("inflates tau.")
    assert "repetitive" not in markdown_table(ROWS)


def test_bars_in_names_do_not_break_the_table():
    assert "gsm8k\\|x" in markdown_table([result_row(benchmark="gsm8k|x")])


HOSTILE = "a|b\n| c | `d` *e* _f_ <b> [g](h) # \x1b[31m \u202e [red]i[/red] $j$ \\"


def test_names_are_text_in_every_table():
    rows = [
        result_row(
            loss,
            HOSTILE,
            drafter=HOSTILE,
            target=HOSTILE,
            seed=seed,
            tau_definitions={"micro": 2.0},
        )
        for loss in ("uniform", HOSTILE)
        for seed in (0, 1)
    ]
    diffusion = diffusion_row(
        HOSTILE,
        benchmark=HOSTILE,
        drafts_per_pass=2,
        nfe_by_block=[90, 90],
        accepted_depth_by_block=[0.5, 0.5],
        reached_by_block=[3, 3],
    )
    tables = [markdown_table(rows), definitions_table(rows), seeds_table(rows)]
    for table in (*tables, markdown_table([diffusion]), depths_table([diffusion])):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        bars = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}
        assert len(lines) >= 3 and len(bars) == 1, "every line has the same cells"
        assert r"a\|b\\n\| c \| \`d\` \*e\* \_f\_ \<b\> \[g\]" in table
        assert table.replace("\n", "").isprintable()


def test_names_are_text_on_a_terminal():
    text = shown([result_row(HOSTILE, HOSTILE)], width=300)
    assert all(line.isprintable() for line in text.splitlines())
    assert r"\x1b[31m \u202e [red]i[/red] $j$" in text
    long = shown([result_row("x" * 1000)], width=300)
    assert "…" in long and "x" * 80 not in long


def test_depths_of_few_passes_are_left_out():
    enough = diffusion_row(
        "ssd",
        drafts_per_pass=2,
        nfe_by_block=[33, 32, 40],
        accepted_depth_by_block=[0.5, 0.25, None],
        reached_by_block=[3, 3, 3],
    )
    table = depths_table([enough])
    assert table.startswith("Accepted depth by block (–: fewer than 30 passes with drafts):")
    assert "| gsm8k | ssd | 2 | 0.50 | – | – |" in table, "30 passes, and 29"
    older = {key: value for key, value in enough.items() if key != "reached_by_block"}
    assert depths_table([older]) == table, "at most all three responses reached a block"
    nothing_accepted = {**enough, "accepted_depth_by_block": [0.0, 0.0, 0.0]}
    assert "| gsm8k | ssd | 2 | 0.00 | – | 0.00 |" in depths_table([nothing_accepted])
    assert depths_table([diffusion_row("ssd", drafts_per_pass=2)]) == (
        "Accepted depth by block: not shown, as every block had fewer than 30 passes with drafts.\n"
    )
    assert depths_table([diffusion_row(accepted_depth_by_block=[0.0, None])]) == ""


def test_a_tau_of_few_prompts_has_no_interval():
    text = markdown_table([result_row(prompts=1, tau_ci95=None)])
    assert "| gsm8k | uniform | 1 | 2.00 | 1.90 |" in text
    assert "bootstrap interval over prompts (at least 6)" in " ".join(text.split())


def shown(results, *, width=80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(console_table(results))
    return stream.getvalue()


def test_console_table_says_what_the_markdown_says():
    lines = shown(ROWS).splitlines()
    found = [" ".join(line.split()) for line in lines if line.strip()]
    assert found[1] == "gsm8k uniform 40 2.00 (1.80–2.25) 1.90 1.00 – 1.50x 0"
    assert found[2].startswith("full 40"), "a benchmark is named once"
    assert found[-1] == "full 80 2.08 1.90 1.00 +17.5% 1.75x 0"


def test_a_single_drafter_has_no_empty_lines():
    lines = shown([result_row(benchmark=name) for name in ("gsm8k", "mbpp")]).splitlines()
    assert len(lines) >= 3 and all(line.strip() for line in lines)


def test_console_table_fits_a_plain_terminal():
    rows = [
        result_row(loss, benchmark, repetitive_share=0.05)
        for loss in ("uniform", "full")
        for benchmark in ("embedded/math", "embedded/code")
    ]
    text = shown(rows)
    assert "…" not in text
    assert "embedded/math" in text


def test_names_with_brackets_are_text():
    assert "[bold]x" in shown([result_row(benchmark="[bold]x")])


def test_write_report_writes_all_files(tmp_path):
    files = write_report(
        tmp_path / "results.json", provenance={"seed": 0}, results=ROWS, notes=["A note.", "B."]
    )
    assert [file.name for file in files] == [
        "results.json",
        "results.md",
        "results_accepted_length.png",
        "results_acceptance_by_position.png",
    ]
    assert all(file.stat().st_size > 0 for file in files)
    text = files[1].read_text()
    assert text.startswith("| benchmark |")
    assert text.endswith("\n\nA note.\n\nB.\n")
