"""Attention of texts to themselves in kernels of others: cuDNN's on a GPU, splash on a TPU.

Both keep the scores on the chip (FlashAttention, Dao et al. 2022, arXiv 2205.14135). They tell
sliding windows by places in the row, so positions have to rise by one within a document.

Dimension key: B batch rows, S tokens of a pass, Q query heads, R key/value heads, C head width.

>>> mixed_BSQC = cudnn(q_BSQC, k_BRSC, v_BRSC, window=None)  # doctest: +SKIP
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxspec.ops.mesh_axes import head_axis, is_spread, row_axes

_LANES = 128
"""Splash attention takes whole tiles of this many tokens."""
_LARGEST_TILE = 512
_KERNEL_NAME = re.compile(r"splash_\w+?_(fwd|dq|dkv)|dot_product_attention_(fwd|bwd)")
_KERNEL_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "bwd": 5}
"""Products of queries' and keys' size in a kernel, by its name."""


def cudnn(
    q_BSQC: jax.Array,
    k_BRSC: jax.Array,
    v_BRSC: jax.Array,
    *,
    segments_BS: jax.Array | None = None,
    window: int | None = None,
    scaled: bool = True,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Causal attention by cuDNN, [B, S, Q, C] in the type of the queries.

    Documents become an array [B, 1, S, S] in that type which cuDNN adds to the scores.

    Args:
      q_BSQC: queries.
      k_BRSC: keys.
      v_BRSC: values.
      segments_BS: the document of each token; None: one document.
      window: tokens that a query sees, its own included; None: all.
      scaled: whether scores are scaled by C ** -0.5.
      implementation: "xla" computes the same without cuDNN.
    """
    mask_B1SS = None
    if segments_BS is not None:
        mask_B1SS = (segments_BS[:, :, None] == segments_BS[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        q_BSQC,
        k_BRSC.swapaxes(1, 2),
        v_BRSC.swapaxes(1, 2),
        mask=mask_B1SS,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        scale=None if scaled else 1.0,
        implementation=implementation,
    )


def splash(
    q_BSQC: jax.Array,
    k_BRSC: jax.Array,
    v_BRSC: jax.Array,
    *,
    segments_BS: jax.Array | None = None,
    window: int | None = None,
    scaled: bool = True,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention by JAX's splash kernel, [B, S, Q, C] in the type of the queries.

    On a mesh, each device computes its own rows and heads. The arguments are those of `cudnn`;
    with `interpret`, the kernel runs on any device, slowly.
    """
    length, width = q_BSQC.shape[1], q_BSQC.shape[3]
    if scaled:
        q_BSQC = q_BSQC * jnp.asarray(width**-0.5, q_BSQC.dtype)
    if segments_BS is None:
        segments_BS = jnp.zeros(q_BSQC.shape[:2], jnp.int32)
    # What is added comes after the text, so no token of it is seen.
    padding = -length % _LANES
    q_BQSC = _padded(q_BSQC.swapaxes(1, 2), padding)
    k_BRSC, v_BRSC = _padded(k_BRSC, padding), _padded(v_BRSC, padding)
    segments_BS = jnp.pad(segments_BS, ((0, 0), (0, padding)))
    compute = functools.partial(_splash_rows, window=window, interpret=interpret)
    if is_spread():
        rows = row_axes(q_BQSC.shape[0])
        heads = PartitionSpec(rows, head_axis(k_BRSC.shape[1]))
        compute = jax.shard_map(
            compute,
            in_specs=(heads, heads, heads, PartitionSpec(rows)),
            out_specs=heads,
            check_vma=False,  # Kernels do not say over which devices their results vary.
        )
    return compute(q_BQSC, k_BRSC, v_BRSC, segments_BS)[:, :, :length].swapaxes(1, 2)


def _padded(x_BRSC: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x_BRSC, ((0, 0), (0, 0), (0, padding), (0, 0)))


def _splash_rows(
    q_BQSC: jax.Array,
    k_BRSC: jax.Array,
    v_BRSC: jax.Array,
    segments_BS: jax.Array,
    *,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    _, heads, length, _ = q_BQSC.shape
    shape = (length, length)
    mask = (
        splash_attention_mask.CausalMask(shape)
        if window is None
        else splash_attention_mask.LocalMask(shape, window_size=(window - 1, 0), offset=0)
    )
    tile = next(size for size in (_LARGEST_TILE, 256, _LANES) if length % size == 0)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=tile,
            block_kv=tile,
            block_q_dkv=tile,
            block_kv_dkv=tile,
            block_q_dq=tile,
            block_kv_dq=tile,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    documents = splash_attention_kernel.SegmentIds(segments_BS, segments_BS)
    return jax.vmap(kernel)(q_BQSC, k_BRSC, v_BRSC, documents)


def is_kernel(name: str) -> bool:
    """Whether a call in a program, by its name, is one of these kernels."""
    return _KERNEL_NAME.match(name) is not None


def kernel_operations(name: str, operands: Sequence[tuple[str, Sequence[int]]]) -> float:
    """Operations of the matrix products in one of these kernels, as a program calls it.

    Splash computes whole tiles of the causal triangle. Its operands begin with [1, tiles of
    queries, most tiles of keys in a row], as integers; then come the queries, [B, Q, S, C], or
    [Q, S, C] for a single row. Of cuDNN, half of the square counts; its queries, [B, S, Q, C], come
    first, and its windows are not taken into account.

    Args:
      name: of the call; see `is_kernel`.
      operands: (type, shape) of each.
    """
    found = _KERNEL_NAME.match(name)
    assert found is not None, "the name of one of these kernels"
    queries = next(sizes for kind, sizes in operands if "f" in kind)
    if of_splash := found[1]:
        tall, wide = operands[0][1][-2:]
        *rows, length, width = queries
        tiles = sum(min(row + 1, wide) for row in range(tall))
        pairs = math.prod(rows) * tiles * (length / tall) ** 2
    else:
        batch, length, heads, width = queries
        pairs = batch * heads * length**2 / 2
    return 2.0 * _KERNEL_PRODUCTS[of_splash or found[2]] * width * pairs
