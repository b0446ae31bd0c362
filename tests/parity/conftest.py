"""The embedded target, and drafters that have learned its answers by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jaxspec.config import TargetConfig
from jaxspec.evals.opening import TargetBundle, open_target
from tests.parity import trained

LAYER_IDS = (1, 3)


@pytest.fixture(scope="session")
def target() -> TargetBundle:
    return open_target(TargetConfig(path="embedded"))


@pytest.fixture(scope="session")
def learned(target: TargetBundle) -> tuple[Any, Any]:
    """A drafter's network and its parameters."""
    drafter = trained.network(target, target_layer_ids=LAYER_IDS)
    return drafter, trained.by_heart(target, drafter)


@pytest.fixture(scope="session")
def run_folder(
    target: TargetBundle, learned: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run that left it."""
    return trained.export(tmp_path_factory.mktemp("run"), target, "embedded", *learned)
