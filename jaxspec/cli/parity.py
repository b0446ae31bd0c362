"""``jaxspec parity``: whether a drafter computes the same in training, in decoding and elsewhere.

jaxspec parity --target Qwen3-4B --drafter runs/full

The exit status is 1 if any line fails.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

from jaxspec.config import TargetConfig
from jaxspec.files import try_file, user_path, write_text
from jaxspec.names import visible

if TYPE_CHECKING:
    from jaxspec.parity.findings import Finding

FAILED = 1
"""Exit status if a line fails."""
_COLOURS = {"ok": "green", "not run": "yellow", "FAIL": "bold red"}

_STATUS_INDENT, _DETAIL_INDENT = 9 * " ", 11 * " "


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityCommand:
    """Find out whether a drafter computes the same everywhere, before it is served.

    The target answers a few questions. In its answers, the draft logits of the training pass, of
    the decoding pass and of an independent program that reads the files itself are compared. So is
    what the export recorded of itself. A drafter that does clearly better when its files are
    misread on purpose (layer ids off by one, another rope_theta, a mask in slot 0) was trained that
    way, and this counts as a failure too. The exit status is 1 if any line fails.
    """

    target: str
    """Folder of the target; "embedded": the small one in the package."""
    drafter: str
    """A run's folder, or a drafter's, in z-lab's format or in that of speculators."""
    text: str = ""
    """File with questions for the target, one per line, at most 16; "": six short ones of several
    kinds."""
    new_tokens: int = 48
    """Length of an answer. All drafts are made in the answers."""
    enable_thinking: bool | None = None
    """Passed to the chat template, as in training."""
    variants: bool = True
    """Whether to misread the files on purpose. It takes most of the time with a large target."""
    json: str = ""
    """File for the result as JSON."""


def main(argv: Sequence[str]) -> int:
    """Parses the command line, compares and prints the table."""
    command = tyro.cli(
        ParityCommand,
        args=list(argv),
        prog="jaxspec parity",
        description=inspect.cleandoc(ParityCommand.__doc__ or ""),
        use_underscores=True,
    )
    return parity(command)


def parity(command: ParityCommand) -> int:
    """Compares and prints.

    Returns:
      0, or `FAILED` if a line fails.

    Raises:
      ValueError: see `jaxspec.parity.comparison.compare`; or the output cannot be written.
    """
    if command.new_tokens < 2:
        raise ValueError(f"--new_tokens must be at least 2: got {command.new_tokens}.")
    output = None if not command.json else user_path(command.json)
    if output is not None:
        try_file(output, option="--json")
    # Imported here so that --help needs no jax.
    from jaxspec.parity.comparison import compare
    from jaxspec.parity.questions import QUESTIONS
    from jaxspec.parity.texts import read_questions

    questions = read_questions(user_path(command.text)) if command.text else QUESTIONS
    findings = compare(
        TargetConfig(path=command.target, enable_thinking=command.enable_thinking),
        command.drafter,
        questions=questions,
        new_tokens=command.new_tokens,
        with_variants=command.variants,
        say=lambda line: print(visible(line), file=sys.stderr, flush=True),
    )
    _print(findings)
    if output is not None:
        _write(output, command, findings)
    return FAILED if any(finding.status == "FAIL" for finding in findings) else 0


def _print(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        detail = visible(finding.detail)
        mark = f"[{_COLOURS[finding.status]}]{finding.status:<7}[/]"
        line = f"{finding.name:<{width}}  {detail}"
        if len(_STATUS_INDENT) + cell_len(line) <= console.width:
            console.print(f"{mark}  {escape(line)}")
        else:
            console.print(f"{mark}  {finding.name}")
            for part in textwrap.wrap(detail, max(20, console.width - len(_DETAIL_INDENT))):
                console.print(_DETAIL_INDENT + escape(part))
    failed = [finding.name for finding in findings if finding.status == "FAIL"]
    skipped = sum(finding.status == "not run" for finding in findings)
    note = f" ({skipped} not run)" if skipped else ""
    if failed:
        print(f"\n{len(failed)} of {len(findings)} checks failed{note}: {', '.join(failed)}")
    else:
        print(f"\nAll {len(findings) - skipped} checks passed{note}.")


def _write(output: Path, command: ParityCommand, findings: Sequence[Finding]) -> None:
    from jaxspec.provenance import jsonable, provenance

    result = {
        "target": command.target,
        "drafter": command.drafter,
        "passed": all(finding.status != "FAIL" for finding in findings),
        "checks": [dataclasses.asdict(finding) for finding in findings],
        "provenance": jsonable(provenance(config=None, seed=None)),
    }
    write_text(output, json.dumps(result, indent=1) + "\n")
