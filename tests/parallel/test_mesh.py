"""Where the devices of a TPU slice go in a mesh; the chips here are only described."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from jaxspec.config import MeshConfig
from jaxspec.parallel.mesh import make_mesh, mesh_sizes


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax reads of a chip to place it."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str = "TPU v5"
    platform: str = "tpu"
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0


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


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "mesh.data 3 needs 3 devices, but there are 8"),
        ({"data": 1}, "mesh.data 1 needs 1 device, but there are 8"),
        ({"data": 2, "tensor": 2}, "mesh.data 2 x mesh.tensor 2 needs 4 devices"),
        ({"fsdp": 3}, "mesh.data -1 x mesh.fsdp 3: the other axes need 3 devices, which does not"),
        ({"fsdp": -1, "tensor": -1}, "one may be -1: got mesh.fsdp -1 x mesh.tensor -1"),
        ({"data": 4, "fsdp": 2, "path": "pmap"}, "got mesh.data 4 x mesh.fsdp 2"),
    ],
)
def test_sizes_that_do_not_fit_are_said_as_they_are_typed(
    sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mesh_sizes(MeshConfig(**sizes), devices=8)


def test_another_axis_may_take_what_the_data_axis_takes_by_default() -> None:
    sizes = mesh_sizes(MeshConfig(fsdp=-1, tensor=2), devices=8)
    assert sizes == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}


def test_two_slices_are_refused() -> None:
    second = [dataclasses.replace(chip, slice_index=1) for chip in chips(2, 2, 1)]
    with pytest.raises(ValueError, match="belong to 2 TPU slices: a run takes one slice only"):
        make_mesh(MeshConfig(), devices=[*chips(2, 2, 1), *second])
