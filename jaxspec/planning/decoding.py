"""What decoding takes: eval.py with a drafter, and ``jaxspec regenerate`` with the target alone.

Decoding reads all weights and the caches of all rows in every pass, and computes little: the
bandwidth of the memory decides, until many rows are decoded together. Nothing is compiled here; all
of it follows from shapes.

Dimension key: B rows that are decoded together, T cache slots of a row, S tokens of the longest
prompt, K tokens that the target reads in a round, R key/value heads, Q query heads, C head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh

from jaxspec.config import LanguageModelConfig, RunConfig
from jaxspec.decoding.generate import bucket_length, needed_capacity, prefill_rows
from jaxspec.decoding.state import DecodeRules
from jaxspec.ops.mesh_axes import AXES, HEADS
from jaxspec.parallel.chips import Chip
from jaxspec.parallel.decoding_sizes import decoding_sizes
from jaxspec.parallel.divisibility import check_models_fit
from jaxspec.parallel.memory import pool_bytes
from jaxspec.parallel.rules import Rules
from jaxspec.planning.estimate import queries_at_once
from jaxspec.planning.minimum import (
    expert_kernels,
    parameters,
    share_of_experts,
    trained_shapes,
)
from jaxspec.planning.passes import (
    cache_bytes,
    head_bytes,
    itemsize,
    target_weights_read,
    tree_bytes,
)
from jaxspec.planning.topologies import Topology
from jaxspec.training.objectives import DrafterObjective
from jaxspec.training.tasks.registry import task_of

ROOM = 0.9
"""Share of the memory that weights and rows may fill; the rest is for the program."""


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """One way of decoding, on the devices of each process."""

    name: str
    """"with drafter" or "target alone"."""
    tensor: int
    """Devices that share a copy of the weights."""
    data: int
    """Copies in a process; the rows are spread over them."""
    processes: int
    """Of eval.py one, of `jaxspec regenerate` one on each host; each decodes a batch of its own."""
    weights: Mapping[str, float]
    """Bytes on each device, by model."""
    cache_bytes: float
    """Keys and values of one row on each device."""
    prompt_bytes: float
    """What prompts need on each device while they are read, beside the batch: the caches of as many
    as are read together, and a layer's attention scores."""
    batch: int
    """Rows that a process decodes together."""
    most_rows: int
    """The most that fit; 0: not even one on each copy does."""
    pass_seconds: float
    """The least time of a round: a pass of the drafter and one of the target."""
    binding: str
    """What decides that time: memory or arithmetic."""

    @property
    def fits(self) -> bool:
        """Whether the batch that was asked for fits."""
        return self.batch <= self.most_rows

    @property
    def tokens_per_second(self) -> float:
        """Of all processes, for each token that a round emits: multiply by tau."""
        return self.batch * self.processes / self.pass_seconds


