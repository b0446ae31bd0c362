"""``jaxspec study``: a declared grid of trainings and evaluations, unit by unit, and its tables.

    jaxspec study --config configs/study_quickstart.py --jobs 2
    jaxspec study --config configs/study_quickstart.py --list
    jaxspec study show runs/study_quickstart
    jaxspec study diff runs/a runs/b

Each unit is a command of its own (train, regenerate or eval) that continues where it was stopped.
So does the study: finished units are not repeated.
"""

from __future__ import annotations

import argparse
import collections
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxspec.cli.config_files import returned_config
from jaxspec.cli.configuration import load_config, parse_command
from jaxspec.cli.evaluate import EvalCommand
from jaxspec.cli.help import shown, type_name
from jaxspec.cli.settings import is_read, own_options, refuse_second_lists, setting_names
from jaxspec.cli.train import TrainCommand
from jaxspec.cli.values import name_problems, type_problems, value_of
from jaxspec.config import RunConfig
from jaxspec.files import held, user_path
from jaxspec.interruption import ending_when_told_to
from jaxspec.names import did_you_mean
from jaxspec.paths import is_remote
from jaxspec.study.declaration import (
    StudyAnswers,
    StudyConfig,
    StudyDecoding,
    StudyLoss,
    StudyTarget,
)
from jaxspec.study.units import Unit, units_of

_WIDTH = 80
_DESCRIPTION = """\
Run a study: train and evaluate a declared grid of targets, losses, seeds, benchmarks and decoding
settings, and write its tables and plots. The same command continues a study that was stopped.
`jaxspec study show A` shows the tables of a study, and `jaxspec study diff A B` how two differ."""
_MOST_JOBS = 256


def main(argv: Sequence[str]) -> None:
    """Parses the command line; runs a study, lists its units, shows its tables, or compares two.

    Raises:
      ValueError: a mistake in the declaration or on the command line; settings that differ from
        those that the study was started with; units that failed.
    """
    others = {"show": _show, "diff": _diff}
    if argv and argv[0] in others:
        others[argv[0]](argv[1:])
        return
    options, typed = _parser().parse_known_args(argv)
    refuse_second_lists(argv, ("only",))
    study = returned_config(options.config, StudyConfig)
    if problems := list(type_problems(study, prefix="study.")):
        raise ValueError(f"Config file {options.config!r}: " + "\n  ".join(problems))
    if is_remote(options.output):
        raise ValueError(f"--output must be a folder of this machine: got {options.output}.")
    folder = user_path(options.output or f"runs/{study.name}")
    names = [name for target in study.targets for name in (target.config, target.train) if name]
    configs = {name: load_config(name) for name in dict.fromkeys(names)}
    changes = _typed_settings(typed, study, configs)
    units = units_of(study, configs=configs, folder=folder, is_read=is_read_by, changes=changes)
    _check_values(units)
    from jaxspec.study.running import chosen

    wanted = chosen(units, options.only)
    if options.list:
        _list(wanted, folder)
        return
    with ending_when_told_to(), held(folder, option="--output"):
        _run(study, units, wanted, folder, jobs=options.jobs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxspec study",
        usage="jaxspec study --config FILE [--output FOLDER] [--jobs N]\n"
        "                     [--only TEXT ...] [--list] [--GROUP.SETTING VALUE ...]\n"
        "       jaxspec study show FOLDER [--decodings NAME ...] [--losses NAME ...]\n"
        "       jaxspec study diff FOLDER FOLDER",
        description=textwrap.fill(_DESCRIPTION, _WIDTH),
        epilog=_declaration_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="Python file whose get_config() returns the StudyConfig, or a name that `jaxspec "
        "configs` lists",
    )
    parser.add_argument(
        "--output",
        default="",
        metavar="FOLDER",
        help="folder for everything that the study leaves (runs/NAME)",
    )
    parser.add_argument(
        "--jobs",
        type=_jobs,
        default=1,
        metavar="N",
        help="units that run at a time, each on its own cores; those that measure speed run alone, "
        "at the end (1)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="only units whose names contain one of these texts, and what they need",
    )
    parser.add_argument(
        "--list", action="store_true", help="show the units and how far each is; run nothing"
    )
    return parser


