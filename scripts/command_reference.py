"""The command reference as Markdown: what ``--help`` and ``--help-all`` of each command print.

    python scripts/command_reference.py > commands.md

The documentation site is made with it (scripts/docs_pages.py), so it is never out of date.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

WIDTH = "80"
_INTRODUCTION = """\
# Commands

This page shows what each command prints with `--help`, and with `--help-all` where there are
more settings. `python train.py` and `python eval.py` are `jaxspec train` and `jaxspec eval`. What
the exit statuses mean is in [Runs](runs.md#exit-statuses).
"""


def command_reference() -> str:
    """The page, with one section for each command."""
    from jaxspec.cli.main import COMMANDS, usage

    parts = [_INTRODUCTION, _fenced(usage())]
    for name, (_, summary) in sorted(COMMANDS.items()):
        short = printed(name, "--help")
        parts.append(f"## jaxspec {name}\n\n{summary}\n\n{_fenced(short)}")
        if "--help-all" in short:
            everything = _fenced(printed(name, "--help-all"))
            parts.append(f"### All settings of jaxspec {name}\n\n{everything}")
    return "\n\n".join(parts) + "\n"


def printed(name: str, option: str) -> str:
    """What a command prints with an option that ends it.

    Args:
      name: of the command, as in ``jaxspec NAME``.
      option: "--help" or "--help-all".

    Raises:
      RuntimeError: the command did not end with status 0.
    """
    from jaxspec.cli.main import dispatch

    output = io.StringIO()
    with contextlib.redirect_stdout(output), _plain_terminal():
        try:
            dispatch([name, option])
        except SystemExit as end:
            if end.code not in (0, None):
                raise RuntimeError(f"jaxspec {name} {option} ended with {end.code}.") from end
    return output.getvalue()


@contextlib.contextmanager
def _plain_terminal() -> Iterator[None]:
    """Help without colours, and as wide on every machine."""
    wanted = {"COLUMNS": WIDTH, "NO_COLOR": "1", "TERM": "dumb"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fenced(text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    return f"```text\n{lines}\n```"


if __name__ == "__main__":
    print(command_reference(), end="")
