"""What a page says, without a browser: figures by hand, and files that are damaged or hostile."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from jaxspec.evals.html_report.measured import mean_tau_interval, read_files
from jaxspec.evals.html_report.page import page_of, write_page
from jaxspec.evals.html_report.series import first_seeds, series_of
from jaxspec.evals.html_report.svg import element, shown, ticks
from jaxspec.evals.intervals import mean_interval
from tests.evals.html_report.files import diffusion_rows, drafter_rows, write_results
from tests.evals.rows import result_row


class Reader(HTMLParser):
    """The texts of a page, by the tag that they stand in, and what it refers to."""

    VOID = ("meta", "input", "img", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("href", "src", "style")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


@pytest.fixture
def page(tmp_path):
    def make(*kinds, **options) -> str:
        files = [
            write_results(tmp_path / f"file{number}.json", rows)
            for number, rows in enumerate(kinds)
        ]
        return page_of(read_files(files, **options))

    return make


def cells(text: str) -> list[str]:
    return [content for tag, content in read(text).texts if tag == "td"]


def test_figures_of_drafters(page):
    text = page(drafter_rows())
    found = cells(text)
    assert "2.50 (2.30–2.75)" in found
    mean = next(cell for cell in found if cell.startswith("2.08 ("))  # (2.5 + 1.65) / 2
    low, high = map(float, re.findall(r"\d\.\d\d", mean)[1:])
    assert low <= 2.08 <= high
    assert {"+25.0%", "+10.0%", "+17.5%"} <= set(found)
    assert {"60% of 160", "50% of 96"} <= set(found)  # Acceptance with counts.
    assert "32 to 47" in found and "64 to 95" in found
    assert "12.5% (0.0–12.5%)" not in found and any(c.startswith("12.5% (") for c in found)
    facts = [content for tag, content in read(text).texts if tag in ("dd", "dt")]
    assert {"2.08", "+17.5%", "0.70x to 1.70x"} <= set(facts)
    assert "above 1 in 2 of 4 rows; the highest: full on gsm8k" in facts
    assert "Drafting does not pay in 2 of 4 rows: uniform on mbpp (0.70x); full on mbpp" in text
    # Speed-ups of 1.2 (1.0 to 1.4), 1.7 (1.5 to 1.9), 0.7 (0.5 to 0.9) and 0.85 (0.65 to 1.05).
    verdicts = ("yes (not certain)", "yes", "no", "no (not certain)")
    assert [cell for cell in found if cell in verdicts] == list(verdicts)
    assert "1.50" in found  # The tau from which drafting pays: 1.2 ms / 0.8 ms.


def test_the_target_alone_is_compared_with_no_one(page):
    """Its speed-up is noise, its outputs are its own, and it drafts nothing."""
    alone = result_row(
        "none", "gsm8k", drafter="none", verifier="none", speedup=1.9, mismatched_prompts=0,
        accept_at=[None], reached_at=[0], accept_at_intervals=[None],
    )  # fmt: skip
    without, text = page(drafter_rows()), page([*drafter_rows(), alone])
    for part in ("facts", "exactness", "speed"):
        found = [
            re.search(rf'<(dl|section)[^>]*(class|id)="[^"]*{part}.*?</\1>', each, re.DOTALL)
            for each in (without, text)
        ]
        assert None not in found, part
        assert "none" not in found[1].group(), part
    assert "above 1 in 2 of 4 rows" in text and "does not pay in 2 of 4 rows" in text


def test_only_numbers_are_sorted_as_numbers(page):
    """Targets are text, even where their names begin with a digit."""
    rows = [
        result_row(target=target, temperature=warm)
        for target, warm in (("4b-base", 0.0), ("12b-base", 0.7))
    ]
    text = page(rows)
    assert '<th scope="col">target</th>' in text and "<td>4b-base</td>" in text
    assert '<th scope="col" class="figure">temperature</th>' in text
    assert '<td class="figure" data-value="0.7">0.7</td>' in text


def test_turns_of_a_conversation_do_not_differ_independently(page):
    names = [f"{number}{turn}" for number in range(12) for turn in ("", "#2", "#3")]
    differ = [name for name in names if name.partition("#")[0] in ("0", "1", "2")]
    records = [{"prompt_id": name, "prompt_tokens": 9, "tokens": 8, "rounds": 4} for name in names]
    row = {"mismatched_prompts": len(differ), "turns": len(names), "by_prompt": records}
    known = result_row("full", "mt_bench", **row, mismatched_ids=differ)
    unknown = result_row("full", "mt_bench", **row)

    def interval(row):
        (low, high) = re.findall(r"25\.0% \((\d+\.\d)%?–(\d+\.\d)%", page([row]))[0]
        return float(low), float(high)

    # 9 of 36 independent outputs (Wilson: 13.8 to 41.1), or 3 of 12 conversations.
    low, high = interval(unknown)
    assert low > 10 and high < 43
    low, high = interval(known)
    assert low < 5 and high > 45


def test_figures_of_diffusion_decoders(page):
    plain, spiffy = diffusion_rows()
    text = page([plain, {**spiffy, "identical": 2}])
    assert "Fewer passes" in text and "Round by round" not in text
    assert "1.33x" in text and "spiffy, D 3" in cells(text)
    assert "0.50 of 57" in cells(text)
    facts = [content for tag, content in read(text).texts if tag in ("dd", "dt")]
    # The plain decoder's own outputs do not count.
    assert facts[-3:] == ["identical outputs", "2", "of 3, to the base decoder's"]
    assert "identical outputs" not in page([plain])


def test_both_kinds_and_several_files_share_a_page(page):
    text = page(drafter_rows(), drafter_rows()[:2], diffusion_rows())
    titles = [content for tag, content in read(text).texts if tag == "h2"]
    assert {"Drafters", "Diffusion language models"} <= set(titles)
    assert "full, file0.json" in cells(text) and "full, file1.json" in cells(text)
    assert titles.count("Results") == 2


def test_provenance_is_in_it(page):
    text = page(drafter_rows())
    found = read(text).texts
    assert ("pre", "python eval.py --config configs/quickstart.py --output results.json") in found
    assert ("td", "0123456789abcdef") in found and ("td", "gsm8k, mbpp") in found
    assert ("th", "evaluation.prompts") in found and ("th", "versions.jax") in found


def test_older_files_are_reported(page):
    """Without intervals, counts, lengths, traces and times."""
    rows = [
        result_row(loss, tau_ci95=None, speedup=None, mismatched_prompts=None)
        for loss in ("uniform", "full")
    ]
    text = page(rows)
    assert "The file does not say how long the text was in each round" in text
    assert "Nothing was timed" in text and "No answer was recorded" in text
    assert "2 of 2 rows are sampled" in text


def test_nothing_is_loaded(page):
    text = page(drafter_rows(), diffusion_rows())
    assert all(reference.startswith("#") for reference in read(text).references)
    assert not re.search(r"https?:|url\(|@import|//cdn", text)
    assert "default-src &#39;none&#39;" in text


def test_spaces_and_joiners_are_text():
    text = "1\u00a0000\u202f%\u3000\u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f52c\n\t"
    assert shown(text) == text
    assert shown("\x1b\u202e\u200b\u2028") == r"\x1b\u202e\u200b\u2028"


HOSTILE = "</script><script>alert(1)</script>\"'><b onclick=x>&amp;\x00\x1b[31m\u202e\ud800"


def hostile(value):
    """Every text of a nested value, replaced."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("rows", [drafter_rows(), diffusion_rows()], ids=["drafters", "diffusion"])
