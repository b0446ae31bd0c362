"""What to type after a run has finished.

>>> print(next_commands(RunConfig(), config="configs/quickstart.py", workdir="runs/a", argv=[],
...                     program="train.py"))
Next:
  python eval.py --config configs/quickstart.py --workdir runs/a --output runs/a/results.json
  jaxspec generate --drafter runs/a --prompt "What is 12 + 30?"
  jaxspec parity --target embedded --drafter runs/a/export
  jaxspec export --workdir runs/a --output my-model
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from jaxspec.cli.settings import given_value
from jaxspec.config import RunConfig
from jaxspec.paths import user_path
from jaxspec.training.tasks.registry import task_of

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
    export = str(user_path(workdir) / "export")
    changed = [
        word
        for name in _OF_TARGET
        if (value := given_value(argv, name)) is not None
        for word in (f"--{name}", value)
    ]
    results = ("--output", str(user_path(workdir) / "results.json"))
    model = ("--target.path", export)
    own = ("--workdir", workdir)
    save = _words("jaxspec", "export", *own, "--output", "my-model")
    asks = '--prompt "What is 12 + 30?"'
    use = task_of(run).becomes(run)
    lines = {
        "target": [f"jaxspec generate {_words(*model)} {asks}", save],
        "diffusion model": [f"{evaluate} {_words('--config', config, *model, *results)}", save],
        "drafter": [f"{evaluate} {_words('--config', config, *changed, *own, *results)}", save],
        "dflash": [
            f"{evaluate} {_words('--config', config, *changed, *own, *results)}",
            f"jaxspec generate {_words(*changed, '--drafter', workdir)} {asks}",
            _words("jaxspec", "parity", "--target", run.target.path, "--drafter", export),
            save,
        ],
    }
    return "\n  ".join(["Next:", *lines[use]])


def _words(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)
