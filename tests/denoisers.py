"""Masked-diffusion models for tests: random ones that are far from uniform, and LLaDA's folders."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.checkpoints.families.llada import LLADA
from jaxspec.checkpoints.huggingface import write_folder
from jaxspec.config import Dtype, MaskedTransformerConfig
from jaxspec.models.registry import AnyDenoiser, make_denoiser


@functools.cache
def random_denoiser(config: Any, *, spread: float) -> tuple[AnyDenoiser, Any]:
    """(model, params): a fresh model, whose gates and head are zero, with noise on every weight."""
    model = make_denoiser(config)

    @jax.jit
    def noisy() -> Any:
        params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        return jax.tree.unflatten(
            tree,
            [
                leaf + spread * jax.random.normal(key, leaf.shape)
                for leaf, key in zip(leaves, keys, strict=True)
            ],
        )

    return model, noisy()


def save_llada(
    folder: Path,
    config: MaskedTransformerConfig,
    params: Mapping[str, Any],
    *,
    eos_id: int,
    dtype: Dtype | None = None,
    tokenizer_folder: Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Writes a folder of LLaDA's released layout."""
    dtype = dtype or config.param_dtype
    write_folder(
        folder,
        params,
        LLADA.layout(config, ()),
        dtype=dtype,
        documents={"config.json": LLADA.to_json(config, eos_id=eos_id, dtype=dtype)},
        tokenizer_folder=tokenizer_folder,
        provenance=provenance,
        **options,
    )
