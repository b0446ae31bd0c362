"""What to type after a run has finished.

>>> print(next_commands(RunConfig(), config="configs/quickstart.py", workdir="runs/a", argv=[],
...                     program="train.py"))
Next:
  python eval.py --config configs/quickstart.py --workdir runs/a --output runs/a/results.json
  jaxspec generate --drafter runs/a --prompt "What is 12 + 30?"
  jaxspec parity --target embedded --drafter runs/a/export
  jaxspec export --workdir runs/a --output my-drafter
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from jaxspec.cli.settings import given_value
from jaxspec.config import RunConfig

_OF_TARGET = ("target.path", "target.dtype", "target.enable_thinking")
"""Settings that eval.py and jaxspec generate read as well."""


def next_commands(
    run: RunConfig, *, config: str, workdir: str, argv: Sequence[str], program: str
) -> str:
    """The command lines that use what a run has written, each with what it needs of this run.

    Args:
      run: the run.
      config: its configuration, as it was named.
      workdir: its folder, as it was named.
      argv: the command line, for settings of the target that it changed.
      program: how training was called: "train.py" or "jaxspec train".
    """
    evaluate = "python eval.py" if program == "train.py" else "jaxspec eval"
    export = str(Path(workdir) / "export")
    changed = [
        word
        for name in _OF_TARGET
        if (value := given_value(argv, name)) is not None
        for word in (f"--{name}", value)
    ]
    if run.training.task == "target":
        lines = [
            f'jaxspec generate {_words("--target.path", export)} --prompt "What is 12 + 30?"',
            _words("jaxspec", "export", "--workdir", workdir, "--output", "my-target"),
        ]
        return _listed(lines)
    measures_alone = run.training.task == "denoiser" and run.denoiser.objective == "llada"
    measured = ["--target.path", export] if measures_alone else [*changed, "--workdir", workdir]
    results = str(Path(workdir) / "results.json")
    lines = [f"{evaluate} {_words('--config', config, *measured, '--output', results)}"]
    if run.training.task == "drafter":
        asked = _words(*changed, "--drafter", workdir)
        lines += [
            f'jaxspec generate {asked} --prompt "What is 12 + 30?"',
            f"jaxspec parity {_words('--target', run.target.path, '--drafter', export)}",
        ]
    name = "my-drafter" if run.training.task == "drafter" else "my-model"
    lines.append(_words("jaxspec", "export", "--workdir", workdir, "--output", name))
    return _listed(lines)


def _words(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _listed(lines: Sequence[str]) -> str:
    return "\n  ".join(["Next:", *lines])
