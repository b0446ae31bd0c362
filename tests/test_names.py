"""The closest name, and names as each medium shows them."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from jaxspec.names import LONGEST, did_you_mean, for_markdown, for_plot, for_terminal, visible

NAMES = {
    "bars": "a|b",
    "marks": "`a` *b* _c_ ~~d~~ [e](f) <g> # h",
    "escape": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "lines": "a\r\nb\u2028c\x85",
    "direction": "a\u202egnp.exe\u2066",
    "hidden": "a\u200bb\ufeff\x00",
    "markup": "[red]a[/red] [/]",
    "formula": "$x_1^2$ $",
    "backslash": "a\\",
    "surrogate": "a\udcffb",
}


def test_the_closest_name_is_offered():
    assert did_you_mean("tokn", ["greedy", "token"]) == " Did you mean 'token'?"
    assert did_you_mean("xyz", ["greedy", "token"]) == ""


def test_plain_names_stay_as_they_are():
    for name in ("embedded/math", "focal+chain", "runs/a-b (seed 0)", "größe", "模型"):
        assert visible(name) == for_terminal(name) == for_markdown(name) == for_plot(name) == name


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_nothing_controls_a_terminal(name):
    shown = for_terminal(name)
    assert shown.isprintable() and shown.encode("utf-8")
    assert visible(shown) == shown, "it may be done twice"
    console = Console(width=200, color_system="truecolor", force_terminal=True)
    with console.capture() as capture:
        console.print(Text(shown), soft_wrap=True)
    assert capture.get() == f"{shown}\n"


def test_control_characters_are_written_out():
    assert for_terminal("\x1b[31m\n\u202e\udcff") == r"\x1b[31m\n\u202e\udcff"


def test_long_names_keep_their_ends():
    long = "a" * 50 + "b" * 50
    for show, length in ((for_terminal, LONGEST), (for_markdown, LONGEST), (for_plot, 48)):
        shown = show(long)
        assert len(shown) == length and shown.startswith("aaa") and shown.endswith("bbb")
        assert "…" in shown
    assert for_terminal("a" * LONGEST) == "a" * LONGEST
    assert len(for_terminal("\x1b" * 1000)) == LONGEST


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names_are_text_in_markdown(name):
    """Every mark has an odd number of backslashes before it, and none is left over at the end."""
    shown, escaped = for_markdown(name), False
    text = ""
    for char in shown:
        if escaped or char != "\\":
            assert escaped or char not in "`*_{}[]<>#|~&$"
            text, escaped = text + char, False
        else:
            escaped = True
    assert not escaped
    assert text == for_terminal(name), "what a reader sees"


@pytest.mark.parametrize("name", [*NAMES.values(), "_hidden"])
def test_names_are_text_in_plots(name):
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], label=for_plot(name))
    legend = axes.legend()
    assert len(legend.get_texts()) == 1
    axes.set_title(for_plot(name))
    shown, math = axes.title._preprocess_math(axes.title.get_text())
    assert shown.strip() == for_terminal(name) and math is not True
    figure.draw_without_rendering()
