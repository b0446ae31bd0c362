"""From logits to the distribution that is sampled, and samples from it.

The probabilities a token was sampled from are the ones an exact rejection rule must be given, so
both are made here: `Sampling.probabilities` shapes the logits, `Sampling.sample` draws from its
result, and the same array goes on to `jaxspec.verify`.

Dimension key: V vocabulary; leading axes ("...") are batch axes.

>>> sampling = Sampling(temperature=0.8, top_k=2)
>>> probs = sampling.probabilities(jnp.array([[3.0, 1.0, 2.0, 0.0]]))
>>> (probs > 0).tolist()
[[True, False, True, False]]
>>> sampling.sample(jax.random.key(0), probs).shape
(1,)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxspec.ops.mesh_axes import is_spread, platform

# Stands for the token where there is no distribution to draw from.
INVALID = -1

# A row up to this length is drawn from in one step, which costs about as much as two small draws.
_SHORT = 64

# Dividing ordinary float32 logits by less than this overflows; 0 is what such a setting means.
_SMALLEST_TEMPERATURE = 1e-6


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """float64 stays, everything narrower becomes float32.

    A bfloat16 probability has 8 bits: sampled in it and scored in float32, a ratio p / q would be
    off by up to 0.4%, and that is a bias of the output, not noise.
    """
    return jnp.promote_types(dtype, jnp.float32)


def signed_ids(ids: jax.Array) -> jax.Array:
    """Integers as int32, or int64 if they have 64 bits; arrays of other types stay as they are.

    jax takes a Python number as one of the array's own type: next to ids in uint8, a vocabulary of
    256 would be 0, and -1 would be 255.
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        return ids
    return ids.astype(jnp.int64 if ids.dtype.itemsize > 4 else jnp.int32)


def _has_nan(logits_V: jax.Array) -> jax.Array:
    # A test of its own: a maximum that jax 0.10 compiles for the CPU can miss a NaN. A sum never
    # does, and it is several times faster than testing each element.
    return jnp.isnan(logits_V.sum(axis=-1))


def largest_index(logits_V: jax.Array) -> jax.Array:
    """The argmax of each row of logits [..., V], the first of equal ones: int32 [...].

    `INVALID` for a row with a NaN, a +inf, or nothing but -inf. (On a CPU and on a mesh also where
    finite logits are so large, about 1e38 / V, that their sum overflows in both directions.)
    """
    if is_spread():
        # Devices that share the vocabulary exchange their largest logits; to look one up, they
        # would need all of them.
        valid = jnp.isfinite(logits_V.max(axis=-1)) & ~_has_nan(logits_V)
        return jnp.where(valid, jnp.argmax(logits_V, axis=-1).astype(jnp.int32), INVALID)
    found: jax.Array = jax.lax.platform_dependent(
        logits_V, cpu=_largest_in_two_steps, default=_largest_in_one_step
    )
    return found


def _largest_in_one_step(logits_V: jax.Array) -> jax.Array:
    """One pass over the row. NaN counts as the largest, so looking up what was found is enough."""
    index = jnp.argmax(logits_V, axis=-1, keepdims=True).astype(jnp.int32)
    valid = jnp.isfinite(jnp.take_along_axis(logits_V, index, axis=-1))
    return jnp.where(valid, index, INVALID)[..., 0]


def _largest_in_two_steps(logits_V: jax.Array) -> jax.Array:
    """First the stretch (see `_stretches`) whose largest logit is the row's, then the place in it.

    A reduction that carries the index along is not vectorised for the CPU and takes ten times as
    long as a maximum.
    """
    logits_VV = _stretches(logits_V, fill=-jnp.inf)
    largest_V = logits_VV.max(axis=-1)
    indices = _indices_of(largest_V.argmax(axis=-1), width=logits_VV.shape[-1])
    found = _at(indices, _take(logits_V, indices, fill=-jnp.inf).argmax(axis=-1))
    valid = jnp.isfinite(largest_V.max(axis=-1)) & ~_has_nan(logits_V)
    return jnp.where(valid, found, INVALID)


def is_distribution(weights_V: jax.Array, *, total: jax.Array | None = None) -> jax.Array:
    """Whether each row [..., V] can be sampled: finite, nothing negative, not all zero.

    NaN anywhere in a row makes it False. `total`: the rows' sums, if they are already known.
    """
    total = weights_V.sum(axis=-1) if total is None else total
    return jnp.isfinite(total) & (total > 0) & (weights_V.min(axis=-1) >= 0)


def fine_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype | type = jnp.float32
) -> jax.Array:
    """Uniform numbers in [0, 1) with twice the usual resolution near 0.

    `jax.random.uniform` gives multiples of 2^-23 in float32, so ``u < a`` would be true with
    probability 1.2e-7 for every smaller positive a: a target token of probability 1e-10 would be
    accepted a thousand times too often. A second draw fills the bits below (what
    ``mode="high"`` does for `jax.random.categorical`); from 1/2 up it could only round to 1 and
    is left out.
    """
    coarse, low = jax.random.uniform(key, (2, *shape), dtype)
    fine = coarse + low * 2.0 ** -jnp.finfo(dtype).nmant
    return jnp.where(coarse < 0.5, fine, coarse)


