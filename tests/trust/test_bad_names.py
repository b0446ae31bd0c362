"""Wrong names and files at the doors for configurations and questions: one message each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training import runs
from tests.trust.bad_files import image
from tests.trust.outcomes import Outcomes
from tests.trust.test_cli_values import Place, count, here, place

__all__ = ["place"]

CONFIGS: dict[str, tuple[str, ...]] = {
    "quickstrat": ("quickstrat", "quickstart"),
    "image.py": ("image.py' failed: ", "null bytes"),
    "empty.py": ("empty.py", "get_config"),
    "broken.py": ("broken.py", "line 2"),
    "latin.py": ("latin.py", "RunConfig"),
    "other.py": ("other.py", "get_config", "RunConfig"),
    "raises.py": ("raises.py",),
    "folder": ("folder",),
}
"""What `--config` is given, and what the message has to say."""
COPIES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("quickstrat",): ("quickstrat", "Did you mean 'quickstart'?"),
    ("",): ("''", "quickstart"),
    ("../quickstart",): ("../quickstart", "quickstart"),
    ("quickstart", "--output", "there.py"): ("there.py already exists",),
    ("quickstart", "--output", "/proc/absent/x.py"): ("/proc/absent",),
}
"""What follows `jaxspec configs --copy`, and what the message has to say."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files that are no configurations."""
    files = {
        "image.py": image(),
        "empty.py": b"",
        "broken.py": b"def get_config():\n    return (\n",
        "latin.py": b"# \xfc\ndef get_config():\n    pass\n",
        "other.py": b"def get_config():\n    return {'steps': 3}\n",
        "raises.py": b"def get_config():\n    return [][0]\n",
        "there.py": b"# mine\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_wrong_configurations(folder: Path) -> None:
    outcomes = Outcomes("wrong configurations")
    before = runs.contents(folder)
    for config, words in CONFIGS.items():
        ended = here(["train", "--config", config, "--workdir", "new"])
        says = all(word in ended.err for word in words)
        count(outcomes, ended, ("train --config", config), expected=2 if says else -1)
    for copy, words in COPIES.items():
        ended = here(["configs", "--copy", *copy])
        says = all(word in ended.err for word in words)
        count(outcomes, ended, ("configs --copy", *copy), expected=2 if says else -1)
    outcomes.add("clean" if runs.contents(folder) == before else "silent", "files were left behind")
    outcomes.check()


def test_wrong_questions_for_parity(place: Place, tmp_path: Path) -> None:
    outcomes = Outcomes("wrong questions for parity")
    files = {"image.png": image(), "empty.txt": b"", "latin.txt": b"Gr\xfc\xdfe?\n", "absent": None}
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        models = ["--target", str(place.target), "--drafter", str(place.run)]
        ended = here(["parity", *models, "--text", str(tmp_path / name)])
        count(outcomes, ended, ("parity --text", name), expected=2 if name in ended.err else -1)
    outcomes.check()
