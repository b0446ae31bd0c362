from __future__ import annotations

import re

import pytest

import eval as eval_script
import train as train_script
from jaxspec.cli import calibrate, generate, plan, regenerate
from jaxspec.cli.evaluate import EvalCommand
from jaxspec.cli.help import short_help, shown, type_name
from jaxspec.cli.settings import Setting, is_read, read_settings
from jaxspec.cli.train import TrainCommand
from jaxspec.config import RunConfig

MAINS = {
    "eval.py": eval_script.main,
    "train.py": train_script.main,
    "jaxspec calibrate": calibrate.main,
    "jaxspec generate": generate.main,
    "jaxspec plan": plan.main,
    "jaxspec regenerate": regenerate.main,
}


def printed_help(main, capsys, *arguments: str, option: str = "--help") -> str:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, option])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("program", MAINS)
def test_help_is_short_and_says_where_the_rest_is(program, capsys):
    text = printed_help(MAINS[program], capsys)
    lines = text.splitlines()
    assert text.startswith(f"usage: {program} ")
    assert f"{program} --help-all" in " ".join(text.split())
    assert len(lines) < 100
    assert max(map(len, lines)) <= 80
    assert "example:\n" in text
    assert "  " not in re.sub(r"^ +", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("program", "command"), [("eval.py", EvalCommand), ("train.py", TrainCommand)]
)
def test_help_shows_what_people_change(program, command, capsys):
    text = printed_help(MAINS[program], capsys)
    reads = command.reads_now(RunConfig(), [])
    settings = [s.name for s in read_settings(RunConfig(), reads)]
    common = [name for name in settings if is_read(name, command.common)]
    assert 15 <= len(common) <= 25
    assert re.findall(r"^  --(\w+\.\w+) ", text, flags=re.MULTILINE) == common
    assert f"{len(common)} of {len(settings)}" in text


def test_defaults_are_those_of_the_config(capsys):
    text = printed_help(train_script.main, capsys, "--config", "configs/real_text_mdlm.py")
    assert "--training.task {target,drafter,denoiser} (denoiser)" in text
    assert "--denoiser.objective " in text
    assert "--drafter." not in text.split("With this configuration")[0]
    ending = " ".join(text.split()).split("With this configuration, ")[1]
    assert ending == "--drafter.* and --loss.* are not read."
    text = printed_help(train_script.main, capsys, "--training.task", "target")
    assert "--drafter.block_size" not in text


@pytest.mark.parametrize("option", ["--help", "--help-all"])
def test_a_default_that_the_command_chooses_is_said_in_words(option, capsys):
    text = " ".join(printed_help(regenerate.main, capsys, option=option).split())
    assert re.search(r"--target.dtype \{float32,bfloat16\}.*?that of its", text)
    of_config = printed_help(regenerate.main, capsys, "--config", "quickstart", option=option)
    assert "that of its" not in of_config


def test_entries():
    options = [
        Setting("one", int, "First. Second.", 3),
        Setting("many", tuple[str, ...], 'Names; "" is none of them.', ()),
        Setting("loss.objective", str, "What is learned.", "x"),
    ]
    text = short_help(
        program="p",
        description="Does it.",
        example="",
        options=options,
        settings=[],
        names={"loss.objective"},
        total=0,
    )
    assert text.splitlines()[5:-2] == [
        "options (defaults in brackets):",
        "  --one INT (3)",
        "      First.",
        "  --many [TEXT ...] (none)",
        '      Names; "" is none of them.',
        "  --loss.objective NAME (x)",
        "      What is learned. Names: p --help-all",
    ]


def test_types_and_values_are_shown_as_they_are_typed():
    assert type_name(float | None) == "FLOAT|None"
    assert type_name(bool) == "{True,False}"
    assert type_name(dict) == "VALUE"
    assert shown("") == '""'
    assert shown((1, 2)) == "1 2"
    assert shown(None) == "None"
