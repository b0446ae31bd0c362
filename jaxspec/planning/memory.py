"""The memory of a step by what it holds.

What is passed in is counted exactly, from shapes and shardings. Of the temporaries, the compiler
says the sum; gradients and logits are counted from shapes, and the rest are activations: what the
models compute, gathered weights and the compiler's padding.

Dimension key: N blocks of a row, G drafted slots, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from jaxspec.training.needs import Needs
from jaxspec.training.objectives import DrafterObjective
from jaxspec.training.passes import logits_at_once, reading
from jaxspec.training.tasks.task import Task


def memory_by_kind(
    needs: Needs,
    *,
    task: Task,
    state: Any,
    frozen: Any,
    batch: Any,
    rows: int,
    mesh: Mapping[str, int],
) -> Mapping[str, int]:
    """Bytes on each device by kind; they sum up to `needs.memory_bytes`.

    The kinds are what is frozen (see `frozen_name`), the model that is trained, by the name of its
    task, "optimizer", "batch", "gradients", "logits" and "activations".

    Args:
      needs: what the compiler says.
      task: the run's.
      state: shapes of the training state, with shardings.
      frozen: likewise of the frozen parameters.
      batch: likewise of a batch.
      rows: rows of a device that are computed at once.
      mesh: size of each axis.
    """
    known = {
        **({frozen_name(task): device_bytes(frozen)} if frozen else {}),
        task.config.training.task: device_bytes(state.params),
        "optimizer": device_bytes(state.opt_state),
        "batch": device_bytes(batch),
    }
    temporaries = max(0, needs.memory_bytes - sum(known.values()))
    gradients = min(device_bytes(state.params), temporaries)
    logits = min(logits_bytes(task, rows=rows, mesh=mesh), temporaries - gradients)
    known |= {"gradients": gradients, "logits": logits}
    return known | {"activations": needs.memory_bytes - sum(known.values())}


def frozen_name(task: Task) -> str:
    """What a drafter drafts for, or what low-rank updates change."""
    return "target" if isinstance(task.objective, DrafterObjective) else "base"


def device_bytes(tree: Any) -> int:
    """Of arrays or their shapes, with shardings: those of one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _item_bytes(leaf)
        for leaf in jax.tree.leaves(tree)
    )


def _item_bytes(leaf: Any) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 8
    return int(leaf.dtype.itemsize)


def logits_bytes(task: Task, *, rows: int, mesh: Mapping[str, int]) -> int:
    """The float32 logits that are in memory at once, and their gradient.

    Args:
      task: the run's.
      rows: rows of a device that are computed at once.
      mesh: size of each axis.
    """
    objective, config = task.objective, task.config
    if isinstance(objective, DrafterObjective):
        own = config.data.anchors // mesh["context"]
        blocks = min(config.loss.chunk_blocks or own, own)
        places = blocks * (objective.drafter.config.block_size - 1)
        vocabulary = objective.target.config.vocab_size
    else:
        read = reading(objective, length=config.data.sequence_length)
        assert read is not None, "there is no other kind"
        places, vocabulary = read.places, read.model.vocab_size
        places = min(logits_at_once(objective) or places, places)
    return 2 * 4 * rows * places * vocabulary // mesh["tensor"]
