"""Wavelengths and rotations. The families are compared with transformers in their own tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import LinearRopeScaling, YarnRopeScaling
from jaxspec.ops.rope import (
    _swap_by_product,
    _swap_by_slices,
    inverse_frequencies,
    rotate,
    rotation_angles,
)

PLAIN = inverse_frequencies(16, theta=100.0)


def test_linear_scaling_is_a_division_of_positions() -> None:
    scaled = inverse_frequencies(16, theta=100.0, scaling=LinearRopeScaling(4.0))
    cos, sin = rotation_angles(jnp.arange(0, 40, 4), scaled)
    expected = rotation_angles(jnp.arange(10), PLAIN)
    np.testing.assert_allclose(cos, expected[0], atol=1e-6)
    np.testing.assert_allclose(sin, expected[1], atol=1e-6)


@pytest.mark.parametrize("truncate", [False, True])
def test_yarn_keeps_fast_channels_and_stretches_slow_ones(truncate: bool) -> None:
    scaling = YarnRopeScaling(
        factor=8.0, beta_fast=8.0, beta_slow=1.0, truncate=truncate,
        original_max_position_embeddings=128,
    )  # fmt: skip
    ratio = inverse_frequencies(16, theta=100.0, scaling=scaling) / PLAIN
    turns = 128 * PLAIN / (2 * np.pi)
    # Truncated, the range between is up to one channel wider on both sides.
    margin = 100.0 ** (2 / 16) if truncate else 1.0
    np.testing.assert_allclose(ratio[turns > 8 * margin], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 1 / margin], 1 / 8, rtol=1e-6)
    assert (np.diff(ratio) <= 0).all()
    assert ((ratio > 1 / 8) & (ratio < 1)).any()


def test_yarn_multiplies_what_is_rotated_by_its_factor() -> None:
    scaling = YarnRopeScaling(attention_factor=1.5)
    cos, sin = rotation_angles(jnp.arange(5), PLAIN, scaling=scaling)
    np.testing.assert_allclose(cos**2 + sin**2, 1.5**2, rtol=1e-5)


def test_with_fewer_angles_the_last_channels_stay() -> None:
    x_SQC = jax.random.normal(jax.random.key(0), (5, 2, 16))
    cos, sin = rotation_angles(jnp.arange(5), inverse_frequencies(6, theta=100.0))
    got = rotate(x_SQC, cos, sin)
    np.testing.assert_allclose(got[..., :6], rotate(x_SQC[..., :6], cos, sin), atol=1e-6)
    np.testing.assert_array_equal(got[..., 6:], x_SQC[..., 6:])
    assert np.abs(got[1:, :, :6] - x_SQC[1:, :, :6]).min(axis=-1).max() > 0


@pytest.mark.parametrize(("width", "half"), [(8, 4), (10, 3), (4, 1)])
def test_all_platforms_swap_alike(width: int, half: int) -> None:
    x_C = jax.random.normal(jax.random.key(0), (3, 2, width))
    expected = np.concatenate(
        [-x_C[..., half : 2 * half], x_C[..., :half], 0 * x_C[..., 2 * half :]], axis=-1
    )
    for swap in (_swap_by_product, _swap_by_slices):
        assert np.array_equal(jax.jit(swap, static_argnames="half")(x_C, half=half), expected)
