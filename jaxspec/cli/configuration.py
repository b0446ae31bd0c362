"""From a command line to a `RunConfig`: a config file, then typed overrides of its settings.

A config file is Python and defines ``get_config() -> RunConfig``. Whatever it returns can be
overridden by name: ``--training.steps 100 --data.sources gsm8k math --loss.decay None``.

>>> command = parse_command(TrainCommand, ["--config", "configs/quickstart.py",
...                         "--workdir", "runs/try", "--training.steps", "100"],
...                         program="train.py")                                  # doctest: +SKIP
>>> command.run.training.steps                                                   # doctest: +SKIP
100
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from jaxspec.config import RunConfig

USER_MISTAKE = 2
"""Exit status of a command that was asked for something impossible."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
OUTPUT_CLOSED = 141
"""Exit status when nobody reads the output any more, as shells have it."""
TRACEBACK_VARIABLE = "JAXSPEC_TRACEBACK"
"""Set it to 1 to see where a user's mistake was noticed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigCommand:
    """What every command that reads a config takes; commands inherit it and add fields."""

    config: str
    """Python file whose get_config() returns the RunConfig (see configs/)."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCommand(ConfigCommand):
    """What train.py takes."""

    workdir: str
    """Folder of the run. A run that stands there goes on from its last checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalCommand(ConfigCommand):
    """What eval.py takes."""

    output: str
    """JSON file to write; the table (.md) and, for drafters, plots (.png) are written beside it."""
    workdir: tuple[str, ...] = ()
    """Folders of trained drafters; each becomes a row of the table. None for a diffusion language
    model, which --target.path names."""
    drafters: str = ""
    """Kinds of drafters to measure, separated by commas: dflash, mdlm and autoregressive (those
    among the folders), ngram (prompt look-up) and none (the target alone). "": every folder."""


CommandT = TypeVar("CommandT", bound=ConfigCommand)


def load_config(path: str | os.PathLike[str]) -> RunConfig:
    """Returns what ``get_config()`` of a config file returns.

    The file is executed: it is the user's own program, like train.py itself.

    Args:
      path: a Python file.

    Raises:
      ValueError: the file is missing or fails, has no get_config, or get_config returns something
        else than a RunConfig.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"Config file not found: {os.fspath(path)!r}. {_available(file)}")
    if file.suffix != ".py":
        raise ValueError(f"A config is a Python file (.py): got {os.fspath(path)!r}.")
    # A name of its own for each file, so that two configs called alike do not share a module.
    digest = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:12]
    name = f"jaxspec_config_{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in a config look their module up by name
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config() if callable(get_config) else None
    except Exception as error:
        raise ValueError(
            f"Config file {os.fspath(path)!r} failed{_line_in(error, file)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        del sys.modules[name]
    if not callable(get_config):
        raise ValueError(
            f"Config file {os.fspath(path)!r} has no function get_config(). "
            "It must define one that returns a jaxspec.config.RunConfig."
        )
    if not isinstance(config, RunConfig):
        raise ValueError(
            f"get_config() of {os.fspath(path)!r} must return a jaxspec.config.RunConfig: "
            f"got {type(config).__name__}."
        )
    return config


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
      ValueError: no config is named, the config cannot be read, or a setting is unknown.
      SystemExit: 0 after ``--help``; 2 for a value of the wrong type, or one that a config refuses.
    """
    config_path = _config_option(argv)
    run = RunConfig() if config_path is None else load_config(config_path)
    defaults = {field.name: _default(field) for field in dataclasses.fields(command_type)}
    defaults["run"] = run
    command, unknown = tyro.cli(
        command_type,
        args=list(argv),
        prog=program,
        description=description or inspect.cleandoc(command_type.__doc__ or ""),
        default=command_type(**defaults),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        use_underscores=True,
        return_unknown_args=True,
    )
    if unknown:
        raise ValueError(_unknown_message(unknown, command_type, run=run, program=program))
    return command


def run_as_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Runs a command and turns what it raises into an exit status.

    0: done. 2: a user's mistake (ValueError), told in one message without a traceback. 130: Ctrl-C.
    Any other exception is a defect and keeps its traceback (the interpreter exits with 1).
    """
    try:
        return main(argv) or 0
    except ValueError as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            traceback.print_exc()
        else:
            print(f"error: {error}{_origin_note(error)}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`--help | head`). The interpreter flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED


def setting_names(settings: object, *, prefix: str = "") -> Iterator[str]:
    """All names that can be overridden, as they are typed: "training.steps" and so on."""
    assert dataclasses.is_dataclass(settings)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from setting_names(value, prefix=f"{name}.")
        else:
            yield name


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING


def _config_option(argv: Sequence[str]) -> str | None:
    """The value of --config, read ahead: the defaults in --help and in errors are that file's."""
    found = None
    for position, argument in enumerate(argv):
        if argument.startswith("--config="):
            found = argument.removeprefix("--config=")
        elif argument == "--config" and position + 1 < len(argv):
            found = argv[position + 1]
    return found


def _available(file: Path) -> str:
    folder = file.parent if file.parent.is_dir() else Path("configs")
    names = sorted(str(other) for other in folder.glob("*.py") if not other.name.startswith("_"))
    if not names:
        return "Name a Python file with a get_config()."
    close = difflib.get_close_matches(str(file), names, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}There are: {', '.join(names)}."


def _line_in(error: Exception, file: Path) -> str:
    """Says " at line N": the innermost line of the config file that the error passed through."""
    if isinstance(error, SyntaxError):
        return f" at line {error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == file or Path(frame.filename) == file.resolve()
    ]
    return f" at line {lines[-1]}" if lines else ""


def _unknown_message(
    unknown: Sequence[str], command_type: type[ConfigCommand], *, run: RunConfig, program: str
) -> str:
    keys = [argument for argument in unknown if argument.startswith("-")]
    if not keys:
        return (
            f"Unexpected argument {unknown[0]!r}: settings are given by name, "
            f"as in --training.steps 100. All settings: {program} --help"
        )
    typed = keys[0].split("=", 1)[0]
    key = typed.lstrip("-").replace("-", "_")
    own = [field.name for field in dataclasses.fields(command_type) if field.name != "run"]
    absent = _absent_group(key, run)
    if absent is not None:
        return (
            f"{typed} cannot be set: {absent} is None in this config. "
            f"Give it a value in the config file first."
        )
    close = difflib.get_close_matches(key, [*own, *setting_names(run)], n=1, cutoff=0.5)
    hint = f"Did you mean --{close[0]}? " if close else ""
    return f"Unknown setting {typed}. {hint}All settings: {program} --help"


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


def _origin_note(error: ValueError) -> str:
    """Says so when another package refused a value: its message may not speak of settings."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    origin = Path(frames[-1].filename)
    if "site-packages" not in origin.parts or Path(__file__).parent.parent in origin.parents:
        return ""
    return f"\n(refused by a package jaxspec uses; {TRACEBACK_VARIABLE}=1 shows where)"
