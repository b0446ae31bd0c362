"""From a command line to a `RunConfig`: a config file, then typed overrides of its settings.

A config file is Python and defines ``get_config() -> RunConfig``. Whatever it returns can be
overridden by name: ``--training.steps 100 --data.sources gsm8k math --loss.decay None``. A config
file may serve several commands; on its command line a command accepts only what it reads.

>>> command = parse_command(TrainCommand, ["--config", "configs/quickstart.py",
...                         "--workdir", "runs/try", "--training.steps", "100"],
...                         program="train.py")                                  # doctest: +SKIP
>>> command.run.training.steps                                                   # doctest: +SKIP
100
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from jaxspec.cli.config_files import returned_config
from jaxspec.cli.help import all_settings_header, short_help
from jaxspec.cli.mistakes import TRACEBACK_VARIABLE, message_of
from jaxspec.cli.settings import (
    default_of,
    given_names,
    given_value,
    is_list,
    is_read,
    merged,
    own_options,
    part_of,
    read_settings,
    refuse_second_lists,
    setting_names,
    with_flag_values,
)
from jaxspec.cli.values import (
    REGISTRIES,
    Registry,
    list_problems,
    name_problems,
    type_problems,
    value_of,
)
from jaxspec.config import RunConfig, TargetConfig
from jaxspec.interruption import (
    STOPPED_AND_SAVED,
    UNREACHABLE,
    Terminated,
    is_outage,
    repeating_lost_signals,
)
from jaxspec.names import visible

USER_MISTAKE = 2
"""Exit status of a command that was asked for something impossible."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
OUTPUT_CLOSED = 141
"""Exit status when nobody reads the output any more, as shells have it."""

