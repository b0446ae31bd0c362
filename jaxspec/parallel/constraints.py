"""How a step computes on a mesh: rows stay on their devices, and weights come to them.

The axes data and fsdp split the rows of a batch, and fsdp splits the parameters as well (ZeRO,
Rajbhandari et al. 2019, arXiv 1910.02054, stage 3). Left alone, the compiler may as well bring all
rows to each part of a weight. Models therefore say where they want what: `rows` keeps activations
split by rows, and `whole` gathers a weight where it is used and splits its gradient again. A split
over the axis tensor stays: there, a device computes with its own heads and columns. The axis
context splits the tokens of a row, and the blocks that are drafted in it; each device asks for the
keys and values of whole rows (`whole_rows`), as in context-parallel attention (Llama 3, Grattafiori
et al. 2024, arXiv 2407.21783, section 3.3.2).

`on_mesh` says which mesh a function is traced for. Without it, on one device, and where each device
runs the function on its own rows (shard_map, pmap), nothing here does anything.

>>> rows(jax.numpy.ones((4, 2))).shape
(4, 2)
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxspec.ops.mesh_axes import (
    BATCH_AXES,
    CONTEXT,
    HEADS,
    context_parts,
    head_axis,
    row_axes,
    spread_mesh,
)
from jaxspec.parallel.rules import PARAMETER_AXES, Rules


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[None]:
    """Within it, functions are traced for this mesh."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def rows(x: jax.Array, *, columns: str = "", axis: int = 0) -> jax.Array:
    """The same array, with its rows, and the tokens or blocks of a row, where they belong.

    An array with one row for the whole batch, such as one level of noise, is left as it is.

    Args:
      x: [..., rows, width] or [..., rows, tokens or blocks of a row, ..., width].
      columns: what the last axis is, by a name of `Rules`, if that may be split over tensor; "": it
        is whole.
      axis: that of the rows.
    """
    mesh = spread_mesh()
    if mesh is None or row_axes(x.shape[axis]) is None:
        return x
    spec: list[str | tuple[str, ...] | None] = [None] * x.ndim
    spec[axis] = BATCH_AXES
    if x.ndim > axis + 2 and context_parts(x.shape[axis + 1]) > 1:
        spec[axis + 1] = CONTEXT
    split = Rules().axis(columns, x.shape[-1], mesh)
    spec[-1] = None if split == "fsdp" else split
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def flat_tokens(x: jax.Array) -> jax.Array:
    """[rows, ..., width] -> [tokens, width], for one large product.

    Where the context axis splits the tokens of a row, rows stay an axis of their own: a device has
    a part of each of its rows, and these parts are not next to each other.
    """
    if x.ndim > 2 and context_parts(x.shape[1]) > 1:
        return x.reshape(x.shape[0], -1, x.shape[-1])
    return x.reshape(-1, x.shape[-1])


def whole_rows(x_BRSC: jax.Array) -> jax.Array:
    """Keys or values of all tokens of a row, for the queries that a device has.

    Args:
      x_BRSC: rows, heads, tokens and width of a head. Their gradient is split over context again.
    """
    batch, heads, length, _ = x_BRSC.shape
    if context_parts(length) == 1:
        return x_BRSC
    split = PartitionSpec(row_axes(batch), head_axis(heads), CONTEXT, None)
    return _gathered(x_BRSC, split, PartitionSpec(*split[:2], None, None))


def by_rows(
    function: Callable[..., Any], *arrays: Any, shared: Any = (), of_tokens: bool = False
) -> Any:
    """``function(shared, *arrays)``, which each device runs on the rows that it has.

    For what must not be left to the compiler: it sorts and ranks on one device what could be
    ranked row by row.

    Args:
      function: gives trees of arrays with one entry for each row, none of which depends on others.
      *arrays: trees of arrays, by rows.
      shared: a tree that all rows read, the same for all of them.
      of_tokens: axis 1 of all arrays is the tokens of a row, none of which depends on others, and
        `shared` are weights, whose split over tensor stays.
    """
    mesh = spread_mesh()
    leaves = jax.tree.leaves(arrays)
    if mesh is None or row_axes(leaves[0].shape[0]) is None:
        return function(shared, *arrays)
    axes, split = set(mesh.axis_names), PartitionSpec(BATCH_AXES)
    if of_tokens:
        axes.discard(HEADS)
        if context_parts(leaves[0].shape[1]) > 1:
            split = PartitionSpec(BATCH_AXES, CONTEXT)
    in_specs = (PartitionSpec(), *[split] * len(arrays))
    spread = jax.shard_map(function, in_specs=in_specs, out_specs=split, axis_names=axes)
    return spread(shared, *arrays)


def whole(
    weight: jax.Array, module: str | None, *, name: str = "kernel", dtype: str | None = None
) -> jax.Array:
    """A parameter, gathered over the axis fsdp; its gradient is split as the parameter is.

    Args:
      weight: the parameter.
      module: the name of the module that has it.
      name: its own name.
      dtype: the type that it is computed with; None: its own. It is rounded before it is gathered:
        that takes fewer bytes on the wire.
    """
    mesh = spread_mesh()
    rounded = weight if dtype is None else weight.astype(dtype)
    if mesh is None:
        return rounded
    split = Rules().spec((module, name), weight.shape, mesh)
    if rounded.dtype != weight.dtype:
        rounded = jax.lax.with_sharding_constraint(rounded, split)
    used = PartitionSpec(*(None if axis == "fsdp" else axis for axis in split))
    return _gathered(rounded, split, used)


def ends_whole(params: Any, *, dtype: str) -> Any:
    """A frozen model whose embedding and head are gathered: once, and not wherever they are used.

    Args:
      params: its parameters.
      dtype: the type that it computes with.
    """
    if spread_mesh() is None:
        return params
    gathered = {
        (module, name): whole(leaf, module, name=name, dtype=dtype)
        for module in ("embed", "head")
        for name, leaf in params.get(module, {}).items()
        if (module, name) in PARAMETER_AXES
    }
    return params | {
        module: params[module] | {name: gathered[module, name]} for module, name in gathered
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(weight: jax.Array, split: PartitionSpec, used: PartitionSpec) -> jax.Array:
    del split
    return jax.lax.with_sharding_constraint(weight, used)


def _gathered_forward(
    weight: jax.Array, split: PartitionSpec, used: PartitionSpec
) -> tuple[jax.Array, None]:
    return _gathered(weight, split, used), None


def _gathered_backward(
    split: PartitionSpec, used: PartitionSpec, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    # The constraint's own rule would ask for the gradient as whole as the weight: each device
    # would then sum all of it, not its part.
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
