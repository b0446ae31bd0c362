"""Measures trained drafters by exact speculative decoding of benchmark prompts.

python eval.py --config configs/quickstart.py --workdir runs/a runs/b --output runs/results.json

With --drafters ngram,none prompt look-up and the target alone are measured as well.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jaxspec.cli.configuration import EvalCommand, parse_command, run_as_command


def main(argv: Sequence[str]) -> None:
    """Parses the command line and evaluates."""
    command = parse_command(
        EvalCommand,
        argv,
        program="eval.py",
        description="Measure accepted length and speed of drafters by exact decoding.",
    )
    # jax is imported only now: --help and mistakes are answered at once.
    from jaxspec.evals.runner import evaluate

    evaluate(
        command.run,
        workdirs=list(command.workdir),
        output=command.output,
        kinds=[kind.strip() for kind in command.drafters.split(",") if kind.strip()],
    )


if __name__ == "__main__":
    sys.exit(run_as_command(main, sys.argv[1:]))
