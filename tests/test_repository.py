"""What must hold for the files of the repository as a whole."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxspec import __version__

ROOT = Path(__file__).parent.parent
LONGEST_MODULE = 500
LARGEST_FILE = 8_000_000
LARGE = {
    "examples/real_text_target/model.safetensors": "training it takes an hour (see its config)"
}
"""Larger files that are here, and why."""
CODE = ("jaxspec", "configs", "benchmarks", "notebooks", "tests")


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from (ROOT / "train.py", ROOT / "eval.py")


def repository_files() -> list[Path]:
    """Everything git would carry; in an unpacked archive, every file outside of the caches."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = listed.stdout.decode().split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    skipped = {".venv", ".cache", "runs", "results", "__pycache__"}
    return [
        file
        for file in ROOT.rglob("*")
        if file.is_file() and not skipped & set(file.relative_to(ROOT).parts)
    ]


def dangerous_calls(source: str) -> list[str]:
    """Calls that run code out of data: pickle, eval, exec, and remote code of model hubs."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [
                f"{node.lineno}: imports {name}"
                for name in modules
                if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve")
            ]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("eval", "exec", "torch.load"):
                found.append(f"{node.lineno}: calls {name}")
            for keyword in node.keywords:
                permits = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                if keyword.arg in ("trust_remote_code", "allow_pickle") and permits:
                    found.append(f"{node.lineno}: {keyword.arg}=True")
    return found


def test_no_code_out_of_data():
    found = [
        f"{file.relative_to(ROOT)}:{problem}"
        for file in python_files(*CODE)
        for problem in dangerous_calls(file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "eval(input())",
        # Split, because a search of the repository for these words should find nothing.
        "np.load(path, allow_pickle" + "=True)",
        "AutoModel.from_pretrained(name, trust_remote_code" + "=True)",
    ],
)
def test_code_out_of_data_is_found(source):
    assert len(dangerous_calls(source)) == 1


def test_modules_have_one_subject():
    long = {
        str(file.relative_to(ROOT)): lines
        for file in python_files("jaxspec")
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > LONGEST_MODULE
    }
    assert not long


def test_entry_points_are_thin():
    for name in ("train.py", "eval.py"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) < 80


def test_no_machine_is_named():
    """No home folder, no checkout's place, no package index: the project works anywhere."""
    places = [str(ROOT.parent), str(Path.home())]
    needles = [f"{place}/" for place in places if len(place) > 1]
    # Split, so that this file does not contain what it looks for.
    patterns = [re.escape(needle) for needle in needles]
    patterns += [
        "--(extra-)?index-" + "url",
        "--find-" + "links",
        'https?://[^ "]+\\.(whl|tgz|deb)',
    ]
    pattern = re.compile("|".join(patterns))
    found = []
    for file in repository_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{file.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert not found, "\n".join(found)


def test_no_link_is_tracked():
    """A link to a folder of one machine (.venv) would replace that folder in other checkouts."""
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, check=False)
    links = [line for line in listed.stdout.decode().splitlines() if line.startswith("120000")]
    assert not links


def test_no_large_file():
    large = {
        file.relative_to(ROOT).as_posix(): file.stat().st_size
        for file in repository_files()
        if file.stat().st_size > LARGEST_FILE
    }
    assert large.keys() == LARGE.keys(), large
    assert max(large.values()) < 1.5 * LARGEST_FILE


def test_version_is_one_thing():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra

    def canonical(requirement: str) -> str:
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert match is not None
        return match.group().replace("_", "-").lower()

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(
        re.fullmatch(r"[\w.-]+==[\w.]+(; python_version [<>]=? \"3\.\d+\")?", p) for p in pins
    )
    missing = {canonical(name) for name in wanted} - {canonical(pin) for pin in pins}
    assert not missing


def test_extras_are_named_as_they_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {*project["optional-dependencies"], "{extra}"}
    wrong = []
    for file in repository_files():
        if (
            file.suffix not in (".py", ".md", ".sh", ".sbatch", ".toml", "")
            or file == ROOT / "LICENSE"
        ):
            continue
        text = file.read_text(encoding="utf-8")
        for name, listed in re.findall(r"\b(jaxspec(?:-\w+)*)\[([\w,{}]+)\]", text):
            if name != project["name"] or not extras.issuperset(listed.split(",")):
                wrong.append(f"{file.relative_to(ROOT)}: {name}[{listed}]")
    assert not wrong, "\n".join(wrong)


def test_links_of_the_documents_work():
    """Relative links in Markdown lead to files of the repository."""
    broken = []
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not re.match(r"[a-z]+:", link) and not (document.parent / link).exists():
                broken.append(f"{document.relative_to(ROOT)}: {link}")
    assert not broken, "\n".join(broken)


def test_examples_in_the_documents_import_what_exists():
    lost = []
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for module, names in re.findall(
                r"^from (jaxspec[\w.]*) import (\([^)]*\)|.+)$", block, re.MULTILINE
            ):
                lost += [
                    f"{document.relative_to(ROOT)}: {module} has no {name}"
                    for name in re.findall(r"\w+", names)
                    if not hasattr(importlib.import_module(module), name)
                ]
    assert not lost, "\n".join(lost)


def test_shell_scripts_stop_at_the_first_error():
    scripts = [ROOT / "quickstart.sh", ROOT / "test.sh", ROOT / ".ci" / "run"]
    scripts += sorted([*(ROOT / "scripts").glob("*.sh"), *(ROOT / "examples").glob("*.sh")])
    for script in scripts:
        assert "set -euo pipefail" in script.read_text(encoding="utf-8"), script.name
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def shape_letters() -> dict[str, set[str]]:
    """The words of each letter's meaning, from the table in CONTRIBUTING."""
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Shape letters")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z]) \| (.+) \|$", table, re.MULTILINE)
    return {letter: set(re.findall(r"[\w/]+", meaning)) for letter, meaning in rows}


def dimension_key(source: str) -> dict[str, str]:
    """The noun that a module's dimension key gives each letter: "K block slots of a row": slots."""
    docstring = ast.get_docstring(ast.parse(source)) or ""
    key = re.search(r"^Dimension key: (.*?)(?:\n\n|\Z)", docstring, re.DOTALL | re.MULTILINE)
    if key is None:
        return {}
    plain = re.sub(r"\([^()]*\)", "", " ".join(key[1].split()))
    parts = re.split(r"[,;.]| and (?=[A-Z] )", plain)
    entries = [re.fullmatch(r"\s*([A-Z])(?: = [^a-z]*)? (\D.*)", part) for part in parts]
    end = r" (?:of|per|that|in|for) |$"
    return {found[1]: re.split(end, found[2])[0].split()[-1] for found in entries if found}


def test_a_shape_letter_means_one_thing():
    letters = shape_letters()
    wrong = [
        f"{file.relative_to(ROOT)}: {letter} {noun}"
        for file in python_files("jaxspec")
        for letter, noun in dimension_key(file.read_text()).items()
        if noun not in letters.get(letter, set())
    ]
    assert len(letters) == 26 and not wrong


def test_dimension_keys_are_read():
    key = "B batch rows, G = K - 1 drafted slots of a block, Y rows (or\nstates), C head\nwidth."
    source = f'"""A file.\n\nDimension key: {key}\n\nMore, D and so on.\n"""'
    assert dimension_key(source) == {"B": "rows", "G": "slots", "Y": "rows", "C": "width"}
