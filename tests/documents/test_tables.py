"""Tables of README and docs/ are those of the result files that they come from."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxspec.evals.report import read_json
from jaxspec.provenance import jsonable
from tests.evals.rows import diffusion_row
from tests.study.entries import study_entry
from tests.study.tiny import STUDY

ROOT = Path(__file__).parents[2]
EARLIER = "measured before result files were kept beside the page"
WITHOUT_FILE = {
    ("README.md", "Your own target"): "printed by benchmarks.family_parity",
    (
        "docs/results.md",
        "Draft graphs",
    ): "published figures; the measured ones have files",
    ("docs/pods.md", "1. Plan"): "printed by scripts/plan_table.sh",
    (
        "docs/results.md",
        "What compiled decoding and training move on accelerators",
    ): "printed by benchmarks.decode_programs and benchmarks.train_step_compiled",
    **{
        ("docs/results.md", section): EARLIER
        for section in (
            "Drafters in one engine",
            "Speed of decoding, compared with transformers",
            "What a round is made of",
            "An earlier, smaller target",
            "Learning to draft",
            "Self-selection",
            "Speed",
            "One training step of a drafter",
            "Memory of the loss",
        )
    },
}
"""Document and section of tables with figures that no file of the repository holds -> why."""


@pytest.fixture(scope="module")
def tables():
    """scripts/tables.py, as a module."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_their_files(tables):
    assert tables.main(["--check"]) == 0, "python scripts/tables.py writes them anew"


def test_a_changed_figure_is_noticed_and_written_anew(tables):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    order = "<!-- table: results docs/results/quickstart.json without timed_prompts -->"
    assert order in text
    changed, count = re.subn(r"(\| mean \| full \| 120 \|) \d", r"\1 9", text)
    assert count == 1 and tables.with_tables(changed) == text


