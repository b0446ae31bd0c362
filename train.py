"""Trains a drafter, a diffusion language model or a target, as a config file says.

python train.py --config configs/quickstart.py --workdir runs/try --training.steps 100
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jaxspec.cli import train
from jaxspec.cli.configuration import run_as_command


def main(argv: Sequence[str]) -> None:
    """Parses the command line and trains."""
    train.main(argv, program="train.py")


if __name__ == "__main__":
    sys.exit(run_as_command(main, sys.argv[1:]))
