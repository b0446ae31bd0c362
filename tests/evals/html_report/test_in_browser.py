"""The page in a real browser: it fits, it is readable, tables sort, and rounds are stepped through.

JAXSPEC_PICTURES=FOLDER keeps the pictures of the page at both widths, light and dark.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jaxspec.evals.html_report.page import write_page
from tests.browser import MISSING, Browser, find_chromium
from tests.evals.html_report.files import diffusion_rows, drafter_rows, write_results

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)

LOOKS = [(width, dark) for width in (400, 1400) for dark in (False, True)]

CONTRASTS = """
(() => {
  const parsed = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parsed(colour).slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parsed(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return getComputedStyle(each).backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${element.className} ${element.textContent.slice(0, 20)} ${ratio}`);
  }
  return poor;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser.start(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    files = [
        write_results(folder / "drafters.json", drafter_rows()),
        write_results(folder / "diffusion.json", diffusion_rows()),
    ]
    write_page(files, folder / "page.html")
    return folder / "page.html"


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_it_fits_and_can_be_read(browser, file, width, dark):
    page = browser.open(file, width=width, dark=dark)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    back = page.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) < 200) is dark
    page.value("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value(CONTRASTS) == []
    # Wide tables scroll in their own boxes.
    assert page.value(
        "[...document.querySelectorAll('.scroll')]"
        ".every((box) => box.getBoundingClientRect().right <= innerWidth)"
    )
    assert page.complaints() == []
    if folder := os.environ.get("JAXSPEC_PICTURES"):
        name = f"page_{width}_{'dark' if dark else 'light'}.png"
        page.picture(Path(folder) / name, whole=True)


def test_tables_sort_by_click_and_by_keyboard(browser, file):
    page = browser.open(file, width=1400)
    table = "document.querySelector('#drafters-results table')"
    heads = page.value(f"[...{table}.tHead.rows[0].cells].map((c) => c.textContent)")
    tau = heads.index("tau (95%)")
    head = f"{table}.tHead.rows[0].cells[{tau}]"
    column = f"[...{table}.tBodies[0].rows].map((r) => parseFloat(r.cells[{tau}].textContent))"
    sort = f"{head}.getAttribute('aria-sort')"
    before = page.value(column)
    assert before == [2.0, 2.5, 1.5, 1.65] and page.value(sort) is None

    page.value(f"{head}.querySelector('button').click()")
    assert page.value(column) == sorted(before, reverse=True)
    assert page.value(sort) == "descending"
    page.value(f"{head}.querySelector('button').focus()")
    page.press("Enter")
    assert page.value(column) == sorted(before)
    assert page.value(sort) == "ascending"
    # The means stay below.
    assert page.value(f"{table}.tFoot.rows[0].cells[0].textContent") == "mean"

    name = f"{table}.tHead.rows[0].cells[1]"
    page.value(f"{name}.querySelector('button').click()")
    assert page.value(sort) is None and page.value(f"{name}.getAttribute('aria-sort')")
    losses = page.value(f"[...{table}.tBodies[0].rows].map((r) => r.cells[1].textContent)")
    assert losses == ["full", "full", "uniform", "uniform"]
    assert page.complaints() == []


def test_what_has_the_focus_is_marked(browser, file):
    page = browser.open(file, width=1400)
    marked = []
    for _ in range(40):
        page.press("Tab")
        marked.append(
            page.value(
                "(() => { const style = getComputedStyle(document.activeElement);"
                " return [document.activeElement.tagName, style.outlineStyle,"
                " parseFloat(style.outlineWidth)]; })()"
            )
        )
    assert {name for name, _, _ in marked} >= {"A", "BUTTON", "DIV", "SUMMARY"}
    assert all(style == "solid" and width >= 3 for _, style, width in marked)


def test_cells_without_a_figure_come_last(browser, file):
    page = browser.open(file, width=1400)
    table = "document.querySelector('#drafters-results table')"
    gain = page.value(
        f"[...{table}.tHead.rows[0].cells].findIndex((c) => c.textContent === 'gain')"
    )
    button = f"{table}.tHead.rows[0].cells[{gain}].querySelector('button')"
    for _ in range(2):
        page.value(f"{button}.click()")
        column = page.value(f"[...{table}.tBodies[0].rows].map((r) => r.cells[{gain}].textContent)")
        assert column[2:] == ["–", "–"]


def test_rounds_are_stepped_through_by_keyboard_and_buttons(browser, file):
    page = browser.open(file, width=1400)
    trace = "document.querySelector('.trace')"

    def shown() -> tuple[str, str]:
        answer = page.value(f"{trace}.querySelector('.answer').innerText")
        return page.value(f"{trace}.querySelector('[data-shows=round]').textContent"), answer

    assert shown()[0] == "3 of 3"
    page.value(f"{trace}.querySelector('.answer').focus()")
    page.press("Home")
    assert shown() == ("prefill", "There")
    page.press("ArrowLeft")
    assert shown()[0] == "prefill"
    page.press("ArrowRight")
    assert shown() == ("1 of 3", "There are␣two␣apples four")
    numbers = {
        name: page.value(f"{trace}.querySelector('[data-shows={name}]').textContent")
        for name in ("drafted", "accepted", "added", "total", "tau")
    }
    assert list(numbers.values()) == ["3", "1", "2", "2", "2.00"]
    # Rejected drafts are shown in their round only.
    page.press("ArrowRight")
    assert shown()[0] == "2 of 3" and "two" not in shown()[1]
    page.press("End")
    assert shown()[0] == "3 of 3"

    button = "{}.querySelector('[data-to={}]')"
    page.value(button.format(trace, "first") + ".focus()")
    page.press("Enter")
    assert shown()[0] == "prefill"
    assert page.value(button.format(trace, "first") + ".ariaDisabled") == "true"
    page.press("ArrowRight")  # The button keeps the focus.
    assert shown()[0] == "1 of 3"
    page.value(button.format(trace, "next") + ".click()")
    assert shown()[0] == "2 of 3"
    page.value(f"{trace}.querySelector('input').focus()")
    page.press("ArrowLeft")
    assert shown()[0] == "1 of 3"
    assert page.value(f"{trace}.querySelector('input').value") == "1"
    assert page.complaints() == []


def test_one_answer_is_shown_at_a_time(browser, file):
    page = browser.open(file, width=400)
    visible = "[...document.querySelectorAll('.trace')].map((each) => !each.hidden)"
    assert page.value(visible) == [True, False, False, False]
    page.value(
        "(() => { const choice = document.querySelector('select'); choice.value = '2';"
        "choice.dispatchEvent(new Event('change')); })()"
    )
    assert page.value(visible) == [False, False, True, False]
    # What is told apart by colour is told apart without it, too.
    marks = page.value(
        "['accepted', 'bonus', 'judged', 'rejected'].map((kind) => {"
        " const style = getComputedStyle(document.querySelector('.tokens .' + kind));"
        " return style.textDecorationLine + style.textDecorationStyle + style.fontWeight; })"
    )
    assert len(set(marks)) == 4


def test_what_a_file_holds_does_not_become_markup(browser, tmp_path):
    """A script in any text of a file would change the title."""
    script = "<script>document.title='bad'</script><img src=x onerror=\"document.title='bad'\">"
    rows = drafter_rows()
    for row in rows:
        row.update(benchmark=script, drafter=script, loss=f"</style></svg>{script}", target=script)
        row["trace"] = {
            **row["trace"],
            "prompt": script,
            "first": f'"><svg onload="document.title=1">{script}',
            "rounds": [
                {"drafted": 1, "accepted": [], "bonus": [script], "rejected": [f"</p>{script}"]}
            ],
        }
    results = write_results(tmp_path / "results.json", rows)
    write_page([results], tmp_path / "page.html")
    page = browser.open(tmp_path / "page.html", width=1400)
    assert page.value("document.title") == f"{script}: measured by jaxspec"
    assert page.value("document.scripts.length") == 1
    assert page.value("document.images.length") == 0
    assert script in page.value("document.querySelector('.answer').textContent")
    assert page.complaints() == []
