"""Denoisers of masked-diffusion language models: MDLM's DiT, a plain transformer, block diffusion.

Both models have one interface: tokens in, masks among them, and logits of the clean tokens out,
every position seeing every other one. `DiT` is what kuleshov-group released for MDLM (Sahoo et al.
2024, arXiv 2406.07524; DiT: Peebles and Xie 2022, arXiv 2212.09748). `BidirectionalTransformer` is
this library's `Transformer` without the causal mask, so that a target's weights can be its start.

Block diffusion (BD3LM, Arriola et al. 2025, arXiv 2503.09573) is the same model under another
mask: trained on [x_t ; x_0] (`paired_inputs`), decoded block by block against cached keys and
values of clean blocks (`store_clean`; the block itself is a pass with `cache`).

Dimension key: B batch, S tokens of a pass, I rows wanted, T cache slots, L layers, D width,
H heads, C head width, R key/value heads, E conditioning width, N blocks, V vocabulary.

>>> model = DiT(DiTConfig(vocab_size=12, hidden_size=16, num_layers=2, num_heads=2))
>>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
>>> model.apply({"params": params}, jnp.zeros((1, 8), jnp.int32)).logits_BSV.shape
(1, 8, 12)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxspec.config import DiTConfig, MaskedTransformerConfig
from jaxspec.models.cache import KVCache
from jaxspec.models.layers import Linear
from jaxspec.models.transformer import (
    Embedding,
    Transformer,
    group_queries,
    head_product,
    repeat_rows,
    ungroup_queries,
)
from jaxspec.ops import attention, rope

NORM_EPS = 1e-5
ROPE_THETA = 10_000.0
FREQUENCIES = 256
"""Cosines and sines that the noise is embedded in."""
LONGEST_PERIOD = 10_000.0


class DenoiserOutput(NamedTuple):
    """What a pass returns. What the caller leaves unused, the compiler leaves out."""

    hidden_BSD: jax.Array
    """What the head reads (`logits`), at every position, or at those that were asked for."""
    logits_BSV: jax.Array
    """float32, of the clean token at the same positions."""
    keys_LBRSC: jax.Array
    """This pass's keys and values, for `KVCache.write`."""
    values_LBRSC: jax.Array


class Denoiser(Protocol):
    """What training and drafting ask of a masked-diffusion model, through `nn.Module.apply`."""

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
        rows_BI: jax.Array | None = None,
    ) -> DenoiserOutput:
        """One pass.

        Args:
          tokens_BS: int32 ids, masks among them.
          positions_BS: absolute positions; None: the cache's length (or 0) onwards.
          segments_BS: document of each token; tokens see only their own document.
          mask_BSS: True where token i of this pass sees token j of it, broadcastable to [B, S, S];
            None: everywhere.
          sigma: total noise, [B] or [B, S]; None: 0. Models without time conditioning ignore it.
          cache: committed keys and values; it is read, not changed.
          cache_mask_BST: True where a token sees a slot of the cache; None: committed slots.
          rows_BI: positions within this pass whose logits are wanted (the head is a third of a
            small model's work); None: all.
        """


def visible(
    tokens_BS: jax.Array, *, segments_BS: jax.Array | None, mask_BSS: jax.Array | None
) -> jax.Array:
    """Which token sees which: `mask_BSS` (None: all) within each document, bool [B, S, S]."""
    batch, length = tokens_BS.shape
    if mask_BSS is None:
        mask_BSS = jnp.ones((1, length, length), bool)
    if segments_BS is not None:
        mask_BSS = mask_BSS & (segments_BS[:, :, None] == segments_BS[:, None, :])
    return jnp.broadcast_to(mask_BSS, (batch, length, length))


def take_rows(hidden_BSD: jax.Array, rows_BI: jax.Array | None) -> jax.Array:
    """Hidden states at the positions wanted, [B, I, D]."""
    if rows_BI is None:
        return hidden_BSD
    return jnp.take_along_axis(hidden_BSD, rows_BI[..., None], axis=1)


