"""What an installed jaxspec holds. scripts/check_wheel.sh installs one and runs its commands."""

from __future__ import annotations

import configparser
import io
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_it_holds_the_package_and_the_configurations(wheel):
    names = set(wheel.namelist())
    for file in (*ROOT.glob("jaxspec/**/*.py"), *ROOT.glob("jaxspec/data/**/*.json")):
        assert str(file.relative_to(ROOT)) in names
    for file in ROOT.glob("configs/*.py"):
        assert f"jaxspec/configs/{file.name}" in names
    for file in ROOT.glob("jaxspec/evals/html_report/page/*"):
        assert str(file.relative_to(ROOT)) in names
    assert "jaxspec/data/held_out_prompts.npy" in names
    assert "jaxspec/data/embedded/target/model.safetensors" in names


def test_it_holds_nothing_else(wheel):
    strangers = [
        name
        for name in wheel.namelist()
        if not name.startswith(("jaxspec/", "jaxspec_decoding-")) or "__pycache__" in name
    ]
    assert strangers == []


def test_its_console_script_is_jaxspec(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    scripts = configparser.ConfigParser()
    scripts.read_file(io.TextIOWrapper(wheel.open(name), encoding="utf-8"))
    assert dict(scripts["console_scripts"]) == {"jaxspec": "jaxspec.cli.main:main"}
