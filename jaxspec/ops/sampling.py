"""From logits to the distribution that is sampled, and samples from it.

The probabilities a token was sampled from are the ones an exact rejection rule must be given, so
both are made here: `Sampling.probabilities` shapes the logits, `Sampling.sample` draws from its
result, and the same array goes on to `jaxspec.verify`.

Dimension key: V vocabulary; leading axes ("...") are batch axes.

>>> sampling = Sampling(temperature=0.8, top_k=50)
>>> probs = sampling.probabilities(logits)
>>> tokens = sampling.sample(key, probs)
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

# In place of a token where there is no distribution to draw from.
INVALID = -1

# Below this, a float32 division of the logits overflows for ordinary logits; 0 says what is meant.
_SMALLEST_TEMPERATURE = 1e-6


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """float64 stays, everything narrower becomes float32.

    A bfloat16 probability has 8 bits: sampled in it and scored in float32, a ratio p / q would be
    off by up to 0.4%, which is a bias of the output and not noise.
    """
    return jnp.promote_types(dtype, jnp.float32)


def has_finite_maximum(logits_V: jax.Array) -> jax.Array:
    """Whether each row of logits [..., V] can be chosen from: bool [...].

    False where there is a NaN, a +inf, or nothing but -inf.
    """
    # Asked apart: compiled for the CPU by jax 0.10, a maximum can pass over a NaN.
    return jnp.isfinite(logits_V.max(axis=-1)) & ~jnp.isnan(logits_V).any(axis=-1)


def is_distribution(weights_V: jax.Array) -> jax.Array:
    """Whether each row [..., V] can be sampled: finite, nothing negative, not all zero.

    NaN anywhere in a row makes it False.
    """
    total = weights_V.sum(axis=-1)
    return jnp.isfinite(total) & (total > 0) & (weights_V.min(axis=-1) >= 0)


def fine_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype | type = jnp.float32
) -> jax.Array:
    """Uniform numbers in [0, 1) with twice the usual resolution near 0.

    `jax.random.uniform` gives multiples of 2^-23 in float32, so ``u < a`` would come true with
    probability 1.2e-7 for every smaller positive a: a target token of probability 1e-10 would be
    accepted a thousand times too often. A second draw fills the bits below (what
    ``mode="high"`` does for `jax.random.categorical`); from 1/2 up it could only round to 1 and
    is left out.
    """
    coarse, low = jax.random.uniform(key, (2, *shape), dtype)
    fine = coarse + low * 2.0 ** -jnp.finfo(dtype).nmant
    return jnp.where(coarse < 0.5, fine, coarse)


def sample_index(key: jax.Array, weights_V: jax.Array) -> jax.Array:
    """Draws an index of each row with probability proportional to its weight.

    ``argmax_v log w_v + Gumbel_v`` (the Gumbel-max trick) and not an inverted cumulative sum: a
    prefix sum computed in parallel is not monotone in floating point, so it can return an index of
    weight zero, and it resolves 1e-7 of the total at best. Here weight zero is -inf and never wins,
    and ``mode="high"`` keeps weights down to 1e-14 of the total in proportion. Nor does it scan a
    vocabulary that is split over devices.

    Args:
      key: a typed key (`jax.random.key`).
      weights_V: [..., V], any positive scale.

    Returns:
      int32 [...]; `INVALID` for a row that `is_distribution` refuses. Limiting case: a row with one
      positive weight gives its index whatever the key.
    """
    weights_V = weights_V.astype(at_least_float32(weights_V.dtype))
    drawn = jax.random.categorical(key, jnp.log(weights_V), mode="high").astype(jnp.int32)
    return jnp.where(is_distribution(weights_V), drawn, INVALID)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How logits become a distribution: temperature, then top-k, top-p and min-p, in this order.

    Each filter works on what the one before left, renormalised. Tokens that tie with the last one
    kept are kept too, so equal logits are always treated alike (`top_k` may keep more than k).
    Limiting cases: ``Sampling(1.0)`` is the softmax; temperature 0 is the argmax, the first of
    equal ones, whatever the filters.

    Args:
      temperature: logits are divided by it; 0: greedy.
      top_k: keep the k largest logits; 0, or k >= V: all.
      top_p: keep the smallest set of largest probabilities that sums to at least this (nucleus
        sampling, Holtzman et al. 2019, arXiv 1904.09751); 1: all.
      min_p: keep probabilities of at least min_p times the largest one (Nguyen et al. 2024, arXiv
        2407.01082); 0: all.

    Raises:
      ValueError: a setting outside its range.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature) or (
            self.temperature != 0 and self.temperature < _SMALLEST_TEMPERATURE
        ):
            raise ValueError(
                f"temperature must be 0 (greedy) or finite and at least {_SMALLEST_TEMPERATURE}: "
                f"got {self.temperature}."
            )
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive: got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], 1 being off: got {self.top_p}.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], 0 being off: got {self.min_p}.")

    @property
    def greedy(self) -> bool:
        """Whether no randomness is left."""
        return self.temperature == 0

    def probabilities(self, logits_V: jax.Array) -> jax.Array:
        """The distribution that `sample` draws from.

        Args:
          logits_V: [..., V], any float type; -inf excludes a token.

        Returns:
          [..., V], float32 (float64 for float64 logits). Rows whose largest logit is not finite
          (NaN or inf somewhere, or -inf everywhere) are all NaN, at temperature 0 too, so that the
          mistake is seen where they are used.
        """
        # Exponentials and their sum lose a token's tail in bfloat16.
        logits_V = logits_V.astype(at_least_float32(logits_V.dtype))
        largest = logits_V.max(axis=-1, keepdims=True)
        if self.greedy:
            one_hot = jax.nn.one_hot(logits_V.argmax(-1), logits_V.shape[-1], dtype=logits_V.dtype)
            return jnp.where(has_finite_maximum(logits_V)[..., None], one_hot, jnp.nan)
        # Subtracted first: a small temperature then overflows to -inf only, which is a zero.
        logits_V = (logits_V - largest) / self.temperature
        if 0 < self.top_k < logits_V.shape[-1]:
            smallest_kept = jax.lax.top_k(logits_V, self.top_k)[0][..., -1:]
            # Written as "drop", here and below: comparisons with NaN are False and NaN stays.
            logits_V = jnp.where(logits_V < smallest_kept, -jnp.inf, logits_V)
        probs_V = jax.nn.softmax(logits_V, axis=-1)
        if self.top_p < 1:
            probs_V = _drop(probs_V, below=_nucleus_edge(probs_V, self.top_p))
        if self.min_p > 0:
            probs_V = _drop(probs_V, below=self.min_p * probs_V.max(axis=-1, keepdims=True))
        return probs_V

    def sample(self, key: jax.Array, probs_V: jax.Array) -> jax.Array:
        """One token of each row of `probabilities`: int32 [...], `INVALID` where the row is NaN."""
        if self.greedy:
            found = probs_V.argmax(axis=-1).astype(jnp.int32)
            return jnp.where(is_distribution(probs_V), found, INVALID)
        return sample_index(key, probs_V)


def _drop(probs_V: jax.Array, *, below: jax.Array) -> jax.Array:
    kept_V = jnp.where(probs_V < below, 0, probs_V)
    return kept_V / kept_V.sum(axis=-1, keepdims=True)


def _nucleus_edge(probs_V: jax.Array, top_p: float) -> jax.Array:
    """The smallest probability of the nucleus, [..., 1]: the token that reaches top_p is in it."""
    ordered_V = jnp.sort(probs_V, axis=-1, descending=True)
    mass_before_V = jnp.cumsum(ordered_V, axis=-1) - ordered_V
    inside_V = mass_before_V < top_p
    return jnp.where(inside_V, ordered_V, jnp.inf).min(axis=-1, keepdims=True)
