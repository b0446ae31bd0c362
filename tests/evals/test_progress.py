"""How far, how fast, how long still."""

from __future__ import annotations

import io

from rich.console import Console

from jaxspec.evals import progress
from jaxspec.evals.progress import Pace, progress_of


def test_without_a_terminal_one_line_says_what_begins():
    lines = []
    with progress_of("gsm8k: plain", 3, lines.append) as advance:
        advance(2)
    assert lines == ["gsm8k: plain: 3 prompts"]


def test_long_work_gets_a_line_a_minute(monkeypatch):
    now, lines = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_of("gsm8k: plain", 5, lines.append, announced=False) as advance:
        for seconds in (50, 50, 50, 50, 50):
            now[0] += seconds
            advance(1)
    assert lines == [
        "gsm8k: plain: 2 of 5 prompts, about 2 minutes left",
        "gsm8k: plain: 4 of 5 prompts, about 50 seconds left",
    ]


def test_titles_are_text(monkeypatch):
    title, lines = "a\x1b[2J[red]b[/red] [/]\n", []
    with progress_of(title, 3, lines.append):
        pass
    assert lines == [r"a\x1b[2J[red]b[/red] [/]\n: 3 prompts"]
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=None, width=120)
    monkeypatch.setattr(progress, "Console", lambda: console)
    with progress_of(title, 3, lines.append) as advance:
        advance(3)
    assert r"a\x1b[2J[red]b[/red] [/]\n" in stream.getvalue()


def test_the_pace_of_long_work(monkeypatch):
    now, lines = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = Pace(10, first=2, unit="questions", echo=lines.append, every=5.0)
    now[0] += 4
    pace.prompts(1)
    assert lines == [], "not yet"
    now[0] += 4
    pace.prompts(1)
    assert lines == ["2/10 questions (+2 asked)  24 s left"]
    pace.tokens(1600)
    pace.finished(2)
    assert lines[1] == "4/10 questions  200 tokens/s  24 s left"
    now[0] += 800
    pace.finished(1)
    assert lines[2] == "5/10 questions  2 tokens/s  22 min left"
