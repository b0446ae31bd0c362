"""Causal transformer of Qwen, Llama and their relatives, chosen by `TransformerConfig`.

Dimension key: B batch rows, S tokens of a pass, T cache slots, I rows of queries (S * U), L layers,
D model width, Q query heads, R key/value heads, U = Q / R query heads per key/value head, C head
width, M captured layers, E = M * D captured features, V vocabulary.

>>> model = Transformer(TransformerConfig())
>>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
>>> tokens_BS = jnp.array([[5, 8, 13]])
>>> output = model.apply({"params": params}, tokens_BS, capture=(1, 3))
>>> logits_BSV = model.apply({"params": params}, output.hidden_BSD, method="logits")
>>> logits_BSV.shape == (1, 3, TransformerConfig().vocab_size)
True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxspec.config import Attention, LanguageModelConfig, TransformerConfig
from jaxspec.models.cache import KVCache
from jaxspec.models.experts import Experts
from jaxspec.models.layers import HeadProjections, Mlp, RMSNorm, scanned
from jaxspec.models.vocabulary import Embedding, Head, softcap
from jaxspec.ops import attention, rope
from jaxspec.ops.attention import group_queries, repeat_rows, ungroup_queries
from jaxspec.ops.causal_attention import Causal, attend_causally, choose_attention
from jaxspec.ops.mesh_axes import context_parts, platform
from jaxspec.parallel.constraints import rows, whole_rows

Masks = tuple[jax.Array | Causal, jax.Array | None]
"""What the tokens of a pass see: of the pass, and of the cache."""


class TransformerOutput(NamedTuple):
    """What a pass returns. The compiler leaves out what the caller does not use."""

    hidden_BSD: jax.Array
    """After the final norm: what `logits` takes."""
    features_BSE: jax.Array | None
    """Outputs of the captured layers (before the final norm), concatenated, or None."""
    keys_LBRSC: jax.Array
    """This pass's keys and values, for `KVCache.write`."""
    values_LBRSC: jax.Array


class Kinds(NamedTuple):
    """What differs between layers besides weights and windows; None: nothing does."""

    rotation: jax.Array | None
    """Which of the pass's sets of angles a layer turns by."""
    is_dense: jax.Array | None
    """Whether a layer has an MLP and not experts."""


class Places(NamedTuple):
    """Where the tokens of a pass and of its cache stand; sliding layers read it."""

    own_BS: jax.Array
    cached_BT: jax.Array | None = None
    """None: slot t of the cache holds position t."""


