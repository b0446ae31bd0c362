"""What a run says while it trains."""

from __future__ import annotations

import io

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxspec.training import progress
from jaxspec.training.progress import FirstSteps, Reporter


def test_plain_lines_where_there_is_no_terminal(capsys):
    with Reporter(steps=10, first_step=4, title="demo") as reporter:
        with reporter.compiling():
            pass
        row = {"step": 6, "epoch": 1.5, "loss": 1.5, "accepted": 2.25, "tokens_per_s": 1234.0}
        reporter.update({**row, "validation_tau": 3.5}, seconds_per_step=0.25)
        reporter.update(
            {"step": 7, "epoch": 1.75, "loss": None, "tokens_per_s": 1.0, "validation_loss": 2.0},
            seconds_per_step=0.25,
        )
    compiling, first, second = capsys.readouterr().out.splitlines()
    assert compiling == "Compiling the step ..."
    assert first.startswith(
        "step 6/10  epoch 1.50  loss 1.500  simulated tau 3.25  validation tau 3.50  "
        "1,234 tokens/s  0.25 s/step  "
    )
    assert first.endswith(" s left") and " GiB  " in first
    assert second.startswith("step 7/10  epoch 1.75  loss nan  validation loss 2.000  1 tokens/s")


def test_other_processes_are_silent(capsys):
    options = {"first_step": 0, "title": "demo", "is_silent": True}
    with Reporter(steps=10, **options) as reporter, reporter.compiling():
        reporter.say("hello")
    assert capsys.readouterr().out == ""


@pytest.fixture
def terminal(monkeypatch):
    """The screen of a terminal with 80 columns."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=None, width=80)
    monkeypatch.setattr(progress, "Console", lambda **options: console)
    return stream


def test_titles_are_text(terminal):
    """A loss label holds names of a user's own terms."""
    title = "drafter (a\x1b[2J[red]b [/])\n"
    with Reporter(steps=10, first_step=0, title=title):
        pass
    assert r"drafter (a\x1b[2J[red]b [/])\n" in terminal.getvalue()


def test_the_bar_and_its_numbers_fit_into_80_columns(terminal):
    title, row = (
        "drafter (full)",
        {"step": 125_000, "epoch": 3.125, "loss": 12.345, "accepted": 2.25},
    )
    with Reporter(steps=1_000_000, first_step=0, title=title) as reporter:
        with reporter.compiling():
            assert "compiling the step" in terminal.getvalue()
        reporter.update({**row, "tokens_per_s": 123_456.0}, seconds_per_step=0.012)
        reporter.say("A line above the bar.")
    shown = terminal.getvalue()
    assert "A line above the bar." in shown
    assert "125000/1000000" in shown
    numbers = [line for line in shown.splitlines() if "tokens/s" in line]
    assert any(line.rstrip().endswith("GiB") for line in numbers), "not cut"


def test_the_first_steps_say_how_long_the_rest_takes():
    said = []
    first = FirstSteps(left=1000, say=said.append)
    for _ in range(20):
        first.after(jnp.ones(()))
    (line,) = said
    assert line.startswith("About 0 seconds for the other 994 steps at the speed of the first 5")
    short = FirstSteps(left=20, say=said.append)
    for _ in range(20):
        short.after(jnp.ones(()))
    assert len(said) == 1, "a short run is over before an estimate is of use"
