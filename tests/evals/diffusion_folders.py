"""A tiny diffusion language model in a folder, with the embedded tokenizer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoints.denoiser import save_denoiser
from jaxspec.config import (
    DataConfig,
    DiffusionEvaluationConfig,
    EvaluationConfig,
    MaskedTransformerConfig,
    RunConfig,
    TargetConfig,
)
from jaxspec.data.tokenizer import Tokenizer
from jaxspec.models.bidirectional import BidirectionalTransformer
from tests.denoisers import save_llada

EVALUATION = EvaluationConfig(
    benchmarks=("embedded/math",),
    prompts=3,
    max_new_tokens=8,
    # As in timing: both use the same programs.
    batch_size=1,
    timing_prompts=1,
    timing_repeats=1,
)
DIFFUSION = DiffusionEvaluationConfig(block_length=4, num_drafts=(2,))


@functools.cache
def _weights(config: MaskedTransformerConfig, seed: int) -> Any:
    """Kept, because many modules write the same folder."""
    init = jax.jit(BidirectionalTransformer(config).init)
    params = jax.device_get(init(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))["params"])
    return {**params, "head": jax.tree.map(lambda leaf: np.float32(30) * leaf, params["head"])}


def write_model(folder: Path, *, seed: int = 0, llada: bool = False, **shape: object) -> Path:
    """Random weights with logits spread out, so that argmaxes are clear."""
    tokenizer = Tokenizer.load("embedded")
    config = MaskedTransformerConfig(
        **{
            "vocab_size": tokenizer.vocab_size + 2,
            "hidden_size": 16,
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 8,
            "intermediate_size": 16,
            "qk_norm": False,
            "tie_embeddings": False,
            "max_position_embeddings": 256,
            **shape,
        }
    )
    params = _weights(config, seed)
    if llada:
        eos_id = tokenizer.eos_id
        assert eos_id is not None
        save_llada(folder, config, params, eos_id=eos_id, tokenizer_folder=tokenizer.folder)
    else:
        save_denoiser(folder, config, params, tokenizer_folder=tokenizer.folder)
    return folder


def run_config(folder: Path, **changes: object) -> RunConfig:
    """A small evaluation of the model in a folder."""
    return RunConfig(
        **{
            "target": TargetConfig(path=str(folder)),
            "data": DataConfig(embedded_examples=40),
            "evaluation": EVALUATION,
            "diffusion": DIFFUSION,
            **changes,
        }
    )