def test_views(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    _, rows = read_json(ROOT / "docs" / "results" / "quickstart.json")
    other = [{**row, "seed": 1} for row in rows]
    for name, document in {
        "two.json": {"provenance": {}, "results": [*rows, *other]},
        "plain.json": {"header": ["a", "b"], "rows": [["x", 1]]},
    }.items():
        (tmp_path / name).write_text(json.dumps(document), encoding="utf-8")

    def of(order: str) -> str:
        return tables.with_tables(f"<!-- table: {order} -->\nold\n<!-- end of table -->\n")

    twice = r"\| embedded/math \| full \| 2 \| (\d\.\d\d) \(\1 to \1\) \|"
    assert re.search(twice, of("seeds two.json"))
    assert "| a | b |\n| --- | ---: |\n| x | 1 |\n" in of("plain plain.json")
    for order, message in {
        "results": "expected a view",
        "views two.json": "expected a view",
        "results two.json without typo": "has no columns",
        "results two.json gain": "expected 'without'",
        "seeds two.json without gain": "takes nothing after its file",
        "results none.json": "No result file",
    }.items():
        with pytest.raises(ValueError, match=message):
            of(order)
    with pytest.raises(ValueError, match="end of table"):
        tables.with_tables("<!-- table: plain plain.json -->\n| a |\n")


def test_the_view_of_diffusion(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    rows = [
        diffusion_row("plain"),
        diffusion_row("spiffy", drafts_per_pass=10, nfe_reduction=1.7),
        diffusion_row(
            "spiffy", drafts_per_pass=3, nfe_reduction=1.4, nfe_reduction_ci95=[1.25, 1.625]
        ),
        diffusion_row("star", drafts_per_pass=3, nfe_reduction=1.3, identical=2),
    ]
    for name, found in (("drafts", rows), ("plain", rows[:1])):
        text = json.dumps({"provenance": {}, "results": found})
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")

    def of(order: str) -> str:
        return tables.with_tables(f"<!-- table: {order} -->\nold\n<!-- end of table -->\n")

    assert "| prompts | drafts | n | D = 3 | D = 10 | identical |\n" in of("reductions drafts.json")
    lines = of("reductions drafts.json").splitlines()[3:-1]
    assert lines == [
        "| gsm8k | spiffy | 3 | 1.40 (1.25–1.62) | 1.70 | 6 of 6 |",
        "| gsm8k | star | 3 | 1.30 | – | 2 of 3 |",
    ]
    with pytest.raises(ValueError, match="no decoder with drafts"):
        of("reductions plain.json")
    with pytest.raises(ValueError, match="takes nothing after its file"):
        of("reductions drafts.json without n")


def test_views_of_a_study(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    gain = {"gain": {"mean": 20.0, "lowest": 15.0, "highest": 25.0}, "gain_ci95": [-1.5, 41.25]}
    entries = [
        study_entry("uniform"),
        study_entry("full", **gain),
        study_entry("uniform", "mean"),
        study_entry("full", "mean", **gain),
    ]
    document = {"summary": entries, "study": jsonable(STUDY)}
    (tmp_path / "one.json").write_text(json.dumps(document), encoding="utf-8")
    document["summary"] = [*entries, study_entry("uniform", target="other")]
    (tmp_path / "two.json").write_text(json.dumps(document), encoding="utf-8")

    def of(order: str) -> list[str]:
        text = tables.with_tables(f"<!-- table: {order} -->\nold\n<!-- end of table -->\n")
        return text.splitlines()[1:-1]

    assert len(of("study one.json block")) == 2 + 4
    assert [line.split(" | ")[1] for line in of("means one.json block")[2:]] == ["uniform", "full"]
    assert of("gains one.json block") == [
        "| loss | gsm8k | mean |",
        "| --- | ---: | ---: |",
        "| uniform | tau 2.00 | tau 2.00 |",
        "| full | +20.0% (-1.5 to +41.2) | +20.0% (-1.5 to +41.2) |",
    ]
    assert of("pairs one.json block") == [
        "| prompts | uniform | full | full over uniform |",
        "| --- | ---: | ---: | ---: |",
        "| gsm8k | 2.00 (1.90 to 2.10) | 2.00 (1.90 to 2.10) | +20.0% (+15.0 to +25.0%) |",
        "| mean | 2.00 (1.90 to 2.10) | 2.00 (1.90 to 2.10) | +20.0% (+15.0 to +25.0%) |",
    ]
    assert len(of("gains one.json block only full")) == 3
    assert of("gains two.json small block only full uniform") == of("gains one.json block")
    assert of("decodings one.json full") == [
        "| decoding | gsm8k | mean |",
        "| --- | ---: | ---: |",
        "| block | 2.00 (1.88–2.12) | 2.00 (1.88–2.12) |",
    ]
    assert of("decodings one.json full only block") == of("decodings one.json full")
    for order, message in {
        "gains one.json tree": "has no lines for 'tree'",
        "decodings one.json full only tree": "has no lines",
        "gains one.json block only typo": "has no lines",
        "gains two.json block": "several targets",
    }.items():
        with pytest.raises(ValueError, match=message):
            of(order)


def tables_with_figures(document: Path) -> Iterator[str]:
    """Sections of the tables that hold figures and come from no file."""
    text = document.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- table: .*?<!-- end of table -->", "", text, flags=re.DOTALL)
    section = ""
    for part in re.finditer(r"^#+ (?P<title>.+)$|(?P<table>(?:^\|.*\n)+)", text, re.MULTILINE):
        section = part["title"] or section
        if part["table"]:
            body = part["table"].split("\n", 2)[2]
            cells = [cell.strip() for line in body.splitlines() for cell in line.split("|")[1:-1]]
            figures = [cell for cell in cells if re.match(r"[+-]?[\d,]*\d\.\d", cell)]
            if len(figures) * 6 >= len(cells):
                yield section


def test_every_table_with_figures_has_a_file_or_a_reason():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = {
        (document.relative_to(ROOT).as_posix(), section)
        for document in documents
        for section in tables_with_figures(document)
    }
    assert found - WITHOUT_FILE.keys() == set(), "give it a file: scripts/tables.py says how"
    assert WITHOUT_FILE.keys() - found == set(), "no longer needed"
