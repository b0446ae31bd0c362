"""The smallest target, drafter and batch that exercise every part of a training step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import DrafterConfig, LossConfig, OptimizerConfig, TransformerConfig
from jaxspec.losses import LossWeights
from jaxspec.models.dflash import DFlash, resolve_config
from jaxspec.models.transformer import Transformer
from jaxspec.training.objectives import DrafterObjective
from jaxspec.training.optimizer import make_optimizer
from jaxspec.training.state import TrainState
from jaxspec.training.step import Hyper

ARCHITECTURE = TransformerConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
)
LOSS = LossConfig(decay=4.0, focal=0.3, chain=5.0)
TARGET = Transformer(ARCHITECTURE)
DRAFTER_CONFIG = resolve_config(
    DrafterConfig(block_size=5, num_features=2, num_layers=2, chunk_blocks=3),
    target=ARCHITECTURE,
    mask_token_id=3,
)
DRAFTER = DFlash(DRAFTER_CONFIG, ARCHITECTURE.hidden_size)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)


def objective(loss: LossConfig = LOSS, anchors: int = 6) -> DrafterObjective:
    """The drafter's objective on the tiny target; the stored trace draws its anchors by row."""
    return DrafterObjective(
        target=TARGET, drafter=DRAFTER, loss=loss, anchors=anchors, anchor_sampling="row"
    )


@functools.cache
def target_params(seed: int = 0):
    """Random weights of the target."""
    return jax.jit(TARGET.init)(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))["params"]


def drafter_params(seed: int = 1):
    """Random weights of the drafter."""
    features = jnp.zeros((1, 2, 2 * ARCHITECTURE.hidden_size))
    return jax.jit(DRAFTER.init, static_argnames="method")(
        jax.random.key(seed), features, method="initialise"
    )["params"]


def batch(rows: int = 8, length: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of two documents and some padding, with half of the tokens to be learned."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, 64, (rows, length)).astype(np.int32)
    cut = rng.integers(8, 14, rows)
    end = rng.integers(length - 4, length + 1, rows)
    index = np.arange(length)
    segments = np.where(index < cut[:, None], 1, 2) * (index < end[:, None])
    positions = np.where(segments == 1, index, index - cut[:, None]) * (segments > 0)
    loss_mask = (rng.random((rows, length)) < 0.7) & (segments > 0) & (positions > 0)
    return {
        "tokens": tokens * (segments > 0),
        "segments": segments.astype(np.int32),
        "positions": positions.astype(np.int32),
        "loss_mask": loss_mask,
        "rows": np.arange(rows, dtype=np.int32),
    }


@functools.cache
def fresh_state(transform):
    """A function that makes the state before the first step of parameters, which it copies."""
    return jax.jit(lambda params: TrainState.create(params, transform))


def start(steps: int = 10):
    """(transform, state, hyper) of a fresh run."""
    transform, rates = make_optimizer(OPTIMIZER, steps=steps)
    state = fresh_state(transform)(drafter_params())
    hyper = Hyper(jnp.float32(rates[0]), jax.random.key(7), LossWeights.from_config(LOSS))
    return transform, state, hyper
