"""Blocks of a row, a few at a time.

Where a mesh splits the blocks over its context axis, every chunk has the same number of blocks of
each device, so that all of them work on every chunk.

>>> split_blocks(jnp.arange(5), axis=0, most=2)
Array([[0, 1],
       [2, 3],
       [4, 0]], dtype=int32)
>>> join_blocks(split_blocks(jnp.arange(5), axis=0, most=2), axis=0, blocks=5)
Array([0, 1, 2, 3, 4], dtype=int32)

Dimension key: N blocks of a row, O chunks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.ops.mesh_axes import context_parts


def split_blocks(array: jax.Array, *, axis: int, most: int) -> jax.Array:
    """[..., N, ...] -> [O, ..., blocks of a chunk, ...].

    The blocks are spread evenly over as few chunks as `most` allows; what the last ones lack is
    filled up with zeros.

    Args:
      array: has the blocks along an axis.
      axis: that axis.
      most: blocks of a chunk, or, where a mesh splits them, those of one device.
    """
    axis %= array.ndim
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    parts = context_parts(array.shape[axis])
    own = array.shape[axis] // parts
    chunks = -(-own // most)
    size = -(-own // chunks)
    widths = [(0, 0)] * (array.ndim + 1)
    widths[axis + 1] = (0, chunks * size - own)
    padded = jnp.pad(array.reshape(*before, parts, own, *after), widths)
    split = jnp.moveaxis(padded.reshape(*before, parts, chunks, size, *after), axis + 1, 0)
    return split.reshape(chunks, *before, parts * size, *after)


def join_blocks(array: jax.Array, *, axis: int, blocks: int) -> jax.Array:
    """The inverse of `split_blocks`: [O, ..., blocks of a chunk, ...] -> [..., N, ...].

    Args:
      array: what was split.
      axis: that of the blocks, before it was split.
      blocks: N.
    """
    chunks, *shape = array.shape
    axis %= len(shape)
    before, after = shape[:axis], shape[axis + 1 :]
    parts = context_parts(blocks)
    size = shape[axis] // parts
    split = jnp.moveaxis(array.reshape(chunks, *before, parts, size, *after), 0, axis + 1)
    padded = split.reshape(*before, parts, chunks * size, *after)
    own = jax.lax.slice_in_dim(padded, 0, blocks // parts, axis=axis + 1)
    return own.reshape(*before, blocks, *after)