def plan_decoding(config: RunConfig, topology: Topology) -> list[DecodePlan]:
    """Plans an evaluation with the run's drafter, and decoding by the target alone.

    Args:
      config: `evaluation` gives the lengths, the batch and the block, `mesh` how a process divides
        its devices (`decoding_sizes`).
      topology: the devices; each host runs a process on its own.

    Raises:
      ValueError: a run that does not train a drafter, a mesh that the programs refuse or that does
        not divide a model, or an fsdp axis, whose gathering of weights is not planned.
    """
    objective = (task := task_of(config).build(config)).objective
    if not isinstance(objective, DrafterObjective):
        raise ValueError(
            "Decoding is planned for runs that train a drafter: got training.task "
            f"{config.training.task!r}."
        )
    target, drafter = objective.target.config, objective.drafter.config
    evaluation = config.evaluation
    sizes = decoding_sizes(
        config.mesh,
        rows=evaluation.batch_size,
        option="evaluation.batch_size",
        devices=topology.devices // topology.hosts,
        platform="tpu" if topology.chip.is_tpu else "gpu",
    )
    if sizes["fsdp"] != 1:
        raise ValueError(
            f"mesh.fsdp is {sizes['fsdp']}, but decoding is planned for weights that are split "
            "over mesh.tensor: set mesh.fsdp to 1. With it, every pass would gather all weights."
        )
    data, tensor = sizes["data"], sizes["tensor"]
    check_models_fit(task.models, {"tensor": tensor})
    rows = evaluation.batch_size // data
    block = evaluation.block_size or drafter.block_size
    # Decoding computes with weights in the type of the drafter's computation.
    size = itemsize(drafter.dtype)
    drafter_bytes = parameters(trained_shapes(task)) * size
    models = {"target": tree_bytes(task.frozen_shapes), "drafter": float(drafter_bytes)}
    whole = {
        "target": unsplit(task.frozen_shapes, tensor=tensor),
        "drafter": unsplit(trained_shapes(task), tensor=tensor),
    }
    whole_bytes = {
        "target": tree_bytes(whole["target"]),
        "drafter": float(parameters(whole["drafter"]) * size),
    }
    most = target.max_position_embeddings - evaluation.max_new_tokens
    length = bucket_length(max(1, min(evaluation.max_prompt_tokens, most)))
    rules = DecodeRules(evaluation.max_new_tokens)

    def caches(read: int) -> dict[str, float]:
        slots = needed_capacity(length, rules=rules, round_tokens=read)
        return {
            "target": slots * cache_bytes(target, target.num_layers),
            "drafter": slots * cache_bytes(drafter, drafter.num_layers),
        }

    experts = parameters(expert_kernels(task.frozen_shapes, target))
    idle = int(experts * (1 - share_of_experts(target)))  # Of one token.
    counts = {
        "target": parameters(task.frozen_shapes) - _embedding(target) - idle,
        "drafter": parameters(trained_shapes(task)) + target.vocab_size * target.hidden_size,
    }

    def reads(read: int) -> dict[str, float]:
        tokens = rows * read
        return {
            "target": target_weights_read(task.frozen_shapes, target, tokens=tokens),
            # The target's head is read by the drafter, too.
            "drafter": models["drafter"] + head_bytes(target),
        }

    prompts = prefill_rows(length, rows=evaluation.batch_size)
    if prompts % data == 0:  # Otherwise every copy reads all of them.
        prompts //= data
    queries = queries_at_once(target, topology.chip, tokens=length, length=length)
    scores = 4.0 * target.num_heads * queries * length
    return [
        _plan(
            name,
            [part for part in models if part in used],
            models=models,
            whole=whole_bytes,
            reads=reads(read),
            caches=caches(read),
            counts=counts,
            whole_counts={name: parameters(leaves) for name, leaves in whole.items()},
            scores=scores,
            prompts=prompts,
            read=read,
            batch=evaluation.batch_size,
            data=data,
            tensor=tensor,
            processes=processes,
            chip=topology.chip,
        )
        for name, used, read, processes in (
            ("with drafter", ("target", "drafter"), block, 1),
            ("target alone", ("target",), 1, topology.hosts),
        )
    ]


def unsplit(shapes: Any, *, tensor: int) -> list[Any]:
    """The parameters that every device has whole, such as norms and fused projections.

    Args:
      shapes: a tree of parameters, or of their shapes.
      tensor: devices that share a copy.
    """
    mesh = AbstractMesh(tuple(tensor if axis == HEADS else 1 for axis in AXES), AXES)
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if HEADS not in Rules().spec(path, leaf.shape, mesh)
    ]


def smallest_tensor(config: RunConfig, topology: Topology) -> int | None:
    """The fewest devices a copy of the weights needs for the batch to fit; None: it never fits."""
    for tensor in range(1, topology.devices + 1):
        mesh = dataclasses.replace(config.mesh, tensor=tensor)
        try:
            plans = plan_decoding(dataclasses.replace(config, mesh=mesh), topology)
        except ValueError:  # It does not divide the models.
            continue
        if all(plan.fits for plan in plans):
            return tensor
    return None


def _plan(
    name: str,
    used: list[str],
    *,
    models: Mapping[str, float],
    whole: Mapping[str, float],
    reads: Mapping[str, float],
    caches: Mapping[str, float],
    counts: Mapping[str, int],
    whole_counts: Mapping[str, int],
    scores: float,
    prompts: int,
    read: int,
    batch: int,
    data: int,
    tensor: int,
    processes: int,
    chip: Chip,
) -> DecodePlan:
    rows = batch // data

    def here(sizes: Mapping[str, float], unsplit: Mapping[str, float]) -> dict[str, float]:
        return {part: unsplit[part] + (sizes[part] - unsplit[part]) / tensor for part in used}

    weights = here(models, whole)
    cache = sum(caches[part] for part in used) / tensor
    reading = prompts * (cache + scores / tensor)
    room = ROOM * pool_bytes(chip) - sum(weights.values()) - reading
    moved = sum(here(reads, whole).values()) + rows * cache
    computed = 2.0 * rows * read * sum(here(counts, whole_counts).values())
    times = {
        "memory": moved / (chip.memory_bandwidth / chip.cores),
        "arithmetic": computed / (chip.peak_operations / chip.cores),
    }
    binding = max(times, key=lambda term: times[term])
    return DecodePlan(
        name=name,
        tensor=tensor,
        data=data,
        processes=processes,
        weights=weights,
        cache_bytes=cache,
        prompt_bytes=reading,
        batch=batch,
        most_rows=data * max(0, int(room // cache)),
        pass_seconds=times[binding],
        binding=binding,
    )


def _embedding(target: LanguageModelConfig) -> int:
    """Parameters that a pass only looks up; a tied embedding is also the head."""
    return 0 if target.tie_embeddings else target.vocab_size * target.hidden_size