class LayerNorm(nn.Module):
    """Layer norm with a scale and no bias, computed in float32, returned in x's dtype."""

    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        # float32: a difference of close numbers, squared.
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + NORM_EPS)
        return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class ZeroLinear(nn.Module):
    """A linear layer with bias that starts as zeros: a layer's modulation, and the head."""

    features: int
    dtype: str
    param_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., features]."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return head_product(x, kernel.astype(self.dtype)) + bias.astype(jnp.float32)


class NoiseEmbedding(nn.Module):
    """Noise as cosines and sines, through two linear layers: sigma [...] -> [..., E]."""

    config: DiTConfig

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        cfg = self.config
        half = FREQUENCIES // 2
        rates = np.exp(-math.log(LONGEST_PERIOD) * np.arange(half) / half).astype(np.float32)
        angles = sigma[..., None].astype(jnp.float32) * rates
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)

        def linear(name: str) -> Linear:
            # float32 throughout: one row a sequence, and every layer depends on it.
            return Linear(cfg.conditioning_size, "float32", cfg.param_dtype, True, name=name)

        return linear("out")(nn.silu(linear("in")(waves)))


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Adaptive layer norm's affine part: x (1 + scale) + shift."""
    return (x * (1 + scale) + shift).astype(x.dtype)


