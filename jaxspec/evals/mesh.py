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
from jaxspec.ops.mesh_axes import batch_parts
from jaxspec.parallel.decoding_sizes import DECODING_AXES, decoding_sizes
from jaxspec.parallel.divisibility import check_models_fit, split_sizes
from jaxspec.parallel.mesh import make_mesh


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
      config: sizes of the axes (`jaxspec.parallel.decoding_sizes`).
      rows: prompts decoded together.
      option: what the command line calls that number.
      devices: of this process; None: all of them.

    Raises:
      ValueError: sizes that do not fit the devices or the rows.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    sizes = decoding_sizes(
        config, rows=rows, option=option, devices=len(devices), platform=devices[0].platform
    )
    if (count := math.prod(sizes.values())) == 1:
        return None
    return make_mesh(dataclasses.replace(config, **sizes, path="jit"), devices=devices[:count])


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
    sizes = {axis: mesh.shape[axis] for axis in DECODING_AXES}
    return {**record, "devices": {**record["devices"], "mesh": sizes}}


def explained(mesh: Mesh | None) -> str:
    """A sentence for reports; "" for one device."""
    if mesh is None:
        return ""
    data, fsdp, tensor = (mesh.shape[axis] for axis in DECODING_AXES)
    return (
        f"Decoded on {mesh.size} devices (mesh: data {data}, fsdp {fsdp}, tensor {tensor}): a "
        f"batch's prompts are spread over {data * fsdp}, and the target over {fsdp * tensor}. "
        f"Speed is measured on one prompt at a time, which {fsdp * tensor} "
        f"device{'s' if fsdp * tensor > 1 else ''} decode{'' if fsdp * tensor > 1 else 's'}."
    )
