"""Imports run one way: config <- ops <- {losses, verify, models} <- drafters and so on.

The imports are read from the syntax trees: those inside functions and behind TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "jaxspec"

EVERYONE_MAY_IMPORT = {
    *("config", "durations", "files", "growing_file", "interruption", "json_files", "names"),
    *("paths", "plot_style", "provenance", "ranges", "tokenizer_files", "user_modules"),
}
ALLOWED: dict[str, set[str]] = {
    "ranges": set(),
    "transformer_shapes": {"ranges"},
    "architectures": {"transformer_shapes", "ranges"},
    "evaluation_settings": {"architectures", "ranges"},
    "config": {"architectures", "evaluation_settings", "ranges"},
    "files": {"paths"},
    "growing_file": {"files"},
    "paths": {"remote_paths"},
    "plot_style": {"files", "paths"},
    "compile_cache": {"files", "paths"},
    "durations": set(),
    "remote_paths": set(),
    "interruption": set(),
    "json_files": set(),
    "names": set(),
    "tokenizer_files": set(),
    "provenance": {"config", "files"},
    "recipes": {"config"},
    "user_modules": set(),
    "ops": set(),
    "losses": {"ops"},
    "verify": {"ops"},
    "models": {"ops", "parallel"},
    "drafters": {"ops", "losses", "verify", "models"},
    "decoding": {"ops", "losses", "verify", "models", "drafters"},
    "parallel": {"ops"},
    "data": set(),
    "checkpoints": {"ops", "models", "drafters", "parallel"},
    "training": {
        *("ops", "losses", "models", "drafters", "data", "parallel", "checkpoints"),
        "compile_cache",
    },
    "evals": {
        *("ops", "losses", "verify", "models", "drafters", "decoding"),
        *("data", "parallel", "checkpoints"),
    },
    "parity": {
        *("ops", "models", "drafters", "decoding", "data", "checkpoints", "training", "evals"),
    },
    "planning": {"ops", "losses", "models", "decoding", "parallel", "checkpoints", "training"},
    "study": {"architectures", "training", "evals"},
    "api": {"drafters", "decoding", "data", "evals"},
}
"""Subpackage -> what it may import of the others. `cli` may import all of them."""

WITHIN: dict[str, tuple[str, ...]] = {
    "evals.speculative": ("evals.diffusion",),
    "evals.diffusion": ("evals.speculative",),
    "decoding.diffusion": ("decoding.speculative", "decoding.tree", "decoding.adaptive"),
    "checkpoints.families": ("checkpoints.huggingface", "checkpoints.denoiser"),
    "training.tasks": ("training.loop", "training.step"),
    "data.embedded": ("data.sources", "data.pipeline", "data.builders", "data.packing"),
    "data.imports": ("data.sources", "data.pipeline", "data.packing"),
    "drafters.protocol": ("drafters.registry", "drafters.dflash", "drafters.denoiser"),
    "decoding.state": ("decoding.diffusion",),
    "decoding.speculative": ("decoding.diffusion",),
    "losses.objectives": ("losses.terms", "losses.combined"),
}
"""Part of a subpackage -> what it must not import of its own subpackage: siblings do not know each
other, and a part does not know what is built on it."""

Import = tuple[str, int]


def imported_modules(source: str, *, module: str, is_package: bool) -> Iterator[Import]:
    """Absolute names of everything a module imports, with the line.

    ``from a import b`` gives "a.b": b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), node.lineno


def room(name: str) -> str | None:
    """The subpackage that a dotted name lies in: "losses" for "jaxspec.losses.chain"."""
    parts = name.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def violations(source: str, *, module: str, is_package: bool = False) -> list[str]:
    """What a module imports and must not."""
    own = room(module)
    if own is None or own == "cli":
        return []
    if own not in ALLOWED:
        return [f"{module}: {own!r} has no rule in tests/test_import_rules.py"]
    allowed = ALLOWED[own] | EVERYONE_MAY_IMPORT | {own}
    imported = list(imported_modules(source, module=module, is_package=is_package))
    inner = [
        f"{module}:{line} imports {name}: {part} must not know it"
        for part, forbidden in WITHIN.items()
        if f"{module}.".startswith(f"{PACKAGE}.{part}.")
        for name, line in imported
        if any(f"{name}.".startswith(f"{PACKAGE}.{other}.") for other in forbidden)
    ]
    return inner + [
        f"{module}:{line} imports {name}: {own} may import only {', '.join(sorted(allowed))}"
        for name, line in imported
        if room(name) is not None and room(name) not in allowed and room(name) != "__version__"
    ]


