"""The kinds of training by name.

>>> task_of(RunConfig()).name
'drafter'
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxspec.config import RunConfig
from jaxspec.training.tasks.denoiser import DENOISER
from jaxspec.training.tasks.drafter import DRAFTER
from jaxspec.training.tasks.target import TARGET
from jaxspec.training.tasks.task import TaskKind

TASKS: Mapping[str, TaskKind] = {kind.name: kind for kind in (TARGET, DRAFTER, DENOISER)}
"""By the value of training.task."""


def task_of(config: RunConfig) -> TaskKind:
    """The kind of training that a run asks for.

    Raises:
      ValueError: there is no such kind.
    """
    name = config.training.task
    if name not in TASKS:
        raise ValueError(f"training.task is {name!r}: expected one of {', '.join(sorted(TASKS))}.")
    return TASKS[name]
