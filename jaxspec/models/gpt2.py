"""Causal transformer of the GPT-2 and GPT-Neo families, chosen by `GPT2Config`.

Layer norms with biases, a learned table of positions, a GELU MLP (Radford et al. 2019). GPT-Neo
(Black et al. 2021) has layers that see only a window, and does not scale its scores. The interface
is that of `jaxspec.models.transformer.Transformer`.

Dimension key: B batch rows, S tokens of a pass, T cache slots, L layers, D model width, F MLP
width, Q query heads (each with keys and values of its own, so that R = Q), C head width, M captured
layers, E = M * D captured features, V vocabulary.

>>> model = GPT2(GPT2Config(vocab_size=64, hidden_size=32, num_layers=2, num_heads=4))
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

from jaxspec.config import GPT2Config
from jaxspec.models.cache import KVCache
from jaxspec.models.layers import LayerNorm, Linear, PlainMlp, scanned
from jaxspec.models.transformer import (
    Masks,
    Places,
    TransformerOutput,
    attend,
    captured,
    check_layer_ids,
    limit_to_window,
    next_positions,
    through_layers,
    visible,
)
from jaxspec.models.vocabulary import Embedding, Head
from jaxspec.parallel.constraints import rows


class AttentionProjections(nn.Module):
    """GPT-2: queries, keys and values from one product, with biases. GPT-Neo: three without."""

    config: GPT2Config

    def setup(self) -> None:
        cfg = self.config

        def linear(features: int, *, use_bias: bool) -> Linear:
            return Linear(features, cfg.dtype, cfg.param_dtype, use_bias)

        if cfg.family == "gpt2":
            self.qkv = linear(3 * cfg.hidden_size, use_bias=True)
        else:
            self.q = linear(cfg.hidden_size, use_bias=False)
            self.k = linear(cfg.hidden_size, use_bias=False)
            self.v = linear(cfg.hidden_size, use_bias=False)
        self.o = linear(cfg.hidden_size, use_bias=True)

    def queries_keys_and_values(self, x_D: jax.Array) -> tuple[jax.Array, ...]:
        """[..., D] -> three arrays [..., Q, C]."""
        cfg = self.config
        if cfg.family == "gpt2":
            parts = jnp.split(self.qkv(x_D), 3, axis=-1)
        else:
            parts = [self.q(x_D), self.k(x_D), self.v(x_D)]
        return tuple(
            part_D.reshape(*x_D.shape[:-1], cfg.num_heads, cfg.head_dim) for part_D in parts
        )

    def output(self, heads_QC: jax.Array) -> jax.Array:
        """[..., Q, C] -> [..., D]."""
        return self.o(heads_QC.reshape(*heads_QC.shape[:-2], -1))


class GPT2Layer(nn.Module):
    """Pre-norm attention and MLP; scanned, so that one compiled body serves all layers."""

    config: GPT2Config

    @nn.compact
    def __call__(
        self,
        carry: tuple[jax.Array, jax.Array | None],
        slot: jax.Array,
        window: jax.Array | None,
        cached: tuple[jax.Array, jax.Array] | None,
        masks: Masks,
        places: Places | None,
    ) -> tuple[tuple[jax.Array, jax.Array | None], tuple[jax.Array, jax.Array]]:
        cfg = self.config
        x_BSD, features_MBSD = rows(carry[0]), carry[1]
        masks = limit_to_window(masks, window, places, groups=1)
        projections = AttentionProjections(cfg, name="attention")
        normed = LayerNorm(cfg.layer_norm_eps, cfg.param_dtype, name="input_norm")(x_BSD)
        q_BSQC, k_BSQC, v_BSQC = projections.queries_keys_and_values(normed)
        own = k_BSQC.swapaxes(1, 2), v_BSQC.swapaxes(1, 2)
        mixed_BSQC = attend(q_BSQC, own, cached, masks, scaled=cfg.family == "gpt2")
        x_BSD = rows(x_BSD + projections.output(mixed_BSQC.astype(cfg.dtype)))
        normed = LayerNorm(cfg.layer_norm_eps, cfg.param_dtype, name="post_norm")(x_BSD)
        mlp = PlainMlp(cfg.intermediate_size, cfg.dtype, cfg.param_dtype, name="mlp")
        x_BSD = rows(x_BSD + mlp(normed))
        return (x_BSD, captured(features_MBSD, x_BSD, slot)), own


class GPT2(nn.Module):
    """The target model. Parameters are stacked over layers (axis 0 under "layers")."""

    config: GPT2Config

    def setup(self) -> None:
        cfg = self.config
        self.embed = Embedding(cfg.vocab_size, cfg.hidden_size, cfg.dtype, cfg.param_dtype)
        self.positions = Embedding(
            cfg.max_position_embeddings, cfg.hidden_size, cfg.dtype, cfg.param_dtype
        )
        self.layers = scanned(GPT2Layer, cfg, split=3, shared=2, twice=self.is_initializing())
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

        Positions past the end of the table get its last row: padding and drafts beyond the longest
        text have such positions, and their results are not read. A target's longer texts are
        refused earlier (`jaxspec.decoding.generate.check_prompts`,
        `jaxspec.training.tasks.shapes`), a drafter's in evaluations
        (`jaxspec.evals.speculative.drafters`). In other decoding, a drafter drafts poorly past its
        table, and the output is still the target's.

        Raises:
          ValueError: a layer id that the model does not have.
        """
        cfg = self.config
        check_layer_ids(capture, cfg.num_layers)
        if positions_BS is None:
            positions_BS = next_positions(tokens_BS, cache)
        masks, cached = visible(
            tokens_BS.shape[1],
            cache=cache,
            segments_BS=segments_BS,
            mask_BSS=mask_BSS,
            cache_mask_BST=cache_mask_BST,
            config=cfg,
            setting="plain" if self.is_initializing() else cfg.attention,
        )
        rows_BS = jnp.minimum(positions_BS, cfg.max_position_embeddings - 1)
        x_BSD, features_BSE, keys_LBRSC, values_LBRSC = through_layers(
            self.layers,
            self.embed(tokens_BS) + self.positions(rows_BS),
            cfg.windows,
            cached,
            masks,
            Places(positions_BS) if cfg.windows else None,
            num_layers=cfg.num_layers,
            capture=capture,
        )
        hidden_BSD = self.final_norm(x_BSD)
        if self.is_initializing() and not cfg.tie_embeddings:
            self.head(hidden_BSD)
        return TransformerOutput(hidden_BSD, features_BSE, keys_LBRSC, values_LBRSC)

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """Rows of the embedding without positions, in the compute dtype: [...] -> [..., D]."""
        return self.embed(tokens)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits of hidden states after the final norm: [..., D] -> [..., V]."""
        return self.embed.attend(hidden) if self.config.tie_embeddings else self.head(hidden)
