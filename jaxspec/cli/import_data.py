"""``jaxspec import-data``: makes your own conversations a data set.

    jaxspec import-data chats.jsonl --output data/chats
    python train.py ... --data.sources data/chats

The formats are those of `jaxspec.data.imports`. The output is a folder of examples
(`jaxspec.data.example_files`) that is written whole or not at all: an import that was stopped or
killed is simply started again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxspec.data.imports.use import VALIDATION, Use
from jaxspec.files import held_file, refusing, user_path
from jaxspec.interruption import ending_when_told_to
from jaxspec.names import visible

if TYPE_CHECKING:
    from jaxspec.data.imports.writing import Imported

# tyro joins lines, and wraps none, unless they begin with a sign.
_DESCRIPTION = """Make your own conversations a data set for --data.sources.

Files: JSONL, JSON, Parquet, Arrow, plain text. What a row may hold:
- `messages` (OpenAI) or `conversations` (ShareGPT), with tool calls if any
- prompt and response, question and answer, or instruction and output
- `text`, without questions

Left out and counted are duplicates and rows with a prompt of a benchmark.

Examples:
- jaxspec import-data chats.jsonl --output data/chats
- jaxspec import-data hf:NAME --output data/chats --validation 0.01"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportCommand:
    """Options of ``jaxspec import-data``."""

    sources: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="FILE|FOLDER|hf:NAME ...", help_behavior_hint="(one or more)"),
    ]
    """Files; folders of files, or saved by `datasets`; or hf:NAME, a data set of the Hugging Face
    Hub."""
    output: str
    """Folder for the examples: new, or an earlier import, which is replaced."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be used. stop: name the first one and write nothing; skip:
    leave them out, count them and say why."""
    use: Use = "training"
    """What the conversations are for. training: each needs an answer; prompts: for `jaxspec
    regenerate`, which has the target answer them (of plain text, every line is one); benchmark: for
    --evaluation.benchmarks."""
    validation: float = 0.0
    """Share of the prompts that is kept out of training to measure the loss on: 0.01 is one in a
    hundred. A hash of the prompt decides."""
    split: str = ""
    """Which files of a folder or hf:NAME to read: those with this split in their names. If there
    are none, those with no split in their names. "": test for benchmarks, otherwise train. A folder
    may stand before it, for one of several configurations: main/train."""
    revision: str = ""
    """Branch, tag or commit of hf:NAME; "": the newest."""


def main(argv: Sequence[str]) -> None:
    """Parses the command line and imports."""
    command = tyro.cli(
        ImportCommand,
        args=list(argv),
        prog="jaxspec import-data",
        description=_DESCRIPTION,
        use_underscores=True,
    )
    with ending_when_told_to():
        import_data(command)


def _say(line: str) -> None:
    print(visible(line), flush=True)


def import_data(command: ImportCommand, *, echo: Callable[[str], None] = _say) -> Path:
    """Reads the sources and writes the folder.

    Returns:
      The folder.

    Raises:
      ValueError: a bad row, unless they are skipped; a source that is not there or cannot be read;
        nothing is left; or a folder that is in use or holds something else.
    """
    from jaxspec.data.imports.hub import PREFIX, download
    from jaxspec.data.imports.locate import locate, told_apart
    from jaxspec.data.imports.rows import StoppedAtBadRow
    from jaxspec.data.imports.use import SPLITS
    from jaxspec.data.imports.writing import check_importable, import_files
    from jaxspec.provenance import jsonable, provenance

    _check(command)
    split = command.split or SPLITS[command.use]
    output = user_path(command.output)
    with held_file(output, option="--output"), refusing(output, option="--output"):
        check_importable(output)
        found = [
            download(source, split=split, revision=command.revision)
            if source.startswith(PREFIX)
            else locate(source, split=split)
            for source in command.sources
        ]
        for note in (note for each in found for note in each.notes()):
            echo(note)
        try:
            imported = import_files(
                told_apart(found),
                output,
                use=command.use,
                skip_bad=command.on_bad_row == "skip",
                validation=command.validation,
                manifest={"provenance": jsonable(provenance(config=None, seed=None))},
                echo=echo,
            )
        except StoppedAtBadRow as error:
            raise ValueError(
                f"{error} Nothing was written. Correct the row, or leave out all that cannot be "
                "used with --on-bad-row skip."
            ) from error
    for line in _summary(command, imported):
        echo(line)
    return output


def _check(command: ImportCommand) -> None:
    if not command.sources:
        raise ValueError("Nothing to import: name a file, a folder, or hf:NAME.")
    if not 0 <= command.validation < 1:
        raise ValueError(
            f"--validation must be at least 0 and below 1: got {command.validation}. 0.01 is one "
            "prompt in a hundred."
        )
    if command.validation and command.use != "training":
        raise ValueError(
            f"--validation is for training: got --use {command.use}. Leave one of them out."
        )


def _summary(command: ImportCommand, imported: Imported) -> list[str]:
    tally, rate = imported.tally, imported.tally.rows / max(imported.seconds, 1e-9)
    where = command.output
    lines = [
        f"Imported {tally.kept:,} conversations with {tally.turns:,} turns into {where} "
        f"({tally.rows:,} rows in {imported.seconds:.1f} s, {rate:,.0f} rows/s)",
        f"  duplicates left out: {tally.duplicates:,}",
    ]
    if command.use != "benchmark":
        lines.append(f"  rows with a benchmark's prompt left out: {tally.held_out:,}")
    lines.append(f"  bad rows left out: {tally.bad.total():,}")
    lines += [f"    {line}" for line in tally.bad_rows()]
    if command.validation:
        place = f"{where}/{VALIDATION}"
        lines.append(f"  for validation: {imported.validation:,}, in {place}")
        together = "Conversations with the same first question stay together."
        if not imported.validation:
            lines.append(
                "Warning: no prompt was chosen for validation, so training will not measure itself "
                f"on these data. {together} Use more data, or a larger --validation."
            )
        elif not imported.training:
            lines.append(
                "Warning: every prompt was chosen for validation, so there is nothing to learn. "
                f"{together} Leave --validation out, or import a file of other questions for it."
            )
    return [*lines, *_next(command)]


def _next(command: ImportCommand) -> list[str]:
    """What to type next."""
    if command.use == "benchmark":
        return [f"Measure on them: python eval.py ... --evaluation.benchmarks {command.output}"]
    regenerate = (
        f"jaxspec regenerate --target.path TARGET --source {command.output} --output ANSWERS"
    )
    if command.use == "prompts":
        return [f"Let the target answer them: {regenerate}"]
    return [
        f"Train on them: python train.py ... --data.sources {command.output}",
        "A drafter learns better from its target's own answers. To let the target answer the "
        f"questions first: {regenerate}",
    ]
