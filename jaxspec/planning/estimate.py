"""What a training step would take, from formulas alone: to compare many settings in a second.

Exact: weights, optimizer state and the least arithmetic. Estimated: temporaries, memory traffic and
what goes over the wire. `jaxspec.planning.step` compiles the settings that look best.

The formulas are for a drafter on a frozen target. Dimension key: S tokens of a row, N blocks of a
row, K block slots, D width, F MLP width, V vocabulary, Q query heads, R key/value heads, C head
width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jaxspec.config import DrafterConfig, MeshConfig, RunConfig
from jaxspec.parallel.chips import Chip
from jaxspec.parallel.mesh import AXES
from jaxspec.parallel.rules import Rules
from jaxspec.planning.memory import logits_bytes
from jaxspec.planning.minimum import least_operations
from jaxspec.planning.roofline import Roofline
from jaxspec.training.objectives import DrafterObjective
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.state import TrainState
from jaxspec.training.tasks.registry import task_of
from jaxspec.training.tasks.task import Task
from jaxspec.training.traffic import drafter_traffic

_SCORE_COPIES = 1.0
"""Arrays of the size of a layer's float32 attention scores that are in memory at once. For TPUs the
compiler needs half of that (qwen3_8b on v5e:4x4)."""
_SCORE_PASSES = 5.0
"""Times that a layer's scores are read or written in a forward pass."""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What is the same for all settings that are compared."""

    task: Task
    state: Any
    """Shapes of the training state."""
    least: Mapping[str, float]
    """The least operations of a step over all devices, by what they are for."""

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads, and key/value heads, of the target and of the drafter."""
        objective = self.task.objective
        assert isinstance(objective, DrafterObjective), "only drafters are estimated"
        models = (objective.target.config, objective.drafter.config)
        return tuple(n for model in models for n in (model.num_heads, model.num_kv_heads))

    @classmethod
    def of(cls, config: RunConfig) -> Shapes:
        """Those of a run.

        Raises:
          ValueError: no such target, or a run that does not train a drafter.
        """
        if task_of(config).becomes(config) != "dflash":
            raise ValueError(
                "Settings are searched for runs that train a drafter: got training.task "
                f"{config.training.task!r}. Plan one setting at a time."
            )
        task = task_of(config).build(config)
        transform, _ = make_optimizer(config.optimizer, steps=config.training.steps)
        state = jax.eval_shape(lambda: TrainState.create(task.init(jax.random.key(0)), transform))
        least = least_operations(task)
        assert least is not None, "a drafter's operations are counted"
        return cls(task, state, least)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step would take of each device."""

    memory: Mapping[str, float]
    """Bytes by kind."""
    roofline: Roofline

    @property
    def memory_bytes(self) -> float:
        """Of a device."""
        return sum(self.memory.values())


def estimate(shapes: Shapes, config: RunConfig, *, mesh: Mapping[str, int], chip: Chip) -> Estimate:
    """Estimates one step.

    Args:
      shapes: of the same models.
      config: the run, with the settings to estimate.
      mesh: size of each axis.
      chip: what the devices are.
    """
    objective = _objective(shapes, config)
    task = dataclasses.replace(shapes.task, config=config, objective=objective)
    devices = math.prod(mesh.values())
    parts = mesh["data"] * mesh["fsdp"]
    accumulated = config.training.gradient_accumulation
    rows = config.data.batch_size // (parts * accumulated)
    frozen = _part_bytes(task.frozen_shapes, config.mesh, mesh)
    params = _part_bytes(shapes.state.params, config.mesh, mesh)
    memory = {
        "target": frozen,
        "drafter": params,
        "optimizer": _part_bytes(shapes.state.opt_state, config.mesh, mesh),
        "batch": 13.0 * rows * accumulated * config.data.sequence_length,
        "gradients": params * (2 if accumulated > 1 else 1),
        "logits": float(logits_bytes(task, rows=rows, tensor=mesh["tensor"])),
        "activations": _activations(objective, config, rows=rows, mesh=mesh),
    }
    least = shapes.least
    repeated = 0.0 if _keeps_products(config.drafter) else least["drafter forward"]
    # Each part reads all weights: the target's once, the drafter's three times.
    weights = mesh["fsdp"] * (frozen + 3 * params)
    traffic = accumulated * weights + 6 * memory["optimizer"]
    traffic += accumulated * _score_traffic(objective, config, rows=rows, tensor=mesh["tensor"])
    wire = drafter_traffic(
        objective,
        params=shapes.state.params,
        frozen=task.frozen_shapes,
        rows=config.data.batch_size,
        length=config.data.sequence_length,
        mesh=_abstract(mesh),
        gradient_accumulation=accumulated,
    )
    return Estimate(
        memory=memory,
        roofline=Roofline.of(
            chip,
            devices=devices,
            operations=(sum(least.values()) + repeated) / devices,
            memory_bytes=traffic,
            wire_bytes=sum(wire.values()),
        ),
    )


