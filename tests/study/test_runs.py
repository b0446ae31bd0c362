from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxspec.cli import runs
from jaxspec.config import LossConfig, RunConfig, TrainingConfig
from jaxspec.evals.report import write_json as write_results
from jaxspec.names import LONGEST, for_markdown
from jaxspec.provenance import provenance, write_json
from jaxspec.study.curves import curve_of, plot_curves, shared_measure
from jaxspec.study.runs import curves_of, find_runs, runs_difference
from tests.evals.rows import result_row
from tests.study.entries import study_entry


def training(folder: Path, *, loss: LossConfig, steps: int) -> Path:
    """The folder of a training that has taken some of its 40 steps."""
    run = RunConfig(name="tiny", loss=loss, training=TrainingConfig(steps=40))
    write_json(folder / "provenance.json", provenance(config=run, seed=3))
    lines = [{"step": s, "loss": 4 / s, "accepted": s / 10} for s in range(1, steps + 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    training(tmp_path / "full", loss=LossConfig(), steps=20)
    training(tmp_path / "uniform", loss=LossConfig(decay=None, focal=0, chain=0), steps=40)
    (tmp_path / "full" / "export").mkdir()
    write_json(tmp_path / "full" / "export" / "provenance.json", {"results": [], "provenance": {}})
    record = provenance(config=RunConfig(name="measured"), seed=0)
    write_results(tmp_path / "results.json", provenance=record, results=[result_row("full")])
    (tmp_path / "other.json").write_text("[1]")
    foreign = {"provenance": {"config": "x"}, "results": [{"accepted_per_round": "a lot"}]}
    (tmp_path / "foreign.json").write_text(json.dumps(foreign))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "provenance.json").write_text("{")
    (tmp_path / "damaged" / "metrics.jsonl").write_text("")
    return tmp_path


def test_runs_are_found_with_their_figures(folder):
    damaged, foreign, full, results, uniform = find_runs([folder])
    assert (foreign.config, foreign.accepted) == ("", None)
    assert (full.config, full.loss, full.steps, full.seed) == ("tiny", "full", "20/40", 3)
    assert (full.last_loss, full.accepted) == (0.2, 2.0)
    assert (uniform.loss, uniform.steps) == ("uniform", "40/40")
    assert (results.kind, results.config, results.steps) == ("evaluation", "measured", "1 rows")
    assert results.accepted == 1.0
    assert damaged.kind == "training (record not readable)"


def test_what_accepts_nothing_counts_and_the_target_alone_does_not(tmp_path):
    rows = [
        result_row("full", accepted_per_round=1.0),
        result_row("uniform", accepted_per_round=0.0),
        result_row("none", accepted_per_round=0.0, verifier="none"),
    ]
    for name, its_rows in (("a", rows), ("b", rows[1:2]), ("c", rows[2:])):
        write_results(tmp_path / f"{name}.json", provenance={}, results=its_rows)
    assert [run.accepted for run in find_runs([tmp_path])] == [0.5, 0.0, None]


def test_the_list_names_each(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    runs.main([str(folder)])
    printed = capsys.readouterr().out
    for name in ("full", "uniform", "results.json", "damaged"):
        assert str(folder / name) in printed
    assert "other.json" not in printed
    with pytest.raises(ValueError, match="There is no folder"):
        runs.main([str(folder / "absent")])


def test_long_names_are_whole_and_on_one_line_where_programs_read_them(tmp_path, capsys):
    far = tmp_path / "experiments_of_this_year" / "study_of_all_losses" / "drafters" / "real_text"
    names = [far.parent / part / "full_gamma2-seed0" for part in ("real_text", "other_text")]
    for name in names:
        training(name, loss=LossConfig(), steps=2)
        assert len(str(name)) > LONGEST
    runs.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == sorted(map(str, names))
    (header,) = (line for line in runs_difference(names).splitlines() if "last line" in line)
    assert all(for_markdown(str(name), longest=1000) in header for name in names)
    labels = [curve.label for curve in curves_of(names)]
    assert labels == ["real_text/full_gamma2-seed0", "other_text/full_gamma2-seed0"]
    assert [curve.label for curve in curves_of([names[0], far])] == labels[:1]


def test_a_study_is_listed_with_its_rows_or_by_the_summary_that_was_kept(tmp_path):
    lines = [study_entry("uniform"), study_entry("full", accepted_per_round=2.0)]
    lines += [study_entry("full", "mean", accepted_per_round=9.0)]
    record = {"provenance": {}, "study": {"name": "tiny"}, "summary": lines}
    for name in ("kept.json", "whole/summary.json"):
        write_json(tmp_path / name, record)
    rows = {"results": [result_row("uniform"), result_row("full")]}
    write_json(tmp_path / "whole" / "results.json", {**record, **rows})
    kept, whole = find_runs([tmp_path])
    assert (Path(kept.name).name, Path(whole.name).name) == ("kept.json", "results.json")
    assert (kept.kind, kept.config, kept.loss) == ("study", "tiny", "uniform, full")
    assert (kept.steps, whole.steps) == ("3 lines", "2 rows")
    assert (kept.accepted, whole.accepted) == (1.5, 1.0)


def test_two_trainings_differ_in_their_settings_and_last_lines(folder, capsys):
    picture = folder / "curves.svg"
    workdirs = [str(folder / "uniform"), str(folder / "full")]
    runs.main(["diff", *workdirs, "--picture", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert "| loss.decay | None | 10.0 |" in lines
    assert "| loss.chain | 0 | 40.0 |" in lines
    assert "| step | 40 | 20 |" in lines
    assert "| accepted | 4 | 2 |" in lines
    assert not any(line.startswith("| training.steps") for line in lines)
    assert picture.read_text().count("<path") > 2


def test_names_of_folders_are_escaped_in_tables(folder):
    strange = folder / "a|b\x1b[31m"
    (folder / "full").rename(strange)
    table = runs_difference([strange, folder / "uniform"])
    assert "a\\|b" in table and "\x1b" not in table


def test_mistakes(folder):
    with pytest.raises(ValueError, match="at least two trainings"):
        runs.main(["diff", str(folder / "full")])
    with pytest.raises(ValueError, match=r"No training in .*results"):
        runs.main(["diff", str(folder / "full"), str(folder / "results.json")])
    with pytest.raises(ValueError, match=r"ends in \.png or \.svg"):
        runs.main(["diff", str(folder / "full"), str(folder / "uniform"), "--picture", "a.gif"])


def test_a_plot_shows_what_all_runs_have_measured(tmp_path):
    first = training(tmp_path / "a", loss=LossConfig(), steps=3)
    target = tmp_path / "target"
    target.mkdir()
    (target / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    drafter, other = curve_of(first, label="a"), curve_of(target, label="target")
    assert shared_measure([drafter]) == "accepted"
    assert shared_measure([drafter, other]) == "loss"
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_curves([], tmp_path / "p.svg")
