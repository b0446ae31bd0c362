from __future__ import annotations

import dataclasses

import pytest
from matplotlib.figure import Figure

from jaxspec.evals.plots import plot_conditional_acceptance
from jaxspec.study.curves import Curve, plot_curves
from jaxspec.study.declaration import StudyLoss
from jaxspec.study.plots import plot_gains, plot_positions, pooled
from jaxspec.study.results import MOST_LINES, _devices, lines_shown
from jaxspec.study.summary import summary
from tests.evals.rows import result_row
from tests.study.tiny import STUDY


def test_of_many_losses_plots_with_lines_show_those_with_most_seeds():
    few = tuple(StudyLoss(f"few{number}", seeds=(0,)) for number in range(MOST_LINES))
    assert lines_shown(STUDY) == ["uniform", "full"]
    assert lines_shown(dataclasses.replace(STUDY, losses=(*STUDY.losses, *few))) == [
        *("uniform", "full")
    ]
    assert len(lines_shown(dataclasses.replace(STUDY, losses=few))) == MOST_LINES


def test_plots_are_written_for_rows_with_and_without_intervals(tmp_path):
    """Two seeds are drawn as one line, with the slots of both; too few prompts give no interval."""
    rows = [
        result_row(loss, seed=seed, decoding="block", reached_at=[60, 40, 0], tau_micro=tau)
        for loss, tau in (("uniform", 2.0), ("full", 2.5))
        for seed in (0, 1)
    ]
    positions = plot_positions(rows, tmp_path / "positions.png")
    gains = plot_gains(
        summary(rows, base="uniform"), tmp_path / "gains.png", base="uniform", title="a"
    )
    for file in (positions, gains):
        assert file.read_bytes()[:4] == b"\x89PNG"


LOSSES = ("decay", "uniform", *map(str, range(9)), "full", *map(str, range(9, 18)))


def _gains(path):
    rows = [
        result_row(loss, seed=0, decoding="block", tau_micro=2.0 + place)
        for place, loss in enumerate(LOSSES)
    ]
    plot_gains(summary(rows, base="uniform"), path, base="uniform", title="a")


def _curves(path):
    values = {"accepted": (1.0, 2.0), "loss": (2.0, 1.0)}
    plot_curves([Curve(loss, (1, 2), values) for loss in LOSSES], path)


def _acceptance(path):
    plot_conditional_acceptance([result_row(loss) for loss in LOSSES], path)


@pytest.mark.parametrize("plot", [_gains, _curves, _acceptance])
def test_no_two_of_many_series_look_alike(plot, tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    plot(tmp_path / "a.png")
    (axes,) = figures[0].axes
    looks = {
        line.get_label(): (line.get_color(), line.get_marker(), line.get_linestyle())
        for line in axes.get_lines()
    }
    named = {look for name, look in looks.items() if not name.startswith("_")}
    assert len(named) == len(LOSSES) - (plot is _gains), "the base has no gain"


def test_devices_are_those_that_the_rows_were_measured_on():
    chip, cpu = {"platform": "tpu", "count": 4}, {"platform": "cpu", "count": 1}
    assert _devices([{"devices": chip}, {"devices": chip}]) == chip
    assert _devices([{"devices": chip}, {"devices": cpu}]) is None
    assert _devices([{}]) is None, "older units"


def test_the_slots_of_several_seeds_are_taken_together():
    """By hand: 30 of 60 and 10 of 20 rounds, then 6 of 30; nobody reached the last slot."""
    first = result_row(accept_at=[0.5, 0.2, None], reached_at=[60, 30, 0], rounds=60)
    second = result_row(accept_at=[0.5, None, None], reached_at=[20, 0, 0], rounds=20)
    row = pooled([first, second])
    assert row["accept_at"] == [0.5, 0.2, None]
    assert row["reached_at"] == [80, 30, 0]
    assert row["rounds"] == 80
    assert pooled([first])["accept_at"] == first["accept_at"]


def test_seeds_may_have_drafted_blocks_of_their_own_size():
    """As with `evaluation.strategy` "auto". By hand: 30 of 60 and 5 of 20 rounds, then 6 of 30."""
    long = result_row(accept_at=[0.5, 0.2], reached_at=[60, 30], rounds=60)
    short = result_row(accept_at=[0.25], reached_at=[20], rounds=20)
    off = result_row(accept_at=[], reached_at=[], rounds=9)
    for rows in ([long, short, off], [off, short, long]):
        row = pooled(rows)
        assert (row["accept_at"], row["reached_at"]) == ([35 / 80, 0.2], [80, 30])
        assert row["accept_at_intervals"] == [None, None]