class Layer(nn.Module):
    """Attention and MLP; scanned, so that one compiled body serves all layers."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array | None],
        slot: jax.Array,
        window: jax.Array | None,
        cached: tuple[jax.Array, jax.Array] | None,
        kinds: Kinds,
        angles: tuple[jax.Array, jax.Array],
        masks: Masks,
        places: Places | None,
    ) -> tuple[tuple[jax.Array, jax.Array | None], tuple[jax.Array, jax.Array]]:
        cfg = self.config
        x_BSD, features_MBSD = rows(carry[0]), carry[1]
        masks = limit_to_window(masks, window, places, groups=cfg.num_heads // cfg.num_kv_heads)
        if kinds.rotation is not None:
            angles = angles[0][kinds.rotation], angles[1][kinds.rotation]
        heads = HeadProjections(
            width=cfg.hidden_size,
            num_heads=cfg.num_heads,
            num_kv_heads=cfg.num_kv_heads,
            head_dim=cfg.head_dim,
            qk_norm=cfg.qk_norm,
            rms_norm_eps=cfg.rms_norm_eps,
            use_bias=cfg.attention_bias,
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
            norm_offset=cfg.norm_offset,
            qk_norm_whole=cfg.qk_norm_whole,
            fused=cfg.fused_projections,
            name="attention",
        )
        normed = self._norm("input_norm", x_BSD, before=True)
        k_BSRC, v_BSRC = heads.keys_and_values(normed, *angles)
        k_BRSC, v_BRSC = k_BSRC.swapaxes(1, 2), v_BSRC.swapaxes(1, 2)
        q_BSQC = heads.queries(normed, *angles)
        if cfg.query_pre_attn_scalar:
            q_BSQC = q_BSQC * jnp.asarray(cfg.query_pre_attn_scalar**-0.5, q_BSQC.dtype)
        mixed_BSQC = attend(
            q_BSQC, (k_BRSC, v_BRSC), cached, masks, scaled=not cfg.query_pre_attn_scalar
        )
        mixed_BSD = heads.output(mixed_BSQC.astype(cfg.dtype))
        x_BSD = rows(x_BSD + self._norm("attention_output_norm", mixed_BSD, before=False))
        normed = self._norm("post_norm", x_BSD, before=True)
        mixed_BSD = self._feed_forward(normed, kinds.is_dense)
        x_BSD = rows(x_BSD + self._norm("mlp_output_norm", mixed_BSD, before=False))
        return (x_BSD, captured(features_MBSD, x_BSD, slot)), (k_BRSC, v_BRSC)

    def _norm(self, name: str, x_BSD: jax.Array, *, before: bool) -> jax.Array:
        """The named norm before or after attention or MLP; x itself where the model has none."""
        cfg = self.config
        if cfg.norms == ("after" if before else "before"):
            return x_BSD
        return RMSNorm(cfg.rms_norm_eps, cfg.param_dtype, cfg.norm_offset, name=name)(x_BSD)

    def _feed_forward(self, x_BSD: jax.Array, is_dense: jax.Array | None) -> jax.Array:
        """The MLP or the experts. Where only some layers have experts, all have room for both."""
        cfg = self.config
        choices: list[Callable[[nn.Module, jax.Array], jax.Array]] = []
        if cfg.experts is not None:
            experts = Experts(cfg.experts, cfg.dtype, cfg.param_dtype, name="experts")
            choices.append(lambda _, x_BSD: experts(x_BSD))
        if cfg.dense_layers:
            mlp = Mlp(
                cfg.intermediate_size,
                cfg.dtype,
                cfg.param_dtype,
                cfg.activation,
                cfg.fused_projections,
                name="mlp",
            )
            choices.append(lambda _, x_BSD: mlp(x_BSD))
        if is_dense is not None and not self.is_initializing():
            return nn.switch(is_dense.astype(jnp.int32), choices, self, x_BSD)
        first, *_ = [choice(self, x_BSD) for choice in choices]
        return first


def captured(
    features_MBSD: jax.Array | None, x_BSD: jax.Array, slot: jax.Array
) -> jax.Array | None:
    """The features with a layer's output in its slot; None if no layer is captured."""
    if features_MBSD is None:
        return None
    changed = jax.lax.dynamic_update_index_in_dim(features_MBSD, x_BSD, slot, 0)
    return rows(changed, axis=1)


def limit_to_window(
    masks: Masks,
    window: jax.Array | None,
    places: Places | None,
    *,
    groups: int,
) -> Masks:
    """The masks of a layer: those of the pass, limited to the last `window` positions."""
    own_mask, cache_mask = masks
    if window is None or places is None:
        return masks
    positions_BS, cached_BT = places
    if isinstance(own_mask, Causal):
        return dataclasses.replace(own_mask, window=window, positions_BS=positions_BS), cache_mask
    # By position: rows of a draft tree share positions, those of packed documents restart.
    positions_BI1 = jnp.repeat(positions_BS, groups, axis=1)[..., None]
    own_mask = own_mask & (positions_BI1 - positions_BS[:, None] < window)[:, None]
    if cache_mask is not None:
        if cached_BT is None:
            cached_BT = jnp.arange(cache_mask.shape[-1])[None]
        cache_mask = cache_mask & (positions_BI1 - cached_BT[:, None] < window)[:, None]
    return own_mask, cache_mask


def attend(
    q_BSQC: jax.Array,
    own: tuple[jax.Array, jax.Array],
    cached: tuple[jax.Array, jax.Array] | None,
    masks: Masks,
    *,
    scaled: bool = True,
) -> jax.Array:
    """Attention to the pass's own keys and values, each [B, R, S, C], and to the cache's."""
    own_mask, cache_mask = masks
    if isinstance(own_mask, Causal):
        return attend_causally(q_BSQC, *own, own_mask, scaled=scaled)
    q_BRIC = group_queries(q_BSQC, own[0].shape[1])
    keys, values = map(whole_rows, own)
    parts = [attention.part(q_BRIC, keys, values, own_mask, scaled=scaled)]
    if cached is not None:
        parts.append(attention.part(q_BRIC, *cached, cache_mask, scaled=scaled))
    return ungroup_queries(attention.merge(*parts), q_BSQC.shape[1])


def check_layer_ids(layer_ids: tuple[int, ...], num_layers: int) -> None:
    """Raises ValueError unless every id names the output of one of the target's blocks."""
    wrong = [i for i in layer_ids if not 0 <= i < num_layers]
    if wrong:
        raise ValueError(
            f"Target layer ids must lie in 0..{num_layers - 1} (id = output of block id, "
            f"{num_layers} blocks): got {wrong} in {list(layer_ids)}."
        )
    if len(set(layer_ids)) != len(layer_ids) or list(layer_ids) != sorted(layer_ids):
        raise ValueError(f"Target layer ids must be strictly increasing: got {list(layer_ids)}.")


