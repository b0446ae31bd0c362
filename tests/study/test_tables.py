from __future__ import annotations

import csv
import io

from jaxspec.evals.progress import render
from jaxspec.provenance import jsonable
from jaxspec.study.tables import console_table, csv_text, latex_text, markdown_text
from tests.study.entries import study_entry
from tests.study.tiny import STUDY

GAIN = {"gain": {"mean": 20.0, "lowest": 15.0, "highest": 25.0}, "gain_ci95": [-1.5, 41.25]}
ENTRIES = [
    study_entry("uniform"),
    study_entry("a_b|c", **GAIN),
    study_entry("uniform", "mean"),
    study_entry(
        "a_b|c", "mean", seeds=[0], tau={"mean": 3.0, "lowest": 3.0, "highest": 3.0}, **GAIN
    ),
]


def test_markdown():
    text = markdown_text(ENTRIES, study=jsonable(STUDY), units="4 of 8 units are done.")
    lines = text.splitlines()
    assert lines[:5] == ["# Study tiny", "", "4 of 8 units are done.", "", "## small, block"]
    assert "With evaluation.timing\\_prompts 0." in lines
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == (
        "| benchmark | loss | seeds | prompts | tau | 95% | gain | 95% | accepted | differ | "
        "repetitive |"
    ), "a column that no row fills is left out"
    assert table[3] == (
        "| gsm8k | a\\_b\\|c | 2 | 40 | 2.00 (1.90 to 2.10) | 1.88–2.12 | "
        "+20.0% (+15.0 to +25.0%) | -1.5 to +41.2% | 1.00 | 0 | 25% |"
    )
    assert "| mean | a\\_b\\|c | 1 | 40 | 3.00 |" in table[5], "one seed has no range"
    assert "gain: of tau over uniform" in " ".join(lines)


def test_long_settings_are_shown_whole():
    settings = {f"evaluation.setting_number_{number}": number for number in range(9)}
    study = jsonable(STUDY)
    study["decodings"][0]["settings"] = settings
    text = markdown_text(ENTRIES, study=study, units="All of it.")
    for number in range(9):
        assert f"evaluation.setting\\_number\\_{number} {number}" in text


def test_seeds_of_a_gain_are_shown_where_they_are_not_all(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    part = study_entry("c", gain_seeds=[0], **GAIN)
    text = markdown_text([*ENTRIES, part], study=jsonable(STUDY), units="All.")
    header, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
    place = header.split(" | ").index("gain seeds")
    cells = {line.split(" | ")[1]: line.split(" | ")[place] for line in lines}
    assert (cells["c"], cells["uniform"]) == ("0", "–")
    older = {key: value for key, value in part.items() if key != "gain_seeds"}
    shown = [render(console_table([each])) for each in (part, older)]
    assert "+25.0%) on seeds 0 only" in shown[0] and "on seeds" not in shown[1]
    lines = list(csv.DictReader(io.StringIO(csv_text([part]))))
    assert lines[0]["gain_seeds"] == "0"


def test_a_terminal_shows_tables_without_a_mean_whole():
    single = study_entry("uniform", "mbpp", decoding="tree")
    text = render(console_table([*ENTRIES, single]))
    assert [line for line in text.splitlines() if ", " in line] == ["block, mean", "tree, mbpp"]


def test_csv():
    lines = list(csv.DictReader(io.StringIO(csv_text(ENTRIES))))
    assert len(lines) == 4
    assert lines[0]["gain_mean"] == lines[0]["speedup"] == ""
    assert lines[1]["seeds"] == "0 1"
    numbers = ("tau_mean", "tau_lowest", "tau_ci95_high", "gain_mean", "gain_ci95_low")
    assert [float(lines[1][name]) for name in numbers] == [2.0, 1.9, 2.125, 20.0, -1.5]


def test_latex():
    text = latex_text(ENTRIES, base="uniform")
    assert r"loss & seeds & gsm8k & mean & gain \\" in text
    assert r"uniform & 2 & 2.00 & 2.00 & -- \\" in text
    assert r"a\_b|c & 1--2 & 2.00 & 3.00 & $+20.0\%$ $[-1.5, +41.2]$ \\" in text
    part = latex_text([study_entry("c", gain_seeds=[0], **GAIN)], base="uniform")
    assert r"c & 2 & 2.00 & $+20.0\%$ $[-1.5, +41.2]$ (seeds 0 only) \\" in part
    for rule in ("toprule", "midrule", "bottomrule", "end{tabular}", "end{table}"):
        assert text.count(rule) == 1


def test_a_terminal_shows_the_means():
    header, first, second, *_ = render(console_table(ENTRIES)).splitlines()
    assert header.split() == ["loss", "tau", "gain", "95%"], "what does not vary is left out"
    assert first.split()[0] == "uniform"
    assert " ".join(second.split()) == "a_b|c 3.00 +20.0% (+15.0 to +25.0%) -1.5 to +41.2%"


def test_a_terminal_of_80_columns_breaks_no_range(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    long = [{**each, "target": "embedded_target", "decoding": "block16"} for each in ENTRIES]
    lines = render(console_table([*ENTRIES, *long], only_means=False)).splitlines()
    headings = [line for line in lines if ", " in line]
    assert headings == [
        "small, block, gsm8k",
        "small, block, mean",
        "embedded_target, block16, gsm8k",
        "embedded_target, block16, mean",
    ]
    assert len(lines) == 1 + 4 * 3, "one header, then a heading and two losses each"
    ends = {len(line.rstrip()) for line in lines if line not in headings}
    assert len(ends) == 1, "the columns of all parts are aligned"


def test_a_narrow_terminal_loses_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    words = render(console_table(ENTRIES)).split()
    for word in ("a_b|c", "3.00", "+20.0%", "(+15.0", "+25.0%)", "-1.5", "+41.2%"):
        assert word in words
