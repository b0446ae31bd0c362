"""The device mesh of a run: axes data, fsdp, context and tensor.

>>> dict(make_mesh(MeshConfig(data=-1, fsdp=1), devices=jax.devices()[:1]).shape)
{'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxspec.config import MeshConfig
from jaxspec.ops.mesh_axes import AXES


def mesh_sizes(config: MeshConfig, *, devices: int) -> dict[str, int]:
    """The size of each axis on this many devices.

    With another axis at -1, the -1 of data, which is its default, counts as 1.

    Raises:
      ValueError: sizes that do not multiply to the number of devices, two -1 besides that of data,
        or a replicating path ("shard_map", "pmap") with an axis other than data.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 and "data" in open_axes:
        sizes["data"] = 1
        open_axes.remove("data")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if any(size < 1 and size != -1 for size in sizes.values()) or len(open_axes) > 1:
        raise ValueError(f"Axes must be positive, and one may be -1: got {_typed(sizes)}.")
    if open_axes and devices % fixed:
        raise ValueError(
            f"{_typed(sizes)}: the other axes need {fixed} devices, which does not divide the "
            f"number that there are ({devices}). Change one of them."
        )
    if open_axes:
        sizes[open_axes[0]] = devices // fixed
    elif fixed != devices:
        needed = f"{fixed} device{'' if fixed == 1 else 's'}"
        raise ValueError(
            f"{_typed(sizes)} needs {needed}, but there are {devices}: set one axis to -1 to take "
            "what is left."
        )
    if config.path != "jit" and sizes["data"] < devices:
        raise ValueError(
            f'mesh.path="{config.path}" replicates the parameters and splits the batch over data '
            f'only: got {_typed(sizes)}. Use mesh.path="jit" for fsdp, context and tensor.'
        )
    return sizes


def _typed(sizes: Mapping[str, int]) -> str:
    named = [f"mesh.{axis} {size}" for axis, size in sizes.items() if size != 1]
    return " x ".join(named) or "mesh.data 1"


def make_mesh(config: MeshConfig, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (of all processes).

    Raises:
      ValueError: sizes that do not fit the devices (`mesh_sizes`), the path "pmap" with several
        processes, or devices of several TPU slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(config, devices=len(devices))
    if config.path == "pmap" and jax.process_count() > 1:
        raise ValueError('mesh.path="pmap" is for one process: use "jit" or "shard_map" on a pod.')
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) > 1:
        raise ValueError(
            f"The devices belong to {len(slices)} TPU slices: a run takes one slice only. Start it "
            "on the hosts of one slice, or ask for a larger one."
        )
    # As `jax.make_mesh` does, but where an axis takes a part of an axis of the chips' torus, too:
    # tensor 2 on 4 x 4 x 4 chips.
    placed = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
    # Auto: the compiler decides what the inputs' shardings leave open. jax's default, Explicit,
    # would make a sharding part of every array's type.
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))