ELSEWHERE = {
    "target": "the target's shape is in its folder (--target.path)",
    "drafter": "a drafter's shape is set when it is trained, by train.py",
    "denoiser": "train.py reads it, with training.task 'denoiser'",
    "loss": "the loss is chosen when a model is trained, by train.py",
    "data": "train.py reads it",
    "optimizer": "train.py reads it",
    "mesh": "train.py reads it",
    "training": "train.py reads it",
    "evaluation": "eval.py reads it",
    "diffusion": "eval.py reads it, for a target that is a diffusion language model",
}
"""Group -> why a command may not read its settings, and which command does."""
_AMBIGUOUS = ("architecture", "objective", "path", "steps")
"""Fields that mean something else in each group: none is suggested in place of another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigCommand:
    """What every command that reads a config takes; commands inherit it and add fields."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Groups ("training") and single settings ("data.raw_dir") that the command reads."""
    common: ClassVar[tuple[str, ...]] = ()
    """Those that ``--help`` shows; (): all of them."""
    not_from_config: ClassVar[tuple[str, ...]] = ()
    """Groups that a config file fills for training and not for this command: only the command line
    changes their defaults."""
    example: ClassVar[str] = ""
    """A command line that ``--help`` shows."""
    registries: ClassVar[Mapping[str, Registry]] = {}
    """Options of the command that are names, separated by commas -> the registry that has them."""
    fits: ClassVar[Mapping[str, str]] = {}
    """Settings that the command chooses where neither they nor a config are given -> what it
    chooses, in words."""

    config: str
    """Python file whose get_config() returns the RunConfig, or a name that `jaxspec configs`
    lists."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")]

    @classmethod
    def reads_now(cls, run: RunConfig, argv: Sequence[str]) -> tuple[str, ...]:
        """What it reads with this configuration and command line; `reads`, unless overridden."""
        return cls.reads

    @classmethod
    def not_from_config_now(cls, argv: Sequence[str]) -> tuple[str, ...]:
        """`not_from_config` with this command line."""
        return cls.not_from_config

    @classmethod
    def why_not(cls, name: str, run: RunConfig, argv: Sequence[str]) -> str:
        """Why a setting of a run is not read."""
        return ELSEWHERE.get(name.split(".")[0], "it only names the run that a config trains")


CommandT = TypeVar("CommandT", bound=ConfigCommand)


def load_config(path: str | os.PathLike[str]) -> RunConfig:
    """Returns what ``get_config()`` of a config file returns.

    Args:
      path: a Python file, or the name of a configuration that comes with jaxspec.

    Raises:
      ValueError: see `returned_config`; also a value in it is of the wrong type, or a name that no
        registry has.
    """
    config = returned_config(path, RunConfig)
    # A registry is asked only for names of the right type.
    problems = [*type_problems(config)] or [*name_problems(config, known=RunConfig())]
    if problems:
        raise ValueError(f"Config file {os.fspath(path)!r}: " + "\n  ".join(problems))
    return config


def _given_config(command_type: type[ConfigCommand], argv: Sequence[str]) -> str | None:
    """The config that a command line names; None: none, or "" where the command needs none."""
    path = given_value(argv, "config")
    (field,) = (each for each in dataclasses.fields(command_type) if each.name == "config")
    return None if path == field.default else path


def parse_command(
    command_type: type[CommandT],
    argv: Sequence[str],
    *,
    program: str,
    description: str = "",
) -> CommandT:
    """Reads a command line whose ``--config`` gives the defaults of all other settings.

    Args:
      command_type: dataclass with the command's own options; its `run` is the config.
      argv: arguments without the program's name.
      program: how the command is called, for messages.
      description: what the command does, for ``--help``.

    Raises:
      ValueError: no config is named, the config cannot be read, a setting is unknown or not read
        by this command, a list is given twice, or a config refuses a value.
      SystemExit: 0 after ``--help``; 2 for a value of the wrong type.
    """
    argv = with_flag_values(argv, [o.name for o in own_options(command_type) if o.kind is bool])
    config_path = _given_config(command_type, argv)
    run = RunConfig() if config_path is None else _with_dtype_of_shape(load_config(config_path))
    chosen = command_type.fits if config_path is None else {}
    usual = RunConfig()
    unused = command_type.not_from_config_now(argv)
    run = dataclasses.replace(run, **{group: getattr(usual, group) for group in unused})
    reads = command_type.reads_now(run, argv)
    description = description or inspect.cleandoc(command_type.__doc__ or "")
    if {"-h", "--help"} & set(argv):
        print(
            _help(command_type, run, reads, chosen=chosen, program=program, description=description)
        )
        raise SystemExit(0)
    wants_all = "--help-all" in argv
    if not wants_all:
        _refuse_unread(command_type, argv, run, reads, program=program)
        settings = [*own_options(command_type), *read_settings(run, reads)]
        refuse_second_lists(argv, [each.name for each in settings if is_list(each.kind)])
    fields = dataclasses.fields(command_type)
    whole = command_type(**{f.name: default_of(f) for f in fields if f.name != "run"}, run=run)
    own = [field.name for field in fields if field.name != "run"]
    shown = _choices(command_type, run, reads, chosen=chosen) if wants_all else {}
    # Naming each setting, not the group, makes the parser leave checks of the group to `merged`.
    reads = tuple(setting.name for setting in read_settings(run, reads))
    part = part_of(
        whole,
        [*own, *(f"run.{read}" for read in reads)],
        types_by_name=shown,
    )
    parsed, unknown = tyro.cli(
        type(part),
        args=["--help"] if wants_all else list(argv),
        prog=program,
        description=description if not wants_all else all_settings_header(description),
        default=part,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        use_underscores=True,
        return_unknown_args=True,
    )
    if unknown:
        raise ValueError(_unknown_message(unknown, own, reads, run=run, program=program))
    command = merged(whole, parsed)
    problems = [*name_problems(command.run, known=run)]
    for option, registry in command_type.registries.items():
        problems += list_problems(option, getattr(command, option), registry)
    if problems:
        raise ValueError("\n  ".join(f"--{problem}" for problem in problems))
    return command


def _with_dtype_of_shape(run: RunConfig) -> RunConfig:
    """The run whose target is computed in a type that a config may give with its shape alone.

    Commands that decode read only `target.dtype`.
    """
    target, usual = run.target, TargetConfig().dtype
    if target.architecture is None or target.architecture.dtype == usual or target.dtype != usual:
        return run
    target = dataclasses.replace(target, dtype=target.architecture.dtype)
    return dataclasses.replace(run, target=target)


def run_as_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Runs a command and turns what it raises into an exit status.

    0: done. 2: a problem that the user can solve (`jaxspec.cli.mistakes`), in one message without a
    traceback. 75: SIGTERM. 78: a bucket, network share or disk does not answer. 130: Ctrl-C. 141:
    nobody reads the output. A status that the command itself raises with SystemExit is kept. Any
    other exception is a defect and keeps its traceback (the interpreter exits with 1).
    """
    if sys.stderr is None:  # Closed by `2>&-`. The next file that is opened would take its place.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        _say("Standard output is closed (>&-): redirect it, for example to /dev/null.")
        return USER_MISTAKE
    try:
        try:
            with repeating_lost_signals():
                status = main(argv) or 0
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # rich ends the program then.
                raise end.__context__ from None
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # The reader went away (`--help | head`).
        _drop_output()
        return OUTPUT_CLOSED
    except Terminated:
        _can_print("")
        _say("terminated", kind="")
        return STOPPED_AND_SAVED
    except KeyboardInterrupt:
        _can_print("")
        _say("interrupted", kind="")
        return INTERRUPTED
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        status = UNREACHABLE if is_outage(error) else USER_MISTAKE
        nameless = isinstance(error, OSError) and error.filename is None
        if not _can_print("\n" if nameless else "") and nameless:
            status = USER_MISTAKE
            message = f"Standard output cannot be written to. {message}"
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            traceback.print_exc()
        else:
            _say(message)
        return status


def _say(message: str, *, kind: str = "error: ") -> None:
    # Names of files, and what is quoted from them, may hold control characters.
    shown = "\n".join(map(visible, message.split("\n")))
    with contextlib.suppress(OSError):  # There is nowhere to print it.
        print(f"{kind}{shown}", file=sys.stderr)


