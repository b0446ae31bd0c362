"""Lower bounds of the memory that a training step needs, compared with what the devices have.

They refuse sizes that certainly do not fit before they are tried: a failed allocation may end the
process without a message. ``jaxspec plan`` says what a step really needs.

>>> memory_of(jax.devices()[0]) > 1 << 20
True
"""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from jaxspec.config import RunConfig

_SCORE_BYTES = 4
"""Attention scores are float32."""


def memory_of(device: jax.Device) -> int | None:
    """Bytes of memory of a device of this process; None if unknown.

    The virtual devices of a CPU share the machine's memory.
    """
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def memory_used() -> int:
    """Bytes that the first device of this process has used at most, or else this process itself."""
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if used:
        return int(used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB.


def check_state_fits(state: Any, shardings: Any) -> None:
    """Checks the parameters and the optimizer state of a run.

    Args:
      state: a tree of arrays or of their shapes.
      shardings: how each of them is spread over the devices.

    Raises:
      ValueError: each device's part of them is larger than its memory.
    """
    placed = list(zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True))
    needed = sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in placed
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
    available = _memory_here(device for _, sharding in placed for device in sharding.device_set)
    if available is not None and needed > available:
        raise ValueError(
            f"Parameters and optimizer state take at least {_gib(needed)} on each device, which "
            f"has {_gib(available)}. Train a smaller model (fewer or narrower layers), or split it "
            "over more devices (mesh.fsdp, mesh.tensor)."
        )


def check_rows_fit(config: RunConfig, mesh: Mesh, *, rows: int) -> None:
    """Checks the attention scores of one head in one layer.

    Args:
      config: the run.
      mesh: its devices.
      rows: rows of the batch that a device has in memory at once.

    Raises:
      ValueError: the scores of these rows are larger than a device's memory.
    """
    data = config.data
    needed = rows * data.sequence_length**2 * _SCORE_BYTES // mesh.shape["context"]
    available = _memory_here(mesh.devices.flat)
    if available is not None and needed > available:
        raise ValueError(
            f"Attention over {data.batch_size} rows (data.batch_size) of {data.sequence_length} "
            f"tokens (data.sequence_length) takes at least {_gib(needed)} on each device, which "
            f"has {_gib(available)}. Lower one of them, raise training.gradient_accumulation, or "
            "use more devices."
        )


def _memory_here(devices: Iterable[jax.Device]) -> int | None:
    """Memory of the first device of this process; None if there is none, as in a plan for a pod."""
    here = jax.local_devices()
    return next((memory_of(device) for device in devices if device in here), None)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.0f} GiB"
