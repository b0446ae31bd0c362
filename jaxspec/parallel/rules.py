"""From a parameter's path to its sharding, through logical axis names.

Two tables decide: `PARAMETER_AXES` names the axes of each parameter, and `Rules` says which mesh
axis each name is split over. Optimizer states and gradients follow their parameters.

>>> mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1])
>>> tuple(Rules().spec(("layers", "q", "kernel"), (4, 256, 128), mesh))
(None, 'fsdp', 'tensor')
>>> tuple(Rules.replicated().spec(("layers", "q", "kernel"), (4, 256, 128), mesh))
()
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Set
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxspec.config import MeshConfig, RunConfig
from jaxspec.ops.mesh_axes import BATCH_AXES, batch_parts
from jaxspec.parallel.divisibility import any_of, divisors

PARAMETER_AXES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("embed", "embedding"): ("vocab", "width"),
    ("head", "kernel"): ("width", "vocab"),
    ("positions", "embedding"): ("", "width"),
    ("q", "kernel"): ("width", "heads"),
    ("k", "kernel"): ("width", "heads"),
    ("v", "kernel"): ("width", "heads"),
    ("qkv", "kernel"): ("width", ""),
    ("o", "kernel"): ("heads", "width"),
    ("gate", "kernel"): ("width", "mlp"),
    ("gate_up", "kernel"): ("width", ""),
    ("up", "kernel"): ("width", "mlp"),
    ("down", "kernel"): ("mlp", "width"),
    ("fc", "kernel"): ("features", "width"),
}
"""Axes by the last two names of a path. "" is never split: positions are looked up by row, and the
columns of `qkv` and `gate_up` are several matrices next to each other. A split of these columns
would give one device the queries and another the keys, or one the gates and another what they are
multiplied with, and every layer would begin by sending them where they belong. The axis of stacked
layers comes first and is not split. What is not listed (norm scales, biases, routers) is
replicated."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axis that each logical axis is split over; None: it is not split."""

    width: str | None = "fsdp"
    heads: str | None = "tensor"
    mlp: str | None = "tensor"
    vocab: str | None = "tensor"
    features: str | None = "tensor"

    @classmethod
    def replicated(cls) -> Rules:
        """Every parameter whole on every device."""
        return cls(width=None, heads=None, mlp=None, vocab=None, features=None)

    @classmethod
    def of(cls, mesh: MeshConfig) -> Rules:
        """Those of a run: only the path "jit" splits parameters."""
        return cls() if mesh.path == "jit" else cls.replicated()

    def spec(
        self, path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh
    ) -> PartitionSpec:
        """The partition of one leaf; an axis that does not divide evenly stays whole."""
        names = tuple(_name(entry) for entry in path)
        axes = PARAMETER_AXES.get(names[-2:])
        if axes is None or len(shape) < len(axes):
            return PartitionSpec()
        split: list[str | None] = [None] * (len(shape) - len(axes))
        for name, size in zip(axes, shape[-len(axes) :], strict=True):
            split.append(self.axis(name, size, mesh))
        return PartitionSpec(*split) if any(split) else PartitionSpec()

    def axis(self, name: str, size: int, mesh: Mesh | AbstractMesh) -> str | None:
        """The mesh axis that splits an axis of this name and size; None: it stays whole."""
        axis: str | None = getattr(self, name) if name else None
        return axis if axis and size % mesh.shape[axis] == 0 else None

    def shardings(self, tree: Any, mesh: Mesh) -> Any:
        """A `NamedSharding` for each leaf of a tree of arrays (or of their shapes)."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(mesh, self.spec(path, leaf.shape, mesh)), tree
        )


def columns_of(module: str | None) -> str:
    """The name of the axis of a kernel's outputs; "": it is never split."""
    return PARAMETER_AXES.get((module or "", "kernel"), ("",))[-1]


def _name(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins the rows that the processes have read into one global batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, values)
        for name, values in batch.items()
    }


def row_share(mesh: Mesh, rows: int) -> tuple[int, int]:
    """Which part of each batch this process reads.

    Processes whose devices hold the same rows, split over context and tensor, read the same part.

    Args:
      mesh: over the devices of all processes.
      rows: of a batch.

    Returns:
      (number of the part, number of parts).

    Raises:
      ValueError: the devices of two processes hold some of the same rows, but not all.
    """
    held: dict[int, set[int]] = {}
    device: Any  # jax's own stubs do not know its class.
    for device, (part,) in batch_sharding(mesh).devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(*part.indices(rows)))
    return share_of(jax.process_index(), held)


def share_of(process: int, held: Mapping[int, Set[int]]) -> tuple[int, int]:
    """The part of the rows that a process holds; see `row_share`.

    >>> share_of(2, {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}})
    (1, 2)

    Args:
      process: its number.
      held: process -> the rows that its devices hold.
    """
    parts = sorted({tuple(sorted(numbers)) for numbers in held.values()})
    has_overlap = sum(map(len, parts)) != len(set().union(*parts))
    if has_overlap or len({len(part) for part in parts}) > 1:
        raise ValueError(
            "Some processes would hold a part of each other's rows: choose mesh.context x "
            "mesh.tensor so that it divides the number of devices of a process, or is a multiple "
            "of it."
        )
    return parts.index(tuple(sorted(held[process]))), len(parts)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(config: RunConfig, mesh: Mesh) -> None:
    """Checks that the batch divides evenly by devices and accumulated parts.

    Its rows have to divide evenly too, where the context axis splits them.

    Raises:
      ValueError: it does not.
    """
    devices, accumulated = batch_parts(mesh.shape), config.training.gradient_accumulation
    if config.data.batch_size % (devices * accumulated):
        raise ValueError(
            f"data.batch_size is {config.data.batch_size}, which must be a multiple of "
            f"{devices * accumulated}: mesh.data {mesh.shape['data']} x mesh.fsdp "
            f"{mesh.shape['fsdp']} x {accumulated} accumulated parts. Change one of them."
        )
    check_context(config, mesh.shape["context"])


def check_context(config: RunConfig, parts: int) -> None:
    """Checks that the tokens and the blocks of a row can be split into these parts.

    Raises:
      ValueError: they cannot, or the run does not train a drafter.
    """
    if parts == 1:
        return
    task = config.training.task
    if task != "drafter":
        raise ValueError(
            f"mesh.context is {parts}, but only training a drafter splits rows: got training.task "
            f"{task!r}. Set mesh.context to 1."
        )
    data, chunk = config.data, config.drafter.chunk_blocks
    for setting, count in (
        ("data.sequence_length", data.sequence_length),
        ("data.anchors", data.anchors),
    ):
        if count % parts:
            raise ValueError(
                f"mesh.context is {parts}, which does not divide the {count} of {setting}: set "
                f"mesh.context to {any_of(divisors(math.gcd(data.sequence_length, data.anchors)))}."
            )
    own = data.anchors // parts
    if chunk and chunk < own and own % chunk:
        raise ValueError(
            f"drafter.chunk_blocks is {chunk}, which does not divide the {own} blocks that a "
            f"device has of a row: data.anchors {data.anchors} / mesh.context {parts}. Set it to "
            f"{any_of(divisors(own))}, or to 0."
        )
