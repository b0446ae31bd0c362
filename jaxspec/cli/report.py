"""``jaxspec report``: one HTML page of result files, for any browser and without a network.

jaxspec report runs/results.json                       # writes runs/results.html
jaxspec report runs/a.json runs/b.json --output compared.html
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxspec.files import try_file, user_path

_BEGINNING = 2000
"""Bytes at the beginning of a file that show whether it is a page of this command."""


def main(argv: Sequence[str]) -> None:
    """Writes the page.

    Raises:
      ValueError: what is named is not a result file, or the page cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="jaxspec report",
        description="Make one HTML page of result files: tables that can be sorted, plots with "
        "intervals, and an answer decoded round by round. The page loads nothing from the network.",
    )
    parser.add_argument(
        "results", metavar="RESULTS.json", nargs="+", help="what eval.py --output wrote"
    )
    parser.add_argument(
        "--output",
        metavar="FILE.html",
        help="where to write the page; by default next to the first file, with its name",
    )
    options = parser.parse_args(argv)
    output = options.output or str(user_path(options.results[0]).with_suffix(".html"))
    check_page(output)
    # jax is imported only now: --help and mistakes are answered at once.
    from jaxspec.evals.html_report.page import write_page

    write_page(options.results, output)
    print(f"Written: {output}")


def check_page(output: str) -> None:
    """Checks whether the page can be written.

    Raises:
      ValueError: not an .html file, a place that cannot be written to, or a file that is not an
        earlier page, which would be lost.
    """
    file = user_path(output)
    if file.suffix != ".html":
        raise ValueError(f"--output must be an .html file: got {output!r}.")
    try_file(file, option="--output")
    if file.exists() and file.stat().st_size and not _is_page(file):
        raise ValueError(
            f"--output {output} is there already and is not an earlier page of this command. It "
            "would be lost: name another file, or move it away."
        )


def _is_page(file: Path) -> bool:
    from jaxspec.evals.html_report import GENERATOR

    with file.open("rb") as opened:
        return GENERATOR.encode() in opened.read(_BEGINNING)
