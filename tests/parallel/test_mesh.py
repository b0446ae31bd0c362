"""Where the devices of a TPU slice go in a mesh; the chips here are only described."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from jaxspec.config import MeshConfig
from jaxspec.parallel.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax reads of a chip to place it."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str = "TPU v5"
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0


def chips(*shape: int) -> Any:
    places = itertools.product(*map(range, reversed(shape)))
    return [Chip(number, place[::-1]) for number, place in enumerate(places)]


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor"), [(1, 64, 1), (1, 32, 2), (2, 16, 2), (8, 8, 1), (1, 16, 4)]
)
def test_axes_may_take_a_part_of_an_axis_of_the_torus(data: int, fsdp: int, tensor: int) -> None:
    slice_of_64 = chips(4, 4, 4)
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), devices=slice_of_64)
    assert mesh.devices.shape == (data, fsdp, 1, tensor)
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(64))
    # The tensor axis moves the most: its chips are neighbours.
    for group in mesh.devices.reshape(-1, tensor):
        for one, other in itertools.pairwise(group):
            steps = [abs(a - b) for a, b in zip(one.coords, other.coords, strict=True)]
            assert sum(min(step, 4 - step) for step in steps) == 1
