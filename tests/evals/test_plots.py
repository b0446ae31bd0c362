from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure

from jaxspec.decoding.diffusion.draft_graph import DraftGraph, from_formulas
from jaxspec.evals.plots import (
    plot_accepted_length,
    plot_conditional_acceptance,
    plot_draft_graph,
)
from tests.evals.rows import result_row

PNG = b"\x89PNG\r\n\x1a\n"
ROWS = [
    result_row(loss, benchmark, tau_micro=tau, tau_ci95=[tau - 0.2, tau + 0.3])
    for benchmark in ("gsm8k", "mbpp")
    for loss, tau in (("full", 2.5), ("uniform", 2.0))
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, instead of pixels."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


@pytest.mark.parametrize("plot", [plot_accepted_length, plot_conditional_acceptance])
def test_plots_are_png_files_and_repeat(plot, tmp_path):
    first = plot(ROWS, tmp_path / "new" / "a.png")
    second = plot(list(reversed(ROWS)), tmp_path / "b.png")
    assert first.read_bytes().startswith(PNG)
    assert len(first.read_bytes()) > 5_000
    assert second.read_bytes().startswith(PNG)
    assert plot(ROWS, tmp_path / "c.png").read_bytes() == first.read_bytes()


@pytest.mark.parametrize("plot", [plot_accepted_length, plot_conditional_acceptance])
def test_nothing_to_plot_is_refused(plot, tmp_path):
    with pytest.raises(ValueError, match="no result rows"):
        plot([], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_no_two_of_many_losses_have_the_same_bars(drawn, tmp_path):
    losses = [f"loss{number}" for number in range(20)]
    plot_accepted_length([result_row(loss) for loss in losses], tmp_path / "a.png")
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in drawn[0].axes[0].patches}
    assert len(looks) == len(losses)


def test_bars_show_tau_and_its_interval(drawn, tmp_path):
    plot_accepted_length(ROWS, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, 2.0, 2.5, 2.5]
    whiskers = [
        segment[:, 1].tolist()
        for collection in axes.collections
        for segment in collection.get_segments()
    ]
    assert whiskers == [pytest.approx([tau - 0.2, tau + 0.3]) for tau in (2.0, 2.0, 2.5, 2.5)]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "gsm8k\n40 prompts",
        "mbpp\n40 prompts",
    ]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["2.00", "2.00", "2.50\n+25%", "2.50\n+25%"]
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["uniform", "full"]


