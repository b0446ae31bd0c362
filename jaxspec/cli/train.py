"""``jaxspec train`` and train.py: trains what a config file says.

jaxspec train --config configs/quickstart.py --workdir runs/try --training.steps 100
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

from jaxspec.cli.configuration import ConfigCommand, parse_command
from jaxspec.cli.process_options import ProcessOptions
from jaxspec.cli.settings import given_value
from jaxspec.config import RunConfig
from jaxspec.files import user_path
from jaxspec.training.tasks.settings import GROUPS, groups_read, why_not_read
from jaxspec.training.tasks.shapes import GIVEN_TWICE, check_agrees

_SHORT = re.compile(r"^--(logging|profile)(?==|$)")
"""Settings of training that may be typed without "training."."""
_OF_TASKS = {group for groups in GROUPS.values() for group in groups}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskCommand(ConfigCommand):
    """A command about a training run: it reads what the run's task reads."""

    @classmethod
    def reads_now(cls, run: RunConfig, argv: Sequence[str]) -> tuple[str, ...]:
        """Without the groups that the run's task does not read."""
        task, objective = _task_and_objective(run, argv)
        groups = groups_read(task, objective=objective)
        return tuple(read for read in cls.reads if read in groups or read not in _OF_TASKS)

    @classmethod
    def why_not(cls, name: str, run: RunConfig, argv: Sequence[str]) -> str:
        """Why a setting is not read: by this task, or by this command."""
        group = name.split(".")[0]
        if group not in _OF_TASKS:
            return super().why_not(name, run, argv)
        task, objective = _task_and_objective(run, argv)
        return why_not_read(group, task, objective=objective)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCommand(ProcessOptions, TaskCommand):
    """What train.py takes."""

    reads: ClassVar[tuple[str, ...]] = (
        *("name", "target", "drafter", "denoiser", "loss"),
        *("data", "optimizer", "mesh", "training"),
    )
    common: ClassVar[tuple[str, ...]] = (
        *("target.path", "target.dtype"),
        *("drafter.path", "drafter.block_size", "drafter.num_layers"),
        *("denoiser.path", "denoiser.objective", "denoiser.context"),
        *("loss.decay", "loss.focal", "loss.chain"),
        *("data.sources", "data.validation"),
        *("data.sequence_length", "data.batch_size", "data.anchors"),
        *("optimizer.learning_rate", "mesh.data", "mesh.fsdp"),
        *("training.task", "training.steps", "training.epochs"),
    )
    example: ClassVar[str] = (
        "{program} --config configs/quickstart.py --workdir runs/full\n"
        "{program} --config configs/quickstart.py --workdir runs/uniform \\\n"
        "    --loss.decay None --loss.focal 0 --loss.chain 0"
    )

    workdir: str
    """Folder of the run. A run that is there already continues from its last checkpoint."""
    accept_changes: bool = False
    """Continue a run although its settings differ from those that it was started with. The new ones
    apply from then on; provenance.json lists the parts of the run as segments."""
    restart_schedule: bool = False
    """Continue a run for more steps, or with accepted changes: the learning rate warms up and
    decays again over the remaining steps."""


def main(argv: Sequence[str], *, program: str = "jaxspec train") -> None:
    """Parses the command line and trains."""
    argv = [_SHORT.sub(r"--training.\1", argument) for argument in argv]
    command = parse_command(
        TrainCommand,
        argv,
        program=program,
        description="Train a drafter on a frozen target, a diffusion language model, or a target "
        "from scratch (--training.task).",
    )
    run = as_typed(command.run, argv)
    # jax is imported only now: --help and mistakes are answered at once.
    from jaxspec.cli.next_commands import next_commands
    from jaxspec.training.loop import train

    with command.joined():
        train(
            run,
            workdir=user_path(command.workdir),
            accept_changes=command.accept_changes,
            restart_schedule=command.restart_schedule,
        )
        if run.training.export:
            print(
                next_commands(
                    run, config=command.config, workdir=command.workdir, argv=argv, program=program
                ),
                flush=True,
            )


def as_typed(run: RunConfig, argv: Sequence[str]) -> RunConfig:
    """The run, where the command line gives one of two settings that say the same.

    Raises:
      ValueError: it gives both, and they differ.
    """
    return _with_one_way(_with_one_length(run, argv), argv)


def _with_one_length(run: RunConfig, argv: Sequence[str]) -> RunConfig:
    """The run with the length that the command line gives, in steps or in epochs.

    Raises:
      ValueError: it gives both.
    """
    steps, epochs = (given_value(argv, f"training.{name}") for name in ("steps", "epochs"))
    if steps is None:
        return run
    if epochs is not None:
        raise ValueError(
            f"The length of a run is given in steps or in epochs: got --training.steps {steps} and "
            f"--training.epochs {epochs}. Leave one of them out."
        )
    return dataclasses.replace(run, training=dataclasses.replace(run.training, epochs=0.0))


def _with_one_way(run: RunConfig, argv: Sequence[str]) -> RunConfig:
    """The run whose target is computed as the command line says.

    target.architecture says it too. Of a config, the one that was given counts (`agreed`); typed, a
    value counts even if it is the default.
    """
    target, architecture = run.target, run.target.architecture
    if architecture is None:
        return run
    for name in GIVEN_TWICE:
        own, of_shape = getattr(target, name), getattr(architecture, name)
        typed = given_value(argv, f"target.{name}") is not None
        typed_of_shape = given_value(argv, f"target.architecture.{name}") is not None
        if typed and typed_of_shape:
            check_agrees(name, own, of_shape)
        elif typed:
            architecture = dataclasses.replace(architecture, **{name: own})
        elif typed_of_shape:
            target = dataclasses.replace(target, **{name: of_shape})
    target = dataclasses.replace(target, architecture=architecture)
    return dataclasses.replace(run, target=target)


def _task_and_objective(run: RunConfig, argv: Sequence[str]) -> tuple[str, str]:
    """What decides which groups are read; the command line may change the config's."""
    task = given_value(argv, "training.task") or run.training.task
    return task, given_value(argv, "denoiser.objective") or run.denoiser.objective
