"""One step over many devices: jit, shard_map or pmap around the same body.

The body is written once, for the rows that it is given. It takes `reduce`, which sums a tree over
all devices: the identity under jit, where arrays are already global, and `psum` where each device
runs the body on its own rows. A body that divides by reduced counts and reduces its gradients gives
the same numbers on every path.

>>> def body(state, frozen, batch, hyper, *, reduce, vary):
...     return state + reduce(batch.sum()), {}
>>> mesh = jax.make_mesh((1, 1), BATCH_AXES, devices=jax.devices()[:1])
>>> state, metrics = spread(body, mesh=mesh, path="jit")(1.0, {}, jax.numpy.arange(4.0), {})
>>> float(state)
7.0
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxspec.ops.mesh_axes import BATCH_AXES
from jaxspec.parallel.constraints import on_mesh
from jaxspec.parallel.rules import batch_sharding, replicated

Reduce = Callable[[Any], Any]
Body = Callable[..., tuple[Any, Any]]
"""body(state, frozen, batch, hyper, *, reduce, vary) -> (state, metrics), all trees of arrays."""


def _identity(tree: Any) -> Any:
    return tree


def spread(
    body: Body,
    *,
    mesh: Mesh,
    path: Literal["jit", "shard_map", "pmap"],
    state_shardings: Any = None,
    frozen_shardings: Any = None,
    keeps_state: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """Compiles `body` for a mesh.

    Args:
      body: see `Body`. `vary` marks a replicated tree as differing between devices, so that its
        gradient stays local until `reduce` sums it (under shard_map jax would otherwise have summed
        it already, and `reduce` would do so again).
      mesh: the devices.
      path: how to spread the step.
      state_shardings: of the state, for jit; None: replicated.
      frozen_shardings: of the frozen tree, for jit; None: replicated.
      keeps_state: the body only measures: it returns ((), metrics), and the state stays usable.

    Returns:
      step(state, frozen, batch, hyper) -> (state, metrics). The state is donated. Arrays go in
      and come out global, on every path. It is the same function for the same body on equal meshes
      and shardings, so that it is compiled once.
    """
    leaves, tree = jax.tree.flatten((state_shardings, frozen_shardings))
    return _spread(body, mesh, path, tuple(leaves), tree, keeps_state)


@functools.lru_cache(maxsize=8)
def _spread(
    body: Body,
    mesh: Mesh,
    path: Literal["jit", "shard_map", "pmap"],
    leaves: tuple[Any, ...],
    tree: Any,
    keeps_state: bool,
) -> Callable[..., tuple[Any, Any]]:
    state_shardings, frozen_shardings = jax.tree.unflatten(tree, leaves)
    donated = () if keeps_state else (0,)
    if path == "jit":
        whole = replicated(mesh)

        def step(state: Any, frozen: Any, batch: Any, hyper: Any) -> tuple[Any, Any]:
            with on_mesh(mesh):
                return body(state, frozen, batch, hyper, reduce=_identity, vary=_identity)

        return jax.jit(
            step,
            in_shardings=(
                whole if state_shardings is None else state_shardings,
                whole if frozen_shardings is None else frozen_shardings,
                batch_sharding(mesh),
                whole,
            ),
            out_shardings=(
                whole if state_shardings is None or keeps_state else state_shardings,
                whole,
            ),
            donate_argnums=donated,
        )

    if path == "shard_map":

        def local(state: Any, frozen: Any, batch: Any, hyper: Any) -> tuple[Any, Any]:
            return body(
                state,
                frozen,
                batch,
                hyper,
                reduce=lambda tree: jax.lax.psum(tree, BATCH_AXES),
                vary=lambda tree: jax.lax.pcast(tree, BATCH_AXES, to="varying"),
            )

        whole_spec, rows = PartitionSpec(), PartitionSpec(BATCH_AXES)
        return jax.jit(
            jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(whole_spec, whole_spec, rows, whole_spec),
                out_specs=(whole_spec, whole_spec),
            ),
            donate_argnums=donated,
        )

    return _pmapped(body, mesh)


def _pmapped(body: Body, mesh: Mesh) -> Callable[..., tuple[Any, Any]]:
    """`jax.pmap` for global arrays: the leading axis of devices is added and removed here."""
    devices = list(mesh.devices.flat)
    count = len(devices)
    mapped = jax.pmap(
        lambda state, frozen, batch, hyper: body(
            state,
            frozen,
            batch,
            hyper,
            reduce=lambda tree: jax.lax.psum(tree, "devices"),
            vary=_identity,
        ),
        axis_name="devices",
        in_axes=(None, None, 0, None),
        out_axes=None,
        devices=devices,
    )

    def step(state: Any, frozen: Any, batch: Any, hyper: Any) -> tuple[Any, Any]:
        split = jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)
        return mapped(state, frozen, split, hyper)

    return step