class DiTLayer(nn.Module):
    """Attention and GELU MLP, both between a modulated norm and a gate; scanned over layers."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self,
        x_BSD: jax.Array,
        cached: tuple[jax.Array, jax.Array] | None,
        conditioning_BSE: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        masks: tuple[jax.Array, jax.Array | None],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        cfg = self.config
        own_mask, cache_mask = masks

        def linear(features: int, name: str, use_bias: bool = False) -> Linear:
            return Linear(features, cfg.dtype, cfg.param_dtype, use_bias, name=name)

        modulation = ZeroLinear(6 * cfg.hidden_size, cfg.dtype, cfg.param_dtype, name="modulation")
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(
            modulation(conditioning_BSE), 6, axis=-1
        )
        normed = modulate(LayerNorm(cfg.param_dtype, name="norm_1")(x_BSD), shift_1, scale_1)
        qkv_BS3HC = linear(3 * cfg.hidden_size, "qkv")(normed).reshape(
            *x_BSD.shape[:2], 3, cfg.num_heads, cfg.head_dim
        )
        q_BSHC, k_BSHC, v_BSHC = (qkv_BS3HC[:, :, i] for i in range(3))
        q_BHSC = group_queries(rope.rotate(q_BSHC, *angles), cfg.num_heads)
        k_BHSC = rope.rotate(k_BSHC, *angles).swapaxes(1, 2)
        v_BHSC = v_BSHC.swapaxes(1, 2)
        parts = [attention.part(q_BHSC, k_BHSC, v_BHSC, own_mask)]
        if cached is not None:
            parts.append(attention.part(q_BHSC, *cached, cache_mask))
        mixed_BSHC = ungroup_queries(attention.merge(*parts), x_BSD.shape[1])
        mixed_BSD = linear(cfg.hidden_size, "o")(mixed_BSHC.reshape(x_BSD.shape))
        x_BSD = x_BSD + (gate_1 * mixed_BSD).astype(x_BSD.dtype)
        normed = modulate(LayerNorm(cfg.param_dtype, name="norm_2")(x_BSD), shift_2, scale_2)
        inner = nn.gelu(linear(cfg.intermediate_size, "up", True)(normed), approximate=True)
        out_BSD = linear(cfg.hidden_size, "down", True)(inner)
        return x_BSD + (gate_2 * out_BSD).astype(x_BSD.dtype), (k_BHSC, v_BHSC)


class DiT(nn.Module):
    """MDLM's denoiser. Parameters are stacked over layers (axis 0 under "layers").

    Before training the gates and the head are zero: every token is equally likely, whatever the
    input. The released model was trained with dropout 0.1, which is not here.
    """

    config: DiTConfig

    def setup(self) -> None:
        cfg = self.config
        self.embed = Embedding(cfg.vocab_size, cfg.hidden_size, cfg.dtype, cfg.param_dtype)
        self.noise = NoiseEmbedding(cfg)
        self.layers = nn.scan(
            nn.remat(DiTLayer, prevent_cse=False) if cfg.remat else DiTLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=cfg.num_layers,
            unroll=cfg.num_layers if cfg.unroll_layers else 1,
        )(cfg)
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
        rows_BI: jax.Array | None = None,
    ) -> DenoiserOutput:
        """One pass; see `Denoiser`.

        Raises:
          ValueError: a sigma that is neither [B] nor [B, S].
        """
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
        conditioning_BSE = nn.silu(self.noise(self._noise_rows(sigma, tokens_BS.shape)))
        x_BSD, (keys_LBRSC, values_LBRSC) = self.layers(
            self.embed(tokens_BS),
            cached,
            conditioning_BSE,
            rope.rotation_angles(
                positions_BS, rope.inverse_frequencies(cfg.head_dim, theta=ROPE_THETA)
            ),
            (repeat_rows(own_mask, 1), cache_mask),
        )
        shift, scale = jnp.split(self.final_modulation(conditioning_BSE), 2, axis=-1)
        hidden_BSD = take_rows(modulate(self.final_norm(x_BSD), shift, scale), rows_BI)
        return DenoiserOutput(hidden_BSD, self.logits(hidden_BSD), keys_LBRSC, values_LBRSC)

    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        """The head alone, for those who hold the logits of a few positions at a time."""
        return self.head(hidden_BSD)

    def _noise_rows(self, sigma: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
        """The noise by token [B, S], by sequence [B, 1], or one 0 for all [1, 1]."""
        if sigma is not None and sigma.shape not in (shape, shape[:1]):
            raise ValueError(
                f"sigma must be one a sequence {shape[:1]} or one a token {shape}: got shape "
                f"{sigma.shape}."
            )
        if sigma is None or not self.config.time_conditioning:
            return jnp.zeros((1, 1), jnp.float32)
        return sigma if sigma.ndim == 2 else sigma[:, None]


class BidirectionalTransformer(nn.Module):
    """A `Transformer` in which every token sees every other; its parameters are the same tree.

    It is not told the noise: `sigma` is accepted and ignored, since the number of masks says it
    (MDLM, appendix E.5).
    """

    config: MaskedTransformerConfig

    def setup(self) -> None:
        self.transformer = Transformer(self.config)
        nn.share_scope(self, self.transformer)

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
        rows_BI: jax.Array | None = None,
    ) -> DenoiserOutput:
        """One pass; see `Denoiser`. Sliding layers keep their window towards earlier positions."""
        del sigma
        output = self.transformer(
            tokens_BS,
            positions_BS=positions_BS,
            cache=cache,
            cache_mask_BST=cache_mask_BST,
            mask_BSS=visible(tokens_BS, segments_BS=segments_BS, mask_BSS=mask_BSS),
        )
        hidden_BSD = take_rows(output.hidden_BSD, rows_BI)
        logits_BSV = self.logits(hidden_BSD)
        return DenoiserOutput(hidden_BSD, logits_BSV, output.keys_LBRSC, output.values_LBRSC)

    def logits(self, hidden_BSD: jax.Array) -> jax.Array:
        """The head alone, for those who hold the logits of a few positions at a time."""
        return self.transformer.logits(hidden_BSD)


AnyDenoiser = DiT | BidirectionalTransformer
"""Both are a `Denoiser`, with a head of its own (`logits`) and a configuration that names the mask
and the context."""


def make_denoiser(config: DiTConfig | MaskedTransformerConfig) -> AnyDenoiser:
    """The model of a configuration."""
    return DiT(config) if isinstance(config, DiTConfig) else BidirectionalTransformer(config)


def block_causal_mask(length: int, *, block_size: int) -> np.ndarray:
    """Token i sees its own block and the blocks before it: bool [S, S], a trace-time constant.

    Raises:
      ValueError: a block size below 1.

    Limiting cases: block_size 1 is causal, block_size >= length bidirectional.
    """
    _check_block_size(block_size)
    block_S = np.arange(length) // block_size
    return block_S[:, None] >= block_S


def block_diffusion_mask(length: int, *, block_size: int) -> np.ndarray:
    """Who sees whom in [x_t ; x_0]: bool [2 S, 2 S], a trace-time constant.

    A noisy token sees its own noisy block and the clean blocks before it; a clean token sees the
    clean blocks up to its own.

    Raises:
      ValueError: a block size below 1.

    Source: BD3LM, arXiv 2503.09573, section 4 and appendix B.6.
    """
    _check_block_size(block_size)
    block_S = np.arange(length) // block_size
    same = block_S[:, None] == block_S
    before = block_S[:, None] > block_S
    return np.block([[same, before], [np.zeros_like(same), same | before]])


def _check_block_size(block_size: int) -> None:
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1: got {block_size}.")


def paired_inputs(
    noisy_BS: jax.Array,
    clean_BS: jax.Array,
    *,
    block_size: int,
    sigma_BS: jax.Array | None = None,
    segments_BS: jax.Array | None = None,
) -> dict[str, Any]:
    """Arguments of a `Denoiser` for one training pass of block diffusion over [x_t ; x_0].

    Args:
      noisy_BS: corrupted tokens, one noise level a block.
      clean_BS: the tokens themselves.
      block_size: tokens of a block.
      sigma_BS: total noise of each noisy token; the clean half has 0. None: 0 everywhere.
      segments_BS: document of each token; documents start at block boundaries.

    Returns:
      Keyword arguments, `tokens_BS` among them, for `model.apply({"params": params}, **inputs)`.
      The logits are those of the noisy half, [B, S, V].

    Raises:
      ValueError: halves of different shapes, or a block size below 1.
    """
    if noisy_BS.shape != clean_BS.shape:
        raise ValueError(
            f"noisy_BS and clean_BS must have one shape: got {noisy_BS.shape} and {clean_BS.shape}."
        )
    length = noisy_BS.shape[1]

    def twice(half_BS: jax.Array) -> jax.Array:
        return jnp.concatenate([half_BS, half_BS], axis=1)

    order_BS = jnp.broadcast_to(jnp.arange(length), noisy_BS.shape)
    sigma = None
    if sigma_BS is not None:
        sigma = jnp.concatenate([sigma_BS, jnp.zeros_like(sigma_BS)], axis=1)
    return {
        "tokens_BS": jnp.concatenate([noisy_BS, clean_BS], axis=1),
        "positions_BS": twice(order_BS),
        "segments_BS": None if segments_BS is None else twice(segments_BS),
        "mask_BSS": jnp.asarray(block_diffusion_mask(length, block_size=block_size))[None],
        "sigma": sigma,
        "rows_BI": order_BS,
    }


def store_clean(
    model: nn.Module,
    params: Any,
    cache: KVCache,
    clean_BS: jax.Array,
    *,
    block_size: int,
    lengths_B: jax.Array | None = None,
) -> KVCache:
    """The cache with the keys and values of clean blocks behind what it holds.

    Args:
      model: a `Denoiser`.
      params: its parameters.
      cache: whole blocks, with room for S more rows.
      clean_BS: one block that has been decoded, or a prompt of several.
      block_size: tokens of a block; rows of `clean_BS` start a block.
      lengths_B: tokens of each row that count, multiples of `block_size`; None: all S.

    Returns:
      The cache, advanced by `lengths_B`. A noisy block is then decoded by
      ``model.apply({"params": params}, block_BS, cache=cache)``.
    """
    length = clean_BS.shape[1]
    mask_SS = jnp.asarray(block_causal_mask(length, block_size=block_size))
    output = model.apply({"params": params}, clean_BS, mask_BSS=mask_SS[None], cache=cache)
    written = cache.write(output.keys_LBRSC, output.values_LBRSC)
    return written.advance(length if lengths_B is None else lengths_B)