def sample_index(key: jax.Array, weights_V: jax.Array) -> jax.Array:
    """Draws an index from each row with probability proportional to its weight.

    In two draws: a stretch of the vocabulary, with probability proportional to the sum of its
    weights (see `_stretches`), then an index of the stretch. The two probabilities multiply to
    ``w_v / sum(w)``: the stretch's sum cancels, except for a rounding error of a few 1e-7 of itself
    (the logarithms below round as much). With stretches of about sqrt(V) this takes 2 sqrt(V)
    random numbers instead of V, and drawing V would be nearly all of the time.

    Each draw is ``argmax_v log w_v + Gumbel_v`` (the Gumbel-max trick) and not an inverted
    cumulative sum: a prefix sum computed in parallel is not monotone in floating point, so it can
    return an index of weight zero, and it resolves 1e-7 of the total at best. Here a weight of zero
    is -inf and never wins, be it of an index or of a whole stretch, so a stretch that is drawn has
    a positive weight to draw. ``mode="high"`` keeps stretches down to 1e-14 of the total, and
    weights down to 1e-14 of their stretch, in proportion.

    Args:
      key: a typed key (`jax.random.key`).
      weights_V: [..., V], any positive scale.

    Returns:
      int32 [...]; `INVALID` for a row that `is_distribution` refuses. Limiting cases: a row with
      one positive weight gives its index whatever the key; up to `_SHORT` weights are one stretch.
    """
    weights_V = weights_V.astype(at_least_float32(weights_V.dtype))
    if weights_V.shape[-1] <= _SHORT:
        drawn = _gumbel_max(key, weights_V)
        return jnp.where(is_distribution(weights_V), drawn, INVALID)
    key_stretch, key_inside = jax.random.split(key)
    weights_VV = _stretches(weights_V, fill=0)
    totals_V = weights_VV.sum(axis=-1)
    indices = _indices_of(_gumbel_max(key_stretch, totals_V), width=weights_VV.shape[-1])
    drawn = _at(indices, _gumbel_max(key_inside, _take(weights_V, indices, fill=0)))
    valid = is_distribution(weights_V, total=totals_V.sum(axis=-1))
    return jnp.where(valid, drawn, INVALID)


def _gumbel_max(key: jax.Array, weights_V: jax.Array) -> jax.Array:
    return jax.random.categorical(key, jnp.log(weights_V), mode="high").astype(jnp.int32)