def _jobs(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= _MOST_JOBS:
        raise argparse.ArgumentTypeError(
            f"got {text}, expected a whole number from 1 to {_MOST_JOBS}"
        )
    return int(text)


def _declaration_help() -> str:
    """What a study file declares: every setting, with its type, default and meaning."""
    lines = textwrap.wrap(
        "Settings in place of the configs' may follow (--training.steps 100): they apply to every "
        "training and evaluation that reads them, except where a row of the study sets the same.",
        _WIDTH,
    )
    lines += ["", "A study file has a function get_config() that returns a StudyConfig:"]
    for kind in (StudyConfig, StudyTarget, StudyAnswers, StudyLoss, StudyDecoding):
        lines += ["", f"{kind.__name__}:"]
        for option in own_options(kind):
            value = "required" if option.value is tyro.MISSING else _default(option.value)
            its_type = type_name(option.kind)
            its_type = "" if its_type.strip("[]. ") in ("VALUE", "VALUE|None") else f" {its_type}"
            lines.append(f"  {option.name}{its_type} ({value})")
            indent = " " * 6
            lines += textwrap.wrap(
                option.meaning, _WIDTH, initial_indent=indent, subsequent_indent=indent
            )
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value == {}:
        return "none"
    if isinstance(value, tuple) and value and isinstance(value[0], StudyDecoding):
        return "the config's own"
    return shown(value)


def is_read_by(command: str, run: RunConfig, name: str) -> bool:
    """Whether "train" or "eval" reads a setting with a run."""
    reads = TrainCommand.reads_now(run, []) if command == "train" else EvalCommand.reads
    return is_read(name, reads)


def _typed_settings(
    words: Sequence[str], study: StudyConfig, configs: Mapping[str, RunConfig]
) -> dict[str, Any]:
    """The settings that follow the command's own options, with their values.

    Raises:
      ValueError: something that is no setting, or a value that its command refuses.
    """
    typed: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            # One that is given twice is left to the command that reads it.
            typed.setdefault(name, []).extend([f"--{name}", value] if equals else [f"--{name}"])
        elif not name:
            raise ValueError(
                f"Unexpected argument {word!r}: settings are given by name, as in --training.steps "
                "100. All options: jaxspec study --help"
            )
        else:
            typed[name].append(word)
    names = {target.config: list(setting_names(configs[target.config])) for target in study.targets}
    found: dict[str, Any] = {}
    for name, its_words in typed.items():
        readers = [
            (config, command)
            for config, known in names.items()
            for command in ("train", "eval")
            if name in known and is_read_by(command, configs[config], name)
        ]
        if not readers:
            if any(name in known for known in names.values()):
                raise ValueError(
                    f"--{name} is read by no training or evaluation of this study: leave it out."
                )
            every = [known for each in names.values() for known in each]
            hint = did_you_mean(name, [*every, "config", "output", "jobs", "only", "list"])
            raise ValueError(f"Unknown setting --{name}.{hint} All options: jaxspec study --help")
        config, command = readers[0]
        line = ["--config", config, *its_words]
        if command == "train":
            command_run = parse_command(
                TrainCommand, [*line, "--workdir", "x"], program="jaxspec study"
            ).run
        else:
            command_run = parse_command(
                EvalCommand, [*line, "--output", "x.json"], program="jaxspec study"
            ).run
        found[name] = value_of(command_run, name)
    return found


def _check_values(units: Sequence[Unit]) -> None:
    """Refuses values of the wrong type and names that no registry has.

    Raises:
      ValueError: names the unit and what is wrong.
    """
    for unit in units:
        problems = [*type_problems(unit.config)] or [*name_problems(unit.config, known=RunConfig())]
        problems += _kind_problems(unit)
        if problems:
            raise ValueError(f"{unit.name}: " + "\n  ".join(problems))


def _kind_problems(unit: Unit) -> Iterator[str]:
    """Says of a row without training that it names no kind that needs none."""
    if kind := unit.options.get("drafters", ""):
        from jaxspec.drafters.registry import KINDS

        untrained = [name for name, found in KINDS.items() if not found.is_trained]
        if kind not in untrained:
            yield (
                f"untrained is {kind!r}, expected one of {', '.join(untrained)}."
                f"{did_you_mean(kind, untrained)}"
            )


def _list(units: Sequence[Unit], folder: Path) -> None:
    from jaxspec.study.records import changed, last_lines, read_record
    from jaxspec.study.running import states_of, still_needed

    states = states_of(folder, units)
    needed = {unit.name for unit in still_needed(units, states)}
    table = Table("unit", "state", box=None, pad_edge=False)
    counts: collections.Counter[str] = collections.Counter()
    for unit in units:
        record = read_record(folder, unit)
        state = states[unit.name] if unit.name in needed else "not needed"
        counts[state] += 1
        note = ""
        if record is not None and changed(unit, record):
            note = ", with other settings"
        elif state == "failed" and (lines := last_lines(folder, unit)):
            note = ": " + " / ".join(lines[-2:])
        table.add_row(Text(unit.name), Text(f"{state}{note}"))
    Console().print(table)
    print(f"\n{', '.join(f'{count} {state}' for state, count in counts.items())}; in {folder}")


def _run(
    study: StudyConfig, units: Sequence[Unit], wanted: Sequence[Unit], folder: Path, *, jobs: int
) -> None:
    import jax

    from jaxspec.cli.study_unit import start_unit
    from jaxspec.evals.progress import render
    from jaxspec.provenance import provenance
    from jaxspec.study.progress import Progress
    from jaxspec.study.records import refuse_changes
    from jaxspec.study.results import read_results, refuse_unusable, write_results
    from jaxspec.study.running import run_units, states_of, still_needed
    from jaxspec.study.tables import console_table

    refuse_changes(folder, units)
    refuse_unusable(study, units, folder=folder)
    # The accelerators belong to the units: this process must not take their memory.
    jax.config.update("jax_platforms", "cpu")
    record = provenance(config=None, seed=None)
    wanted = still_needed(wanted, states_of(folder, wanted))

    def write() -> list[Path]:
        return write_results(study, units, folder=folder, provenance=record)

    progress = Progress(
        wanted,
        states_of(folder, wanted),
        folder=folder,
        jobs=jobs,
        title=study.name,
        echo=lambda line: print(line, flush=True),
    )
    with progress.shown():
        failed = run_units(
            wanted,
            folder=folder,
            start=start_unit,
            jobs=jobs,
            progress=progress,
            after=lambda unit: write() if unit.kind == "evaluation" else None,
        )
    if files := write():
        print(render(console_table(read_results(folder).summary)))
        print(f"Written: {_shown(files, folder)}")
    if failed:
        names = ", ".join(unit.name for unit in failed)
        raise ValueError(
            f"{len(failed)} of {len(wanted)} units failed: {names}. Their output is in "
            f"{folder / 'logs'}. The same command tries them again."
        )


def _shown(files: Sequence[Path], folder: Path) -> str:
    """The names of the tables, and how many plots there are."""
    tables = [str(file) for file in files if file.parent == folder]
    plots = len(files) - len(tables)
    return ", ".join(tables) + (f"; {plots} plots in {folder / 'plots'}" if plots else "")


def _show(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="jaxspec study show", description="Show the tables of a study."
    )
    parser.add_argument("study", metavar="FOLDER", help="folder of a study, or its summary.json")
    for name, what in (("decodings", "ways of decoding"), ("losses", "rows")):
        parser.add_argument(
            f"--{name}", nargs="+", default=[], metavar="NAME", help=f"only these {what} (all)"
        )
    options = parser.parse_args(argv)
    refuse_second_lists(argv, ("decodings", "losses"))
    from jaxspec.evals.progress import render
    from jaxspec.study.results import read_results
    from jaxspec.study.tables import console_table

    found = read_results(options.study).summary
    for option, kind in (("decodings", "decoding"), ("losses", "loss")):
        names = getattr(options, option)
        known = list(dict.fromkeys(entry[kind] for entry in found))
        for name in names:
            if name not in known:
                raise ValueError(
                    f"--{option} {name!r}: the study has "
                    f"{', '.join(known)}.{did_you_mean(name, known)}"
                )
        found = [entry for entry in found if entry[kind] in (names or known)]
    print(render(console_table(found, only_means=False)))


def _diff(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="jaxspec study diff",
        description="Say how two studies differ: in their settings, then in what they measured.",
    )
    for name in ("first", "second"):
        parser.add_argument(name, metavar=name.upper(), help="folder or results.json of a study")
    options = parser.parse_args(argv)
    from jaxspec.study.differences import study_difference
    from jaxspec.study.results import read_results

    print(study_difference(read_results(options.first), read_results(options.second)), end="")
