"""What is answered at once imports nothing heavy. Modules are counted, not seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    *("jax", "jaxlib", "numpy", "flax", "optax", "orbax", "tensorstore", "grain", "qwix"),
    *("tensorflow", "tensorflow_datasets", "torch", "transformers", "datasets", "matplotlib"),
    *("pandas", "scipy", "pyarrow"),
}
MOST_MODULES = {"import jaxspec": 120, "--help of every command": 500}

EVERY_HELP = """
import contextlib, importlib, io
from jaxspec.cli.main import COMMANDS
for module, _ in COMMANDS.values():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
"""


@pytest.mark.parametrize(
    ("name", "code"),
    [("import jaxspec", "import jaxspec"), ("--help of every command", EVERY_HELP)],
)
def test_nothing_heavy_is_imported(name, code):
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    modules = json.loads(done.stdout)
    assert {module.split(".")[0] for module in modules} & HEAVY == set()
    assert len(modules) < MOST_MODULES[name]


def test_the_library_comes_without_what_it_does_not_use():
    """`jaxspec.generate` needs jax and flax; training, plots and other people's libraries not."""
    code = "import jaxspec; jaxspec.generate; import json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    roots = {module.split(".")[0] for module in json.loads(done.stdout)}
    assert "jax" in roots
    assert roots & (HEAVY - {"jax", "jaxlib", "numpy", "flax", "scipy"}) - {"optax"} == set()
