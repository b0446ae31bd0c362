"""What a training step would take, from formulas alone: to compare many settings in a second.

Exact: weights, optimizer state and the least arithmetic. Estimated: temporaries, memory traffic and
what goes over the wire. `jaxspec.planning.step` compiles the settings that look best.

The formulas are for a drafter on a frozen target, and for a target or denoiser that is trained
itself. Dimension key: S tokens of a row, N blocks of a
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

from jaxspec.config import DrafterConfig, LanguageModelConfig, MeshConfig, RunConfig
from jaxspec.models.dflash import chunks_that_fit
from jaxspec.ops.causal_attention import CHUNK, choose_attention
from jaxspec.ops.mesh_axes import AXES
from jaxspec.parallel.chips import Chip
from jaxspec.parallel.rules import Rules
from jaxspec.planning.memory import frozen_name, logits_bytes
from jaxspec.planning.minimum import computed_operations, least_operations
from jaxspec.planning.roofline import Roofline
from jaxspec.training.denoiser import DenoiserObjective
from jaxspec.training.lora import LowRankObjective
from jaxspec.training.objectives import DrafterObjective, Objective, TargetObjective
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.passes import Reading, logits_at_once, reading
from jaxspec.training.state import initial_state
from jaxspec.training.tasks.registry import task_of
from jaxspec.training.tasks.task import Task
from jaxspec.training.traffic import step_traffic

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
    computed: float
    """Those of a step with all that masks hide."""
    read: Reading | None
    """What the model that is trained reads; None: a drafter on a frozen target."""

    @classmethod
    def of(cls, config: RunConfig) -> Shapes:
        """Those of a run.

        Raises:
          ValueError: no such target or denoiser.
        """
        task = task_of(config).build(config)
        transform, _ = make_optimizer(config.optimizer, steps=config.training.steps)
        state = jax.eval_shape(initial_state(task.init, transform), jax.random.key(0))
        read = reading(task.objective, length=config.data.sequence_length)
        return cls(task, state, least_operations(task), computed_operations(task), read)


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
    task = dataclasses.replace(
        shapes.task, config=config, objective=_objective(shapes.task.objective, config, chip=chip)
    )
    devices = math.prod(mesh.values())
    parts = mesh["data"] * mesh["fsdp"]
    accumulated = config.training.gradient_accumulation
    rows = config.data.batch_size // (parts * accumulated)
    frozen = _part_bytes(task.frozen_shapes, config.mesh, mesh)
    params = _part_bytes(shapes.state.params, config.mesh, mesh)
    activations, scores, repeated = _of_model(shapes, task, rows=rows, mesh=mesh, chip=chip)
    memory = {
        **({frozen_name(task): frozen} if frozen else {}),
        config.training.task: params,
        "optimizer": _part_bytes(shapes.state.opt_state, config.mesh, mesh),
        "batch": 13.0 * rows * accumulated * config.data.sequence_length,
        # Low-rank updates are added to the weights, whose whole gradient is computed.
        "gradients": params * (2 if accumulated > 1 else 1) + (2 * frozen if shapes.read else 0),
        "logits": float(logits_bytes(task, rows=rows, mesh=mesh)),
        "activations": activations,
    }
    # Each part reads all weights: a target's once, those of a model that learns three times.
    weights = mesh["fsdp"] * (frozen * (3 if shapes.read else 1) + 3 * params)
    traffic = accumulated * (weights + scores) + 6 * memory["optimizer"]
    wire = step_traffic(
        task.objective,
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
            operations=(shapes.computed + repeated) / devices,
            memory_bytes=traffic,
            wire_bytes=wire.by_group,
        ),
    )


def _keeps_products(drafter: DrafterConfig) -> bool:
    """Whether the backward pass finds what the projections gave."""
    return not drafter.remat or drafter.remat_policy != "nothing_saveable"


def _objective(objective: Objective, config: RunConfig, *, chip: Chip) -> Objective:
    """The objective with the settings of `config` that are compared."""
    if isinstance(objective, LowRankObjective):
        return dataclasses.replace(objective, inner=_objective(objective.inner, config, chip=chip))
    if isinstance(objective, DenoiserObjective | TargetObjective):
        is_target = isinstance(objective, TargetObjective)
        asked = config.target if is_target else config.denoiser
        remat = asked.remat or bool(asked.architecture and asked.architecture.remat)
        model = dataclasses.replace(objective.model.config, remat=remat)
        changes: dict[str, Any] = {} if is_target else {"loss": config.loss}
        return dataclasses.replace(
            objective,
            model=objective.model.clone(config=model),
            chunk_tokens=config.training.chunk_tokens,
            **changes,
        )
    assert isinstance(objective, DrafterObjective), "there is no other kind"
    drafter = objective.drafter.config
    own, chunk_blocks = config.data.anchors // config.mesh.context, config.drafter.chunk_blocks
    if chunk_blocks is None:
        chunk_blocks = chunks_that_fit(
            blocks=own,
            block_scores=drafter.num_heads * drafter.block_size * config.data.sequence_length,
            platform=_platform(chip),
        )
    drafter = dataclasses.replace(
        drafter,
        remat=config.drafter.remat,
        remat_policy=config.drafter.remat_policy,
        chunk_blocks=chunk_blocks if chunk_blocks < own else 0,
    )
    return dataclasses.replace(
        objective, drafter=objective.drafter.clone(config=drafter), loss=config.loss
    )


def _of_model(
    shapes: Shapes, task: Task, *, rows: int, mesh: Mapping[str, int], chip: Chip
) -> tuple[float, float, float]:
    """Bytes of activations and gathered weights, bytes moved, and operations that are repeated."""
    config, least, objective = task.config, shapes.least, task.objective
    if isinstance(objective, DrafterObjective):
        gathered = _gathered(objective.target.config, task.frozen_shapes, mesh)
        return (
            _activations(objective, config, rows=rows, mesh=mesh, chip=chip) + gathered,
            _score_traffic(objective, config, rows=rows, mesh=mesh, chip=chip),
            0.0 if _keeps_products(config.drafter) else least["drafter forward"],
        )
    read = shapes.read
    assert read is not None, "another objective trains one model"
    trained: Any = objective.inner if isinstance(objective, LowRankObjective) else objective
    read = dataclasses.replace(read, model=trained.model.config)
    is_chunked = 0 < logits_at_once(objective) < read.places
    places = config.data.batch_size * read.places
    head = 2.0 * read.model.hidden_size * read.model.vocab_size * places
    return (
        _model_activations(read, rows=rows, mesh=mesh)
        + _gathered(read.model, task.frozen_shapes or shapes.state.params, mesh),
        _model_score_traffic(read, rows=rows, tensor=mesh["tensor"]),
        least[f"{config.training.task} forward"] * read.model.remat + head * is_chunked,
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


def queries_at_once(target: LanguageModelConfig, chip: Chip, *, tokens: int, length: int) -> int:
    """Queries of the target whose scores are in memory at once; 0: a kernel keeps them away."""
    kind = choose_attention(
        target.attention,
        platform=_platform(chip),
        dtype=target.dtype,
        head_dim=target.head_dim,
        length=length,
    ).kind
    return {"plain": tokens, "chunked": min(tokens, CHUNK)}.get(kind, 0)


def _platform(chip: Chip) -> str:
    return "tpu" if chip.is_tpu else "gpu"


def _activations(
    objective: DrafterObjective,
    config: RunConfig,
    *,
    rows: int,
    mesh: Mapping[str, int],
    chip: Chip,
) -> float:
    """What the models compute."""
    target, drafter = objective.target.config, objective.drafter.config
    tensor = mesh["tensor"]
    # Of a row, those that a device has; keys and values it needs of all tokens.
    tokens = config.data.sequence_length // mesh["context"]
    blocks = config.data.anchors // mesh["context"]
    length, slots = config.data.sequence_length, blocks * drafter.block_size
    width, item = target.hidden_size, _item(target)

    queries = queries_at_once(target, chip, tokens=tokens, length=length)
    scores = 4 * target.num_heads / tensor * queries * length
    captured = len(drafter.target_layer_ids)
    features = item * tokens * width * (2 * captured + 1)
    layer = item * tokens * (4 * width + 3 * target.intermediate_size / tensor)
    forward = rows * (_SCORE_COPIES * scores + layer + features)

    heads = (drafter.num_heads + 2 * drafter.num_kv_heads) * drafter.head_dim / tensor
    whole = item * slots * (4 * width + 2 * heads + 3 * drafter.intermediate_size / tensor)
    chunk = min(drafter.chunk_blocks or blocks, blocks)
    chunk_scores = 4 * drafter.num_heads / tensor * chunk * drafter.block_size * length
    context = 2 * item * tokens * 2 * drafter.num_kv_heads * drafter.head_dim / tensor
    kept = drafter.num_layers * (item * slots * width + context)
    if _keeps_products(drafter):
        kept += drafter.num_layers * whole
    if not (drafter.remat or drafter.chunk_blocks):
        kept += drafter.num_layers * chunk_scores
    # The layer that is computed again, with its gradients.
    backward = rows * (features / 2 + kept + 2 * whole + 2 * _SCORE_COPIES * chunk_scores)
    return max(forward, backward)


def _gathered(model: Any, weights: Any, mesh: Mapping[str, int]) -> float:
    """Two layers that are whole for a moment, with all of their experts, and the head."""
    if mesh["fsdp"] == 1:
        return 0.0
    layer = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path({"layers": weights["layers"]}):
        split = Rules().spec(path, leaf.shape, _abstract(mesh))
        if "fsdp" in split:
            layer += leaf.size / model.num_layers / (mesh["tensor"] if "tensor" in split else 1)
    head = model.hidden_size * model.vocab_size / mesh["tensor"]
    return _item(model) * (2 * layer + head)


def _score_traffic(
    objective: DrafterObjective,
    config: RunConfig,
    *,
    rows: int,
    mesh: Mapping[str, int],
    chip: Chip,
) -> float:
    """Bytes to and from memory for float32 attention scores and logits."""
    target, drafter = objective.target.config, objective.drafter.config
    length = config.data.sequence_length
    slots = config.data.anchors * drafter.block_size
    of_target = 0
    if queries_at_once(target, chip, tokens=length, length=length):
        of_target = target.num_layers * target.num_heads * length**2
    passes = 4.0 if drafter.remat or drafter.chunk_blocks else 3.0
    of_drafter = passes * drafter.num_layers * drafter.num_heads * slots * length
    logits = passes * target.vocab_size * slots
    parts = mesh["context"] * mesh["tensor"]
    return 4.0 * rows * (_SCORE_PASSES * (of_target + of_drafter) + 2 * logits) / parts


def _model_activations(read: Reading, *, rows: int, mesh: Mapping[str, int]) -> float:
    """As `_activations`, of a model that is trained itself."""
    model, tensor = read.model, mesh["tensor"]
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim / tensor
    width = 4 * model.hidden_size + 2 * heads + 3 * model.intermediate_size / tensor
    kept, most = 0.0, 0.0
    for each in read.passes:
        layer = _item(model) * each.copies * each.tokens * width
        scores = 4 * model.num_heads / tensor * each.copies * each.tokens * each.keys
        most = max(most, 2 * layer + 2 * _SCORE_COPIES * scores)
        if model.remat:
            kept += model.num_layers * _item(model) * each.copies * each.tokens * model.hidden_size
        else:
            kept += model.num_layers * (layer + scores)
    return rows * (kept + most)


def _model_score_traffic(read: Reading, *, rows: int, tensor: int) -> float:
    """As `_score_traffic`, of a model that is trained itself."""
    model = read.model
    passes = 4.0 if model.remat else 3.0
    pairs = sum(each.copies * each.tokens * each.keys for each in read.passes)
    scores = model.num_layers * model.num_heads * pairs
    logits = model.vocab_size * read.places
    return 4.0 * rows * passes * (_SCORE_PASSES * scores + 2 * logits) / tensor


def _item(model: Any) -> int:
    return 2 if model.dtype == "bfloat16" else 4