def test_bars_of_few_prompts_have_no_whiskers(drawn, tmp_path):
    rows = [result_row("full", prompts=1, tau_ci95=None), result_row(prompts=3)]
    plot_accepted_length(rows, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    (whisker,) = (
        segment[:, 1].tolist()
        for collection in axes.collections
        for segment in collection.get_segments()
        if len(segment)
    )
    assert whisker == pytest.approx([1.8, 2.25]), "one of the two bars has them"
    assert [text.xy[1] for text in axes.texts] == [2.25, 2.0], "figures are above their bars"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["gsm8k\n1 to 3 prompts"]
    (legend,) = drawn[0].legends
    assert "at least 6" in legend.get_title().get_text()


def test_bars_of_a_loss_missing_on_one_benchmark(drawn, tmp_path):
    plot_accepted_length(ROWS[:3], tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, 2.5, 2.5]


def test_lines_show_acceptance_and_a_gap_where_it_is_unknown(drawn, tmp_path):
    plot_conditional_acceptance(ROWS, tmp_path / "a.png")
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [panel.get_title(loc="left") for panel in panels] == ["gsm8k", "mbpp"]
    for panel in panels:
        assert [line.get_label() for line in panel.lines] == ["uniform", "full"]
        assert not panel.collections and not panel.texts, "older rows have no whiskers"
        for line, shift in zip(panel.lines, (-0.04, 0.04), strict=True):
            x, y = line.get_data()
            assert list(x) == pytest.approx([1 + shift, 2 + shift, 3 + shift])
            assert list(y[:2]) == [0.6, 0.5]
            assert math.isnan(y[2])


def heights(axes):
    return [None if math.isnan(y) else y for y in axes.lines[0].get_ydata()]


def test_slots_that_few_rounds_reached_are_left_out(drawn, tmp_path):
    row = result_row(
        accept_at=[0.6, 0.5, 1.0, None],
        reached_at=[100, 30, 29, 0],
        accept_at_intervals=[[0.5, 0.7], None, [0.9, 1.0], None],
    )
    plot_conditional_acceptance([row], tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert heights(axes) == [0.6, 0.5, None, None]
    (whiskers,) = axes.collections
    assert [segment.tolist() for segment in whiskers.get_segments()] == [[[1, 0.5], [1, 0.7]]]
    assert axes.get_xlim() == (0.5, 4.5), "what is left out has its place"
    said = drawn[0].get_supxlabel()
    assert "slots reached by fewer than 30 rounds are left out" in said and "95%" in said


def test_a_plot_says_that_no_slot_was_reached_often_enough(drawn, tmp_path):
    few = result_row(reached_at=[29, 17, 0], accept_at_intervals=[[0.1, 0.9], None, None])
    plot_conditional_acceptance([few, result_row(benchmark="mbpp")], tmp_path / "a.png")
    first, second = drawn[0].axes
    assert heights(first) == [None] * 3 and not first.collections
    (said,) = first.texts
    assert said.get_text() == "no slot was reached\nby at least 30 rounds"
    assert heights(second) == [0.6, 0.5, None] and not second.texts
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["uniform"]


def test_rounds_of_older_rows_follow_from_the_slots_before(drawn, tmp_path):
    """100 rounds: 60 look at the second slot, 30 at the third, 15 at the fourth."""
    plot_conditional_acceptance([result_row(accept_at=[0.6, 0.5, 0.5, 0.9])], tmp_path / "a.png")
    assert heights(drawn[0].axes[0]) == [0.6, 0.5, 0.5, None]
    plot_conditional_acceptance([result_row(rounds=29)], tmp_path / "a.png")
    assert heights(drawn[1].axes[0]) == [None] * 3


@pytest.mark.parametrize("plot", [plot_accepted_length, plot_conditional_acceptance])
def test_names_are_text(plot, tmp_path, drawn):
    """No formulas, no control characters; a name that begins with "_" is in the legend."""
    names = ["_a", "$x^$", "b\x1b[31m\n", "\\frac{"]
    rows = [result_row(name, f"{name}$") for name in names]
    plot(rows, tmp_path / "a.png")
    (legend,) = drawn[0].legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert sorted(shown) == sorted([" _a", r"\$x^\$", r"b\x1b[31m\n", "\\frac{"])
    drawn[0].draw_without_rendering()


def test_panels_that_are_not_needed_are_hidden(drawn, tmp_path):
    rows = [result_row(benchmark=name) for name in "abcd"]
    plot_conditional_acceptance(rows, tmp_path / "a.png")
    assert [axes.get_visible() for axes in drawn[0].axes] == [True] * 4 + [False] * 2


def test_drafters_of_one_loss_are_shades(drawn, tmp_path):
    rows = [result_row("full", drafter=name) for name in ("a", "b")]
    plot_accepted_length(rows, tmp_path / "a.png")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["full (a)", "full (b)"]
    first, second = (bar.get_facecolor() for bar in drawn[0].axes[0].patches)
    assert sum(second[:3]) > sum(first[:3])


@pytest.mark.parametrize("plot", [plot_accepted_length, plot_conditional_acceptance])
def test_rows_of_one_loss_that_differ_in_a_setting_are_drawn_apart(plot, drawn, tmp_path):
    rows = [
        result_row("full", "a", drafter="x", block_size=4),
        result_row("full", "a", drafter="y", block_size=8),
        result_row("ngram", "a", block_size=6),
        result_row("full", "b", drafter="x", block_size=4, temperature=1.0),
    ]
    for members, names in (
        (rows[:3], ["full, block size 4", "full, block size 8", "ngram"]),
        (
            rows[1:],
            ["full, temperature 0, block size 8", "full, temperature 1, block size 4", "ngram"],
        ),
    ):
        plot(members, tmp_path / "a.png")
        (legend,) = drawn[-1].legends
        assert sorted(text.get_text() for text in legend.get_texts()) == names
    plot_accepted_length(rows[:3], tmp_path / "a.png")
    (axes,) = drawn[-1].axes
    assert len({bar.get_x() for bar in axes.patches}) == 3
    assert len({bar.get_facecolor() for bar in axes.patches}) == 3


def test_a_draft_graph_is_drawn(drawn, tmp_path):
    graph = from_formulas([[(0, 0)], [(1, 0)], [(0, 0), (1, 0)]])
    plot_draft_graph(graph, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert sorted(text.get_text() for text in axes.texts) == ["0,0", "0,0  1,0", "1,0", "now"]
    assert len(axes.lines) == 4, "an edge for each parent, the present state among them"
    assert [line.get_xdata()[1] for line in axes.lines] == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="no nodes"):
        plot_draft_graph(DraftGraph(), tmp_path / "b.png")


def test_the_picture_of_a_graph_repeats(tmp_path):
    graph = from_formulas([[(0, 0)], [(0, 1)]])
    first = plot_draft_graph(graph, tmp_path / "a.png").read_bytes()
    assert first.startswith(PNG)
    assert plot_draft_graph(graph, tmp_path / "b.png").read_bytes() == first
