"""Twice the devices with twice the rows: each device computes as much, and sends what is predicted.

The training step is compiled on 1, 2, 4 and 8 virtual devices, with the same rows on each. This
prints the table of what was counted:

    python -m pytest -q -s --slow tests/planning/test_weak_scaling.py
"""

from __future__ import annotations

import dataclasses
import functools

import pytest

from jaxspec.config import MeshConfig
from jaxspec.planning.step import StepPlan, plan_step
from jaxspec.planning.topologies import parse_topology
from tests.cli.test_plan import CONFIG, as_cpus_send

ROWS = 2
"""Of a device."""
QWEN3 = 151_936
"""The vocabulary of Qwen3. The head is then nearly all of this step; with 64 ids the layers are."""


@functools.cache
def plan(axis: str, devices: int, vocabulary: int) -> StepPlan:
    """The step on so many devices along an axis of the mesh."""
    mesh = {"data": 1, "fsdp": 1, "tensor": 1, axis: devices}
    target = dataclasses.replace(CONFIG.target.architecture, vocab_size=vocabulary)
    config = dataclasses.replace(
        CONFIG,
        mesh=MeshConfig(**mesh),
        target=dataclasses.replace(CONFIG.target, architecture=target),
        data=dataclasses.replace(CONFIG.data, batch_size=ROWS * devices),
    )
    return plan_step(config, topology=parse_topology(f"{devices}xH100"))


@pytest.fixture(scope="module")
def print_line():
    print(
        "\n| axis | devices | vocabulary | MFLOP a device | sent (expected), KiB a device |"
        "\n|---|---|---|---|---|"
    )

    def line(axis: str, vocabulary: int, found: StepPlan) -> None:
        wires = found.wire, as_cpus_send(found.expected_wire)
        sent, expected = (sum(each.values()) / 1024 for each in wires)
        print(
            f"| {axis} | {found.devices} | {vocabulary:,} | "
            f"{found.arithmetic.compiled / 1e6:,.2f} | {sent:,.1f} ({expected:,.1f}) |"
        )

    return line


OTHERS = pytest.mark.slow("8 devices cover fewer, and fsdp the large head")


@pytest.mark.parametrize(
    ("axis", "vocabulary", "counts"),
    [
        ("data", 64, (8,)),
        ("fsdp", 64, (8,)),
        ("fsdp", QWEN3, (8,)),
        pytest.param("data", 64, (2, 4), marks=OTHERS),
        pytest.param("fsdp", 64, (2, 4), marks=OTHERS),
        pytest.param("data", QWEN3, (8,), marks=OTHERS),
    ],
)
def test_a_device_has_as_much_to_do_however_many_there_are(axis, vocabulary, counts, print_line):
    alone = plan("data", 1, vocabulary)
    print_line(axis, vocabulary, alone)
    assert not any(alone.wire.values())
    for devices in counts:
        found = plan(axis, devices, vocabulary)
        print_line(axis, vocabulary, found)
        assert found.rows == ROWS
        assert found.arithmetic.compiled == pytest.approx(alone.arithmetic.compiled, rel=0.02)
        for kind, expected in as_cpus_send(found.expected_wire).items():
            # Sums of a few numbers, such as metrics, are sent as well.
            assert expected <= found.wire[kind] <= 1.02 * expected, (devices, kind)
