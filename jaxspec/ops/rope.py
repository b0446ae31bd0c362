"""Rotary position embeddings, half-split layout (Su et al. 2021, arXiv 2104.09864).

Dimension key: S tokens of a row, Q query heads (or those of keys), C head width.

>>> cos, sin = rotation_angles(jnp.arange(4), inverse_frequencies(8, theta=1e4))
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import LinearRopeScaling, Llama3RopeScaling, RopeScaling, YarnRopeScaling


def inverse_frequencies(
    head_dim: int, *, theta: float, scaling: RopeScaling | None = None
) -> np.ndarray:
    """Angular frequency of each pair of channels, in radians per position.

    Args:
      head_dim: C, even; where only the first channels of a head are rotated, their number.
      theta: base of the geometric progression.
      scaling: how positions beyond the original context are brought into it.

    Returns:
      float32 [C / 2], a constant known at trace time.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if isinstance(scaling, LinearRopeScaling):
        frequencies = frequencies / scaling.factor
    elif scaling is not None:
        kept = (
            _kept_by_yarn(head_dim, theta=theta, scaling=scaling)
            if isinstance(scaling, YarnRopeScaling)
            else _kept_by_llama3(frequencies, scaling)
        )
        frequencies = (1 - kept) * frequencies / scaling.factor + kept * frequencies
    return frequencies.astype(np.float32)


def _kept_by_llama3(frequencies: np.ndarray, scaling: Llama3RopeScaling) -> np.ndarray:
    """Share of each frequency that stays: all of short wavelengths, nothing of long ones."""
    wavelengths = 2 * math.pi / frequencies
    original = scaling.original_max_position_embeddings
    smooth = (original / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return np.clip(smooth, 0.0, 1.0)


def _kept_by_yarn(head_dim: int, *, theta: float, scaling: YarnRopeScaling) -> np.ndarray:
    """Share of each frequency that stays, by its turns within the original context.

    Source: Peng et al. 2023, arXiv 2309.00071, equations 17 to 20; between the two limits the share
    falls linearly with the channel instead of with the turns, as in the released code.
    """

    def channel(turns: float) -> float:
        """The pair of channels, as a real number, that turns this often."""
        wavelength = scaling.original_max_position_embeddings / turns
        return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # A range of no width would divide by zero.
    width = high - low or 1e-3
    return 1 - np.clip((np.arange(head_dim // 2) - low) / width, 0.0, 1.0)


def rotation_angles(
    positions: jax.Array, frequencies: np.ndarray, *, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every angle, float32 [..., S, C / 2] for positions [..., S].

    float32 because bfloat16 cannot tell positions above 256 apart. YaRN multiplies both by its
    attention factor.
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies
    if isinstance(scaling, YarnRopeScaling):
        factor = scaling.attention_factor
        return factor * jnp.cos(angles), factor * jnp.sin(angles)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_SQC: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates [..., S, Q, C] by angles [..., S, C / 2]; the dtype stays.

    Channel c turns with channel c + C / 2: x cos + swap(x) sin, where swap is (-second, first).
    Given fewer angles, only twice as many channels, the first ones, are rotated among themselves.
    """
    width, half = x_SQC.shape[-1], cos.shape[-1]
    x32 = x_SQC.astype(jnp.float32)
    swapped = jax.lax.platform_dependent(
        x32,
        cpu=functools.partial(_swap_by_product, half=half),
        default=functools.partial(_swap_by_slices, half=half),
    )
    cos, sin = (jnp.concatenate([angle, angle], axis=-1) for angle in (cos, sin))
    if 2 * half < width:
        unrotated = [(0, 0)] * (cos.ndim - 1) + [(0, width - 2 * half)]
        cos, sin = jnp.pad(cos, unrotated, constant_values=1), jnp.pad(sin, unrotated)
    return (x32 * cos[..., None, :] + swapped * sin[..., None, :]).astype(x_SQC.dtype)


def _swap_by_product(x_C: jax.Array, *, half: int) -> jax.Array:
    """(-second, first, 0) of the first two halves and the rest, by a signed permutation.

    Compilers keep a product out of the elementwise loops around it: with slices and a
    concatenation instead, norm, rotation and the gradient of both take 1.6 times as long on a CPU,
    with a reversed axis 2.1 times.
    """
    swap_CC = np.zeros((x_C.shape[-1], x_C.shape[-1]), np.float32)
    swap_CC[np.arange(half) + half, np.arange(half)] = -1
    swap_CC[np.arange(half), np.arange(half) + half] = 1
    # Highest precision: a sum of one term is exact as long as x is not rounded on the way.
    return jnp.dot(x_C, swap_CC, precision=jax.lax.Precision.HIGHEST)


def _swap_by_slices(x_C: jax.Array, *, half: int) -> jax.Array:
    """The same where compilers fuse it with what is around it; a product is a kernel of its own."""
    first, second, rest = jnp.split(x_C, [half, 2 * half], axis=-1)
    return jnp.concatenate([-second, first, jnp.zeros_like(rest)], axis=-1)
