"""The commands of README and docs/ name programs, options, configurations and files that exist.

Nothing is run here: `test_commands_run` does that. Settings of a run are checked by
tests/cli/test_documented_commands.py.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from jaxspec.cli.main import COMMANDS, dispatch
from jaxspec.cli.shipped_configs import find
from tests.cli.test_reads import COMMANDS as WITH_SETTINGS
from tests.documents.blocks import (
    DOCUMENTS,
    README,
    ROOT,
    TUTORIALS,
    Command,
    blocks,
    commands,
    commands_of,
)

OTHER_PROGRAMS = ("chromium", "cp", "docker", "gcloud", "hf", "sbatch", "tensorboard", "xpk")
"""Programs of others that the documents mention."""
INSTALLED_MODULES = ("pytest",)
READERS_OWN = ("chats.jsonl", "prompts.jsonl")
"""Files that the reader brings."""
MADE_BY_SCRIPTS = {
    "quickstart.sh": (".venv/bin/activate", "runs/quickstart/uniform", "runs/quickstart/full"),
    "scripts/setup_venv.sh": (".venv/bin/activate",),
}
EVERY = commands_of(*DOCUMENTS)


def shown(command: Command) -> str:
    return f"{command.place}: {' '.join(command.words)}"


def problem_of(command: Command) -> str:
    """Why the program of a command cannot be called; "": it can."""
    first, *rest = command.words
    if first == "jaxspec":
        return "" if rest[0] in COMMANDS else "no such command"
    if first == "python" and rest[0] == "-m":
        module = ROOT / rest[1].replace(".", "/")
        exists = rest[1] in INSTALLED_MODULES or module.with_suffix(".py").is_file()
        return "" if exists else "no such module"
    if first in ("bash", "python", "source", "sbatch"):
        scripts = [word for word in rest if re.search(r"\.(py|sh|env|sbatch)$|/activate$", word)]
        made = [path for paths in MADE_BY_SCRIPTS.values() for path in paths]
        exists = scripts and ((ROOT / scripts[0]).is_file() or scripts[0] in made)
        return "" if exists else "no such file"
    return "" if first in OTHER_PROGRAMS else "no such program"


def test_programs_exist():
    wrong = [f"{shown(command)}: {why}" for command in EVERY if (why := problem_of(command))]
    assert not wrong, "\n".join(wrong)
    assert len(EVERY) > 80


@functools.cache
def known_options(program: str) -> str:
    """Text that has all options of a program: its help, or its source."""
    if program.startswith("jaxspec "):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            dispatch([program.split()[1], "--help"])
        return output.getvalue().replace("-", "_")
    name = program.split()[-1].removesuffix(".py").replace(".", "/")
    return (ROOT / f"{name}.py").read_text(encoding="utf-8").replace("-", "_")


def unknown_options(command: Command) -> list[str]:
    """Options that a program without settings of a run does not have."""
    program = command.program
    alias = program.removeprefix("python ")
    if {alias, f"{alias.removeprefix('jaxspec ')}.py"} & WITH_SETTINGS.keys():
        return []
    is_ours = program.startswith(("jaxspec ", "python benchmarks/", "python -m benchmarks."))
    if not is_ours and not program.startswith("python scripts/"):
        return []
    options = [word.split("=")[0] for word in command.arguments if word.startswith("--")]
    text = known_options(program)
    names = [option[2:].replace("-", "_") for option in options]
    # Typed with dashes in a help or for argparse, or a field of a dataclass for tyro.
    return [
        name for name in names if not re.search(rf"__{name}\b|^    {name}: ", text, re.MULTILINE)
    ]


def test_options_exist():
    wrong = [
        f"{shown(command)}: {', '.join(unknown)}"
        for command in EVERY
        if (unknown := unknown_options(command))
    ]
    assert not wrong, "\n".join(wrong)


def test_an_unknown_option_is_noticed():
    assert unknown_options(Command("", ("jaxspec", "export", "--workdir", "a", "--typo", "b")))
    assert unknown_options(Command("", ("python", "-m", "benchmarks.speed", "--typo")))
    assert not unknown_options(Command("", ("jaxspec", "export", "--target-name", "a")))


def test_configurations_exist():
    named = {(command, name) for command in EVERY for name in command.values("config")}
    named |= {(c, word) for c in EVERY for word in c.words if word.startswith("configs/")}
    assert not [shown(command) for command, name in named if not find(name).is_file()]
    assert len(named) > 20


FILE = re.compile(
    r"\b(?:benchmarks|configs|docs|examples|jaxspec|notebooks|scripts|tests)/[\w./-]+\."
    r"(?:env(?:\.example)?|json|md|py|sbatch|sh|yml)\b"
)


def test_files_in_the_text_exist():
    lost = [
        f"{document.relative_to(ROOT)}: {name}"
        for document in DOCUMENTS
        for name in FILE.findall(document.read_text(encoding="utf-8"))
        if "NAME" not in name and not (ROOT / name).is_file()
    ]
    assert not lost, "\n".join(lost)


def lost_files(sequence: Iterable[Command]) -> list[str]:
    """Inputs of commands that none before them made."""
    made: list[str] = list(READERS_OWN)
    lost = []
    for command in sequence:
        is_training = command.program in ("python train.py", "jaxspec train")
        outputs = command.values("workdir" if is_training else "output")
        for script, paths in MADE_BY_SCRIPTS.items():
            made += paths if script in command.words else ()
        if command.program == "hf":
            made += command.values("local-dir")
        for word in command.words[1:]:
            is_file = word.startswith(("runs/", "data/", ".venv/")) or word.endswith(".jsonl")
            is_there = any(word == path or word.startswith(f"{path}/") for path in made)
            if is_file and word not in outputs and not is_there and "://" not in word:
                lost.append(f"{shown(command)}: {word}")
        made += outputs
    return lost


@pytest.mark.parametrize("documents", [(README,), TUTORIALS], ids=["README", "tutorials"])
def test_files_come_from_earlier_commands(documents):
    assert not (lost := lost_files(commands_of(*documents))), "\n".join(lost)


def test_a_lost_file_is_noticed():
    train = Command("", ("python", "train.py", "--workdir", "runs/a"))
    measure = Command("", ("python", "eval.py", "--workdir", "runs/a", "--output", "runs/b.json"))
    assert lost_files([train, measure]) == []
    assert len(lost_files([measure, train])) == 1


@pytest.mark.parametrize("document", [README, *TUTORIALS], ids=lambda path: path.name)
def test_nothing_is_left_for_the_reader_to_fill_in(document):
    assert not [shown(c) for c in commands_of(document) if "..." in c.words]


def test_the_list_of_commands_is_complete():
    lines = re.findall(r"^jaxspec (\w+ \|.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted([*" | ".join(lines).split(" | "), "train", "eval"]) == sorted(COMMANDS)


def test_continued_lines_comments_and_variables_are_read(tmp_path: Path):
    document = ROOT / "x.md"
    text = 'A=1 jaxspec eval \\\n    --output "a b"   # why\nsource x.env && python train.py\n'

    class Fake(type(document)):
        def read_text(self, encoding: str) -> str:
            return f"```\n{text}```\n"

    (block,) = blocks(Fake(document))
    first, second, third = commands(block)
    assert first.words == ("jaxspec", "eval", "--output", "a b") and first.place == "x.md:1"
    assert (first.program, second.program, third.program) == (
        "jaxspec eval",
        "source",
        "python train.py",
    )
    assert first.values("output") == ["a b"]
