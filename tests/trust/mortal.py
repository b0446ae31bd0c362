"""A command that dies, or stops, at a chosen write.

    python -m tests.trust.mortal SIGKILL 7 regenerate --target.path ...

Every write of the command is counted: answers that are kept, and files that are forced to disk,
renamed or removed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from jaxspec.data.answer_journal import AnswerJournal

WRITES: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (Path, "replace"),
    (Path, "unlink"),
    (AnswerJournal, "add"),
)


@contextlib.contextmanager
def watched(before: Callable[[], None]) -> Iterator[None]:
    """Calls `before` just before every write."""

    def ahead(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            before()
            return write(*arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in WRITES:
            stack.enter_context(mock.patch.object(owner, name, ahead(getattr(owner, name))))
        yield


def main(argv: list[str]) -> int:
    """Runs a command, and sends itself a signal just before one write."""
    from jaxspec.cli import main as console
    from jaxspec.cli.configuration import run_as_command

    number, last, count = getattr(signal, argv[0]), int(argv[1]), 0

    def before() -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), number)

    with watched(before):
        return run_as_command(console.dispatch, argv[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
