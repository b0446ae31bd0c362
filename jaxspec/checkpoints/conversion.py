"""Converts between safetensors folders and parameter trees, following a table of `key_maps`.

Reading works in slices: one layer of one tensor at a time, and only the part that a device keeps.
Each byte is read once, and into the array that keeps it: what the host holds in addition to the
parameters are pieces of a few megabytes, and a layer's part where a device has memory of its own.
Writing gathers one parameter at a time.

>>> with TensorFolder("Qwen3-4B") as tensors:  # doctest: +SKIP
...     params = read_params(tensors, rows, sizes, num_layers=36, dtype="bfloat16")
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxspec.checkpoints import key_maps
from jaxspec.checkpoints.key_maps import Row
from jaxspec.checkpoints.safetensors_io import NUMPY_DTYPES, TensorFolder
from jaxspec.checkpoints.shapes import compare_shapes, flatten_paths, nest_paths
from jaxspec.config import Dtype
from jaxspec.interruption import progressed
from jaxspec.json_files import shortened

_MOST_LINES = 50
"""Differences in one message."""
_ALIGNMENT = 64
Shardings = jax.sharding.Sharding | Mapping[str, Any] | None
"""Where parameters go: one sharding for all, a tree like them, or None: the default device."""


def check_tensors(
    tensors: TensorFolder,
    expected: Mapping[str, tuple[int, ...]],
    *,
    optional: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises a ValueError that names every missing, unexpected or wrongly shaped tensor.

    Args:
      tensors: the open folder.
      expected: shapes by name.
      optional: shapes of tensors that may be there as well.
    """
    got = tensors.shapes
    present = {name: shape for name, shape in optional.items() if name in got}
    messages = compare_shapes({**expected, **present}, got)
    if messages:
        lines = "".join(f"\n  {line}" for line in _merge_layers(messages))
        raise ValueError(
            f"The tensors in {tensors.folder} are not those its config.json describes:{lines}"
        )


def _merge_layers(messages: Sequence[str]) -> list[str]:
    """Merges equal messages of several layers: a 36-layer model has hundreds of tensors."""
    layers: dict[str, list[int]] = {}
    for message in messages:
        found = re.search(r"\b(?:layers|blocks|h)\.(\d+)\.", message)
        general = message
        if found:
            general = f"{message[: found.start(1)]}{{i}}{message[found.end(1) :]}"
        layers.setdefault(general, []).extend([int(found.group(1))] if found else [])
    lines: list[str] = []
    for message, ids in layers.items():
        if len(lines) == _MOST_LINES:
            return [*lines, f"and {len(layers) - len(lines)} more"]
        general = shortened(message)
        if len(ids) == 1:
            lines.append(general.replace("{i}", str(ids[0])))
        elif ids:
            named = shortened(", ".join(map(str, sorted(ids))), longest=2000)
            lines.append(f"{general} (i = {named})")
        else:
            lines.append(general)
    return lines


def check_redundant(
    tensors: TensorFolder,
    optional: Mapping[str, tuple[int, ...]],
    *,
    tied_head: str,
    embedding: str,
) -> None:
    """Checks that tensors without a place in our parameters change nothing, and so may be there.

    Args:
      tensors: the open folder.
      optional: shapes of these tensors.
      tied_head: which of them is a second copy of the embedding; "": none.
      embedding: the tensor that it must equal.

    Raises:
      ValueError: a head that differs from the embedding, or a bias that is not zero.
    """
    for name in optional:
        if name not in tensors.shapes:
            continue
        if name == tied_head:
            if not _equal(tensors, name, embedding):
                raise ValueError(
                    f"{tensors.folder}: tie_word_embeddings is true, but {name} differs from "
                    f"{embedding}. Set tie_word_embeddings to false to use both."
                )
        elif np.any(tensors.read(name)):
            raise ValueError(
                f"{tensors.folder}: {name} is not zero. Biases are supported on the query, key and "
                "value projections only."
            )


def _equal(tensors: TensorFolder, first: str, second: str, *, rows: int = 4096) -> bool:
    for start in range(0, tensors.shapes[first][0], rows):
        part = (slice(start, start + rows), slice(None))
        if not np.array_equal(tensors.read(first, part), tensors.read(second, part)):
            return False
    return True


def check_dtype(dtype: str) -> None:
    """Refuses what is not the name of a type of parameters.

    Raises:
      ValueError: says which names there are.
    """
    if dtype not in NUMPY_DTYPES:
        raise ValueError(f"dtype must be {' or '.join(map(repr, NUMPY_DTYPES))}: got {dtype!r}.")


def read_params(
    tensors: TensorFolder,
    rows: tuple[Row, ...],
    sizes: Mapping[str, int],
    *,
    num_layers: int,
    dtype: Dtype,
    shardings: Shardings = None,
) -> dict[str, Any]:
    """The parameters of a folder whose tensors have been checked.

    Args:
      tensors: the open folder.
      rows: which tensor is which parameter.
      sizes: what the letters in the rows' shapes mean.
      num_layers: layers to stack.
      dtype: type of the parameters.
      shardings: a tree like the parameters, one sharding for all, or None: the default device.

    Raises:
      ValueError: shardings that are not a tree like the parameters, or values that are not finite.
    """
    shapes = key_maps.parameter_shapes(rows, sizes, num_layers=num_layers)
    placed: Mapping[str, Any] = dict.fromkeys(shapes, None)
    if isinstance(shardings, jax.sharding.Sharding):
        placed = dict.fromkeys(shapes, shardings)
    elif shardings is not None:
        placed = flatten_paths(shardings)
        if placed.keys() != shapes.keys():
            raise ValueError(
                "shardings is not a tree like the parameters: missing "
                f"{sorted(shapes.keys() - placed.keys())}, unexpected "
                f"{sorted(placed.keys() - shapes.keys())}."
            )
    leaves = {}
    for row in rows:
        shape, sharding = shapes[row.path], placed[row.path]
        read = _read_by_layer if row.stacked and not _on_host(sharding) else _read_at_once
        leaves[row.path] = read(tensors, row, shape, sharding, dtype=dtype)
    return nest_paths(leaves)