def package_modules() -> Iterator[tuple[str, Path]]:
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def test_package_follows_the_rules():
    found = [
        problem
        for module, file in package_modules()
        for problem in violations(
            file.read_text(encoding="utf-8"), module=module, is_package=file.name == "__init__.py"
        )
    ]
    assert not found, "\n".join(found)


def test_rules_have_no_cycle():
    graph = {name: targets | (EVERYONE_MAY_IMPORT - {name}) for name, targets in ALLOWED.items()}
    for leaf in EVERYONE_MAY_IMPORT - {"provenance"}:
        graph[leaf] = set()
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(ALLOWED)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jaxspec.losses.chain", "from jaxspec.models import transformer"),
        ("jaxspec.losses.chain", "def f():\n    import jaxspec.models.transformer"),
        ("jaxspec.losses.chain", "from ..models.transformer import Transformer"),
        ("jaxspec.verify.token", "from jaxspec import models"),
        ("jaxspec.verify.token", "import importlib\nimportlib.import_module('jaxspec.models')"),
        ("jaxspec.evals.tau", "if TYPE_CHECKING:\n    from jaxspec.training.state import State"),
        ("jaxspec.models.layers", "from jaxspec.cli.main import main"),
        ("jaxspec.data.packing", "from jaxspec.losses import chain_reward"),
        ("jaxspec.newroom.thing", "import numpy"),
        ("jaxspec.evals.diffusion.runner", "from jaxspec.evals.speculative import timing"),
        ("jaxspec.checkpoints.families.mdlm", "from jaxspec.checkpoints import huggingface"),
    ],
)
def test_forbidden_imports_are_found(module, source):
    assert len(violations(source, module=module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jaxspec.losses.chain", "from jaxspec.ops.numerics import x\nfrom . import slots"),
        ("jaxspec.losses.chain", "from jaxspec.config import LossConfig\nimport jax"),
        ("jaxspec.evals.tau", "from jaxspec import provenance, __version__"),
        ("jaxspec.cli.main", "from jaxspec.training.loop import train"),
    ],
)
def test_allowed_imports_pass(module, source):
    assert violations(source, module=module) == []


def test_relative_imports_of_a_package_file_are_resolved():
    source = "from .chain import chain_reward\nfrom ..models import cache"
    (problem,) = violations(source, module="jaxspec.losses", is_package=True)
    assert "jaxspec.models.cache" in problem


def test_configuration_stays_instant():
    """jaxspec.config and the parsing of a command line must not pull jax in."""
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "matplotlib", "grain"}
    for module in (
        "__init__.py", "architectures.py", "evaluation_settings.py", "config.py", "recipes.py",
        "transformer_shapes.py",
        "cli/__init__.py", "cli/configuration.py", "cli/evaluate.py", "cli/help.py",
        "cli/settings.py", "cli/train.py", "cli/values.py",
    ):  # fmt: skip
        file = ROOT / PACKAGE / module
        names = imported_modules(
            file.read_text(encoding="utf-8"), module="jaxspec.x", is_package=False
        )
        found = {name.split(".")[0] for name, _ in names} & heavy
        assert not found, f"{module} imports {found}"


@pytest.mark.parametrize("folder", ["configs", "notebooks"])
def test_configs_and_notebooks_import_the_library_only(folder):
    """No script, test or sibling file: what they show works for whoever installed the package."""
    own = {"train", "eval", "configs", "notebooks", "tests", "benchmarks", "scripts"}
    own |= {file.stem for file in (ROOT / folder).glob("*.py")}
    found = [
        f"{file.name}:{line} imports {name}"
        for file in sorted((ROOT / folder).glob("*.py"))
        for name, line in imported_modules(
            file.read_text(encoding="utf-8"), module=file.stem, is_package=False
        )
        if name.split(".")[0] in own
    ]
    assert not found, "\n".join(found)
