from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec
from jaxspec import provenance as module
from jaxspec.config import LossConfig, RunConfig
from jaxspec.provenance import check_output, jsonable, provenance, write_json


def test_record_is_complete_and_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "configs/a b.py"])
    config = RunConfig(name="x", loss=LossConfig(decay=math.inf))
    record = provenance(config=config, seed=7)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["command"] == "python train.py --config 'configs/a b.py'"
    assert record["config"]["loss"]["decay"] == "inf"
    assert record["config"]["drafter"]["target_layer_ids"] == []
    assert set(record["config"]) == {f.name for f in dataclasses.fields(RunConfig)}
    assert record["versions"]["jax"] == jax.__version__
    assert record["versions"]["jaxspec"] == jaxspec.__version__
    assert record["versions"]["orbax"] is not None
    assert record["devices"]["count"] == jax.device_count()
    assert record["devices"]["platform"] == jax.default_backend()
    assert record["devices"]["processes"] == 1
    assert record["seed"] == 7
    assert record["time"].endswith("+00:00")


def test_without_a_config() -> None:
    assert provenance(config=None, seed=None)["config"] is None


def test_command_leaves_out_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    argv = ["/opt/venv/bin/jaxspec", "plan", "--config", "/home/someone/run.py"]
    monkeypatch.setattr(sys, "argv", argv)
    assert provenance(config=None, seed=0)["command"] == "jaxspec plan --config '~/run.py'"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of one commit with a package in it."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "config.py").write_text("a = 1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        try:
            subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
        except FileNotFoundError:
            pytest.skip("git is not installed")
    return package


def test_commit_and_whether_files_differ(repository: Path) -> None:
    commit, dirty = module._commit(repository)
    assert commit is not None and len(commit) == 40
    assert dirty is False
    (repository / "new.py").write_text("")
    assert module._commit(repository) == (commit, False), "untracked files do not count"
    (repository / "config.py").write_text("a = 2\n")
    assert module._commit(repository) == (commit, True)


def test_the_code_has_a_digest_of_its_own(tmp_path: Path) -> None:
    """It says more than the commit where files are changed, or the package is installed."""
    own = provenance(config=None, seed=None)["code"]
    assert own == module.code_digest(Path(jaxspec.__file__).parent) and len(own) == 16

    def digest(**files: str) -> str:
        for name, text in files.items():
            file = tmp_path / f"{name}.py"
            file.write_text(text)
        module.code_digest.cache_clear()
        return module.code_digest(tmp_path)

    first = digest(a="x = 1\n", b="")
    (tmp_path / "notes.txt").write_text("")
    assert digest() == first
    changed = digest(a="x = 2\n")
    assert len({first, changed, digest(a="x = 1\n", b="y"), digest(a="x = 1\n", b="", c="")}) == 4
    (tmp_path / "c.py").unlink()
    assert digest() == first


def test_no_commit_outside_of_a_repository(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("")
    assert module._commit(tmp_path) == (None, None)


def test_a_repository_around_an_installed_package_is_not_ours(repository: Path) -> None:
    installed = repository / "site-packages"
    installed.mkdir()
    (installed / "config.py").write_text("")
    assert module._commit(installed) == (None, None)


def test_no_commit_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert module._commit(repository) == (None, None)


def test_jsonable_forms() -> None:
    value = {
        "array": np.arange(3),
        "device": jnp.float32(1.5),
        "bool": np.bool_(True),
        "nan": float("nan"),
        "deep": [(np.float64(-math.inf), Path("a/b"))],
        3: None,
    }
    assert jsonable(value) == {
        "array": [0, 1, 2],
        "device": 1.5,
        "bool": True,
        "nan": "nan",
        "deep": [["-inf", "a/b"]],
        "3": None,
    }


def test_jsonable_refuses_objects() -> None:
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        jsonable({"a": object()})


def test_write_json_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 2}
    assert os.listdir(path.parent) == ["results.json"], "temporary files are left"


@pytest.mark.parametrize(
    ("content", "is_kept"),
    [
        ('{"provenance": {}, "results": []}', False),
        ("", False),
        ('{"provenance": {}, "nodes": []}', True),
        ('{"model_type": "qwen3"}', True),
        ("my notes", True),
    ],
)
def test_an_output_replaces_only_earlier_ones(tmp_path: Path, content: str, is_kept: bool) -> None:
    file = tmp_path / "results.json"
    check_output(file, holding="results")
    file.write_text(content)
    if is_kept:
        with pytest.raises(ValueError, match="It would be lost"):
            check_output(file, holding="results")
    else:
        check_output(file, holding="results")
    assert file.read_text() == content
