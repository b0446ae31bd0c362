"""A tiny target and two tiny drafters in folders, with random weights."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoints.huggingface import save_drafter, save_target
from jaxspec.config import (
    DrafterConfig,
    EvaluationConfig,
    LossConfig,
    RunConfig,
    TransformerConfig,
)
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.transformer import Transformer
from jaxspec.provenance import provenance, write_json

LOSSES = (LossConfig(decay=None, focal=0.0, chain=0.0), LossConfig(decay=math.inf))
SETTINGS = EvaluationConfig(
    benchmarks=("embedded/math",),
    prompts=2,
    max_new_tokens=12,
    # As in timing: both use the same programs.
    batch_size=1,
    timing_prompts=1,
    timing_repeats=1,
    # Not the drafters' own.
    block_size=3,
)


WIDE = {
    "vocab_size": -(-Tokenizer.load("embedded").vocab_size // 8) * 8 + 8,
    "num_heads": 8,
    "num_kv_heads": 8,
}
"""A shape that 8 devices can share."""


@functools.cache
def _target_weights(architecture: TransformerConfig, seed: int) -> Any:
    """Kept, because many modules write the same folders."""
    init = jax.jit(Transformer(architecture).init)
    params = jax.device_get(init(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))["params"])
    # Spread out, so that argmaxes are clear.
    return {**params, "head": jax.tree.map(lambda leaf: leaf * np.float32(30), params["head"])}


@functools.cache
def _drafter_weights(config: DrafterConfig, target_width: int, seed: int) -> Any:
    init = jax.jit(DFlash(config, target_width).init, static_argnames="method")
    features = jnp.zeros((1, 2, 2 * target_width))
    return jax.device_get(init(jax.random.key(seed), features, method="initialise")["params"])


def write_folders(root: Path, *, seed: int = 0, **shape: int) -> tuple[Path, list[Path]]:
    """(target, drafters): exported folders, as training leaves them."""
    tokenizer = Tokenizer.load("embedded")
    architecture = TransformerConfig(
        **{
            "vocab_size": tokenizer.vocab_size + 3,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
            "intermediate_size": 32,
            "tie_embeddings": False,
            "max_position_embeddings": 256,
            **shape,
        }
    )
    params = _target_weights(architecture, seed)
    save_target(root / "target", architecture, params, tokenizer_folder=tokenizer.folder)
    config = resolve_config(
        DrafterConfig(block_size=4, target_layer_ids=(0, 1), num_layers=1),
        target=architecture,
        mask_token_id=tokenizer.mask_id,
    )
    drafters = []
    for number, loss in enumerate(LOSSES):
        folder = root / f"run{number}"
        weights = _drafter_weights(config, architecture.hidden_size, seed + number)
        save_drafter(folder / "export", config, weights, target_config=architecture)
        run = RunConfig(loss=loss)
        write_json(folder / "provenance.json", provenance(config=run, seed=7 + number))
        drafters.append(folder)
    return root / "target", drafters
