"""Random masked-diffusion models that are far from uniform."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.models.registry import AnyDenoiser, make_denoiser


@functools.cache
def random_denoiser(config: Any, *, spread: float) -> tuple[AnyDenoiser, Any]:
    """(model, params): a fresh model, whose gates and head are zero, with noise on every weight."""
    model = make_denoiser(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + spread * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return model, jax.tree.unflatten(tree, noisy)
