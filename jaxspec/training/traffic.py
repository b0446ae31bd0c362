"""What a training step has to send between devices, from the shapes of its models.

>>> sent = step_traffic(  # doctest: +SKIP
...     objective, params=params, frozen=frozen, rows=32, length=4096, mesh=mesh)
>>> sum(sent.by_kind.values()) / 2**30  # doctest: +SKIP
18.6
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from jaxspec.config import DrafterConfig, LanguageModelConfig
from jaxspec.models.experts import computed_rows
from jaxspec.parallel.traffic import Attention, Use, traffic, traffic_by_group
from jaxspec.training.lora import LowRankObjective
from jaxspec.training.objectives import DrafterObjective, Objective
from jaxspec.training.passes import reading


class StepTraffic(NamedTuple):
    """Bytes that a device sends in a training step."""

    by_kind: dict[str, float]
    """Kind of the collective -> bytes."""
    by_group: dict[tuple[int, ...], float]
    """Places in the mesh of the devices that exchange something -> bytes."""


def step_traffic(
    objective: Objective,
    *,
    params: Any,
    frozen: Any,
    rows: int,
    length: int,
    mesh: Mesh | AbstractMesh,
    gradient_accumulation: int = 1,
    scatters: bool = True,
) -> StepTraffic:
    """Bytes that a device sends in a training step.

    Args:
      objective: what the step computes.
      params: shapes of the parameters that are trained.
      frozen: shapes of those that are not: a drafter's target, or what low-rank updates change.
      rows: of the batch.
      length: tokens of a row.
      mesh: the devices.
      gradient_accumulation: parts of the batch: each of them gathers and reduces again.
      scatters: see `jaxspec.parallel.traffic.traffic`.
    """
    uses = _uses(objective, params, frozen, rows=rows // gradient_accumulation, length=length)
    kinds = traffic(uses, mesh=mesh, scatters=scatters)
    groups = traffic_by_group(uses, mesh=mesh, scatters=scatters)
    return StepTraffic(
        by_kind={kind: sent * gradient_accumulation for kind, sent in kinds.items()},
        by_group={group: sent * gradient_accumulation for group, sent in groups.items()},
    )


def _uses(
    objective: Objective, params: Any, frozen: Any, *, rows: int, length: int
) -> Sequence[Use | Attention]:
    """What the step computes for one part of the batch, which has `rows` rows."""
    if isinstance(objective, DrafterObjective):
        return _drafter_uses(objective, params, frozen, rows=rows, length=length)
    return _model_uses(objective, params, frozen, rows=rows, length=length)


def _model_uses(
    objective: Objective, params: Any, frozen: Any, *, rows: int, length: int
) -> list[Use]:
    """A target or denoiser is trained, or low-rank updates of it."""
    is_low_rank = isinstance(objective, LowRankObjective)
    weights = frozen if is_low_rank else params
    read = reading(objective, length=length)
    assert read is not None, "there is no other kind"
    config = read.model
    again = 2 if config.remat else 1
    passes = [each.copies * each.tokens for each in read.passes]

    def use(shapes: Any, count: int, **more: Any) -> Use:
        size = jnp.dtype(config.dtype).itemsize
        gradients = {"has_weight_gradients": not is_low_rank} | more
        return Use(shapes, tokens=rows * count, itemsize=size, **gradients)

    head, head_gathers = {"head": weights.get("head")}, 1
    if head["head"] is None:  # The gradients of a tied table are summed before they are sent.
        head, head_gathers = _turned(weights["embed"]["embedding"]), 0
    layers = dict(weights["layers"])
    if not getattr(config, "time_conditioning", False):
        # All rows share one level of noise: sums of a few numbers.
        layers.pop("modulation", None)
    uses = [
        use({"embed": weights["embed"]}, sum(passes), gathers=1, is_lookup=True),
        use(
            head,
            read.places,
            gathers=head_gathers,
            has_input_gradients=True,
            has_weight_gradients=bool(head_gathers) and not is_low_rank,
        ),
        *(
            use(
                {"layers": layers},
                count,
                gathers=again,
                expert_rows=_expert_rows(config),
                forwards=again,
                has_input_gradients=True,
            )
            for count in passes
        ),
    ]
    if is_low_rank:
        uses.append(use(params, 0, gathers=0, has_weight_gradients=True))
    return uses


def _expert_rows(model: Any) -> Callable[[int], int] | None:
    experts = getattr(model, "experts", None)
    return None if experts is None else functools.partial(computed_rows, experts)


def _turned(table: Any) -> dict[str, Any]:
    """A tied embedding as the head."""
    return {"head": {"kernel": jax.ShapeDtypeStruct(table.shape[::-1], table.dtype)}}


def _drafter_uses(
    objective: DrafterObjective, params: Any, frozen: Any, *, rows: int, length: int
) -> list[Use | Attention]:
    target, config = objective.target.config, objective.drafter.config
    tokens, slots = rows * length, rows * objective.anchors * config.block_size
    drafted = rows * objective.anchors * (config.block_size - 1)
    target_size = jnp.dtype(target.dtype).itemsize
    size = jnp.dtype(config.dtype).itemsize

    def of_target(shapes: Any, count: int, **more: Any) -> Use:
        return Use(shapes, tokens=count, itemsize=target_size, **more)

    def trained(shapes: Any, count: int, **more: Any) -> Use:
        return Use(shapes, tokens=count, itemsize=size, has_weight_gradients=True, **more)

    embedding = {"embed": frozen["embed"]}
    head, head_gathers = {"head": frozen.get("head")}, 1
    if head["head"] is None:  # The table, turned round.
        head, head_gathers = _turned(frozen["embed"]["embedding"]), 0
    keys_and_values = {
        name: params["layers"]["attention"][name] for name in ("k", "v") if "layers" in params
    }
    gathers = 2 if config.remat else 1
    forwards = 2 if config.remat and config.remat_policy == "nothing_saveable" else 1
    return [
        of_target(
            {"layers": frozen["layers"]}, tokens, gathers=1, expert_rows=_expert_rows(target)
        ),
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
        Attention(_key_numbers(target), tokens=tokens, itemsize=target_size),
        Attention(
            _key_numbers(config), tokens=tokens, itemsize=size, gathers=gathers, has_gradients=True
        ),
    ]


def _key_numbers(config: LanguageModelConfig | DrafterConfig) -> int:
    """Of the keys and values of a token, in all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim
