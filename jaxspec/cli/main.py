"""The `jaxspec` console script: ``jaxspec COMMAND ...``, with ``--help`` on each command."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jaxspec import __version__
from jaxspec.cli.configuration import run_as_command
from jaxspec.names import did_you_mean

COMMANDS: dict[str, tuple[str, str]] = {
    "calibrate": ("jaxspec.cli.calibrate", "Find the draft graph of a diffusion language model."),
    "configs": ("jaxspec.cli.configs", "List the configurations that come with jaxspec."),
    "doctor": ("jaxspec.cli.doctor", "Check this machine: versions, devices, compiler, data."),
    "eval": ("jaxspec.cli.evaluate", "Measure drafters, or decoders of a diffusion model."),
    "export": ("jaxspec.cli.export", "Write a run's weights as a folder that servers load."),
    "generate": ("jaxspec.cli.generate", "Answer prompts or chat, and show what was drafted."),
    "import-data": ("jaxspec.cli.import_data", "Make your own conversations a data set."),
    "parity": (
        "jaxspec.cli.parity",
        "Check that a drafter computes the same in training, decoding and elsewhere.",
    ),
    "plan": ("jaxspec.cli.plan", "Show what training takes on TPUs or GPUs: memory, time, cost."),
    "regenerate": (
        "jaxspec.cli.regenerate",
        "Answer a data set with the target, as training data.",
    ),
    "report": ("jaxspec.cli.report", "Make a page of result files: tables, plots, rounds."),
    "runs": ("jaxspec.cli.runs", "List the runs on disk, and compare trainings."),
    "study": ("jaxspec.cli.study", "Run a declared grid of trainings and evaluations."),
    "train": ("jaxspec.cli.train", "Train a drafter, a diffusion language model or a target."),
}
"""Command -> (module with ``main(argv)``, what it does). A module is imported when it is called."""


def dispatch(argv: Sequence[str]) -> int | None:
    """Calls the command that is named first.

    Raises:
      ValueError: no command of that name.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name = argv[0]
    if name not in COMMANDS:
        raise ValueError(
            f"jaxspec has no command {name!r}.{did_you_mean(name, COMMANDS)} Commands: "
            f"{', '.join(sorted(COMMANDS))}."
        )
    module_name, _ = COMMANDS[name]
    status: int | None = importlib.import_module(module_name).main(argv[1:])
    return status


def usage() -> str:
    """The text of ``jaxspec --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in sorted(COMMANDS.items())]
    return "\n".join(
        [
            "usage: jaxspec COMMAND ...",
            "",
            "Train and measure diffusion drafters. train.py and eval.py are the same commands",
            "as jaxspec train and jaxspec eval.",
            "",
            "commands (--help on each):",
            *lines,
        ]
    )


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_as_command(dispatch, sys.argv[1:]))


if __name__ == "__main__":
    main()