def _keeps_products(drafter: DrafterConfig) -> bool:
    """Whether the backward pass finds what the projections gave."""
    return not drafter.remat or drafter.remat_policy != "nothing_saveable"


def _objective(shapes: Shapes, config: RunConfig) -> DrafterObjective:
    """The objective with the settings of `config` that are compared."""
    objective = shapes.task.objective
    assert isinstance(objective, DrafterObjective), "only drafters are estimated"
    drafter = dataclasses.replace(
        objective.drafter.config,
        remat=config.drafter.remat,
        remat_policy=config.drafter.remat_policy,
        chunk_blocks=config.drafter.chunk_blocks,
    )
    return dataclasses.replace(
        objective, drafter=objective.drafter.clone(config=drafter), loss=config.loss
    )


def _abstract(mesh: Mapping[str, int]) -> AbstractMesh:
    return AbstractMesh(tuple(mesh[axis] for axis in AXES), AXES)


def _part_bytes(tree: Any, config: MeshConfig, mesh: Mapping[str, int]) -> float:
    """Bytes of a device's part of a tree of shapes."""
    rules = Rules.of(config)
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        split = rules.spec(path, leaf.shape, _abstract(mesh))
        parts = math.prod(mesh[axis] for axis in split if axis)
        total += leaf.size * leaf.dtype.itemsize / parts
    return total


def _activations(
    objective: DrafterObjective, config: RunConfig, *, rows: int, mesh: Mapping[str, int]
) -> float:
    """What the models compute, and the weights that are gathered for it."""
    target, drafter = objective.target.config, objective.drafter.config
    tensor = mesh["tensor"]
    length, blocks = config.data.sequence_length, config.data.anchors
    slots = blocks * drafter.block_size
    width, item = target.hidden_size, 2 if target.dtype == "bfloat16" else 4

    scores = 4 * target.num_heads / tensor * length**2
    captured = len(drafter.target_layer_ids)
    features = item * length * width * (2 * captured + 1)
    layer = item * length * (4 * width + 3 * target.intermediate_size / tensor)
    forward = rows * (_SCORE_COPIES * scores + layer + features)

    heads = (drafter.num_heads + 2 * drafter.num_kv_heads) * drafter.head_dim / tensor
    whole = item * slots * (4 * width + 2 * heads + 3 * drafter.intermediate_size / tensor)
    chunk = min(drafter.chunk_blocks or blocks, blocks)
    chunk_scores = 4 * drafter.num_heads / tensor * chunk * drafter.block_size * length
    context = 2 * item * length * 2 * drafter.num_kv_heads * drafter.head_dim / tensor
    kept = drafter.num_layers * (item * slots * width + context)
    if _keeps_products(drafter):
        kept += drafter.num_layers * whole
    if not (drafter.remat or drafter.chunk_blocks):
        kept += drafter.num_layers * chunk_scores
    # The layer that is computed again, with its gradients.
    backward = rows * (features / 2 + kept + 2 * whole + 2 * _SCORE_COPIES * chunk_scores)
    gathered = 0.0
    if mesh["fsdp"] > 1:
        layer_bytes = (
            item
            * width
            * (
                2 * (target.num_heads + target.num_kv_heads) * target.head_dim
                + 3 * target.intermediate_size
            )
        )
        gathered = (2 * layer_bytes + item * width * target.vocab_size) / tensor
    return max(forward, backward) + gathered


def _score_traffic(
    objective: DrafterObjective, config: RunConfig, *, rows: int, tensor: int
) -> float:
    """Bytes to and from memory for float32 attention scores and logits."""
    target, drafter = objective.target.config, objective.drafter.config
    length = config.data.sequence_length
    slots = config.data.anchors * drafter.block_size
    of_target = target.num_layers * target.num_heads * length**2
    passes = 4.0 if drafter.remat or drafter.chunk_blocks else 3.0
    of_drafter = passes * drafter.num_layers * drafter.num_heads * slots * length
    logits = passes * target.vocab_size * slots
    return 4.0 * rows * (_SCORE_PASSES * (of_target + of_drafter) + 2 * logits) / tensor
