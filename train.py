"""Trains a drafter, a diffusion language model or a target, as a config file says.

python train.py --config configs/quickstart.py --workdir runs/try --training.steps 100
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jaxspec.cli.configuration import TrainCommand, parse_command, run_as_command


def main(argv: Sequence[str]) -> None:
    """Parses the command line and trains."""
    command = parse_command(
        TrainCommand,
        argv,
        program="train.py",
        description="Train a drafter on a frozen target, a diffusion language model, or a target "
        "from scratch (--training.task).",
    )
    # jax is imported only now: --help and mistakes are answered at once.
    from jaxspec.training.loop import train

    train(command.run, workdir=command.workdir)


if __name__ == "__main__":
    sys.exit(run_as_command(main, sys.argv[1:]))
