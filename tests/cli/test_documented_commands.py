"""The command lines in the documentation name settings that there are, and that are read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxspec.cli.configuration import ConfigCommand, parse_command
from tests.cli.test_reads import COMMANDS

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^[ `]*(?:python )?(train\.py|eval\.py|jaxspec \w+) (-.*)$", re.MULTILINE)
SETTINGS = re.compile(r'^L="(.*)"$', re.MULTILINE)
LOOP = re.compile(r"^ *for (\w+) in (\S+).*; do$", re.MULTILINE)


def documented() -> Iterator[tuple[str, str, str]]:
    """File, command and arguments; lines with placeholders of a syntax are left out.

    Inside a loop, the loop's variable has its first value.
    """
    files = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/*.py"))
    for file in sorted(files):
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        variables = SETTINGS.findall(re.sub(r"^ +", "", text, flags=re.MULTILINE))
        for variable, first in LOOP.findall(text):
            text = text.replace(f"${variable}", first)
        for program, arguments in LINE.findall(text):
            arguments = re.sub(r"`.*|\s#.*", "", arguments).replace("...", "")
            if program in COMMANDS and not re.search(r"\[|NAME|--help", arguments):
                arguments = arguments.replace("$L", " ".join(variables)).replace("STEPS", "3")
                yield file.name, program, arguments


def cases() -> Iterator[Any]:
    """Those that add no option, value or config to a line above them are slow."""
    told_above = pytest.mark.slow("lines above it have all its options and its config")
    known: set[tuple[str, str]] = set()
    for file, program, arguments in documented():
        told = {(program, option.strip()) for option in re.split(r" (?=--)", arguments)}
        yield pytest.param(file, program, arguments, marks=told_above if told <= known else ())
        known |= told


@pytest.mark.parametrize(("file", "program", "arguments"), list(cases()))
def test_documented_command_lines_are_accepted(file, program, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    command: type[ConfigCommand] = COMMANDS[program]
    line = ["--config", "configs/quickstart.py"] if "--config" not in arguments else []
    for option in ("workdir", "output"):
        if option in command.__dataclass_fields__:
            line += [] if f"--{option} " in arguments else [f"--{option}", "x.json"]
    parse_command(command, [*line, *shlex.split(arguments)], program=program)


def test_there_are_some():
    assert len(list(documented())) > 30
