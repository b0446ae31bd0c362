"""What to type after a run has finished.

>>> print(next_commands(RunConfig(), config="configs/quickstart.py", workdir="runs/a", argv=[],
...                     program="train.py"))
Next:
  python eval.py --config configs/quickstart.py --workdir runs/a --output runs/a/results.json
  jaxspec generate --drafter runs/a --prompt "I want to cook bean stew. What do I have to buy?"
  jaxspec parity --target embedded --drafter runs/a/export
  jaxspec export --workdir runs/a --output my-model
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from jaxspec.cli.settings import given_value
from jaxspec.cli.values import value_of
from jaxspec.config import RunConfig
from jaxspec.training.tasks.registry import task_of

_OF_TARGET = ("target.path", "target.dtype", "target.enable_thinking")
"""Settings that eval.py and jaxspec generate read as well."""


def next_commands(
    run: RunConfig, *, config: str, workdir: str, argv: Sequence[str], program: str
) -> str:
    """The command lines that use what a run has written, each with what it needs from this run.

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
    # These commands are given no configuration.
    its_target = [
        word
        for name in _OF_TARGET
        if (value := value_of(run, name)) != value_of(RunConfig(), name)
        for word in (f"--{name}", str(value))
    ]
    thinking = run.target.enable_thinking
    mode = () if thinking is None else ("--enable_thinking", str(thinking))
    results = ("--output", str(Path(workdir) / "results.json"))
    model = ("--target.path", export)
    own = ("--workdir", workdir)
    save = _words("jaxspec", "export", *own, "--output", "my-model")
    asks = '--prompt "I want to cook bean stew. What do I have to buy?"'
    use = task_of(run).becomes(run)
    lines = {
        "target": [f"jaxspec generate {_words(*model)} {asks}", save],
        "diffusion model": [f"{evaluate} {_words('--config', config, *model, *results)}", save],
        "drafter": [f"{evaluate} {_words('--config', config, *changed, *own, *results)}", save],
        "dflash": [
            f"{evaluate} {_words('--config', config, *changed, *own, *results)}",
            f"jaxspec generate {_words(*its_target, '--drafter', workdir)} {asks}",
            _words("jaxspec", "parity", "--target", run.target.path, "--drafter", export, *mode),
            save,
        ],
    }
    return "\n  ".join(["Next:", *lines[use]])


def _words(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)