def _stretches(values_V: jax.Array, *, fill: float) -> jax.Array:
    """Rows cut into stretches of about sqrt(V), the last one padded: [..., count, width]."""
    size = values_V.shape[-1]
    # A power of two fills whole vectors and tiles of any hardware, once the vocabulary is large.
    # Smaller if no padding is needed then: padding can copy all rows.
    wanted = 1 << ((size - 1).bit_length() + 1) // 2
    width = next((w for w in (wanted, wanted // 2, wanted // 4) if size % w == 0), wanted)
    count = -(-size // width)
    padding = [(0, 0)] * (values_V.ndim - 1) + [(0, count * width - size)]
    padded_V = jnp.pad(values_V, padding, constant_values=fill)
    return padded_V.reshape(*values_V.shape[:-1], count, width)


def _indices_of(stretch: jax.Array, *, width: int) -> jax.Array:
    """The indices [..., width] of a stretch [...]; those of the padding are past the row's end."""
    return stretch[..., None] * width + jnp.arange(width)


def _take(values_V: jax.Array, indices: jax.Array, *, fill: float) -> jax.Array:
    # From the row itself: reading the stretches again could copy all of them.
    return jnp.take_along_axis(values_V, indices, axis=-1, mode="fill", fill_value=fill)


def _at(indices: jax.Array, place: jax.Array) -> jax.Array:
    return (indices[..., 0] + place).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How logits become a distribution: temperature, then top-k, top-p and min-p, in this order.

    Each filter works on what the previous one left, renormalised. Tokens that tie with the last one
    kept are kept too, so equal logits are always treated alike (`top_k` may keep more than k).
    Limiting cases: ``Sampling(1.0)`` is the softmax; temperature 0 is the argmax (the first of
    equal ones), whatever the filters are.

    Args:
      temperature: what logits are divided by; 0: greedy.
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
          mistake shows where they are used.
        """
        # In bfloat16 exponentials and their sum lose the tail of the distribution.
        logits_V = logits_V.astype(at_least_float32(logits_V.dtype))
        if self.greedy:
            best = largest_index(logits_V)[..., None]
            one_hot = jax.nn.one_hot(best[..., 0], logits_V.shape[-1], dtype=logits_V.dtype)
            return jnp.where(best != INVALID, one_hot, jnp.nan)
        # Subtracted first: a small temperature can then only overflow to -inf, a probability of 0.
        logits_V = (logits_V - logits_V.max(axis=-1, keepdims=True)) / self.temperature
        if 0 < self.top_k < logits_V.shape[-1]:
            # What to drop, not what to keep, here and below: comparisons with NaN are False, so NaN
            # stays.
            dropped_V = -logits_V > _top_k_edge(-logits_V, self.top_k)
            logits_V = jnp.where(dropped_V, -jnp.inf, logits_V)
        # A softmax; its maximum is already subtracted.
        weights_V = jnp.exp(logits_V)
        probs_V = weights_V / weights_V.sum(axis=-1, keepdims=True)
        if self.top_p < 1:
            probs_V = _drop(probs_V, below=_nucleus_edge(probs_V, self.top_p))
        if self.min_p > 0:
            probs_V = _drop(probs_V, below=self.min_p * probs_V.max(axis=-1, keepdims=True))
        return probs_V

    def sample(self, key: jax.Array, probs_V: jax.Array) -> jax.Array:
        """One token of each row of `probabilities`: int32 [...], `INVALID` where the row is NaN."""
        if self.greedy:
            return jnp.where(is_distribution(probs_V), largest_index(probs_V), INVALID)
        return sample_index(key, probs_V)


def _drop(probs_V: jax.Array, *, below: jax.Array) -> jax.Array:
    kept_V = jnp.where(probs_V < below, 0, probs_V)
    return kept_V / kept_V.sum(axis=-1, keepdims=True)


# Numbers >= 0 have the same order as their bit patterns. The edge of a filter is a number of the
# row, so its pattern can be found from the top, a few bits with each pass over the row. This is
# exact, and on a CPU 10 to 30 times faster than sorting the row (`jax.lax.top_k` sorts too).


def _top_k_edge(distance_V: jax.Array, top_k: int) -> jax.Array:
    """The k-th smallest of rows of numbers >= 0, [..., 1]: fewer than k are below it."""

    def low_enough(raised: jax.Array) -> jax.Array:
        # A pattern that is no number is too high: no value reaches it.
        return (~(distance_V >= raised)).sum(axis=-1, keepdims=True, dtype=jnp.int32) < top_k

    return _largest_pattern(distance_V, low_enough)


def _nucleus_edge(probs_V: jax.Array, top_p: float) -> jax.Array:
    """The smallest probability of the nucleus, [..., 1]: the token that reaches top_p is in it.

    That is the largest t for which the probabilities of at least t sum to top_p. The sum is taken
    over the row in its own order, which can round differently from adding up from the largest; this
    sum defines what has reached top_p. Setting terms of a sum of numbers >= 0 to zero never makes
    it larger, not even in floating point, so there is one such t. It is 0, which keeps everything,
    where rounding leaves the whole row below top_p, or the row is NaN.
    """

    def low_enough(raised: jax.Array) -> jax.Array:
        mass = jnp.where(probs_V >= raised, probs_V, 0).sum(axis=-1, keepdims=True)
        return mass >= top_p

    return _largest_pattern(probs_V, low_enough)


def _largest_pattern(
    values_V: jax.Array, low_enough: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The largest t >= 0 that is low enough, [..., 1], for rows of values >= 0."""
    bits = jnp.finfo(values_V.dtype).bits
    integer = jnp.dtype(f"int{bits}")

    def settle(pattern: jax.Array, place: jax.Array | int, *, count: int) -> jax.Array:
        """`pattern` with the `count` bits from `place` up settled."""
        # If t is low enough, everything below it is: the number of those that are is the largest.
        settled = jnp.zeros_like(pattern)
        for number in range(1, 2**count):
            raised = pattern | (jnp.full_like(pattern, number) << jnp.asarray(place, integer))
            # Compared as numbers: a pass would read patterns of the values besides the values.
            value = jax.lax.bitcast_convert_type(raised, values_V.dtype)
            settled += low_enough(value).astype(integer)
        return pattern | (settled << jnp.asarray(place, integer))

    # The first bit is the sign.
    count = _bits_of_a_pass()
    passes, rest = divmod(bits - 1, count)
    pattern = jax.lax.fori_loop(
        0,
        passes,
        lambda step, pattern: settle(pattern, bits - 1 - count * (step + 1), count=count),
        jnp.zeros(values_V[..., :1].shape, integer),
    )
    if rest:
        pattern = settle(pattern, 0, count=rest)
    return jax.lax.bitcast_convert_type(pattern, values_V.dtype)


def _bits_of_a_pass() -> int:
    """With two bits, a pass compares with three numbers: half the reading, 1.5 times the work."""
    return 1 if platform() == "cpu" else 2


GREEDY = Sampling(0.0)
"""The likeliest token."""
