"""Measures drafters by exact speculative decoding, and decoders of diffusion language models.

python eval.py --config configs/quickstart.py --workdir runs/a runs/b --output runs/results.json

With --drafters ngram,none prompt look-up and the target alone are measured as well. A target that
is a diffusion language model (LLaDA, SDAR, the export of a "denoiser" run) is measured without
drafters:

python eval.py --config configs/quickstart.py --target.path DIR --output runs/results.json
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
        description="Measure accepted length and speed of drafters by exact decoding, or forward "
        "passes and speed of a diffusion language model's decoders (--target.path, --diffusion.*).",
    )
    # jax is imported only now: --help and mistakes are answered at once.
    from jaxspec.evals.diffusion.runner import evaluate_diffusion
    from jaxspec.evals.opening import is_diffusion_target
    from jaxspec.evals.speculative.runner import evaluate

    if is_diffusion_target(command.run.target):
        if command.workdir or command.drafters:
            raise ValueError(
                f"{command.run.target.path} is a diffusion language model and drafts for itself: "
                "leave --workdir and --drafters away, and set --diffusion.drafts or "
                "--diffusion.graph."
            )
        evaluate_diffusion(command.run, output=command.output)
        return
    evaluate(
        command.run,
        workdirs=list(command.workdir),
        output=command.output,
        kinds=[kind.strip() for kind in command.drafters.split(",") if kind.strip()],
    )


if __name__ == "__main__":
    sys.exit(run_as_command(main, sys.argv[1:]))
