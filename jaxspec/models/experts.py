"""A mixture of experts: each token is read by the few MLPs that a router finds likeliest.

Only the chosen experts are computed. Tokens are sorted by expert and cut into blocks of one expert
each; a scan over the blocks takes one expert's matrices at a time, so that memory does not grow
with the number of experts. (`jax.lax.ragged_dot` does this in one operation on accelerators, but on
a CPU it multiplies every row with every expert's matrix and holds all of these products at once.)

Dimension key: D model width, F MLP width, J experts of a layer, I rows (tokens x experts of each),
N blocks of rows, K slots of a block; leading axes are tokens.

>>> model = Experts(ExpertsConfig(num_experts=4, per_token=2, width=8))
>>> params = model.init(jax.random.key(0), jnp.zeros((3, 6)))["params"]
>>> model.apply({"params": params}, jnp.ones((3, 6))).shape
(3, 6)
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.config import ExpertsConfig
from jaxspec.models.layers import Linear
from jaxspec.parallel.constraints import by_rows, whole

LARGEST_BLOCK = 128
"""Rows that are multiplied with an expert's matrices at once."""


class ExpertKernels(nn.Module):
    """One matrix for each expert."""

    num_experts: int
    inputs: int
    outputs: int
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self) -> jax.Array:
        kernels = self.param(
            "kernel",
            nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0,)),
            (self.num_experts, self.inputs, self.outputs),
            self.param_dtype,
        )
        return whole(kernels, self.name, dtype=self.dtype)


class Experts(nn.Module):
    """Router and experts, each a SwiGLU MLP."""

    config: ExpertsConfig
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_D: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]: the chosen experts' outputs, weighted by their probabilities."""
        cfg, width = self.config, x_D.shape[-1]

        def kernels(inputs: int, outputs: int, name: str) -> jax.Array:
            return ExpertKernels(
                cfg.num_experts, inputs, outputs, self.dtype, self.param_dtype, name=name
            )()

        x_D = x_D.astype(self.dtype)
        scores = Linear(cfg.num_experts, self.dtype, self.param_dtype, name="router")(x_D)
        matrices = {
            "gate_JDF": kernels(width, cfg.width, "gate"),
            "up_JDF": kernels(width, cfg.width, "up"),
            "down_JFD": kernels(cfg.width, width, "down"),
        }

        def mixed(matrices: dict[str, jax.Array], x_D: jax.Array, scores: jax.Array) -> jax.Array:
            tokens, scores = x_D.reshape(-1, width), scores.reshape(-1, cfg.num_experts)
            probabilities = jax.nn.softmax(scores.astype(jnp.float32))
            weights, experts = jax.lax.top_k(probabilities, cfg.per_token)
            if cfg.renormalise:
                weights = weights / weights.sum(axis=-1, keepdims=True)
            rows_ID = jnp.repeat(tokens, cfg.per_token, axis=0)
            out_ID = by_expert(rows_ID, experts.reshape(-1), **matrices)
            # Rounded as in transformers, summed in float32.
            parts = out_ID.reshape(-1, cfg.per_token, width) * weights[..., None].astype(self.dtype)
            return parts.astype(jnp.float32).sum(axis=1).astype(self.dtype).reshape(x_D.shape)

        return by_rows(mixed, x_D, scores, shared=matrices, of_tokens=x_D.ndim > 2)


def by_expert(
    x_ID: jax.Array,
    experts_I: jax.Array,
    *,
    gate_JDF: jax.Array,
    up_JDF: jax.Array,
    down_JFD: jax.Array,
) -> jax.Array:
    """Each row through the SwiGLU of its expert: [I, D] -> [I, D]."""
    (rows, width), num_experts = x_ID.shape, gate_JDF.shape[0]
    size, blocks = _blocks(rows, num_experts=num_experts)
    places_I, experts_N = _places(experts_I, num_experts=num_experts, size=size, blocks=blocks)
    x_NKD = jnp.zeros((blocks * size, width), x_ID.dtype).at[places_I].set(x_ID)

    def block(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        expert, x_KD = inputs
        hidden_KF = nn.silu(x_KD @ gate_JDF[expert]) * (x_KD @ up_JDF[expert])
        return hidden_KF @ down_JFD[expert]

    out_NKD = jax.lax.map(block, (experts_N, x_NKD.reshape(blocks, size, width)))
    return out_NKD.reshape(-1, width)[places_I]


def computed_rows(config: ExpertsConfig, tokens: int) -> int:
    """How many rows the experts of one layer compute for this many tokens, padding included."""
    return math.prod(_blocks(tokens * config.per_token, num_experts=config.num_experts))


def _blocks(rows: int, *, num_experts: int) -> tuple[int, int]:
    """Rows of a block, and how many blocks there are."""
    size = max(1, min(LARGEST_BLOCK, rows // num_experts))
    # A block has rows of one expert only: at most one block of each expert is not full.
    return size, rows if size == 1 else rows // size + min(num_experts, rows)


def _places(
    experts_I: jax.Array, *, num_experts: int, size: int, blocks: int
) -> tuple[jax.Array, jax.Array]:
    """Where each row goes when every expert's rows begin a new block, and each block's expert."""
    order_I = jnp.argsort(experts_I)
    sorted_I = experts_I[order_I]
    count_J = jnp.bincount(experts_I, length=num_experts)
    blocks_J = -(-count_J // size)
    last_J = jnp.cumsum(blocks_J)
    within_I = jnp.arange(len(experts_I)) - (jnp.cumsum(count_J) - count_J)[sorted_I]
    sorted_places_I = (last_J - blocks_J)[sorted_I] * size + within_I
    places_I = jnp.zeros_like(order_I).at[order_I].set(sorted_places_I)
    # Blocks after the last one are empty, and any expert will do.
    experts_N = (last_J <= jnp.arange(blocks)[:, None]).sum(axis=1)
    return places_I, jnp.minimum(experts_N, num_experts - 1)
