"""``jaxspec doctor``: whether this machine can train, and what is missing if not."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxspec.paths import user_path

MINIMUM_PYTHON = (3, 11)
LOW_DISK_GB = 5.0
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array_record",
    "tensorflow-datasets",
    "transformers",
    "safetensors",
    "tyro",
)
EMBEDDED_FILES = {
    "embedded/tokenizer": ("tokenizer.json", "tokenizer_config.json"),
    "embedded/target": ("config.json", "model.safetensors", "tokenizer.json"),
}

Status = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the table: "fail" makes the command fail, "note" only informs."""

    name: str
    status: Status
    detail: str


def check_versions() -> Iterator[Finding]:
    """Python and the packages a run needs."""
    version = platform.python_version()
    if sys.version_info >= MINIMUM_PYTHON:
        yield Finding("python", "ok", f"{version} ({sys.executable})")
    else:
        yield Finding("python", "fail", f"{version}: 3.11 or newer is needed")
    for package in PACKAGES:
        try:
            yield Finding(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "fail", "not installed: bash scripts/setup_venv.sh")


def check_devices() -> Iterator[Finding]:
    """The devices that jax computes on."""
    import jax

    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    yield Finding(
        "devices",
        "ok",
        f"{len(devices)} x {', '.join(kinds)} ({jax.default_backend()}, "
        f"{jax.process_count()} process{'es' if jax.process_count() > 1 else ''}, "
        f"{os.cpu_count()} CPU cores)",
    )


def check_attention() -> Iterator[Finding]:
    """How targets compute attention over whole texts on these devices."""
    import jax

    from jaxspec.ops.causal_attention import LONGEST_PLAIN, choose_attention

    choices = {
        dtype: choose_attention(
            "auto",
            platform=jax.default_backend(),
            dtype=dtype,
            head_dim=128,
            length=2 * LONGEST_PLAIN,
        )
        for dtype in ("bfloat16", "float32")
    }
    kinds = "; ".join(f"{choice.kind} ({choice.reason})" for choice in choices.values())
    yield Finding("attention", "ok", f"of whole texts: {kinds}")


def check_accelerator() -> Iterator[Finding]:
    """Accelerators of this machine that jax does not compute on."""
    import jax

    if jax.default_backend() != "cpu":
        return
    found = [(name, extra) for name, extra, sees in ACCELERATORS if sees()]
    for name, extra in found:
        yield Finding(
            "accelerator",
            "note",
            f"this machine has {name}, but jax computes on the CPU: install jaxspec with the extra "
            f"{extra} (in a checkout: bash scripts/setup_venv.sh {extra})",
        )


def _has_device(*patterns: str) -> bool:
    return any(True for pattern in patterns for _ in DEVICES.glob(pattern))


DEVICES = Path("/dev")
ACCELERATORS: tuple[tuple[str, str, Callable[[], bool]], ...] = (
    # The control device is there wherever the driver is loaded; nvidia0 is the first GPU.
    ("an NVIDIA GPU", "cuda13", lambda: _has_device("nvidia[0-9]*")),
    # VFIO also passes on other devices; only its numbered groups are in use.
    ("a TPU", "tpu", lambda: _has_device("accel[0-9]*", "vfio/[0-9]*")),
)
"""What it is called, the extra that installs jax for it, and whether this machine has one."""


def check_compile() -> Iterator[Finding]:
    """Compiles a small gradient and compares it with the known answer."""
    import jax
    import jax.numpy as jnp

    started = time.perf_counter()
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(x) * 0.5)))(jnp.arange(8.0))
    difference = float(jnp.max(jnp.abs(gradient - jnp.arange(8.0))))
    seconds = time.perf_counter() - started
    if difference < 1e-6:
        yield Finding("compile", "ok", f"a gradient, compiled and run in {seconds:.2f} s")
    else:
        yield Finding("compile", "fail", f"a gradient is off by {difference:g}")


def check_embedded() -> Iterator[Finding]:
    """The tokenizer and target that are shipped in the package."""
    data = Path(__file__).parent.parent / "data"
    for folder, names in EMBEDDED_FILES.items():
        missing = [name for name in names if not (data / folder / name).is_file()]
        label = folder.replace("_", " ").replace("/", " ")
        if missing:
            yield Finding(label, "fail", f"missing {', '.join(missing)}: reinstall the package")
        else:
            size = sum(file.stat().st_size for file in (data / folder).iterdir())
            yield Finding(label, "ok", f"{size / 1e6:.1f} MB")


def check_raw_data() -> Iterator[Finding]:
    """The original files of the data sets, for machines without a network."""
    value = os.environ.get("JAXSPEC_RAW_DATA", "")
    if not value:
        detail = "JAXSPEC_RAW_DATA is not set: data sets are downloaded when first used"
        yield Finding("raw data", "note", detail)
    elif not user_path(value).is_dir():
        yield Finding("raw data", "fail", f"JAXSPEC_RAW_DATA={value} is not a folder")
    else:
        folders = sorted(entry.name for entry in user_path(value).iterdir() if entry.is_dir())
        yield Finding("raw data", "ok", f"{value}: {', '.join(folders) or 'empty'}")


def check_disk() -> Iterator[Finding]:
    """Room for checkpoints in the current folder."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if not os.access(Path.cwd(), os.W_OK):
        yield Finding("disk", "fail", f"the current folder {Path.cwd()} is not writable")
    elif free < LOW_DISK_GB:
        yield Finding("disk", "note", f"{free:.1f} GB free here: little for checkpoints")
    else:
        yield Finding("disk", "ok", f"{free:.0f} GB free here")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_versions,
    check_devices,
    check_attention,
    check_accelerator,
    check_compile,
    check_embedded,
    check_raw_data,
    check_disk,
)


def examine(checks: Sequence[Callable[[], Iterator[Finding]]] = CHECKS) -> list[Finding]:
    """Runs every check; one that raises is a finding too, so that the others still run."""
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check())
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            findings.append(Finding(name, "fail", f"{type(error).__name__}: {error}"))
    return findings


def main(argv: Sequence[str]) -> int:
    """Prints the table; returns 1 when a check failed."""
    parser = argparse.ArgumentParser(
        prog="jaxspec doctor",
        description="Check this machine: versions, devices, accelerators that jax does not use, a "
        "small compilation, shipped files, raw data, disk. The exit status is 0 when everything "
        "that a run needs is there, else 1.",
    )
    parser.parse_args(argv)
    findings = examine()
    colours = {"ok": "green", "note": "yellow", "fail": "bold red"}
    table = Table("check", "", "found", box=None, pad_edge=False)
    for finding in findings:
        mark = f"[{colours[finding.status]}]{finding.status}[/]"
        table.add_row(finding.name, mark, escape(finding.detail))
    Console().print(table)
    failed = [finding.name for finding in findings if finding.status == "fail"]
    print(f"\n{len(failed)} problem(s): {', '.join(failed)}" if failed else "\nReady.")
    return 1 if failed else 0
