"""What a training step has to send between devices, from the shapes of its models.

>>> sent = drafter_traffic(  # doctest: +SKIP
...     objective, params=params, frozen=frozen, rows=32, length=4096, mesh=mesh)
>>> sum(sent.values()) / 2**30  # doctest: +SKIP
18.6
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxspec.parallel.traffic import Use, traffic
from jaxspec.training.objectives import DrafterObjective


def drafter_traffic(
    objective: DrafterObjective,
    *,
    params: Any,
    frozen: Any,
    rows: int,
    length: int,
    mesh: Mesh | AbstractMesh,
    gradient_accumulation: int = 1,
    scatters: bool = True,
) -> dict[str, float]:
    """Bytes that a device sends in a step that trains a drafter, by the kind of the collective.

    Args:
      objective: what the step computes.
      params: shapes of the drafter's parameters.
      frozen: shapes of the target's.
      rows: of the batch.
      length: tokens of a row.
      mesh: the devices.
      gradient_accumulation: parts of the batch: each of them gathers and reduces again.
      scatters: see `jaxspec.parallel.traffic.traffic`.
    """
    config = objective.drafter.config
    rows = rows // gradient_accumulation
    tokens, slots = rows * length, rows * objective.anchors * config.block_size
    drafted = rows * objective.anchors * (config.block_size - 1)
    target_size = jnp.dtype(objective.target.config.dtype).itemsize
    size = jnp.dtype(config.dtype).itemsize

    def of_target(shapes: Any, count: int, **more: Any) -> Use:
        return Use(shapes, tokens=count, itemsize=target_size, **more)

    def trained(shapes: Any, count: int, **more: Any) -> Use:
        return Use(shapes, tokens=count, itemsize=size, has_weight_gradients=True, **more)

    embedding = {"embed": frozen["embed"]}
    head, head_gathers = {"head": frozen.get("head")}, 1
    if head["head"] is None:  # The table, turned round.
        table = frozen["embed"]["embedding"]
        turned = jax.ShapeDtypeStruct(table.shape[::-1], table.dtype)
        head, head_gathers = {"head": {"kernel": turned}}, 0
    keys_and_values = {
        name: params["layers"]["attention"][name] for name in ("k", "v") if "layers" in params
    }
    gathers = 2 if config.remat else 1
    forwards = 2 if config.remat and config.remat_policy == "nothing_saveable" else 1
    uses = [
        of_target({"layers": frozen["layers"]}, tokens, gathers=1),
        of_target(embedding, tokens, gathers=1, is_lookup=True),
        of_target(embedding, slots, gathers=0, is_lookup=True),
        of_target(head, drafted, gathers=head_gathers, has_input_gradients=True),
        trained({"fc": params["fc"]}, tokens, gathers=1),
        trained(keys_and_values, tokens, gathers=1, has_input_gradients=True),
        trained(
            {"layers": params["layers"]},
            slots,
            gathers=gathers,
            forwards=forwards,
            has_input_gradients=True,
        ),
    ]
    sent = traffic(uses, mesh=mesh, scatters=scatters)
    return {kind: bytes_sent * gradient_accumulation for kind, bytes_sent in sent.items()}
