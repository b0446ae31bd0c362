"""The commands of README and of the tutorials run, as they are typed and in their order.

They run in a copy of the checkout, with few steps, prompts and tokens (`SMALLER`), and with the
target of the package in place of a released model (`STAND_INS`). What cannot run here is in
`NOT_RUN`. Only with ``--slow``: it takes some minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eval as eval_script
import train as train_script
from jaxspec.cli.configuration import run_as_command
from jaxspec.cli.main import dispatch
from tests.documents.blocks import README, ROOT, TUTORIALS, Command, blocks, commands_of
from tests.test_repository import repository_files

NOT_RUN = {
    "hf": "downloads a model",
    "gs://": "needs a bucket and a pod; tests/test_buckets.py and tests/pod have stand-ins",
    "/models/LLaDA-8B-Instruct": "the target of the package is no diffusion language model",
    "/models/gpt2": "the target of the package is no GPT-2; tests/models has small ones",
    "jaxspec plan": "compiles for chips that are not there: minutes, and up to 4 GB",
}
"""What a command has in it that cannot run here -> why."""
STAND_INS = {
    "/models/Qwen3-4B": "models/stand-in",
    "configs/qwen3_4b.py": "configs/quickstart.py",
}
"""A released model -> a copy of the target in the package; its configuration, which has its shape,
-> one for that target."""
TRAINING = (
    *("--training.steps", "3", "--training.log_every", "1", "--data.embedded_examples", "200"),
    *("--data.batch_size", "8"),  # The tests have 8 devices, and each needs a row.
)
EVALUATION = (
    *("--evaluation.prompts", "2", "--evaluation.max_new_tokens", "32"),
    *("--evaluation.batch_size", "2", "--evaluation.timing_prompts", "1"),
    *("--evaluation.timing_repeats", "1"),
)
SMALLER = {
    "python train.py": TRAINING,
    "python eval.py": EVALUATION,
    "jaxspec calibrate": ("--prompts", "2", "--evaluation.max_new_tokens", "32"),
    "jaxspec generate": ("--max_new_tokens", "8"),
    "jaxspec parity": ("--new_tokens", "8"),
    "jaxspec study": ("--only", "block/uniform-seed0", *TRAINING, *EVALUATION),
    "jaxspec regenerate": ("--limit", "4", "--max_new_tokens", "16", "--unfinished", "keep"),
}
"""Command -> what is added to it."""


def why_not(command: Command) -> str:
    """Why a command cannot run here; "": it can."""
    line = " ".join(command.words)
    for part, reason in NOT_RUN.items():
        if command.words[0] == part or (part != "hf" and part in line):
            return reason
    return ""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A copy of the checkout with an environment, a stand-in and the reader's files."""
    folder = tmp_path / "checkout"
    for file in repository_files():
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    shutil.copytree(ROOT / "jaxspec/data/embedded/target", folder / "models/stand-in")
    _environment(folder)
    _readers_files(folder)
    monkeypatch.chdir(folder)
    return folder


def _environment(folder: Path) -> None:
    """What scripts/setup_venv.sh leaves, with the interpreter of the tests."""
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    sums = subprocess.run(
        "cat pyproject.toml constraints.txt | cksum | tr ' ' '-'",
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    stamp = folder / ".venv/jaxspec-installed"
    stamp.write_text(f"{sums.stdout.strip()} runtime\n", encoding="utf-8")


def _readers_files(folder: Path) -> None:
    """Conversations as the tutorial shows one, and questions."""
    (example,) = (b for b in blocks(TUTORIALS[1]) if b.language == "json")
    conversation = json.dumps(json.loads(example.text))
    rows = [re.sub(r"\b3\b", str(n), conversation) for n in range(300)]
    (folder / "chats.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    questions = [json.dumps({"prompt": f"What is {n} plus 6?"}) for n in range(400, 404)]
    (folder / "prompts.jsonl").write_text("\n".join(questions) + "\n", encoding="utf-8")


def run(command: Command, checkout: Path) -> int:
    """Runs one command, made smaller.

    Returns:
      Its exit status.
    """
    if command.words[0] == "source":
        assert command.words[1] == ".venv/bin/activate" or (checkout / command.words[1]).is_file()
        return 0
    if command.words[0] == "bash":
        smaller = TRAINING if command.words[1] == "quickstart.sh" else ()
        return subprocess.run([*command.words, *smaller], check=False).returncode
    arguments = [STAND_INS.get(word, word) for word in command.arguments]
    if "--training.epochs" not in arguments:  # Those of a few short answers are few steps.
        arguments += SMALLER.get(command.program, ())
    if command.program == "python train.py":
        return run_as_command(train_script.main, arguments)
    if command.program == "python eval.py":
        return run_as_command(eval_script.main, arguments)
    assert command.words[0] == "jaxspec", f"{command.program}: say in NOT_RUN why it is not run"
    return run_as_command(dispatch, [command.words[1], *arguments])


def needs_data_sets(command: Command) -> bool:
    """Whether a command reads public data sets."""
    return "gsm8k" in command.words or "/models/Qwen3-4B" in command.words


@pytest.mark.parametrize("documents", [(README,), TUTORIALS], ids=["README", "tutorials"])
def test_documented_commands_run(documents, checkout, is_slow):
    if not is_slow:
        pytest.skip("takes some minutes: --slow runs the commands of README and the tutorials")
    has_data = bool(os.environ.get("JAXSPEC_RAW_DATA"))
    done = 0
    for command in commands_of(*documents):
        if why_not(command) or (needs_data_sets(command) and not has_data):
            continue
        print(f"\n$ {' '.join(command.words)}", flush=True)
        assert run(command, checkout) == 0, f"{command.place}: {' '.join(command.words)}"
        done += 1
    assert done > 8
    if documents == (README,):
        _run_program_of_llada()


def _run_program_of_llada() -> None:
    """The Python program of docs/decoding.md that uses what README's commands wrote."""
    (program,) = (b for b in blocks(ROOT / "docs" / "decoding.md") if "load_graph(" in b.text)
    assert subprocess.run([sys.executable, "-c", program.text], check=False).returncode == 0


def test_every_command_runs_or_has_a_reason():
    every = commands_of(README, *TUTORIALS)
    unknown = [
        command.words
        for command in every
        if not why_not(command)
        and command.words[0] not in ("bash", "source", "jaxspec")
        and command.program not in ("python train.py", "python eval.py")
    ]
    assert not unknown
    lines = [" ".join(command.words) for command in every]
    assert not [part for part in NOT_RUN if not any(part in line for line in lines)], "not needed"
    assert sum(not why_not(command) for command in every) > len(every) / 2
