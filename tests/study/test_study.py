"""A whole study on a tiny target: run at once, killed and continued, changed, compared."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxspec.cli import study
from jaxspec.provenance import short_commit
from jaxspec.study.results import read_results
from jaxspec.training.progress import Reporter
from tests.study.tiny import run_here, write_study
from tests.training import runs

UNITS = 8
NAME = "drafters/small/full-seed1"
"""The last drafter."""
KILLED_AT = 14
"""Its step when it is killed; its last checkpoint is at step 12."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Config file of the drafters."""
    return runs.write_config(tmp_path_factory.mktemp("config") / "run.py", target="embedded")


@pytest.fixture(scope="module")
def study_file(config) -> Path:
    return write_study(config.parent / "study.py", config=config)


def run(study_file: Path, folder: Path, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxspec.cli.study_unit.start_unit", run_here)
        study.main(["--config", str(study_file), "--output", str(folder), *words])


@pytest.fixture(scope="module")
def uninterrupted(study_file, tmp_path_factory) -> Path:
    """The folder of a study that nothing interrupted. Not to be changed."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "study"
    run(study_file, folder)
    return folder


def test_a_study_leaves_one_folder_of_results(uninterrupted):
    found = read_results(uninterrupted)
    assert len(found.rows) == 4
    assert {(row["loss"], row["seed"], row["trained_loss"]) for row in found.rows} == {
        (loss, seed, loss) for loss in ("uniform", "full") for seed in (0, 1)
    }
    base, full = found.summary
    assert (base["loss"], base["seeds"], base["gain"]) == ("uniform", [0, 1], None)
    assert full["gain_ci95"] is not None and full["prompts"] == 8
    taus = {(row["loss"], row["seed"]): row["tau_micro"] for row in found.rows}
    gains = [100 * (taus["full", seed] / taus["uniform", seed] - 1) for seed in (0, 1)]
    assert full["gain"]["mean"] == pytest.approx(sum(gains) / 2)
    assert len(set(taus.values())) > 1, "all drafters are alike: the study would show nothing"
    for name, record in found.provenance["units"].items():
        assert record["command"] and record["versions"] and record["settings"], name
    assert len(found.provenance["units"]) == UNITS
    record = found.provenance["units"]["evaluations/small/block/full-seed0"]
    assert len(record["target_weights"]) == len(record["prompt_digests"]["embedded/math"]) == 16
    assert "All 8 units are done." in (uninterrupted / "results.md").read_text()
    assert (uninterrupted / "results.csv").read_text().count("\n") == 3
    assert "toprule" in (uninterrupted / "results.tex").read_text()
    assert {file.name for file in (uninterrupted / "plots").iterdir()} == {
        "gains-small-block.png",
        "acceptance_by_position-small-block.png",
        "training-small.png",
    }
    commits = {short_commit(record) for record in found.provenance["units"].values()}
    for file in (*uninterrupted.glob("results.*"), *(uninterrupted / "plots").iterdir()):
        content = file.read_bytes()  # "" outside of jaxspec's repository
        assert all(commit.removesuffix("+").encode() in content for commit in commits), file.name
        assert b"Study tiny: measured" in content or file.suffix in (".csv", ".json")
    lines = (uninterrupted / "results.csv").read_text().splitlines()
    assert lines[0].endswith(",commits") and lines[1].endswith(f",{' '.join(sorted(commits))}")


def test_killed_in_a_training_and_continued_it_is_the_same(
    study_file, uninterrupted, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "study"
    shutil.copytree(uninterrupted, folder)
    # As if the last drafter had not been trained yet.
    drafter = folder / "drafters" / "small" / "full-seed1"
    shutil.rmtree(drafter)
    evaluation = "evaluations/small/block/full-seed1"
    for file in (f"{evaluation}.json", f"units/{evaluation}.json", f"units/{NAME}.json"):
        (folder / file).unlink()
    update = Reporter.update

    def killed(self, row, **options):
        update(self, row, **options)
        if row["step"] == KILLED_AT:
            raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        run(study_file, folder)
    monkeypatch.setattr(Reporter, "update", update)
    assert runs.saved_steps(drafter) == {8, 12}
    capsys.readouterr()
    study.main(["--config", str(study_file), "--output", str(folder), "--list"])
    assert "6 done, 1 interrupted, 1 missing" in capsys.readouterr().out
    run(study_file, folder)
    assert "Continuing from step 12" in (folder / "logs" / f"{NAME}.log").read_text()
    assert runs.rows(drafter) == runs.rows(uninterrupted / NAME)
    ours, theirs = read_results(folder), read_results(uninterrupted)
    assert ours.summary == theirs.summary
    for row, other_row in zip(ours.rows, theirs.rows, strict=True):
        assert {**row, "compile_s": None} == {**other_row, "compile_s": None}


def not_to_be_started(unit, log, cores):
    raise AssertionError(f"{unit.name} is done already")


def test_a_finished_study_repeats_nothing(study_file, uninterrupted, capsys, monkeypatch):
    monkeypatch.setattr("jaxspec.cli.study_unit.start_unit", not_to_be_started)
    study.main(["--config", str(study_file), "--output", str(uninterrupted)])
    printed = capsys.readouterr().out
    assert "/results.md, " in printed and " plots in " in printed and ".png" not in printed
    assert "full" in printed


def test_machines_can_share_a_study(study_file, uninterrupted, tmp_path, monkeypatch):
    """Their records and evaluations in one folder, without the weights, are the whole study."""
    together = tmp_path / "together"
    for part in ("uniform", "full"):  # As if each had been measured on a machine of its own.
        for file in uninterrupted.rglob(f"{part}-seed*.json"):
            copied = together / file.relative_to(uninterrupted)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copied)
    assert not (together / "drafters").exists()
    monkeypatch.setattr("jaxspec.cli.study_unit.start_unit", not_to_be_started)
    study.main(["--config", str(study_file), "--output", str(together), "--only", "evaluations/"])
    ours, theirs = read_results(together), read_results(uninterrupted)
    assert (ours.summary, ours.rows) == (theirs.summary, theirs.rows)
    assert ours.provenance["units"] == theirs.provenance["units"]


def test_accelerators_are_left_to_the_units(study_file, uninterrupted):
    """There is no such device here: a study that took it for itself would fail."""
    words = ("study", "--config", study_file, "--output", uninterrupted)
    done = subprocess.run(
        [sys.executable, "-m", "jaxspec.cli.main", *words],
        env={**os.environ, "JAX_PLATFORMS": "rocm"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Written: " in done.stdout


def test_results_of_an_evaluation_are_not_overwritten(study_file, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxspec.cli.study_unit.start_unit", not_to_be_started)
    (tmp_path / "results.json").write_text('{"provenance": {}, "results": []}')
    with pytest.raises(ValueError, match=r"results\.json is no result of a study, and this study"):
        study.main(["--config", str(study_file), "--output", str(tmp_path)])


def test_a_changed_declaration_is_refused(config, uninterrupted, tmp_path):
    changed = write_study(tmp_path / "changed.py", config=config, loss=', {"loss.decay": 4.0}')
    before = runs.contents(uninterrupted)
    with pytest.raises(ValueError, match=r"full-seed0: loss\.decay: got 4\.0, recorded 10\.0"):
        run(changed, uninterrupted)
    assert runs.contents(uninterrupted) == before


def test_a_unit_that_fails_is_named_with_its_last_lines(config, tmp_path, capsys):
    broken = write_study(
        tmp_path / "broken.py", config=config, loss=', {"data.sources": ("nowhere.jsonl",)}'
    )
    folder = tmp_path / "study"
    with pytest.raises(ValueError, match=r"1 of 1 units failed: drafters/small/full-seed0\."):
        run(broken, folder, "--only", "drafters/small/full-seed0")
    assert "nowhere.jsonl" in capsys.readouterr().out
    study.main(["--config", str(broken), "--output", str(folder), "--list", "--only", "full-seed0"])
    assert "failed: " in capsys.readouterr().out


def test_tables_are_shown_of_a_folder_and_of_a_summary(uninterrupted, capsys):
    study.main(["show", str(uninterrupted)])
    whole = capsys.readouterr().out
    assert "uniform" in whole and "full" in whole
    study.main(["show", str(uninterrupted / "summary.json")])
    assert capsys.readouterr().out == whole
    study.main(["show", str(uninterrupted), "--losses", "full", "--decodings", "block"])
    part = capsys.readouterr().out
    assert "full" in part and "uniform" not in part
    with pytest.raises(ValueError, match="--losses 'ful': the study has uniform, full"):
        study.main(["show", str(uninterrupted), "--losses", "ful"])


def test_a_row_without_training_stands_beside_the_others(config, tmp_path, capsys):
    def declared(kind: str) -> Path:
        return write_study(
            tmp_path / f"{kind}.py",
            config=config,
            loss=f'), StudyLoss("look-up", untrained={kind!r}',
        )

    run(declared("ngram"), tmp_path / "study", "--only", "look-up")
    (row,) = read_results(tmp_path / "study").rows
    assert (row["loss"], row["kind"], row["mismatched_prompts"]) == ("look-up", "ngram", 0)
    assert not (tmp_path / "study" / "drafters").exists(), "nothing was trained"
    with pytest.raises(ValueError, match="untrained is 'ngrams', expected one of ngram, none"):
        study.main(["--config", str(declared("ngrams")), "--list"])


def test_two_studies_differ(config, uninterrupted, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(uninterrupted, other)
    document = json.loads((other / "results.json").read_text())
    document["summary"][1]["tau"]["mean"] *= 1.25
    unit = document["provenance"]["units"]["drafters/small/full-seed0"]
    unit["settings"]["loss"]["decay"] = 4.0
    document["study"]["base"] = "full"
    evaluation = document["provenance"]["units"]["evaluations/small/block/full-seed0"]
    evaluation["target_weights"] = "other"
    del document["provenance"]["units"]["evaluations/small/block/full-seed1"]["target_weights"]
    (other / "results.json").write_text(json.dumps(document))
    study.main(["diff", str(uninterrupted), str(other / "results.json")])
    printed = capsys.readouterr().out
    settings, _, rows = printed.partition("1 of 2 rows that both have differ.")
    assert "- loss.decay: 10.0, then 4.0 (drafters/small/full-seed0)" in settings
    assert "- base of the gains: uniform, then full\n" in settings
    assert settings.count("- target_weights: ") == 1, "not known of an older file"
    assert ", then other (evaluations/small/block/full-seed0)" in settings
    (line,) = [line for line in rows.splitlines() if line.startswith("| small")]
    assert "| full |" in line and "| +25.0% |" in line
    study.main(["diff", str(uninterrupted), str(uninterrupted)])
    printed = capsys.readouterr().out
    assert "none, among units" in printed and "0 of 2 rows" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss.dekay", "1"], "Unknown setting --loss.dekay. Did you mean 'loss.decay'"),
        (["--denoiser.path", "x"], "--denoiser.path is read by no training or evaluation"),
        (["quick"], "Unexpected argument 'quick'"),
        (["--only", "nothing"], "no unit's name contains it"),
        (["--output", "gs://bucket/x"], "must be a folder of this machine"),
        (["--loss.focal", "-1"], "loss.focal"),
        (
            ["--loss.extra", "forward_kl=1", "--data.sources", "a", "--loss.extra", "forward_kl=2"],
            "--loss.extra is given 2 times",
        ),
        (["--only", "full", "--training.steps", "3", "--only", "uniform"], "--only is given 2"),
    ],
)
def test_mistakes_on_the_command_line(study_file, words, message):
    with pytest.raises(ValueError, match=message):
        study.main(["--config", str(study_file), "--list", *words])


def test_a_typed_setting_may_be_read_by_one_target_only(tmp_path, capsys):
    file = tmp_path / "two.py"
    file.write_text(
        "from jaxspec.study.declaration import *\n"
        "def get_config():\n"
        "    targets = [StudyTarget(n, config=n) for n in ('quickstart', 'real_text_mdlm_draft')]\n"
        "    return StudyConfig('two', targets=tuple(targets), losses=(StudyLoss('a'),))\n"
    )
    study.main(["--config", str(file), "--list", "--denoiser.lora_rank", "4"])
    assert "4 missing" in capsys.readouterr().out


def test_settings_behind_the_command_reach_the_units(study_file, tmp_path, capsys, monkeypatch):
    started = []

    def start(unit, log, cores):
        started.append(unit)
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxspec.cli.study_unit.start_unit", start)
    words = ["--training.steps", "2", "--evaluation.benchmarks", "embedded/chat"]
    words += ["--training.steps", "3"]
    with pytest.raises(KeyboardInterrupt):
        study.main(["--config", str(study_file), "--output", str(tmp_path / "s"), *words])
    assert started[0].config.training.steps == 3
    assert "--training.steps" in started[0].command


def documented() -> list[str]:
    """Arguments of every command line about studies in the documents and configs."""
    root = Path(__file__).parents[2]
    files = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("configs/*.py")]
    found = []
    for file in sorted(files):
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"^[ `]*jaxspec study (--config [^`#\n]*)", text, re.MULTILINE)
    return sorted(set(found))


@pytest.mark.parametrize("arguments", documented())
def test_documented_command_lines_are_accepted(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[2])
    study.main([*shlex.split(arguments), "--output", str(tmp_path), "--list"])
    assert " missing; in " in capsys.readouterr().out


def test_there_are_documented_command_lines():
    assert len(documented()) >= 3


def test_the_help_shows_every_setting_of_a_declaration(capsys):
    with pytest.raises(SystemExit):
        study.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in ("config", "train_settings", "sources", "seeds", "decodings", "base"):
        assert any(line.startswith(f"  {name}") for line in lines), name


def test_the_wrong_kind_of_config_is_refused(config):
    with pytest.raises(ValueError, match=r"must return a .*StudyConfig: got RunConfig"):
        study.main(["--config", str(config)])


def test_a_folder_that_keeps_only_the_summary_is_shown(tmp_path, uninterrupted, capsys):
    """As those under docs/results."""
    shutil.copy(uninterrupted / "summary.json", tmp_path)
    shown = []
    for folder in (uninterrupted, tmp_path):
        study.main(["show", str(folder)])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


def test_what_is_no_study_has_no_difference(tmp_path, uninterrupted):
    with pytest.raises(ValueError, match="No results of a study"):
        study.main(["diff", str(tmp_path), str(uninterrupted)])
    evaluation = uninterrupted / "evaluations" / "small" / "block" / "full-seed0.json"
    with pytest.raises(ValueError, match="is not the result file of a study"):
        study.main(["diff", str(evaluation), str(uninterrupted)])
