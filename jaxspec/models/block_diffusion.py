"""Block diffusion: the masks, the training pass and the cache of a denoiser that works by blocks.

Block diffusion (BD3LM, Arriola et al. 2025, arXiv 2503.09573) is an ordinary denoiser under another
mask. It is trained on [x_t ; x_0], noisy and clean tokens in one pass (`paired_inputs`). It decodes
block by block against the cached keys and values of clean blocks (`store_clean`); a pass over the
block itself is an ordinary one with `cache`.

Dimension key: B batch rows, S tokens of a half or of a pass, V vocabulary.

>>> noisy_BS, clean_BS = jnp.array([[9, 5, 9, 9]]), jnp.array([[4, 5, 6, 7]])
>>> inputs = paired_inputs(noisy_BS, clean_BS, block_size=2)
>>> inputs["tokens_BS"].tolist()
[[9, 5, 9, 9, 4, 5, 6, 7]]
>>> model.apply({"params": params}, **inputs).logits_BSV  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxspec.models.cache import KVCache


def block_causal_mask(length: int, *, block_size: int) -> np.ndarray:
    """Token i sees its own block and the blocks before it: bool [S, S], a trace-time constant.

    Raises:
      ValueError: a block size below 1.

    Limiting cases: block_size 1 is causal, block_size >= length bidirectional.
    """
    _check_block_size(block_size)
    block_S = np.arange(length) // block_size
    return block_S[:, None] >= block_S


def block_diffusion_mask(length: int, *, block_size: int) -> np.ndarray:
    """Who sees whom in [x_t ; x_0]: bool [2 S, 2 S], a trace-time constant.

    A noisy token sees its own noisy block and the clean blocks before it; a clean token sees the
    clean blocks up to its own.

    Raises:
      ValueError: a block size below 1.

    Source: BD3LM, arXiv 2503.09573, section 4 and appendix B.6.
    """
    _check_block_size(block_size)
    block_S = np.arange(length) // block_size
    same = block_S[:, None] == block_S
    before = block_S[:, None] > block_S
    return np.block([[same, before], [np.zeros_like(same), same | before]])


def _check_block_size(block_size: int) -> None:
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1: got {block_size}.")


def paired_inputs(
    noisy_BS: jax.Array,
    clean_BS: jax.Array,
    *,
    block_size: int,
    sigma_BS: jax.Array | None = None,
    segments_BS: jax.Array | None = None,
) -> dict[str, Any]:
    """Arguments of a `Denoiser` for one training pass of block diffusion over [x_t ; x_0].

    Args:
      noisy_BS: corrupted tokens, with one noise level per block.
      clean_BS: the tokens themselves.
      block_size: tokens of a block.
      sigma_BS: total noise of each noisy token; that of the clean half is 0. None: 0 everywhere.
      segments_BS: the document of each token; documents start at block boundaries.

    Returns:
      Keyword arguments, including `tokens_BS`, for `model.apply({"params": params}, **inputs)`. The
      logits are those of the noisy half, [B, S, V].

    Raises:
      ValueError: halves of different shapes, or a block size below 1.
    """
    if noisy_BS.shape != clean_BS.shape:
        raise ValueError(
            f"noisy_BS and clean_BS must have one shape: got {noisy_BS.shape} and {clean_BS.shape}."
        )
    length = noisy_BS.shape[1]

    def twice(half_BS: jax.Array) -> jax.Array:
        return jnp.concatenate([half_BS, half_BS], axis=1)

    order_BS = jnp.broadcast_to(jnp.arange(length), noisy_BS.shape)
    sigma = None
    if sigma_BS is not None:
        sigma = jnp.concatenate([sigma_BS, jnp.zeros_like(sigma_BS)], axis=1)
    return {
        "tokens_BS": jnp.concatenate([noisy_BS, clean_BS], axis=1),
        "positions_BS": twice(order_BS),
        "segments_BS": None if segments_BS is None else twice(segments_BS),
        "mask_BSS": jnp.asarray(block_diffusion_mask(length, block_size=block_size))[None],
        "sigma": sigma,
        "rows_BI": order_BS,
    }


def store_clean(
    model: nn.Module,
    params: Any,
    cache: KVCache,
    clean_BS: jax.Array,
    *,
    block_size: int,
    lengths_B: jax.Array | None = None,
) -> KVCache:
    """The cache with the keys and values of clean blocks appended.

    Args:
      model: a `Denoiser`.
      params: its parameters.
      cache: holds whole blocks and has room for S more tokens.
      clean_BS: a block that has been decoded, or a prompt of several blocks.
      block_size: tokens of a block; each row of `clean_BS` starts with a new block.
      lengths_B: how many tokens of each row count, a multiple of `block_size`; None: all S.

    Returns:
      The cache, advanced by `lengths_B`. A noisy block is then decoded by
      ``model.apply({"params": params}, block_BS, cache=cache)``.
    """
    length = clean_BS.shape[1]
    mask_SS = jnp.asarray(block_causal_mask(length, block_size=block_size))
    output = model.apply({"params": params}, clean_BS, mask_BSS=mask_SS[None], cache=cache)
    written = cache.write(output.keys_LBRSC, output.values_LBRSC)
    return written.advance(length if lengths_B is None else lengths_B)
