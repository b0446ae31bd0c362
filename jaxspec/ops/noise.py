"""Noise of masked diffusion: the schedule, the times, and which tokens are masked.

MDLM (Sahoo et al. 2024, arXiv 2406.07524) masks every token independently with probability
(1 - eps) t at time t; LLaDA (Nie et al. 2025, arXiv 2502.09992) draws the probability itself. Block
diffusion (BD3LM, Arriola et al. 2025, arXiv 2503.09573) draws one time per block instead of one
per sequence. `jaxspec.losses.diffusion` and `jaxspec.losses.llada` have the losses.

Dimension key: B batch rows, S tokens of a row, N blocks of a row.

>>> key_times, key_masks = jax.random.split(jax.random.key(0))
>>> times_BS = token_times(antithetic_times(key_times, (2,)), length=8)
>>> noisy = corrupt(key_masks, jnp.zeros((2, 8), jnp.int32),
...                 LogLinearSchedule().mask_probability(times_BS), mask_id=3)
>>> noisy.tokens_BS.shape
(2, 8)
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.ops.sampling import signed_ids

SMALLEST_TIME = 1e-3
"""Training times lie in [SMALLEST_TIME, 1]: the weight 1 / t is unbounded at 0."""
SMALLEST_PROBABILITY = 1e-3
"""LLaDA's masking probabilities lie in [SMALLEST_PROBABILITY, 1]."""


