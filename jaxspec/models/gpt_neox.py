"""Causal transformer of the GPT-NeoX family (Pythia, GPT-NeoX-20B), chosen by `GPTNeoXConfig`.

Layer norms with biases, a plain MLP, and rotary positions in the first channels of each head (Black
et al. 2022, arXiv 2204.06745). Attention and MLP read the same input, each through a norm of its
own, or follow each other. The interface is that of `jaxspec.models.transformer.Transformer`.

Dimension key: B batch rows, S tokens of a pass, T cache slots, L layers, D model width, F MLP
width, Q query heads (each with keys and values of its own, so that R = Q), C head width, M captured
layers, E = M * D captured features, V vocabulary.

>>> config = GPTNeoXConfig(
...     vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, rotary_dim=2)
>>> model = GPTNeoX(config)
>>> params = model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
>>> tokens_BS = jnp.array([[5, 8, 13]])
>>> output = model.apply({"params": params}, tokens_BS, capture=(0, 1))
>>> logits_BSV = model.apply({"params": params}, output.hidden_BSD, method="logits")
>>> logits_BSV.shape
(1, 3, 64)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.config import GPTNeoXConfig
from jaxspec.models.cache import KVCache
from jaxspec.models.layers import LayerNorm, Linear, PlainMlp, scanned
from jaxspec.models.transformer import (
    Masks,
    TransformerOutput,
    attend,
    captured,
    check_layer_ids,
    next_positions,
    through_layers,
    visible,
)
from jaxspec.models.vocabulary import Embedding, Head
from jaxspec.ops import rope
from jaxspec.parallel.constraints import rows


class FusedProjections(nn.Module):
    """Queries, keys and values from one product, whose columns are grouped by head."""

    config: GPTNeoXConfig

    def setup(self) -> None:
        cfg = self.config

        def linear(features: int) -> Linear:
            return Linear(features, cfg.dtype, cfg.param_dtype, cfg.attention_bias)

        self.qkv = linear(3 * cfg.hidden_size)
        self.o = linear(cfg.hidden_size)

    def queries_keys_and_values(
        self, x_D: jax.Array, cos: jax.Array, sin: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[..., D] -> three arrays [..., Q, C]; queries and keys are rotated."""
        cfg = self.config
        # A head's columns are its query, then its key, then its value.
        heads = self.qkv(x_D).reshape(*x_D.shape[:-1], cfg.num_heads, 3 * cfg.head_dim)
        q_QC, k_QC, v_QC = jnp.split(heads, 3, axis=-1)
        return rope.rotate(q_QC, cos, sin), rope.rotate(k_QC, cos, sin), v_QC

    def output(self, heads_QC: jax.Array) -> jax.Array:
        """[..., Q, C] -> [..., D]."""
        return self.o(heads_QC.reshape(*heads_QC.shape[:-2], -1))


class GPTNeoXLayer(nn.Module):
    """Attention and MLP, side by side or in a row; scanned, so that one body serves all layers."""

    config: GPTNeoXConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array | None],
        slot: jax.Array,
        window: None,
        cached: tuple[jax.Array, jax.Array] | None,
        angles: tuple[jax.Array, jax.Array],
        masks: Masks,
    ) -> tuple[tuple[jax.Array, jax.Array | None], tuple[jax.Array, jax.Array]]:
        del window  # No layer slides.
        cfg = self.config
        x_BSD, features_MBSD = rows(carry[0]), carry[1]
        projections = FusedProjections(cfg, name="attention")
        normed = LayerNorm(cfg.layer_norm_eps, cfg.param_dtype, name="input_norm")(x_BSD)
        q_BSQC, k_BSQC, v_BSQC = projections.queries_keys_and_values(normed, *angles)
        own = k_BSQC.swapaxes(1, 2), v_BSQC.swapaxes(1, 2)
        mixed_BSQC = attend(q_BSQC, own, cached, masks)
        attended_BSD = x_BSD + projections.output(mixed_BSQC.astype(cfg.dtype))
        read_BSD = x_BSD if cfg.parallel_residual else attended_BSD
        normed = LayerNorm(cfg.layer_norm_eps, cfg.param_dtype, name="post_norm")(read_BSD)
        mlp = PlainMlp(
            cfg.intermediate_size, cfg.dtype, cfg.param_dtype, cfg.activation, name="mlp"
        )
        x_BSD = rows(attended_BSD + mlp(normed))
        return (x_BSD, captured(features_MBSD, x_BSD, slot)), own


class GPTNeoX(nn.Module):
    """The target model. Parameters are stacked over layers (axis 0 under "layers")."""

    config: GPTNeoXConfig

    def setup(self) -> None:
        cfg = self.config
        self.embed = Embedding(cfg.vocab_size, cfg.hidden_size, cfg.dtype, cfg.param_dtype)
        self.layers = scanned(GPTNeoXLayer, cfg, split=3, shared=2, twice=self.is_initializing())
        self.final_norm = LayerNorm(cfg.layer_norm_eps, cfg.param_dtype)
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
    ) -> TransformerOutput:
        """One pass; arguments and result are those of `Transformer`.

        Raises:
          ValueError: a layer id that the model does not have.
        """
        cfg = self.config
        check_layer_ids(capture, cfg.num_layers)
        if positions_BS is None:
            positions_BS = next_positions(tokens_BS, cache)
        frequencies = rope.inverse_frequencies(
            cfg.rotary_dim, theta=cfg.rope_theta, scaling=cfg.rope_scaling
        )
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
            self.embed(tokens_BS),
            (),
            cached,
            rope.rotation_angles(positions_BS, frequencies, scaling=cfg.rope_scaling),
            masks,
            num_layers=cfg.num_layers,
            capture=capture,
        )
        hidden_BSD = self.final_norm(x_BSD)
        if self.is_initializing() and not cfg.tie_embeddings:
            self.head(hidden_BSD)
        return TransformerOutput(hidden_BSD, features_BSE, keys_LBRSC, values_LBRSC)

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """Rows of the embedding, in the compute dtype: [...] -> [..., D]."""
        return self.embed(tokens)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits of hidden states after the final norm: [..., D] -> [..., V]."""
        return self.embed.attend(hidden) if self.config.tie_embeddings else self.head(hidden)
