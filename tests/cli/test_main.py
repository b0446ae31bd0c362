from __future__ import annotations

import importlib
import sys

import pytest

from jaxspec import __version__
from jaxspec.cli import main as console


def test_help_names_every_command(capsys):
    assert console.dispatch(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, (_, summary) in console.COMMANDS.items():
        assert name in printed
        assert summary in printed


def test_no_command_prints_the_help(capsys):
    assert console.dispatch([]) == 0
    assert capsys.readouterr().out.startswith("usage: jaxspec COMMAND")


def test_version(capsys):
    assert console.dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_unknown_command_suggests_the_closest():
    with pytest.raises(ValueError, match=r"no command 'docter'\. Did you mean 'doctor'"):
        console.dispatch(["docter"])


@pytest.mark.parametrize("name", sorted(console.COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(console.COMMANDS[name][0]).main(["--help"])
    assert caught.value.code == 0
    assert f"jaxspec {name}" in capsys.readouterr().out


def test_mistakes_exit_with_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxspec", "nonsense"])
    with pytest.raises(SystemExit) as caught:
        console.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: jaxspec has no command 'nonsense'.")