def _can_print(text: str) -> bool:
    """Whether standard output accepts a text and what is still buffered; if not, drops both."""
    try:
        print(end=text, flush=True)
    except OSError:
        _drop_output()
        return False
    return True


def _drop_output() -> None:
    """The interpreter flushes stdout once more at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help(
    command_type: type[ConfigCommand],
    run: RunConfig,
    reads: Collection[str],
    *,
    chosen: Mapping[str, str],
    program: str,
    description: str,
) -> str:
    settings = [
        dataclasses.replace(s, value=chosen.get(s.name, s.value)) for s in read_settings(run, reads)
    ]
    caller = f"python {program}" if program.endswith(".py") else program
    return short_help(
        program=program,
        description=description,
        example=command_type.example.format(program=caller),
        options=own_options(command_type),
        names={*REGISTRIES, *command_type.registries},
        settings=[s for s in settings if is_read(s.name, command_type.common or reads)],
        total=len(settings),
        unread=[read for read in command_type.reads if read not in reads],
    )


def _choices(
    command_type: type[ConfigCommand],
    run: RunConfig,
    reads: Collection[str],
    *,
    chosen: Mapping[str, str],
) -> dict[str, Any]:
    """Types that show what ``--help-all`` adds: the names in registries, and chosen defaults."""
    settings = {
        f"run.{setting}": Literal[tuple(dict.fromkeys((value_of(run, setting), *registry.names())))]
        for setting, registry in REGISTRIES.items()
        if is_read(setting, reads)
    }
    options = {
        option: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(registry.names())}}}[,...]")]
        for option, registry in command_type.registries.items()
    }
    fitting = {
        f"run.{setting.name}": Annotated[
            setting.kind, tyro.conf.arg(help_behavior_hint=f"(default: {chosen[setting.name]})")
        ]
        for setting in read_settings(run, tuple(chosen))
    }
    return settings | options | fitting


def _refuse_unread(
    command_type: type[ConfigCommand],
    argv: Sequence[str],
    run: RunConfig,
    reads: Collection[str],
    *,
    program: str,
) -> None:
    """Refuses a setting of a run that the command would ignore, with the name to use instead."""
    own = {option.name for option in own_options(command_type)}
    every = list(setting_names(run))
    for name in given_names(argv):
        if name in own or is_read(name, reads) or not is_read(name, every):
            continue
        leaf = name.rpartition(".")[2]
        names = []
        if leaf not in _AMBIGUOUS and not is_read(name, command_type.reads):
            readable = [*own, *(setting.name for setting in read_settings(run, reads))]
            names = [other for other in readable if other.rpartition(".")[2] == leaf]
        instead = " or ".join(f"--{other}" for other in names)
        hint = f" Did you mean {instead}?" if instead else ""
        why = command_type.why_not(name, run, argv)
        raise ValueError(f"{program} does not read --{name}: {why}.{hint}")


def _unknown_message(
    unknown: Sequence[str],
    own: Sequence[str],
    reads: Collection[str],
    *,
    run: RunConfig,
    program: str,
) -> str:
    keys = [argument for argument in unknown if argument.startswith("-")]
    if not keys:
        return (
            f"Unexpected argument {unknown[0]!r}: settings are given by name, "
            f"as in --training.steps 100. All settings: {program} --help-all"
        )
    typed = keys[0].split("=", 1)[0]
    key = typed.lstrip("-").replace("-", "_")
    if not typed.startswith("--") and key in {*own, *setting_names(run)}:
        return f"Unknown setting {typed}. Did you mean --{key}? Settings begin with two dashes."
    absent = _absent_group(key, run)
    if absent is not None:
        return (
            f"{typed} cannot be set: {absent} is None in this config. "
            f"Give it a value in the config file first."
        )
    if _is_group(key, run):
        return (
            f"{typed} cannot be given on a command line, because it stands for several settings: "
            f"set it in the config file. All settings: {program} --help-all"
        )
    names = [*own, *(setting.name for setting in read_settings(run, reads))]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"Did you mean --{close[0]}? " if close else ""
    return f"Unknown setting {typed}. {hint}All settings: {program} --help-all"


def _absent_group(key: str, run: RunConfig) -> str | None:
    """The prefix of a dotted key that names an optional group which this config leaves at None."""
    value: object = run
    path: list[str] = []
    for part in key.split(".")[:-1]:
        if not dataclasses.is_dataclass(value) or not hasattr(value, part):
            return None
        value = getattr(value, part)
        path.append(part)
        if value is None:
            return ".".join(path)
    return None


def _is_group(key: str, run: RunConfig) -> bool:
    """Whether a dotted key names settings that lie together, present or None in this config."""
    value: object = run
    for part in key.split("."):
        if not dataclasses.is_dataclass(value) or not hasattr(value, part):
            return False
        value = getattr(value, part)
    # The parser knows every other setting, with its two dashes.
    return True
