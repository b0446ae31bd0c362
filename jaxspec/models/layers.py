"""Layers that targets and drafters share: norms, linear, MLPs, projections of heads, stacks.

Dimension key: D model width, F MLP width, Q query heads, R key/value heads, C head width; leading
axes are tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.config import DiTConfig, LanguageModelConfig
from jaxspec.ops import rope
from jaxspec.parallel.constraints import flat_tokens, rows, whole
from jaxspec.parallel.rules import columns_of


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, computed in float32, returned in the dtype of x.

    Zhang & Sennrich 2019, arXiv 1910.07467. With `offset`, the factor is 1 + scale.
    """

    eps: float
    param_dtype: str = "float32"
    offset: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],), self.param_dtype)
        scale32 = scale.astype(jnp.float32)
        if self.offset:
            scale32 = 1 + scale32
        x32 = x.astype(jnp.float32)
        # float32: a mean of squares loses small channels in bfloat16.
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (normed * scale32).astype(x.dtype)


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


def product(rows_ID: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """Rows @ kernel. Where a mesh splits the tokens of a text, rows are not flattened: [B, S, D].

    XLA has GPUs compute a small product of a single row as an elementwise product, which it writes
    to the memory, and a sum: three times the traffic. With a second row it stays a product.
    """
    if rows_ID.ndim != 2 or rows_ID.shape[0] != 1:
        return rows_ID @ kernel_DF
    found: jax.Array = jax.lax.platform_dependent(
        rows_ID, kernel_DF, cuda=_product_of_two, rocm=_product_of_two, default=jnp.matmul
    )
    return found


def _product_of_two(row_1D: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    return (jnp.pad(row_1D, ((0, 1), (0, 0))) @ kernel_DF)[:1]


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
        flat = flat_tokens(x).astype(self.dtype)
        out = product(flat, whole(kernel, self.name, dtype=self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            out = out + bias.astype(self.dtype)
        out = out.reshape(*x.shape[:-1], self.features)
        return rows(out, columns=columns_of(self.name))


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "silu": nn.silu,
        "gelu": functools.partial(nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(nn.gelu, approximate=True),
        "relu": nn.relu,
    }
)


class PlainMlp(nn.Module):
    """down(activation(up(x))), with biases. The tanh form of GELU: arXiv 1606.08415."""

    width: int
    dtype: str = "float32"
    param_dtype: str = "float32"
    activation: str = "gelu_tanh"

    @nn.compact
    def __call__(self, x_D: jax.Array) -> jax.Array:
        def linear(width: int, name: str) -> Linear:
            return Linear(width, self.dtype, self.param_dtype, use_bias=True, name=name)

        up_F = linear(self.width, "up")(x_D)
        return linear(x_D.shape[-1], "down")(ACTIVATIONS[self.activation](up_F))


class Mlp(nn.Module):
    """A gated MLP (Shazeer 2020, arXiv 2002.05202): down(activation(gate(x)) * up(x)).

    With `fused`, one matrix gives gate and up, next to each other.
    """

    width: int
    dtype: str = "float32"
    param_dtype: str = "float32"
    activation: str = "silu"
    fused: bool = False

    @nn.compact
    def __call__(self, x_D: jax.Array) -> jax.Array:
        def linear(width: int, name: str) -> Linear:
            return Linear(width, self.dtype, self.param_dtype, name=name)

        if self.fused:
            gate_F, up_F = jnp.split(linear(2 * self.width, "gate_up")(x_D), 2, axis=-1)
        else:
            gate_F, up_F = linear(self.width, "gate")(x_D), linear(self.width, "up")(x_D)
        return linear(x_D.shape[-1], "down")(ACTIVATIONS[self.activation](gate_F) * up_F)


class HeadProjections(nn.Module):
    """The four projections of grouped-query attention, with RoPE and optional norms.

    With `fused`, one matrix gives queries, keys and values, next to each other.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    qk_norm: bool
    rms_norm_eps: float
    use_bias: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    norm_offset: bool = False
    qk_norm_whole: bool = False
    fused: bool = False

    def setup(self) -> None:
        def linear(features: int, use_bias: bool = False) -> Linear:
            return Linear(features, self.dtype, self.param_dtype, use_bias)

        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        if self.fused:
            self.qkv = linear(queries + 2 * keys, self.use_bias)
        else:
            self.q = linear(queries, self.use_bias)
            self.k = linear(keys, self.use_bias)
            self.v = linear(keys, self.use_bias)
        self.o = linear(self.width)
        if self.qk_norm:
            self.q_norm = RMSNorm(self.rms_norm_eps, self.param_dtype, self.norm_offset)
            self.k_norm = RMSNorm(self.rms_norm_eps, self.param_dtype, self.norm_offset)

    def queries(self, x_D: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        """[..., D] -> [..., Q, C], normed and rotated."""
        # The compiler merges this product by `qkv` with that of the keys and values.
        queries = self._fused(x_D)[0] if self.fused else self.q(x_D)
        return rope.rotate(self._heads(queries, self.num_heads, "q_norm"), cos, sin)

    def keys_and_values(
        self, x_D: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """[..., D] -> keys (normed and rotated) and values, each [..., R, C]."""
        keys, values = self._fused(x_D)[1:] if self.fused else (self.k(x_D), self.v(x_D))
        k_RC = self._heads(keys, self.num_kv_heads, "k_norm")
        return rope.rotate(k_RC, cos, sin), self._heads(values, self.num_kv_heads)

    def output(self, heads_QC: jax.Array) -> jax.Array:
        """[..., Q, C] -> [..., D]."""
        return self.o(heads_QC.reshape(*heads_QC.shape[:-2], -1))

    def _fused(self, x_D: jax.Array) -> list[jax.Array]:
        ends = [
            self.num_heads * self.head_dim,
            (self.num_heads + self.num_kv_heads) * self.head_dim,
        ]
        return jnp.split(self.qkv(x_D), ends, axis=-1)

    def _heads(self, projected: jax.Array, heads: int, norm: str = "") -> jax.Array:
        """A projection split into heads, normed by the named norm if there is one."""
        shape = (*projected.shape[:-1], heads, self.head_dim)
        if not (norm and self.qk_norm):
            return projected.reshape(shape)
        if self.qk_norm_whole:
            return getattr(self, norm)(projected).reshape(shape)
        return getattr(self, norm)(projected.reshape(shape))


def scanned(
    layer: type[nn.Module],
    config: LanguageModelConfig | DiTConfig,
    *,
    split: int,
    shared: int,
    twice: bool,
) -> nn.Module:
    """A model's layers as one module, whose parameters are stacked over the layers (axis 0).

    Args:
      layer: made of the configuration; (carry, *inputs) -> (carry, output).
      config: of the model.
      split: how many of the inputs, the first ones, have an entry for each layer (axis 0).
      shared: how many are the same for all layers.
      twice: trace a layer twice, as Flax does by default to check what the scan shares. The keys
        that parameters are drawn with depend on it, so initialisation keeps it; elsewhere it
        would only take time.
    """
    body = nn.remat(layer, prevent_cse=False) if config.remat else layer
    stack: nn.Module = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(*[0] * split, *[nn.broadcast] * shared),
        length=config.num_layers,
        unroll=config.num_layers if config.unroll_layers else 1,
        check_constancy_invariants=twice,
    )(config)
    return stack
