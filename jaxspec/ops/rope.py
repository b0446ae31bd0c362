"""Rotary position embeddings, half-split layout (Su et al. 2021, arXiv 2104.09864).

Dimension key: S tokens of a row, Q query heads (or those of keys), C head width.

>>> cos, sin = rotation_angles(jnp.arange(4), inverse_frequencies(8, theta=1e4))
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import Llama3RopeScaling


def inverse_frequencies(
    head_dim: int, *, theta: float, scaling: Llama3RopeScaling | None = None
) -> np.ndarray:
    """Angular frequency of each pair of channels, in radians per position.

    Args:
      head_dim: C, even.
      theta: base of the geometric progression.
      scaling: Llama 3.1's rule: wavelengths longer than the original context are stretched by
        `factor`, short ones are left alone, those in between are interpolated.

    Returns:
      float32 [C / 2], a constant known at trace time.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        wavelengths = 2 * math.pi / frequencies
        original = scaling.original_max_position_embeddings
        smooth = (original / wavelengths - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        smooth = np.clip(smooth, 0.0, 1.0)
        frequencies = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    return frequencies.astype(np.float32)


def rotation_angles(positions: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every angle, float32 [..., S, C / 2] for positions [..., S].

    float32 because bfloat16 cannot tell positions above 256 apart.
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_SQC: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates [..., S, Q, C] by angles [..., S, C / 2]; the dtype stays.

    Channel c turns with channel c + C / 2: x cos + swap(x) sin, where swap is (-second, first).
    The swap is written as a product with a signed permutation, which compilers keep out of the
    elementwise loops around it: with slices and a concatenation instead, norm, rotation and the
    gradient of both take 1.6 times as long on a CPU, with a reversed axis 2.1 times.
    """
    half = x_SQC.shape[-1] // 2
    swap_CC = np.zeros((2 * half, 2 * half), np.float32)
    swap_CC[np.arange(half) + half, np.arange(half)] = -1
    swap_CC[np.arange(half), np.arange(half) + half] = 1
    x32 = x_SQC.astype(jnp.float32)
    # Highest precision: a sum of one term is exact as long as x is not rounded on the way.
    swapped = jnp.dot(x32, swap_CC, precision=jax.lax.Precision.HIGHEST)
    cos, sin = (jnp.concatenate([angle, angle], axis=-1)[..., None, :] for angle in (cos, sin))
    return (x32 * cos + swapped * sin).astype(x_SQC.dtype)
