"""How decoding divides the devices of a process: prompts over data and fsdp, models over tensor.

>>> decoding_sizes(MeshConfig(tensor=2), rows=6, option="--batch_size", devices=8, platform="tpu")
{'data': 2, 'fsdp': 1, 'tensor': 2}
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaxspec.config import MeshConfig
from jaxspec.ops.mesh_axes import AXES, BATCH_AXES, CONTEXT, batch_parts
from jaxspec.parallel.divisibility import any_of, divisors

DECODING_AXES = tuple(axis for axis in AXES if axis != CONTEXT)


def decoding_sizes(
    config: MeshConfig, *, rows: int, option: str, devices: int, platform: str
) -> dict[str, int]:
    """The sizes of the axes that a command decodes with.

    Args:
      config: sizes of the axes. data -1: as many as are left and divide the rows evenly, on a TPU
        also the number of its chips, on a CPU 1. Another -1: all that are left.
      rows: prompts decoded together.
      option: what the command line calls that number.
      devices: of the process.
      platform: jax's name of them: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: a context axis, more devices than there are, a number of TPU chips that does not
        divide theirs, or rows that the data and fsdp axes do not divide.
    """
    if config.context != 1:
        raise ValueError(
            f"mesh.context is {config.context}, but only training splits the tokens of a row: set "
            "it to 1."
        )

    def is_odd(count: int) -> bool:
        """Whether this many devices form no part of a TPU slice, so that they cannot be a mesh."""
        return platform == "tpu" and devices % count != 0

    sizes = {axis: getattr(config, axis) for axis in DECODING_AXES}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 and "data" in open_axes:
        sizes["data"] = 1  # Its -1 is the default; the other one was asked for.
        open_axes.remove("data")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > devices:
        named = [f"mesh.{axis}" for axis, size in sizes.items() if size > 1]
        counts = " x ".join(str(size) for size in sizes.values() if size > 1)
        raise ValueError(
            f"{' x '.join(named)} is {counts}, which takes {fixed} devices, but this process has "
            f"{devices}: lower {' or '.join(named)}."
        )
    left = devices // fixed
    if open_axes == ["data"]:
        most = 1 if platform == "cpu" else left
        sizes["data"] = max(
            (
                data
                for data in range(1, most + 1)
                if rows % (data * sizes["fsdp"]) == 0 and not is_odd(data * fixed)
            ),
            default=1,
        )
    elif open_axes:
        sizes[open_axes[0]] = left
    _check_rows(sizes, rows=rows, option=option)
    count = math.prod(sizes.values())
    if is_odd(count):
        given = " x ".join(f"mesh.{axis} {size}" for axis, size in sizes.items() if size > 1)
        raise ValueError(
            f"{given} takes {count} of the {devices} chips of this process, which are no part "
            f"of a TPU slice: take {any_of(divisors(devices))} of them."
        )
    return sizes


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