def test_every_text_of_a_file_is_escaped(rows, tmp_path):
    document = {"provenance": {"command": "x", "note": {HOSTILE: "y"}}, "results": rows}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(hostile(document)))
    write_page([file], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    reader = read(text)
    assert text.count("<script>") == text.count("</script>") == 1
    assert "<b " not in text and not set("\x00\x1b\u202e") & set(text)
    assert any("alert(1)" in content for _, content in reader.texts)


def test_names_and_styles_of_series(tmp_path):
    rows = [
        result_row(loss, temperature=warm) for warm in (0.0, 1.0) for loss in ("full", "uniform")
    ]
    (file,) = read_files([write_results(tmp_path / "r.json", rows)])
    styles = series_of(file.rows)
    assert set(styles) == {
        f"{loss}, temperature {warm}" for loss in ("uniform", "full") for warm in (0, 1)
    }
    assert (styles["uniform, temperature 0"], styles["full, temperature 0"]) == (0, 1)
    assert len(set(styles.values())) == 4


def of_seeds() -> list[dict]:
    taus = {("uniform", 0): 1.5, ("uniform", 1): 1.7, ("full", 0): 2.0, ("full", 1): 2.4}
    return [
        result_row(loss, benchmark, seed=seed, drafter=f"runs/{loss}{seed}", tau_micro=tau)
        for benchmark in ("gsm8k", "mbpp")
        for (loss, seed), tau in taus.items()
    ]


def test_several_seeds_are_not_represented_by_the_best(page, tmp_path):
    text = page(of_seeds())
    facts = [content for tag, content in read(text).texts if tag == "dd"]
    assert facts[:2] == ["2.20", "full, mean of 2 benchmarks and 2 drafters, 2.00 to 2.40"]
    assert "2.20 (2.00 to 2.40)" in cells(text)
    assert "Of several seeds, the plots show the first." in text
    (file,) = read_files([tmp_path / "file0.json"])
    assert list(series_of(file.rows)) == [
        *("uniform (seed 0)", "uniform (seed 1)", "full (seed 0)", "full (seed 1)")
    ]
    assert {row["series"] for row in first_seeds(file.rows)} == {
        "uniform (seed 0)",
        "full (seed 0)",
    }


def test_drafters_of_one_loss_and_seed_are_told_apart_by_name(tmp_path):
    rows = [result_row("full", seed=0, drafter=name) for name in ("runs/a", "runs/b")]
    (file,) = read_files([write_results(tmp_path / "r.json", rows)])
    assert [row["series"] for row in file.rows] == ["full (runs/a)", "full (runs/b)"]
    assert first_seeds(file.rows) == file.rows


@pytest.mark.parametrize(
    ("kinds", "best"),
    [(("dflash", "dflash"), "full (runs/a)"), (("dflash", "mdlm"), "full, kind dflash")],
    ids=["of one kind", "of two kinds"],
)
def test_different_drafters_of_a_loss_are_not_averaged(page, kinds, best):
    rows = [result_row(drafter="runs/uniform", kind="dflash", tau_micro=1.6)]
    for name, kind, tau in zip("ab", kinds, (2.0, 1.01), strict=True):
        rows.append(result_row("full", drafter=f"runs/{name}", kind=kind, tau_micro=tau))
    facts = [content for tag, content in read(page(rows)).texts if tag in ("dd", "dt")]
    tau = ["tokens per round (tau)", "2.00", f"{best}, gsm8k, 95% interval 1.80–2.25"]
    assert facts[:3] == tau
    assert facts[3:6] == ["gain in tau", "+25.0%", f"{best} over uniform"]


def test_seeds_are_averaged_within_a_kind(page):
    taus = {("dflash", 0): 2.0, ("dflash", 1): 2.2, ("mdlm", 0): 1.4, ("mdlm", 2): 1.2}
    rows = [
        result_row("full", drafter=f"runs/{kind}{seed}", kind=kind, seed=seed, tau_micro=tau)
        for (kind, seed), tau in taus.items()
    ]
    text = page(rows)
    facts = [content for tag, content in read(text).texts if tag == "dd"]
    assert facts[:2] == ["2.10", "full, kind dflash, gsm8k and 2 drafters, 2.00 to 2.20"]
    assert "full (seed 2), kind mdlm" in cells(text)


def test_decoding_settings_of_a_study_have_tables_and_gains_of_their_own(page):
    rows = [
        result_row(loss, decoding=decoding, tau_micro=tau)
        for decoding, loss, tau in (
            *(("block", "uniform", 2.0), ("block", "full", 2.5)),
            *(("tree", "uniform", 3.0), ("tree", "full", 3.3)),
        )
    ]
    text = page(rows)
    titles = [content for tag, content in read(text).texts if tag == "h3"]
    assert titles[:2] == ["file0.json, block", "file0.json, tree"]
    assert {"+25.0%", "+10.0%"} <= set(cells(text))
    assert {"full, block", "full, tree"} <= set(cells(text))
    assert text.count("command, commit, versions, devices, settings") == 1


def test_interval_of_a_mean(tmp_path):
    (file,) = read_files([write_results(tmp_path / "r.json", drafter_rows())])
    group = [row for row in file.rows if row["loss"] == "full"]
    low, high = mean_tau_interval(group)
    assert low < (2.5 + 1.65) / 2 + 0.1 and high > (2.5 + 1.65) / 2
    assert mean_tau_interval([{**group[0], "by_prompt": []}, group[1]]) is None
    assert mean_interval([([2] * 8, [1] * 8), ([4] * 8, [1] * 8)]) == (3.0, 3.0)
    assert mean_interval([([2] * 8, [1] * 8), ([4] * 5, [1] * 5)]) is None
    assert mean_interval([]) is None


def test_ticks():
    assert ticks(0.0, 2.3) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(3.0, 3.0) == [3.0]
    assert len(ticks(0.0, 1e308)) <= 6


def test_elements_are_escaped():
    assert element("text", "<b>", class_='"') == '<text class="&#34;">&lt;b&gt;</text>'
    assert shown("a\n\x07\u202eb") == "a\n\\x07\\u202eb"
