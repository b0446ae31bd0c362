"""The devices of the program that is being traced, and which of their axes split rows and heads.

The mesh is the one that `jax.set_mesh` or `jaxspec.parallel.constraints.on_mesh` has set. Without
one, on one device, and where each device runs the program on its own rows (shard_map, pmap),
nothing is split. Nor is a size that the axes do not divide. The compiler chooses how the rest of
the program is spread.

>>> row_axes(8) is None and head_axis(8) is None
True
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

AXES = ("data", "fsdp", "context", "tensor")
"""The axes of every mesh: those whose devices may be furthest apart come first."""
BATCH_AXES = ("data", "fsdp")
"""The axes that split the batch; fsdp splits parameters as well."""
CONTEXT = "context"
"""The axis that splits the tokens of a row, and the blocks that are drafted in it."""
HEADS = "tensor"


def spread_mesh() -> AbstractMesh | None:
    """The mesh over which the compiler spreads the program; None: there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    is_automatic = all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if is_automatic and not mesh.empty and mesh.size > 1 else None


def is_spread() -> bool:
    """Whether there is a mesh over which the compiler spreads the program."""
    return spread_mesh() is not None


def batch_parts(sizes: Mapping[str, int]) -> int:
    """How many parts a batch is split into, from the size of each axis."""
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def is_mapped() -> bool:
    """Whether each device runs the program on its own part of the arrays (shard_map)."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def platform() -> str:
    """What the devices are, "cpu", "gpu" or "tpu"; without a mesh, those of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def row_axes(rows: int) -> tuple[str, ...] | None:
    """The axes that split this many rows of a batch; None: every device has all of them."""
    mesh = spread_mesh()
    return BATCH_AXES if mesh is not None and rows % batch_parts(mesh.shape) == 0 else None


def context_parts(length: int) -> int:
    """Into how many parts this many tokens or blocks of a row are split."""
    mesh = spread_mesh()
    parts = 1 if mesh is None else mesh.shape.get(CONTEXT, 1)
    return parts if length % parts == 0 else 1


def head_axis(heads: int) -> str | None:
    """The axis that splits this many heads; None: every device has all of them."""
    mesh = spread_mesh()
    return HEADS if mesh is not None and heads % mesh.shape[HEADS] == 0 else None


def mesh_of(params: Any) -> Mesh | None:
    """The mesh on which parameters lie; None: they are on one device."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        if isinstance(mesh, Mesh) and mesh.size > 1:
            return mesh
    return None


def on_mesh_of(params: Any) -> contextlib.AbstractContextManager[Any]:
    """Programs that are called inside run on the mesh of these parameters.

    A model's pass over parameters on several devices needs it: a kernel is not divided by itself.
    """
    mesh = mesh_of(params)
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
