"""MDLM's denoiser: a DiT that is told how noisy its input is.

It is the network that kuleshov-group released with MDLM (Sahoo et al. 2024, arXiv 2406.07524);
DiT is by Peebles and Xie 2022, arXiv 2212.09748.

Dimension key: B batch rows, S tokens of a pass, I rows that are asked for, T cache slots, L layers,
D width, Q heads (as many for keys and values), C head width, Z width of the noise conditioning,
V vocabulary.

>>> model = DiT(DiTConfig(vocab_size=12, hidden_size=16, num_layers=2, num_heads=2))
>>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
>>> model.apply({"params": params}, jnp.zeros((1, 8), jnp.int32)).logits_BSV.shape
(1, 8, 12)
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxspec.config import DiTConfig
from jaxspec.models.cache import KVCache
from jaxspec.models.denoiser import DenoiserOutput, take_rows, visible
from jaxspec.models.layers import Linear, scanned
from jaxspec.models.vocabulary import Embedding, head_product
from jaxspec.ops import attention, rope
from jaxspec.ops.attention import group_queries, repeat_rows, ungroup_queries
from jaxspec.parallel.constraints import rows, whole

NORM_EPS = 1e-5
ROPE_THETA = 10_000.0
FREQUENCIES = 256
"""Cosines and sines that the noise is embedded in."""
LONGEST_PERIOD = 10_000.0


class LayerNorm(nn.Module):
    """Layer norm with a scale and no bias, computed in float32 and returned in x's dtype."""

    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        # float32: differences of close numbers are squared.
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + NORM_EPS)
        return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class ZeroLinear(nn.Module):
    """A linear layer with a bias that starts at zero: the modulations and the head."""

    features: int
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., features]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return head_product(x, whole(kernel, self.name, dtype=self.dtype)) + bias.astype(
            jnp.float32
        )


class NoiseEmbedding(nn.Module):
    """Noise as cosines and sines, through two linear layers: sigma [...] -> [..., Z]."""

    config: DiTConfig

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        cfg = self.config
        half = FREQUENCIES // 2
        rates = np.exp(-math.log(LONGEST_PERIOD) * np.arange(half) / half).astype(np.float32)
        angles = sigma[..., None].astype(jnp.float32) * rates
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)

        def linear(name: str) -> Linear:
            # float32 throughout: it is one row per sequence, and every layer depends on it.
            return Linear(cfg.conditioning_size, "float32", cfg.param_dtype, True, name=name)

        return linear("out")(nn.silu(linear("in")(waves)))


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Adaptive layer norm's affine part: x (1 + scale) + shift."""
    return (x * (1 + scale) + shift).astype(x.dtype)


