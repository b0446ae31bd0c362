"""What a step has to send between devices: an analytic count, beside what was compiled.

Weights that are split over fsdp are gathered where they are used, once a pass; a gradient is
reduced to the part of each device (ZeRO, Rajbhandari et al. 2019, arXiv 1910.02054, stage 3). Where
the heads and widths of a model are split over tensor, the outputs of a product whose inputs are
split are summed, and so are the gradients of the inputs of a product whose outputs are split
(Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053, section 3). Where rows are split over context,
each layer gathers their keys and values. Sums of a few numbers a token or a step are left out.

>>> shapes = {"up": {"kernel": jax.ShapeDtypeStruct((4, 64, 256), "float32")}}
>>> mesh = jax.sharding.AbstractMesh((1, 8, 1, 1), ("data", "fsdp", "context", "tensor"))
>>> traffic([Use(shapes, tokens=1024, itemsize=2, gathers=1)], mesh=mesh)["all-gather"]
114688.0
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxspec.ops.mesh_axes import AXES, CONTEXT, batch_parts
from jaxspec.parallel.collectives import KINDS, ring_bytes
from jaxspec.parallel.rules import PARAMETER_AXES, Rules

_Sent: TypeAlias = tuple[str, tuple[str, ...], float]
"""A kind of collective, the axes of the devices that it connects, and the bytes that each sends."""
_OF_EXPERTS = 4
"""Axes of the stacked matrices of a mixture's experts: layers, experts, inputs, outputs."""


@dataclasses.dataclass(frozen=True)
class Use:
    """Products with some weights, or rows of a table, that every token of the batch asks for."""

    shapes: Any
    """The weights: a tree of shapes, with the names of a model's parameters."""
    tokens: int
    """Tokens of the whole batch."""
    itemsize: int
    """Bytes of a number that is computed with."""
    gathers: int
    """How often the weights are gathered: in the forward pass, and where the backward pass runs
    that again. 0: they are at hand, because they were gathered for another use."""
    forwards: int = 1
    """How often the products are computed, gradients aside."""
    has_input_gradients: bool = False
    has_weight_gradients: bool = False
    is_lookup: bool = False
    """Rows of a table, not products."""
    expert_rows: Callable[[int], int] | None = None
    """Tokens on a device -> rows that the experts of one layer compute; None: no experts."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention to the keys and values of whole rows."""

    numbers: int
    """Of the keys and values of a token, in all layers."""
    tokens: int
    """Tokens of the whole batch."""
    itemsize: int
    """Bytes of a number."""
    gathers: int = 1
    """How often they are gathered: in the forward pass, and where that runs again."""
    has_gradients: bool = False


def traffic(
    uses: Iterable[Use | Attention], *, mesh: Mesh | AbstractMesh, scatters: bool = True
) -> dict[str, float]:
    """Bytes that a device sends in a step, by the kind of the collective.

    Args:
      uses: everything that the step computes with weights, and its attention.
      mesh: the devices.
      scatters: whether the compiler reduces a gradient to the part of each device in one
        reduce-scatter. That for TPUs does so with large gradients, as a ring of
        collective-permutes that run beside the products. XLA for CPUs reduces all of a gradient on
        every device and drops what is not needed: an all-reduce.
    """
    sums = dict.fromkeys(KINDS, 0.0)
    for kind, _, sent in _of_uses(uses, mesh, scatters=scatters):
        sums[kind] += sent
    return sums


def traffic_by_group(
    uses: Iterable[Use | Attention], *, mesh: Mesh | AbstractMesh, scatters: bool = True
) -> dict[tuple[int, ...], float]:
    """As `traffic`, by the places in the mesh of the devices that exchange something.

    The first of several such groups stands for all. Devices are counted along the last axis first.

    >>> mesh = jax.sharding.AbstractMesh((2, 2, 1, 1), ("data", "fsdp", "context", "tensor"))
    >>> shapes = {"up": {"kernel": jax.ShapeDtypeStruct((4, 64, 256), "float32")}}
    >>> use = Use(shapes, tokens=8, itemsize=2, gathers=1, has_weight_gradients=True)
    >>> traffic_by_group([use], mesh=mesh)
    {(0, 1): 131072.0, (0, 2): 65536.0}
    """
    sums: dict[tuple[int, ...], float] = {}
    for _, axes, sent in _of_uses(uses, mesh, scatters=scatters):
        places = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
        group = places[tuple(slice(None) if axis in axes else 0 for axis in mesh.shape)]
        if sent:
            key = tuple(group.flatten().tolist())
            sums[key] = sums.get(key, 0.0) + sent
    return sums


def _of_uses(
    uses: Iterable[Use | Attention], mesh: Mesh | AbstractMesh, *, scatters: bool
) -> Iterator[_Sent]:
    for use in uses:
        if isinstance(use, Attention):
            yield from _of_attention(use, mesh, scatters=scatters)
            continue
        for path, leaf in jax.tree_util.tree_flatten_with_path(use.shapes)[0]:
            yield from _of_leaf(use, path, leaf, mesh, scatters=scatters)


def _of_attention(use: Attention, mesh: Mesh | AbstractMesh, *, scatters: bool) -> list[_Sent]:
    context, axes = mesh.shape[CONTEXT], (CONTEXT,)
    here = use.tokens / batch_parts(mesh.shape) * use.numbers / mesh.shape["tensor"] * use.itemsize
    gathered = ring_bytes("all-gather", here, group_size=context)
    found: list[_Sent] = [("all-gather", axes, use.gathers * gathered)]
    if use.has_gradients:
        kind, result = ("reduce-scatter", here / context) if scatters else ("all-reduce", here)
        found.append((kind, axes, ring_bytes(kind, result, group_size=context)))
    return found


def _of_leaf(
    use: Use, path: Any, leaf: Any, mesh: Mesh | AbstractMesh, *, scatters: bool
) -> list[_Sent]:
    names = tuple(str(getattr(entry, "key", entry)) for entry in path)[-2:]
    split = Rules().spec(path, leaf.shape, mesh)
    data, fsdp, context, tensor = AXES
    fsdp_size, tensor_size = mesh.shape[fsdp], mesh.shape[tensor]
    here = math.prod(leaf.shape) * use.itemsize / (tensor_size if tensor in split else 1)
    is_split = fsdp in split
    found: list[_Sent] = []

    def add(kind: str, result: float, *axes: str, times: int = 1) -> None:
        size = math.prod(mesh.shape[axis] for axis in axes)
        found.append((kind, axes, times * ring_bytes(kind, result, group_size=size)))

    if is_split:
        add("all-gather", here, fsdp, times=use.gathers)
    if use.has_weight_gradients:
        part = here / fsdp_size if is_split else here
        if is_split and scatters:
            add("reduce-scatter", part, fsdp)
        elif is_split:
            add("all-reduce", here, fsdp)
        add("all-reduce", part, data, context, *(() if is_split else (fsdp,)))
    if tensor in split and names in PARAMETER_AXES:
        inputs, outputs = leaf.shape[-2:]
        rows, layers = (
            use.tokens / (batch_parts(mesh.shape) * mesh.shape[context]),
            math.prod(leaf.shape[:-2]),
        )
        if use.expert_rows is not None and len(leaf.shape) == _OF_EXPERTS:
            rows, layers = use.expert_rows(int(rows)), leaf.shape[0]
        tokens = rows * layers * use.itemsize
        if split[-2] == tensor:
            add("all-reduce", tokens * outputs, tensor, times=use.forwards)
        if split[-1] == tensor and use.has_input_gradients and not use.is_lookup:
            add("all-reduce", tokens * inputs, tensor)
    return found
