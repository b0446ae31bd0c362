"""``jaxspec configs``: lists the configurations that come with jaxspec, or copies one.

jaxspec configs
jaxspec configs --copy quickstart            # writes quickstart.py here
jaxspec train --config quickstart.py --workdir runs/mine
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxspec.cli.shipped_configs import shipped, summary
from jaxspec.files import user_path, write_text
from jaxspec.names import did_you_mean


def main(argv: Sequence[str]) -> None:
    """Lists or copies.

    Raises:
      ValueError: no configuration of that name, or a file that is there already.
    """
    parser = argparse.ArgumentParser(
        prog="jaxspec configs",
        description="List the configurations that come with jaxspec, or copy one to change it. "
        "--config of every command takes their names: --config quickstart.",
    )
    parser.add_argument("--copy", metavar="NAME", help="copy this configuration")
    parser.add_argument(
        "--output", metavar="FILE", help="where to write the copy; by default NAME.py, here"
    )
    options = parser.parse_args(argv)
    if options.copy is None:
        if options.output is not None:
            raise ValueError("--output names the file for a copy: give --copy NAME as well.")
        _list()
    else:
        _copy(options.copy, options.output)


def _list() -> None:
    table = Table("name", "what it does", box=None, pad_edge=False)
    for name, file in shipped().items():
        table.add_row(name, escape(summary(file)))
    Console().print(table)
    print("\nUse one: --config NAME. Change one: jaxspec configs --copy NAME.")


def _copy(name: str, output: str | None) -> None:
    name = name.removesuffix(".py")
    found = shipped()
    if name not in found:
        raise ValueError(
            f"There is no configuration {name!r}.{did_you_mean(name, found)} There are: "
            f"{', '.join(found)}."
        )
    target = user_path(output) if output else Path(f"{name}.py")
    if target.is_dir():
        target /= f"{name}.py"
    if target.exists():
        raise ValueError(f"{target} already exists: choose another --output, or remove it first.")
    write_text(target, found[name].read_text(encoding="utf-8"))
    print(f"{target}: a copy of the configuration {name}. Use it: --config {target}")