class DiTLayer(nn.Module):
    """Attention and a GELU MLP, each between a modulated norm and a gate; scanned over layers."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self,
        x_BSD: jax.Array,
        cached: tuple[jax.Array, jax.Array] | None,
        conditioning_BSZ: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        masks: tuple[jax.Array, jax.Array | None],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        cfg = self.config
        own_mask, cache_mask = masks

        def linear(features: int, name: str, use_bias: bool = False) -> Linear:
            return Linear(features, cfg.dtype, cfg.param_dtype, use_bias, name=name)

        modulation = ZeroLinear(6 * cfg.hidden_size, cfg.dtype, cfg.param_dtype, name="modulation")
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(
            modulation(conditioning_BSZ), 6, axis=-1
        )
        normed = modulate(LayerNorm(cfg.param_dtype, name="norm_1")(x_BSD), shift_1, scale_1)
        qkv_BS3QC = linear(3 * cfg.hidden_size, "qkv")(normed).reshape(
            *x_BSD.shape[:2], 3, cfg.num_heads, cfg.head_dim
        )
        q_BSQC, k_BSQC, v_BSQC = (qkv_BS3QC[:, :, i] for i in range(3))
        q_BQSC = group_queries(rope.rotate(q_BSQC, *angles), cfg.num_heads)
        k_BQSC = rope.rotate(k_BSQC, *angles).swapaxes(1, 2)
        v_BQSC = v_BSQC.swapaxes(1, 2)
        parts = [attention.part(q_BQSC, k_BQSC, v_BQSC, own_mask)]
        if cached is not None:
            parts.append(attention.part(q_BQSC, *cached, cache_mask))
        mixed_BSQC = ungroup_queries(attention.merge(*parts), x_BSD.shape[1])
        mixed_BSD = linear(cfg.hidden_size, "o")(mixed_BSQC.reshape(x_BSD.shape))
        x_BSD = rows(x_BSD + (gate_1 * mixed_BSD).astype(x_BSD.dtype))
        normed = modulate(LayerNorm(cfg.param_dtype, name="norm_2")(x_BSD), shift_2, scale_2)
        inner = nn.gelu(linear(cfg.intermediate_size, "up", True)(normed), approximate=True)
        out_BSD = linear(cfg.hidden_size, "down", True)(inner)
        return rows(x_BSD + (gate_2 * out_BSD).astype(x_BSD.dtype)), (k_BQSC, v_BQSC)


class DiT(nn.Module):
    """MDLM's denoiser. Parameters are stacked over layers (axis 0 under "layers").

    Before training the gates and the head are zero: every token is equally likely for any input.
    The released model was trained with a dropout of 0.1, which this one lacks.
    """

    config: DiTConfig

    def setup(self) -> None:
        cfg = self.config
        self.embed = Embedding(cfg.vocab_size, cfg.hidden_size, cfg.dtype, cfg.param_dtype)
        self.noise = NoiseEmbedding(cfg)
        self.layers = scanned(DiTLayer, cfg, split=1, shared=3, twice=self.is_initializing())
        self.final_norm = LayerNorm(cfg.param_dtype)
        self.final_modulation = ZeroLinear(2 * cfg.hidden_size, cfg.dtype, cfg.param_dtype)
        self.head = ZeroLinear(cfg.vocab_size, cfg.dtype, cfg.param_dtype)

    def __call__(
        self,
        tokens_BS: jax.Array,
        *,
        positions_BS: jax.Array | None = None,
        segments_BS: jax.Array | None = None,
        mask_BSS: jax.Array | None = None,
        sigma: jax.Array | None = None,
        cache: KVCache | None = None,
        cache_mask_BST: jax.Array | None = None,
        cache_positions_BT: jax.Array | None = None,
        rows_BI: jax.Array | None = None,
        with_logits: bool = True,
    ) -> DenoiserOutput:
        """One pass; see `Denoiser`.

        Raises:
          ValueError: a sigma that is neither [B] nor [B, S].
        """
        del cache_positions_BT  # No layer slides.
        cfg = self.config
        if positions_BS is None:
            start_B1 = 0 if cache is None else cache.lengths_B[:, None]
            positions_BS = start_B1 + jnp.arange(tokens_BS.shape[1])
            positions_BS = jnp.broadcast_to(positions_BS, tokens_BS.shape)
        cached, cache_mask = None, None
        if cache is not None:
            cached = (cache.keys_LBRTC, cache.values_LBRTC)
            if cache_mask_BST is None:
                cache_mask_BST = cache.committed_BT()[:, None]
            cache_mask = cache_mask_BST[:, None]
        own_mask = visible(tokens_BS, segments_BS=segments_BS, mask_BSS=mask_BSS)
        conditioning_BSZ = nn.silu(self.noise(self._noise_rows(sigma, tokens_BS.shape)))
        x_BSD, (keys_LBRSC, values_LBRSC) = self.layers(
            self.embed(tokens_BS),
            cached,
            conditioning_BSZ,
            rope.rotation_angles(
                positions_BS, rope.inverse_frequencies(cfg.head_dim, theta=ROPE_THETA)
            ),
            (repeat_rows(own_mask, 1), cache_mask),
        )
        shift, scale = jnp.split(self.final_modulation(conditioning_BSZ), 2, axis=-1)
        hidden_BSD = take_rows(modulate(self.final_norm(x_BSD), shift, scale), rows_BI)
        logits_BSV = self.logits(hidden_BSD if with_logits else hidden_BSD[:, :0])
        return DenoiserOutput(hidden_BSD, logits_BSV, keys_LBRSC, values_LBRSC)

    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        """The head alone, for callers that hold the logits of only a few positions at a time."""
        return self.head(hidden_BSD)

    def _noise_rows(self, sigma: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
        """The noise per token [B, S] or per sequence [B, 1], or a single 0 [1, 1]."""
        if sigma is not None and sigma.shape not in (shape, shape[:1]):
            raise ValueError(
                f"sigma must hold one value per sequence {shape[:1]} or per token {shape}: got "
                f"shape {sigma.shape}."
            )
        if sigma is None or not self.config.time_conditioning:
            return jnp.zeros((1, 1), jnp.float32)
        return sigma if sigma.ndim == 2 else sigma[:, None]
