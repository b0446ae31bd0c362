"""Settings that must be there before jax is imported, and fixtures that several tests share."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VIRTUAL_DEVICES = 8
RAW_DATA_VARIABLE = "JAXSPEC_RAW_DATA"


def _prepare_environment() -> None:
    if "jax" in sys.modules:
        raise RuntimeError(
            "jax was imported before tests/conftest.py: is a pytest plugin importing it? "
            "The tests need NPROC and XLA_FLAGS to be set first."
        )
    environment = os.environ
    environment.setdefault("JAX_PLATFORMS", "cpu")
    # jax 0.10 hangs on 2 cores with virtual devices and 100 or more unblocked collective steps.
    environment.setdefault("NPROC", "16")
    # Threads of numpy and torch wait for each other by spinning: 30 times slower on busy cores.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    environment.setdefault("OMP_NUM_THREADS", "1")
    flag = "--xla_force_host_platform_device_count"
    if flag not in environment.get("XLA_FLAGS", ""):
        flags = f"{environment.get('XLA_FLAGS', '')} {flag}={VIRTUAL_DEVICES}"
        environment["XLA_FLAGS"] = flags.strip()
    # Small programs, too, are worth keeping: 59 tiny ones take 10.9 s to compile and 1.7 s to load.
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # A test must not depend on the network.
    environment["HF_HUB_OFFLINE"] = "1"
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")


_prepare_environment()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--slow``: every case instead of a part of them; above all in tests/trust."""
    parser.addoption("--slow", action="store_true", help="try every case, above all in tests/trust")


@pytest.fixture(scope="session")
def is_slow(request: pytest.FixtureRequest) -> bool:
    """Whether every case is to be tried, which takes hours."""
    return bool(request.config.getoption("--slow"))


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also in tests that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


LONGEST_FIRST = (
    "third_party/test_drafts.py",
    "notebooks/test_notebooks.py",
    "parity/test_broken_checkpoints.py",
    "decoding/test_meshes.py",
    "decoding/diffusion/test_spiffy.py",
    "trust/test_killed_evaluation.py",
    "evals/test_unfinished.py",
    "decoding/diffusion/test_meshes.py",
    "cli/test_buckets.py",
    "trust/test_pods.py",
    "cli/test_two_processes.py",
    "training/test_bad_input.py",
    "study/test_study.py",
    "documents/test_site.py",
)
"""Files of tests that take longest. Begun last, one of them would keep one worker busy alone."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the longest files first; the others stay in their order. Skips what is slow."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if config.getoption("--slow"):
        return
    for item in items:
        for mark in item.iter_markers("slow"):
            item.add_marker(pytest.mark.skip(reason=f"{mark.args[0]}: --slow"))


def pytest_collection_finish() -> None:
    """Python's collector need not look at imported modules again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


MOST_MAPPINGS = 5_000
"""Compiled programs are mapped into memory piece by piece; 1,000 mappings come with about 200 MB.
Linux gives a process 65,530 by default; with more, XLA aborts."""


@pytest.fixture(scope="module", autouse=True)
def _few_mappings() -> Iterator[None]:
    """Drops compiled programs between modules before they fill the memory."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and len(maps.read_bytes().splitlines()) > MOST_MAPPINGS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def raw_data_dir() -> Path:
    """Folder with the original files of the real data sets."""
    value = os.environ.get(RAW_DATA_VARIABLE, "")
    if not value:
        pytest.skip(
            f"{RAW_DATA_VARIABLE} is not set: it names a folder with the original files of the "
            "data sets (gsm8k/train.jsonl and so on)"
        )
    folder = Path(value)
    assert folder.is_dir(), f"{RAW_DATA_VARIABLE}={value} is not a folder"
    return folder
