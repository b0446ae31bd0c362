"""Weights whose entries were exchanged, and a record that is damaged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import TargetConfig
from jaxspec.evals.opening import DrafterBundle, TargetBundle, open_drafter, open_target
from jaxspec.parity.recorded import as_recorded
from jaxspec.training.draft_record import KEY
from tests.parity import trained

Json = dict[str, Any]


@pytest.fixture(scope="module")
def target() -> TargetBundle:
    return open_target(TargetConfig(path="embedded"))


@pytest.fixture(scope="module")
def drafter(target: TargetBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a drafter with random weights."""
    network = trained.network(target, target_layer_ids=(1, 3))
    folder = tmp_path_factory.mktemp("random")
    trained.export(folder, target, "embedded", network, trained.initial(target, network))
    return folder / "export"


@pytest.fixture
def opened(target: TargetBundle, drafter: Path) -> tuple[Json, DrafterBundle]:
    """Its record, and the drafter."""
    record = json.loads((drafter / "provenance.json").read_text())[KEY]
    return record, open_drafter(str(drafter), target=target)


def failures(target: TargetBundle, record: Json, bundle: DrafterBundle) -> list[str]:
    findings = as_recorded(record, target, bundle, is_rounded=True)
    return [finding.name for finding in findings if finding.status == "FAIL"]


def reverse(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.flip(array, axis)


CHANGES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "inputs": ("fc/kernel", reverse(0)),
    "outputs": ("fc/kernel", reverse(1)),
    "layers": ("layers/mlp/up/kernel", reverse(0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_exchanged_entries(
    name: str, target: TargetBundle, opened: tuple[Json, DrafterBundle]
) -> None:
    record, bundle = opened
    path, change = CHANGES[name]
    assert not failures(target, record, bundle)
    *parents, last = path.split("/")
    part = bundle.params
    for parent in parents:
        part = part[parent]
    part[last] = change(np.asarray(part[last]))
    assert failures(target, record, bundle) == ["as exported: weights"]
    del record["orders"]  # As earlier versions recorded it.
    assert "as exported: weights" not in failures(target, record, bundle)


def test_rounded_weights(target: TargetBundle, opened: tuple[Json, DrafterBundle]) -> None:
    record, bundle = opened
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), bundle.params
    )
    assert not failures(target, record, dataclasses.replace(bundle, params=rounded))


@pytest.mark.parametrize("part", ["config", "parameters", "prompts", "texts"])
def test_a_damaged_record(
    part: str, target: TargetBundle, opened: tuple[Json, DrafterBundle]
) -> None:
    record, bundle = opened
    del record[part]
    with pytest.raises(ValueError, match=r"The record of drafts .* is damaged .*export the draft"):
        failures(target, record, bundle)
