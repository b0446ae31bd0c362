"""The devices of the program that is being traced, and which of their axes split rows and heads.

The mesh is the one that `jax.set_mesh` has set. Without one, or where its axes do not divide a
size, nothing is split. The compiler chooses how the rest of the program is spread.

>>> row_axes(8) is None and head_axis(8) is None
True
"""

from __future__ import annotations

import math

import jax
from jax.sharding import AxisType

ROWS = ("data", "fsdp")
HEADS = "tensor"


def is_spread() -> bool:
    """Whether there is a mesh over which the compiler spreads the program."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and all(kind == AxisType.Auto for kind in mesh.axis_types)


def is_mapped() -> bool:
    """Whether each device runs the program on its own part of the arrays (shard_map)."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def platform() -> str:
    """What the devices are, "cpu", "gpu" or "tpu"; without a mesh, those of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def row_axes(rows: int) -> tuple[str, ...] | None:
    """The axes that split this many rows of a batch; None: every device has all of them."""
    return ROWS if _divides(rows, *ROWS) else None


def head_axis(heads: int) -> str | None:
    """The axis that splits this many heads; None: every device has all of them."""
    return HEADS if _divides(heads, HEADS) else None


def _divides(size: int, *axes: str) -> bool:
    shape = jax.sharding.get_abstract_mesh().shape
    return is_spread() and size % math.prod(shape[axis] for axis in axes) == 0
