"""Layers that targets and drafters share: norms, linear, SwiGLU, projections of attention heads.

Dimension key: D model width, F MLP width, Q query heads, R key/value heads, C head width; leading
axes are tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.ops import rope


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32, returned in the dtype of x."""

    eps: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        x32 = x.astype(jnp.float32)
        # float32: a mean of squares loses small channels in bfloat16.
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / deviation * scale + bias over the last axis, as in `RMSNorm`.

    Ba et al. 2016, arXiv 1607.06450.
    """

    eps: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        # float32, and the variance around the mean: a difference of two large means cancels.
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class Linear(nn.Module):
    """x @ kernel (+ bias), over tokens flattened to one axis.

    Flattened because compilers are best at one large matrix product: a product over
    [blocks, slots, D] runs at half the speed on a CPU.
    """

    features: int
    dtype: str = "float32"
    param_dtype: str = "float32"
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
            (x.shape[-1], self.features),
            self.param_dtype,
        )
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        out = flat @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            out = out + bias.astype(self.dtype)
        return out.reshape(*x.shape[:-1], self.features)


class Mlp(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    width: int
    dtype: str = "float32"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_D: jax.Array) -> jax.Array:
        gate_F = Linear(self.width, self.dtype, self.param_dtype, name="gate")(x_D)
        up_F = Linear(self.width, self.dtype, self.param_dtype, name="up")(x_D)
        return Linear(x_D.shape[-1], self.dtype, self.param_dtype, name="down")(
            nn.silu(gate_F) * up_F
        )


class HeadProjections(nn.Module):
    """The four projections of grouped-query attention, with RoPE and optional norms per head."""

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qk_norm: bool
    rms_norm_eps: float
    use_bias: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def setup(self) -> None:
        def linear(features: int, use_bias: bool = False) -> Linear:
            return Linear(features, self.dtype, self.param_dtype, use_bias)

        self.q = linear(self.num_heads * self.head_dim, self.use_bias)
        self.k = linear(self.num_kv_heads * self.head_dim, self.use_bias)
        self.v = linear(self.num_kv_heads * self.head_dim, self.use_bias)
        self.o = linear(self.width)
        if self.qk_norm:
            self.q_norm = RMSNorm(self.rms_norm_eps, self.param_dtype)
            self.k_norm = RMSNorm(self.rms_norm_eps, self.param_dtype)

    def queries(self, x_D: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        """[..., D] -> [..., Q, C], normed and rotated."""
        q_QC = self.q(x_D).reshape(*x_D.shape[:-1], self.num_heads, self.head_dim)
        return rope.rotate(self.q_norm(q_QC) if self.qk_norm else q_QC, cos, sin)

    def keys_and_values(
        self, x_D: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """[..., D] -> keys (normed and rotated) and values, each [..., R, C]."""
        shape = (*x_D.shape[:-1], self.num_kv_heads, self.head_dim)
        k_RC, v_RC = self.k(x_D).reshape(shape), self.v(x_D).reshape(shape)
        return rope.rotate(self.k_norm(k_RC) if self.qk_norm else k_RC, cos, sin), v_RC

    def output(self, heads_QC: jax.Array) -> jax.Array:
        """[..., Q, C] -> [..., D]."""
        return self.o(heads_QC.reshape(*heads_QC.shape[:-2], -1))