@dataclasses.dataclass(frozen=True)
class LogLinearSchedule:
    """The log-linear schedule: alpha(t) = 1 - (1 - eps) t of the tokens are unmasked at time t.

    Args:
      eps: share of tokens not masked at t = 1; 0 is the ideal schedule, whose bound is tight for
        a perfect denoiser (sigma is then infinite at t = 1).

    Raises:
      ValueError: eps outside [0, 1).

    Source: MDLM, arXiv 2406.07524, and its released code (eps = 1e-3).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps must lie in [0, 1): got {self.eps}.")

    def mask_probability(self, times: jax.Array) -> jax.Array:
        """The chance that a token is masked at time t: (1 - eps) t."""
        return (1 - self.eps) * times

    def sigma(self, times: jax.Array) -> jax.Array:
        """Total noise, -log alpha(t): what a time-conditioned denoiser is given."""
        return -jnp.log1p(-self.mask_probability(times))

    def sigma_rate(self, times: jax.Array) -> jax.Array:
        """The derivative of `sigma`: (1 - eps) / alpha(t)."""
        return (1 - self.eps) / (1 - self.mask_probability(times))

    def weight(self, times: jax.Array) -> jax.Array:
        """Weight of a masked token's cross-entropy, sigma' / expm1(sigma): 1 / t for every eps."""
        return 1 / times


def antithetic_times(
    key: jax.Array, shape: tuple[int, ...], *, smallest: float = SMALLEST_TIME
) -> jax.Array:
    """Draws times spread evenly over [smallest, 1]: one in each of n equal strata.

    Formula: ``e_i = (u_i + stratum_i) / n`` with u uniform and the n strata in random order, then
    ``t = (1 - smallest) e + smallest``. The set of times is that of MDLM's released code. Which
    entry gets which stratum is drawn too: in order, block 0 of a single row would always get small
    times and the last block large ones, and the loss would not be the bound.

    Args:
      key: a typed key (`jax.random.key`).
      shape: (B,) for one time per row, (B, N) for one per block; n is its product.
      smallest: the lower end; 0 < smallest < 1.

    Returns:
      float32 of that shape; each entry taken alone is uniform.

    Raises:
      ValueError: `smallest` outside (0, 1).

    Limiting case: n = 1 is a plain uniform draw.
    """
    if not 0 < smallest < 1:
        raise ValueError(f"smallest must lie in (0, 1): got {smallest}.")
    key_within, key_order = jax.random.split(key)
    size = math.prod(shape)
    stratum = jax.random.permutation(key_order, size).astype(jnp.float32)
    even = (jax.random.uniform(key_within, (size,)) + stratum) / max(size, 1)
    return ((1 - smallest) * even + smallest).reshape(shape)


def masking_probabilities(
    key: jax.Array, shape: tuple[int, ...], *, smallest: float = SMALLEST_PROBABILITY
) -> jax.Array:
    """Draws the probability that a token is masked, one per row.

    Formula: ``p = (1 - smallest) t + smallest`` with t uniform in [0, 1).

    Args:
      key: a typed key (`jax.random.key`).
      shape: (B,).
      smallest: the lower end; 0 < smallest < 1.

    Returns:
      float32 of that shape. Each entry of `antithetic_times` has the same law, and their mean
      varies less.

    Raises:
      ValueError: `smallest` outside (0, 1).

    Source: LLaDA, arXiv 2502.09992, appendix A, and its released guidelines (eps = 1e-3).
    """
    if not 0 < smallest < 1:
        raise ValueError(f"smallest must lie in (0, 1): got {smallest}.")
    return (1 - smallest) * jax.random.uniform(key, shape) + smallest


def token_times(times: jax.Array, *, length: int) -> jax.Array:
    """The time of each token, [B, S], from one time per row [B] or per block [B, N].

    Blocks have S / N tokens each.

    Raises:
      ValueError: times of another rank, or blocks that do not divide the length.
    """
    if times.ndim == 1:
        return jnp.broadcast_to(times[:, None], (times.shape[0], length))
    if times.ndim != 2 or times.shape[1] == 0 or length % times.shape[1]:
        raise ValueError(
            "times must be [B] (one per row) or [B, N] with N blocks of equal size: got shape "
            f"{times.shape} for rows of {length} tokens."
        )
    return jnp.repeat(times, length // times.shape[1], axis=1)


def maskable_tokens(
    attended_BS: jax.Array,
    *,
    prefix_lengths_B: jax.Array | None = None,
    suffix: int | None = None,
) -> jax.Array:
    """Which tokens may be masked: attended ones after the prefix and within the suffix.

    Args:
      attended_BS: bool [B, S], False where the row is padded.
      prefix_lengths_B: attended tokens at the start of each row that are never masked (a prompt, an
        anchor). None: no prefix.
      suffix: only this many attended tokens at the end of each row may be masked. With
        ``times = 1`` the row looks as it does in drafting, [prefix | masks], which random masks
        hardly ever produce. None: all.

    Returns:
      bool [B, S].

    Raises:
      ValueError: a suffix below 1.
    """
    if suffix is not None and suffix < 1:
        raise ValueError(f"suffix is a number of tokens and must be at least 1: got {suffix}.")
    attended_BS = attended_BS.astype(bool)
    maskable_BS = attended_BS
    if prefix_lengths_B is not None:
        before_BS = jnp.cumsum(attended_BS, axis=1) - attended_BS
        maskable_BS = maskable_BS & (before_BS >= prefix_lengths_B[:, None])
    if suffix is not None:
        from_here_BS = jnp.cumsum(attended_BS[:, ::-1], axis=1)[:, ::-1]
        maskable_BS = maskable_BS & (from_here_BS <= suffix)
    return maskable_BS


class Corrupted(NamedTuple):
    """The tokens a denoiser sees, and which of them are masked."""

    tokens_BS: jax.Array
    masked_BS: jax.Array


def corrupt(
    key: jax.Array,
    tokens_BS: jax.Array,
    mask_probability: jax.Array,
    *,
    mask_id: int,
    maskable_BS: jax.Array | None = None,
) -> Corrupted:
    """Masks each token independently.

    Args:
      key: a typed key.
      tokens_BS: [B, S], ids without masks.
      mask_probability: broadcastable to [B, S]; `LogLinearSchedule.mask_probability` of the times.
      mask_id: the mask's id.
      maskable_BS: [B, S], tokens that may be masked (`maskable_tokens`); None: all.

    Returns:
      `Corrupted`; ids of a narrower type become int32. A token that already was `mask_id` counts as
      masked only if it was drawn.

    Limiting case: probability 0 masks nothing, probability 1 every maskable token.
    """
    masked_BS = jax.random.uniform(key, tokens_BS.shape) < mask_probability
    if maskable_BS is not None:
        masked_BS = masked_BS & maskable_BS
    return Corrupted(jnp.where(masked_BS, mask_id, signed_ids(tokens_BS)), masked_BS)
