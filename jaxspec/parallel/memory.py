"""Lower bounds of the memory that a training step needs, compared with what the devices have.

They refuse sizes that certainly do not fit before they are tried: a failed allocation may end the
process without a message. ``jaxspec plan`` says what a step really needs.

>>> memory_of(jax.devices()[0]) > 1 << 20
True
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from jaxspec.config import LanguageModelConfig, RunConfig, TargetConfig
from jaxspec.ops.causal_attention import CHUNK, Kind, choose_attention
from jaxspec.ops.mesh_axes import batch_parts
from jaxspec.parallel.chips import Chip

ComputedAs = TargetConfig | LanguageModelConfig | None

_SCORE_BYTES = 4
"""Attention scores are float32."""
_DOCUMENT_BYTES = 2
"""cuDNN adds an array to the scores, in the type of the queries, which says where documents end."""
POOL_VARIABLE = "XLA_CLIENT_MEM_FRACTION"
"""Says what share of a GPU's memory jax takes."""
_OLD_POOL_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_POOL_SHARE = 0.75
"""Where neither is set: https://docs.jax.dev/en/latest/201/gpu-memory.html."""


class OutOfMemory(ValueError):
    """What a run needs is larger than the memory of a device."""


def memory_of(device: jax.Device) -> int | None:
    """Bytes of memory of a device of this process; None if unknown.

    The virtual devices of a CPU share the machine's memory.
    """
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def memory_here(devices: Iterable[jax.Device]) -> int | None:
    """Memory of the first device of this process; None if there is none, as in a plan for a pod."""
    here = jax.local_devices()
    return next((memory_of(device) for device in devices if device in here), None)


def memory_used() -> int:
    """Bytes that the first device of this process has used at most, or else this process itself."""
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if used:
        return int(used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB.


def pool_share(chip: Chip) -> float:
    """The share of a chip's memory that jax would take, started as this process was.

    Raises:
      ValueError: the environment asks for a share that is no positive number.
    """
    if chip.is_tpu:
        return 1.0
    for variable in (POOL_VARIABLE, _OLD_POOL_VARIABLE):
        if said := os.environ.get(variable):
            with contextlib.suppress(ValueError):
                if 0 < float(said) < math.inf:
                    return float(said)
            raise ValueError(f"{variable} is a share of a GPU's memory, such as .92: got {said!r}.")
    return _POOL_SHARE


def pool_bytes(chip: Chip) -> int:
    """Bytes of one device of a chip that jax would take; see `pool_share`."""
    return int(pool_share(chip) * chip.device_memory())


def check_state_fits(state: Any, shardings: Any) -> None:
    """Checks the parameters and the optimizer state of a run.

    Args:
      state: a tree of arrays or of their shapes.
      shardings: how each of them is spread over the devices.

    Raises:
      OutOfMemory: each device's part of them is larger than its memory.
    """
    placed = list(zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True))
    needed = sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in placed
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
    available = memory_here(device for _, sharding in placed for device in sharding.device_set)
    if available is not None and needed > available:
        raise OutOfMemory(
            f"Parameters and optimizer state take at least {_size(needed)} on each device, which "
            f"has {_size(available)}. Train a smaller model (fewer or narrower layers), or split "
            "it over more devices (mesh.fsdp, mesh.tensor)."
        )


def check_rows_fit(
    config: RunConfig, mesh: Mesh, *, computed_as: ComputedAs, available: int | None
) -> None:
    """Checks what attention holds of one head in one layer.

    Args:
      config: the run.
      mesh: its devices.
      computed_as: see `attention_in`.
      available: bytes of memory of each device; None: not known, and nothing is too much.

    Raises:
      OutOfMemory: that is more, for the rows that a device has in memory at once, than its memory.
      ValueError: a kernel is set that cannot run there.
    """
    data = config.data
    kind = attention_in(
        config,
        computed_as=computed_as,
        platform=mesh.devices.flat[0].platform,
        context=mesh.shape["context"],
    )
    parts = batch_parts(mesh.shape) * config.training.gradient_accumulation
    rows = data.batch_size // parts
    needed = rows * scores_at_least(kind, data.sequence_length) // mesh.shape["context"]
    if available is not None and needed > available:
        raise OutOfMemory(
            f"Attention over {data.batch_size} rows (data.batch_size) of {data.sequence_length} "
            f"tokens (data.sequence_length) takes at least {_size(needed)} on each device, which "
            f"has {_size(available)}. Lower one of them, raise training.gradient_accumulation, or "
            "use more devices."
        )


def scores_at_least(kind: Kind, length: int) -> int:
    """Bytes that attention to a row of documents holds for one head, at least.

    >>> scores_at_least("plain", 4096), scores_at_least("chunked", 4096)
    (67108864, 2097152)

    Args:
      kind: how it is computed; see `jaxspec.ops.causal_attention`.
      length: tokens of the row.
    """
    if kind == "splash":
        return 0
    if kind == "cudnn":
        return length**2 * _DOCUMENT_BYTES
    return length * (length if kind == "plain" else min(length, CHUNK)) * _SCORE_BYTES


def attention_in(
    config: RunConfig, *, computed_as: ComputedAs, platform: str, context: int
) -> Kind:
    """How a run computes attention; where its target's shape is not known, one that holds less.

    Args:
      config: the run.
      computed_as: the settings that say it (`TaskKind.computed_as`); None: passes that have masks
        of their own.
      platform: jax's name of its devices.
      context: parts into which its mesh splits a row.

    Raises:
      ValueError: a kernel is set that cannot run there.
    """
    if computed_as is None or context > 1:
        return "plain"
    shape = config.target.architecture
    kind, _ = choose_attention(
        computed_as.attention,
        platform=platform,
        dtype=computed_as.dtype,
        head_dim=0 if shape is None else shape.head_dim,
        length=config.data.sequence_length,
        mapped=config.mesh.path != "jit",
    )
    # Wide heads have chunks.
    is_certain = kind != "cudnn" or shape is not None or computed_as.attention != "auto"
    return kind if is_certain else "chunked"


def _size(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
