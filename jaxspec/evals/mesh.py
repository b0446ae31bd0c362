"""The devices that decoding runs on: prompts over data and fsdp, the model over tensor and fsdp.

Decoding uses devices of its own process, and as many as the axes multiply to; with fewer than there
are, the others idle. Where nothing is asked for, the target is whole on every device, and prompts
are spread over as many as divide a batch evenly. The virtual devices of a CPU share its cores, so
there it is one.

>>> decoding_mesh(MeshConfig(), rows=8, option="evaluation.batch_size") is None
True
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxspec.config import MeshConfig
from jaxspec.ops.mesh_axes import AXES, BATCH_AXES, CONTEXT, batch_parts
from jaxspec.parallel.divisibility import any_of, check_models_fit, divisors, split_sizes
from jaxspec.parallel.mesh import make_mesh

_DECODING_AXES = tuple(axis for axis in AXES if axis != CONTEXT)


def check_one_process(program: str) -> None:
    """Raises ValueError in a command that several processes cannot share, if there are several."""
    if jax.process_count() > 1:
        raise ValueError(
            f"{program} measures on the devices of one process: got {jax.process_count()} "
            "processes. Start it on one host."
        )


def decoding_mesh(
    config: MeshConfig, *, rows: int, option: str, devices: Sequence[jax.Device] | None = None
) -> Mesh | None:
    """The mesh of a command that decodes; None: one device, whatever else there is.

    Args:
      config: sizes of the axes. data -1: as many as are left and divide the rows evenly, on a TPU
        also the number of its chips, on a CPU 1. Another -1: all that are left.
      rows: prompts decoded together.
      option: what the command line calls that number.
      devices: of this process; None: all of them.

    Raises:
      ValueError: a context axis, more devices than there are, a number of TPU chips that does not
        divide theirs, or rows that the data and fsdp axes do not divide.
    """
    if config.context != 1:
        raise ValueError(
            f"mesh.context is {config.context}, but only training splits the tokens of a row: set "
            "it to 1."
        )
    devices = list(jax.local_devices() if devices is None else devices)
    sizes = {axis: getattr(config, axis) for axis in _DECODING_AXES}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 and "data" in open_axes:
        sizes["data"] = 1  # Its -1 is the default; the other one was asked for.
        open_axes.remove("data")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > len(devices):
        named = [f"mesh.{axis}" for axis, size in sizes.items() if size > 1]
        counts = " x ".join(str(size) for size in sizes.values() if size > 1)
        raise ValueError(
            f"{' x '.join(named)} is {counts}, which takes {fixed} devices, but this process has "
            f"{len(devices)}: lower {' or '.join(named)}."
        )
    left = len(devices) // fixed
    if open_axes == ["data"]:
        most = 1 if devices[0].platform == "cpu" else left
        sizes["data"] = max(
            (
                data
                for data in range(1, most + 1)
                if rows % (data * sizes["fsdp"]) == 0 and not _is_odd(data * fixed, devices)
            ),
            default=1,
        )
    elif open_axes:
        sizes[open_axes[0]] = left
    _check_rows(sizes, rows=rows, option=option)
    count = math.prod(sizes.values())
    if _is_odd(count, devices):
        given = " x ".join(f"mesh.{axis} {size}" for axis, size in sizes.items() if size > 1)
        raise ValueError(
            f"{given} takes {count} of the {len(devices)} chips of this process, which are no part "
            f"of a TPU slice: take {any_of(divisors(len(devices)))} of them."
        )
    if count == 1:
        return None
    return make_mesh(dataclasses.replace(config, **sizes, path="jit"), devices=devices[:count])


def _is_odd(count: int, devices: Sequence[jax.Device]) -> bool:
    """Whether this many devices form no part of a TPU slice, so that they cannot be a mesh."""
    return devices[0].platform == "tpu" and len(devices) % count != 0


def _check_rows(sizes: Mapping[str, int], *, rows: int, option: str) -> None:
    parts = batch_parts(sizes)
    if rows % parts:
        split = [axis for axis in BATCH_AXES if sizes[axis] > 1]
        named = " x ".join(f"mesh.{axis}" for axis in split)
        raise ValueError(
            f"{named} is {parts}, which does not divide the {rows} prompts that are decoded "
            f"together: set {named} to {any_of(divisors(rows))}, or {option} to a multiple of "
            f"{parts}."
        )


def batch_rows(prompts: int, *, most: int, mesh: Mesh | None) -> int:
    """Rows of a batch for this many prompts: no more than are needed to give each device as many.

    Args:
      prompts: how many there are.
      most: rows of a full batch, which the mesh divides.
      mesh: see `decoding_mesh`.
    """
    parts = 1 if mesh is None else batch_parts(mesh.shape)
    return min(most, -(-prompts // parts) * parts)


def check_model_fits(config: Any, mesh: Mesh | None, *, name: str) -> None:
    """Checks that the mesh divides a model, before its weights are read.

    Args:
      config: the model's shape.
      mesh: where it is to lie; None: on one device.
      name: what messages call the model.

    Raises:
      ValueError: names the axis, what it does not divide, and the sizes that would do.
    """
    if mesh is None:
        return
    check_models_fit({name: split_sizes(config)}, mesh.shape)


def recorded(record: Mapping[str, Any], mesh: Mesh | None) -> dict[str, Any]:
    """A record (`jaxspec.provenance.provenance`) that says which mesh decoded."""
    if mesh is None:
        return dict(record)
    sizes = {axis: mesh.shape[axis] for axis in _DECODING_AXES}
    return {**record, "devices": {**record["devices"], "mesh": sizes}}


def explained(mesh: Mesh | None) -> str:
    """A sentence for reports; "" for one device."""
    if mesh is None:
        return ""
    data, fsdp, tensor = (mesh.shape[axis] for axis in _DECODING_AXES)
    return (
        f"Decoded on {mesh.size} devices (mesh: data {data}, fsdp {fsdp}, tensor {tensor}): a "
        f"batch's prompts are spread over {data * fsdp}, and the target over {fsdp * tensor}. "
        f"Speed is measured on one prompt at a time, which {fsdp * tensor} "
        f"device{'s' if fsdp * tensor > 1 else ''} decode{'' if fsdp * tensor > 1 else 's'}."
    )
