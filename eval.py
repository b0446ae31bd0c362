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

from jaxspec.cli import evaluate
from jaxspec.cli.configuration import run_as_command


def main(argv: Sequence[str]) -> None:
    """Parses the command line and evaluates."""
    evaluate.main(argv, program="eval.py")


if __name__ == "__main__":
    sys.exit(run_as_command(main, sys.argv[1:]))
