from __future__ import annotations

from pathlib import Path

import pytest

from jaxspec.cli import configs, shipped_configs
from jaxspec.cli.configuration import load_config

ROOT = Path(__file__).parent.parent.parent


def test_a_configuration_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = load_config(ROOT / "configs" / "quickstart.py")
    assert load_config("quickstart") == expected == load_config("quickstart.py")


def test_a_file_of_the_users_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (
        "from jaxspec.config import RunConfig\ndef get_config():\n    return RunConfig('mine')\n"
    )
    (tmp_path / "quickstart.py").write_text(source)
    assert load_config("quickstart.py").name == "mine"
    assert load_config("quickstart").name != "mine", "the shipped one has no ending"


def test_a_misspelt_name_is_answered_with_the_closest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"not found: 'quikstart'.* Did you mean 'quickstart'"):
        load_config("quikstart")


def test_a_wheels_own_folder_is_read(tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text('"""Does one thing.\n\nAnd more."""\n')
    monkeypatch.setattr(shipped_configs, "_FOLDERS", (tmp_path, tmp_path / "absent"))
    assert shipped_configs.shipped() == {"one": tmp_path / "one.py"}
    assert shipped_configs.summary(tmp_path / "one.py") == "Does one thing."
    monkeypatch.setattr(shipped_configs, "_FOLDERS", (tmp_path / "absent",))
    assert shipped_configs.shipped() == {}


def test_the_list_says_what_each_does(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    configs.main([])
    printed = capsys.readouterr().out
    for name, file in shipped_configs.shipped().items():
        assert name in printed
        assert shipped_configs.summary(file) in printed


def test_a_copy_is_the_same_and_replaces_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    configs.main(["--copy", "quickstart"])
    assert "--config quickstart.py" in capsys.readouterr().out
    original = ROOT / "configs" / "quickstart.py"
    assert (tmp_path / "quickstart.py").read_text() == original.read_text()
    with pytest.raises(ValueError, match="already exists"):
        configs.main(["--copy", "quickstart.py"])
    configs.main(["--copy", "quickstart", "--output", "other.py"])
    assert (tmp_path / "other.py").read_text() == original.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--copy", "quikstart"], "Did you mean 'quickstart'"),
        (["--output", "a.py"], "give --copy NAME"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        configs.main(arguments)
