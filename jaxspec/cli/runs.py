"""``jaxspec runs``: lists trainings, evaluations and studies on disk, and compares trainings.

jaxspec runs
jaxspec runs diff runs/uniform runs/full --picture curves.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from jaxspec.files import try_file, user_path

_UNBROKEN = 10_000
"""Characters of a line; a table is only as wide as its cells."""


def main(argv: Sequence[str]) -> None:
    """Lists or compares.

    Raises:
      ValueError: a folder that is not there or holds no training, or a picture of another format.
    """
    if list(argv[:1]) == ["diff"]:
        _diff(argv[1:])
        return
    parser = argparse.ArgumentParser(
        prog="jaxspec runs",
        description="List trainings, evaluations and studies below folders: configuration, loss, "
        "steps, last figures, seed, commit and date. `jaxspec runs diff A B` compares trainings.",
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="where to look (runs)")
    options = parser.parse_args(argv)
    from jaxspec.study.runs import find_runs, runs_table

    folders = [user_path(folder) for folder in options.folders or ["runs"]]
    runs = find_runs(folders)
    if not runs:
        print(f"No runs in {', '.join(map(str, folders))}.")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNBROKEN)  # One line for each run: other programs read them.
    console.print(runs_table(runs))


def _diff(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="jaxspec runs diff",
        description="Compare trainings: the settings that differ, their last figures side by side, "
        "and their curves in one plot.",
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folder of a training")
    parser.add_argument(
        "--picture", default="", metavar="FILE", help="PNG or SVG file for the plot"
    )
    options = parser.parse_args(argv)
    from jaxspec.plot_style import picture_format
    from jaxspec.study.curves import plot_curves
    from jaxspec.study.runs import curves_of, runs_difference

    workdirs = [user_path(workdir) for workdir in options.workdirs]
    if options.picture:
        picture_format(options.picture)
        try_file(options.picture, option="--picture")
    print(runs_difference(workdirs), end="")
    if options.picture:
        print(f"\nCurves: {plot_curves(curves_of(workdirs), options.picture)}")
