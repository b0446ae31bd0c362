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
    assert [label.get_text() for label in axes.get_xticklabels()] == ["gsm8k", "mbpp"]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["2.00", "2.00", "2.50\n+25%", "2.50\n+25%"]
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["uniform", "full"]


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
        x, y = panel.lines[0].get_data()
        assert list(x) == [1, 2, 3]
        assert list(y[:2]) == [0.6, 0.5]
        assert math.isnan(y[2])


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