def next_positions(tokens_BS: jax.Array, cache: KVCache | None) -> jax.Array:
    """Absolute positions [B, S] of tokens that follow the cache, or that begin a text."""
    start_B1 = 0 if cache is None else cache.lengths_B[:, None]
    return jnp.broadcast_to(start_B1 + jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)


def visible(
    length: int,
    *,
    cache: KVCache | None,
    segments_BS: jax.Array | None,
    mask_BSS: jax.Array | None,
    cache_mask_BST: jax.Array | None,
    config: LanguageModelConfig,
    setting: Attention,
) -> tuple[Masks, tuple[jax.Array, jax.Array] | None]:
    """What a pass may see: the masks of its own tokens and of the cache, and the cache's arrays."""
    # Where a mesh splits the tokens of a row, a device has few scores, and all of its own at once.
    if mask_BSS is None and cache is None and context_parts(length) == 1:
        kind, _ = choose_attention(
            setting,
            platform=platform(),
            dtype=config.dtype,
            head_dim=config.head_dim,
            length=length,
        )
        if kind != "plain":
            return (Causal(kind, segments_BS, config.windows), None), None
    groups = config.num_heads // config.num_kv_heads
    if mask_BSS is None:
        order = jnp.arange(length)
        mask_BSS = (order[:, None] >= order)[None]
    if segments_BS is not None:
        mask_BSS = mask_BSS & (segments_BS[:, :, None] == segments_BS[:, None, :])
    own_mask = repeat_rows(rows(mask_BSS), groups)
    if cache is None:
        return (own_mask, None), None
    cache_mask = cache.committed_BT()[:, None, None]
    if cache_mask_BST is not None:
        cache_mask = repeat_rows(cache_mask_BST, groups)
    return (own_mask, cache_mask), (cache.keys_LBRTC, cache.values_LBRTC)


def through_layers(
    layers: nn.Module,
    x_BSD: jax.Array,
    windows: tuple[int, ...],
    cached: tuple[jax.Array, jax.Array] | None,
    *more: Any,
    num_layers: int,
    capture: tuple[int, ...],
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]:
    """The scan over layers: its output, the captured features, keys and values.

    Args:
      layers: scanned layers ((x, features), slot, window, cached, *more) -> (carry, (k, v)).
      x_BSD: what the first layer reads.
      windows: one per layer; () if no layer slides.
      cached: the cache's keys and values.
      *more: further inputs of the layers, which their scan splits or shares.
      num_layers: L.
      capture: layers whose outputs are returned.
    """
    # Layers that are not captured all write to one spare slot: the buffer is [M + 1, ...] instead
    # of [L, ...], and the scan needs no branch.
    slots_L = np.full(num_layers, len(capture), np.int32)
    slots_L[list(capture)] = np.arange(len(capture))
    features_MBSD = None
    if capture:
        # Copies, not zeros: under shard_map they vary between devices, as the layers' outputs do.
        features_MBSD = jnp.repeat(x_BSD[None], len(capture) + 1, axis=0)
    (x_BSD, features_MBSD), (keys_LBRSC, values_LBRSC) = layers(
        (x_BSD, features_MBSD),
        jnp.asarray(slots_L),
        jnp.asarray(windows, jnp.int32) if windows else None,
        cached,
        *more,
    )
    features_BSE = None
    if features_MBSD is not None:
        # Whole before they are joined and after: what reads them takes its columns of a whole row.
        parts = [rows(features_MBSD[m]) for m in range(len(capture))]
        features_BSE = rows(jnp.concatenate(parts, axis=-1))
    return x_BSD, features_BSE, keys_LBRSC, values_LBRSC


