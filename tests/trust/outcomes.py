"""The outcomes of everything that was tried: counted, printed and judged.

A case is *clean* if it did what it should: it worked, or was refused in one message. Every other
outcome has a name, and none of them may occur:

- traceback: an exception that is not a message for the user, or a process that a signal ended;
- hang: no end within the time limit;
- silent: something wrong that no message reported;
- lost: finished work that is gone.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
BAD = ("traceback", "hang", "silent", "lost")
PATIENCE_SECONDS = 300


@dataclasses.dataclass
class Outcomes:
    """The outcomes of one group of cases."""

    name: str
    clean: int = 0
    bad: dict[str, list[str]] = dataclasses.field(default_factory=lambda: {k: [] for k in BAD})

    def add(self, outcome: str, case: str) -> None:
        """Counts one case; `outcome` is "clean" or one of `BAD`."""
        if outcome == "clean":
            self.clean += 1
        else:
            self.bad[outcome].append(case)

    def attempt(self, case: str, function: Callable[[], Any]) -> Any:
        """Calls `function`; counts a refusal (ValueError) as clean, other errors as tracebacks.

        Returns:
          What it returned (which is not counted yet), or None if it raised.
        """
        try:
            return function()
        except ValueError as error:
            self.add("clean" if is_one_message(f"error: {error}") else "traceback", case)
        except Exception:
            self.add("traceback", f"{case}: {traceback.format_exc(limit=-3)}")
        return None

    def summary(self) -> str:
        """One line: tried, clean and the four bad outcomes."""
        tried = self.clean + sum(map(len, self.bad.values()))
        counts = ", ".join(f"{len(self.bad[kind])} {kind}" for kind in BAD)
        return f"{self.name}: {tried} tried, {self.clean} clean, {counts}"

    def check(self) -> None:
        """Prints the counts; fails unless every case was clean."""
        print(self.summary())
        wrong = [f"{kind}: {case}" for kind in BAD for case in self.bad[kind]]
        assert not wrong, "\n".join([self.summary(), *wrong])
        assert self.clean, f"{self.name}: nothing was tried"


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int | None
    """Exit status, negative for a signal; None if it was killed after the time limit."""
    out: str
    err: str

    @property
    def outcome(self) -> str:
        """ "clean", "traceback" or "hang", by the status and what was printed."""
        if self.status is None:
            return "hang"
        if "Traceback (most recent call last)" in self.err or self.status < 0:
            return "traceback"
        if self.status == 2 and not is_one_message(self.err):
            return "traceback"
        return "clean" if self.status in (0, 2, 75, 130) else "traceback"


def is_tried(door: int, kind: int, *, doors: int) -> bool:
    """Whether a kind of mistake is tried at this door, if not all pairs are (--slow).

    Two doors for each kind, in turn, so that every door and every kind is met: doors share the code
    that reads.
    """
    return (door - kind) % doors < 2


def is_one_message(err: str) -> bool:
    """Whether a refusal is a message, and no longer than a screen."""
    lines = err.strip().splitlines()
    return bool(lines) and len(lines) <= 60 and len(err) <= 20_000


def run(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Ended:
    """Runs ``python ARGUMENTS`` in the repository's root until it ends."""
    command = [sys.executable, *arguments]
    settings = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=patience
        )
    except subprocess.TimeoutExpired as error:
        out, err = (
            stream.decode(errors="replace") if isinstance(stream, bytes) else stream or ""
            for stream in (error.stdout, error.stderr)
        )
        return Ended(None, out, err)
    return Ended(done.returncode, done.stdout, done.stderr)
