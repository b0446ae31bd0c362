"""Lower bounds of what a training step needs, held against the memory of the devices.

They keep sizes that surely fit nowhere from being tried: an allocation may end the process without
a word. ``jaxspec plan`` says what a step really needs.

>>> memory_of(jax.devices()[0]) > 1 << 20
True
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from jaxspec.config import RunConfig

_SCORE_BYTES = 4
"""Attention scores are float32."""


def memory_of(device: jax.Device) -> int | None:
    """Bytes that a device of this process can hold; None: not known.

    The virtual devices of a CPU share the machine's memory.
    """
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


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
            f"has {_gib(available)}: train a smaller model (its layers and widths), or split it "
            "over more devices (mesh.fsdp, mesh.tensor)."
        )


def check_rows_fit(config: RunConfig, mesh: Mesh, *, rows: int) -> None:
    """Checks the attention scores of a single head of a single layer.

    Args:
      config: the run.
      mesh: its devices.
      rows: of the batch that a device has in memory at once.

    Raises:
      ValueError: the scores of these rows are larger than a device's memory.
    """
    data = config.data
    needed = rows * data.sequence_length**2 * _SCORE_BYTES
    available = _memory_here(mesh.devices.flat)
    if available is not None and needed > available:
        raise ValueError(
            f"Attention over {data.batch_size} rows (data.batch_size) of {data.sequence_length} "
            f"tokens (data.sequence_length) takes at least {_gib(needed)} on each device, which "
            f"has {_gib(available)}: make one of them smaller, raise "
            "training.gradient_accumulation, or use more devices."
        )


def _memory_here(devices: Iterable[jax.Device]) -> int | None:
    """Of the first device that belongs to this process; None: none does, as in a plan for a pod."""
    here = jax.local_devices()
    return next((memory_of(device) for device in devices if device in here), None)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.0f} GiB"