def rotations(
    cfg: TransformerConfig, positions_BS: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None]:
    """Cosines and sines of a pass, and which set of them each layer turns by.

    Returns:
      ([B, S, C / 2] each, None) where all layers turn alike; otherwise one set for each kind of
      layer ([kinds, B, S, C / 2]), and the index of each layer's kind, [L].
    """
    width = cfg.rotary_dim or cfg.head_dim

    def angles(kind: str) -> tuple[jax.Array, jax.Array]:
        if kind == "none":  # An angle of 0 turns nothing.
            return rope.rotation_angles(positions_BS, np.zeros(width // 2, np.float32))
        theta = cfg.sliding_rope_theta if kind == "sliding" else cfg.rope_theta
        scaling = None if kind == "sliding" else cfg.rope_scaling
        frequencies = rope.inverse_frequencies(width, theta=theta, scaling=scaling)
        return rope.rotation_angles(positions_BS, frequencies, scaling=scaling)

    kinds = sorted(set(cfg.rotations))
    sets = [angles(kind) for kind in kinds]
    if len(kinds) == 1:
        return sets[0], None
    cos, sin = (jnp.stack(arrays) for arrays in zip(*sets, strict=True))
    return (cos, sin), jnp.asarray([kinds.index(kind) for kind in cfg.rotations])


class Transformer(nn.Module):
    """The target model. Parameters are stacked over layers (axis 0 under "layers")."""

    config: TransformerConfig

    def setup(self) -> None:
        cfg = self.config
        self.embed = Embedding(cfg.vocab_size, cfg.hidden_size, cfg.dtype, cfg.param_dtype)
        self.layers = scanned(Layer, cfg, split=4, shared=3, twice=self.is_initializing())
        self.final_norm = RMSNorm(cfg.rms_norm_eps, cfg.param_dtype, cfg.norm_offset)
        if not cfg.tie_embeddings:
            self.head = Head(cfg.vocab_size, cfg.dtype, cfg.param_dtype)

    def __call__(
        self,
        tokens_BS: jax.Array,
        *,
        positions_BS: jax.Array | None = None,
        segments_BS: jax.Array | None = None,
        cache: KVCache | None = None,
        capture: tuple[int, ...] = (),
        mask_BSS: jax.Array | None = None,
        cache_mask_BST: jax.Array | None = None,
        cache_positions_BT: jax.Array | None = None,
    ) -> TransformerOutput:
        """One pass.

        Args:
          tokens_BS: int32 ids. JAX clamps ids outside the embedding, so check them beforehand.
          positions_BS: absolute positions; default: from the cache's length (or 0) on. Without
            `mask_BSS` they rise by one within a document.
          segments_BS: document of each token; tokens see only their own document.
          cache: committed keys and values, which every token sees (in a sliding layer, within its
            window). It is read, not changed.
          capture: layers whose outputs are returned (id = output of block id, rising).
          mask_BSS: True where token i of this pass sees token j of it; default: causal. A tree of
            drafts sets it together with `positions_BS`. Sliding layers see less: of the keys that
            it allows, those at positions above (the query's - window), as in transformers.
          cache_mask_BST: True where token i sees slot t of the cache; default: all committed slots.
          cache_positions_BT: the absolute position that each slot of the cache holds, for the
            windows of sliding layers; default: slot t holds position t. Packed documents differ.

        Raises:
          ValueError: a layer id that the model does not have.
        """
        cfg = self.config
        check_layer_ids(capture, cfg.num_layers)
        if positions_BS is None:
            positions_BS = next_positions(tokens_BS, cache)
        angles, rotation_L = rotations(cfg, positions_BS)
        dense_L = np.isin(np.arange(cfg.num_layers), cfg.dense_layers)
        is_mixed = dense_L.any() and not dense_L.all()
        masks, cached = visible(
            tokens_BS.shape[1],
            cache=cache,
            segments_BS=segments_BS,
            mask_BSS=mask_BSS,
            cache_mask_BST=cache_mask_BST,
            config=cfg,
            setting="plain" if self.is_initializing() else cfg.attention,
        )
        x_BSD, features_BSE, keys_LBRSC, values_LBRSC = through_layers(
            self.layers,
            self._inputs(tokens_BS),
            cfg.windows,
            cached,
            Kinds(rotation_L, jnp.asarray(dense_L) if is_mixed else None),
            angles,
            masks,
            Places(positions_BS, cache_positions_BT) if cfg.windows else None,
            num_layers=cfg.num_layers,
            capture=capture,
        )
        hidden_BSD = self.final_norm(x_BSD)
        if self.is_initializing() and not cfg.tie_embeddings:
            self.head(hidden_BSD)
        return TransformerOutput(hidden_BSD, features_BSE, keys_LBRSC, values_LBRSC)

    def _inputs(self, tokens_BS: jax.Array) -> jax.Array:
        x_BSD = self.embed(tokens_BS)
        if self.config.scale_embeddings:
            # The factor is rounded too, as in transformers.
            x_BSD = x_BSD * jnp.asarray(self.config.hidden_size**0.5, x_BSD.dtype)
        return x_BSD

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """Rows of the embedding as stored, in the compute dtype: [...] -> [..., D].

        Not multiplied where `scale_embeddings` is set: a drafter shares the table, not the factor.
        """
        return self.embed(tokens)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits of hidden states after the final norm: [..., D] -> [..., V]."""
        cfg = self.config
        logits = self.embed.attend(hidden) if cfg.tie_embeddings else self.head(hidden)
        return softcap(logits, cfg.logit_softcap)