def _on_host(sharding: jax.sharding.Sharding | None) -> bool:
    """Whether a parameter's device memory is the host's."""
    if sharding is None:
        return jax.default_backend() == "cpu"
    return all(cast(Any, device).platform == "cpu" for device in sharding.device_set)


def _read_by_layer(
    tensors: TensorFolder,
    row: Row,
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding | None,
    *,
    dtype: Dtype,
) -> jax.Array:
    """A stacked parameter, put together on the device: the host holds one layer at a time."""
    one_layer = (1, *shape[1:])
    if sharding is not None and sharding.shard_shape(shape)[0] != shape[0]:
        # A device holds only some of the layers.
        return _read_at_once(tensors, row, shape, sharding, dtype=dtype)
    stack = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    for layer in range(shape[0]):
        part = _read_at_once(tensors, row, one_layer, sharding, dtype=dtype, first=layer)
        stack = _with_layer(stack, part, layer)
        # Before the next one is read: otherwise many would wait on the host.
        stack.block_until_ready()
    return stack


@functools.partial(jax.jit, donate_argnums=0)
def _with_layer(stack: jax.Array, part: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(stack, part, layer, 0)


def _read_at_once(
    tensors: TensorFolder,
    row: Row,
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding | None,
    *,
    dtype: Dtype,
    first: int = 0,
) -> jax.Array:
    """A parameter of which each device's part is read whole; of a stack, from layer `first` on."""

    def bounds(index: Any) -> tuple[tuple[int, int], ...]:
        return tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))

    whole = (slice(None),) * len(shape)
    indices = (
        [whole] if sharding is None else sharding.addressable_devices_indices_map(shape).values()
    )
    wanted = list(dict.fromkeys(map(bounds, indices)))  # Replicas ask for the same part.
    moved = [tuple(slice(*bound) for bound in each) for each in wanted]
    if first:
        moved = [
            (slice(layers.start + first, layers.stop + first), *within) for layers, *within in moved
        ]
    parts = dict(zip(wanted, _read_parts(tensors, row, moved, dtype=dtype), strict=True))
    if sharding is None:
        return jax.device_put(parts[bounds(whole)])
    return jax.make_array_from_callback(
        shape, sharding, lambda index: parts[bounds(index)], dtype=NUMPY_DTYPES[dtype]
    )


def _read_parts(
    tensors: TensorFolder, row: Row, indices: Sequence[tuple[slice, ...]], *, dtype: Dtype
) -> list[np.ndarray]:
    """Parts of a parameter, filled tensor by tensor so that nothing else is in memory."""
    outs, by_tensor = [], dict[str, list[tuple[np.ndarray, tuple[slice, ...]]]]()
    for index in indices:
        out = _aligned([s.stop - s.start for s in index], NUMPY_DTYPES[dtype])
        if row.layers is not None:
            out[...] = 0
        axes, within = index[: row.stack_axes], index[row.stack_axes :]
        for place, name in row.tensors([range(axis.start, axis.stop) for axis in axes]):
            part = out[tuple(i - axis.start for i, axis in zip(place, axes, strict=True))]
            by_tensor.setdefault(name, []).append((part, within))
        outs.append(out)
    for name, parts in by_tensor.items():
        stored = [(p.T, within[::-1]) if row.transpose else (p, within) for p, within in parts]
        tensors.read_parts(stored, name)
        for part, _ in parts:
            _check_finite(part, where=f"{name} in {tensors.folder}")
    return outs


def _aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An empty array that begins at a multiple of 64 bytes: jax then uses it on a CPU as it is."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _check_finite(values: np.ndarray, *, where: str) -> None:
    """Raises ValueError if some values are NaN or infinite.

    One such value makes the sum not finite, and a sum is faster than a look at each value. A sum of
    finite values may also overflow, so if it is not finite, each value is checked.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum(dtype=np.float32)
    wrong = 0 if np.isfinite(total) else values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise ValueError(
            f"{wrong} of {values.size} values of {where} are not finite in {values.dtype}: the "
            "file is damaged, the training diverged, or the numbers are too large for this dtype."
        )


def stored_tensors(
    params: Mapping[str, Any],
    rows: tuple[Row, ...],
    *,
    zeros: Mapping[str, tuple[int, ...]],
    dtype: Dtype,
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) in the order of `key_maps.tensor_shapes`, then `zeros`; gathered one by one."""
    leaves = flatten_paths(params)
    for row in rows:
        whole = to_host(leaves[row.path])
        for place, name in row.tensors([*map(range, whole.shape[: row.stack_axes])]):
            array = whole[place]
            progressed()
            yield name, (array.T if row.transpose else array).astype(NUMPY_DTYPES[dtype])
    for name, shape in zeros.items():
        yield name, np.zeros(shape, NUMPY_DTYPES[dtype])


def to_host(leaf: Any) -> np.ndarray:
    """The whole of an array; all processes that hold a part of it must call this."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)
