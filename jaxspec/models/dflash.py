"""DFlash, a block-diffusion drafter (arXiv 2602.06036): a whole block from one pass.

The drafter has neither an embedding nor a head: it is given the target's embeddings of
[anchor, MASK, ..., MASK], and the target's head reads its output. What it knows about the text
comes from the target's hidden states at a few layers, which `fc` mixes and every layer sees as
extra keys and values. Output k predicts the token at the position of slot k (no shift); slot 0 is
the anchor and predicts nothing.

Layers may slide (`layer_types`, `sliding_window`), as in z-lab's newer checkpoints: a slot at
position p then sees the context and its own block at positions above p - window. Unless
`is_causal` says otherwise, a sliding layer is causal inside the block, as theirs are (z-lab/dflash,
model.py), and a full layer sees the block in both directions. A sliding layer with `is_causal`
False also sees its block ahead, at positions below p + window.

Dimension key: B batch rows, S tokens of a pass, T context positions, N blocks of a row, K block
slots, D width, E = M * D captured features, L layers, Q query heads, R key/value heads, U = Q / R
query heads of one of these, I = K * U queries of a block, C head width.

>>> keys, values = drafter.apply(  # doctest: +SKIP
...     params, features_BSE, positions_BS, method="context"
... )
>>> hidden_BNKD = drafter.apply(  # doctest: +SKIP
...     params, embeddings_BNKD, positions_BNK, keys, values, mask_BNT
... )
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.config import DrafterConfig, GPTNeoXConfig, LanguageModelConfig, TransformerConfig
from jaxspec.models.layers import HeadProjections, Linear, Mlp, RMSNorm
from jaxspec.models.registry import LanguageModel
from jaxspec.models.transformer import check_layer_ids
from jaxspec.ops import attention, rope
from jaxspec.ops.chunks import join_blocks, split_blocks
from jaxspec.ops.mesh_axes import context_parts, platform
from jaxspec.parallel.constraints import rows, whole_rows

DEFAULT_BLOCK_SIZE = 16
"""Slots of a new drafter's block where its settings do not say (DFlash, arXiv 2602.06036)."""
# For drafters whose target has neither (GPT-2).
_NORM_EPS, _ROPE_THETA = 1e-6, 10_000.0
_SCORE_BYTES, _CPU_SCORE_BYTES = 2**24, 2**28
"""Most bytes of a row's float32 scores in a layer that are in memory at once."""


def spread_layer_ids(start: int, end: int, count: int) -> tuple[int, ...]:
    """`count` layer ids from `start` to `end`, evenly spread and rounded as in DFlash's formula."""
    return tuple(round(start + i * (end - start) / (count - 1)) for i in range(count))


def default_layer_ids(num_target_layers: int, count: int) -> tuple[int, ...]:
    """The target layers that DFlash captures by default; id = output of block id.

    round(1 + i (L - 4) / (count - 1)) for i < count, and L // 2 for a single one. Where that does
    not give different ids, the spread takes in block L - 2, and then block 0. The last block is
    never among them: servers see its output after the target's final norm.

    >>> default_layer_ids(36, 5)
    (1, 9, 17, 25, 33)
    >>> default_layer_ids(4, 3)
    (0, 1, 2)

    Raises:
      ValueError: the target has too few layers before its last one.
    """
    last = num_target_layers - 1
    if not 1 <= count <= last:
        raise ValueError(
            f"drafter.num_features must be from 1 to {last}, the number of the target's layers "
            f"before its last one: got {count}. To capture the last layer as well, name the "
            "layers: drafter.target_layer_ids."
            if last
            else "The target has 1 layer, and the last one is not captured by default: to capture "
            "it, set drafter.target_layer_ids to 0."
        )
    if count == 1:
        return (min(num_target_layers // 2, last - 1),)
    start, end = next(
        (start, end)
        for start, end in ((1, last - 2), (1, last - 1), (0, last - 1))
        if end - start >= count - 1
    )
    return spread_layer_ids(start, end, count)


def served_features(
    target: LanguageModel, params: Any, features: jax.Array, *, layer_ids: tuple[int, ...]
) -> jax.Array:
    """Captured states as servers see them: the last block's output after the final norm.

    Hugging Face's ``hidden_states[id + 1]`` is the output of block id, except that the last one has
    passed the final norm; z-lab's code, and drafters trained for it, read that list.

    Args:
      target: the model that they were captured from.
      params: its parameters.
      features: [..., E], as the target returns them.
      layer_ids: the captured layers.
    """
    if layer_ids[-1] != target.config.num_layers - 1:
        return features
    width = target.config.hidden_size
    last = target.apply(
        {"params": params}, features[..., -width:], method=lambda model, x: model.final_norm(x)
    )
    return jnp.concatenate([features[..., :-width], last], axis=-1)


def resolve_config(
    config: DrafterConfig, *, target: LanguageModelConfig, mask_token_id: int | None = None
) -> DrafterConfig:
    """Fills in what a `DrafterConfig` leaves to the target, and checks it against the target.

    Args:
      config: sizes of 0, an empty `target_layer_ids` and a `mask_token_id` of None are filled in.
      target: shape of the target.
      mask_token_id: the tokenizer's mask token, if it has one.

    Raises:
      ValueError: a mask id outside the embedding (a gather would clamp it silently), no mask id at
        all, heads of odd width, query heads that key/value heads cannot share evenly, a block
        longer than the target's positions, or a layer id that the target does not have.
    """
    block_size = config.block_size or DEFAULT_BLOCK_SIZE
    if block_size > target.max_position_embeddings:
        raise ValueError(
            f"drafter.block_size is {block_size}, but the target has only "
            f"{target.max_position_embeddings} positions: choose a smaller block."
        )
    mask = config.mask_token_id if config.mask_token_id is not None else mask_token_id
    if mask is None:
        raise ValueError(
            "No mask token: the tokenizer has none, so set drafter.mask_token_id to an unused id "
            f"below {target.vocab_size} (a reserved special token, for example). Where every id is "
            "used, as in GPT-2's vocabulary, use its end-of-text token: it is the one that occurs "
            "least within a text."
        )
    if not 0 <= mask < target.vocab_size:
        raise ValueError(
            f"drafter.mask_token_id is {mask}, but the target's embedding has {target.vocab_size} "
            "rows: choose an unused id inside it (a reserved special token, for example)."
        )
    eps, theta = _NORM_EPS, _ROPE_THETA
    if isinstance(target, TransformerConfig):
        eps, theta = target.rms_norm_eps, target.rope_theta
    elif isinstance(target, GPTNeoXConfig):
        theta = target.rope_theta
    head_dim = config.head_dim or target.head_dim
    if head_dim % 2:
        raise ValueError(
            f"drafter.head_dim must be even for RoPE: got {head_dim}. Set it if the target's is "
            "odd."
        )
    num_heads = config.num_heads or target.num_heads
    num_kv_heads = config.num_kv_heads or target.num_kv_heads
    if num_heads % num_kv_heads:
        raise ValueError(
            "drafter.num_heads must be a multiple of drafter.num_kv_heads: got "
            f"{num_heads} and {num_kv_heads} (0 means the target's: {target.num_heads} and "
            f"{target.num_kv_heads})."
        )
    layer_ids = config.target_layer_ids or default_layer_ids(target.num_layers, config.num_features)
    check_layer_ids(tuple(layer_ids), target.num_layers)
    return dataclasses.replace(
        config,
        block_size=block_size,
        mask_token_id=mask,
        target_layer_ids=tuple(layer_ids),
        num_features=len(layer_ids),
        last_state="normed" if layer_ids[-1] == target.num_layers - 1 else "",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=config.intermediate_size or target.intermediate_size,
        rms_norm_eps=config.rms_norm_eps or eps,
        rope_theta=config.rope_theta or theta,
    )


def chunks_that_fit(*, blocks: int, block_scores: int, platform: str) -> int:
    """How many blocks of a row are computed at once where the configuration leaves that open.

    >>> chunks_that_fit(blocks=96, block_scores=12 * 16 * 1024, platform="tpu")
    16

    Args:
      blocks: of a row, N.
      block_scores: attention scores of a block and a layer, over all heads.
      platform: jax's name of the devices.

    Returns:
      A divisor of `blocks`.
    """
    most = (_CPU_SCORE_BYTES if platform == "cpu" else _SCORE_BYTES) // (4 * block_scores)
    return max(size for size in range(1, blocks + 1) if blocks % size == 0 and size <= max(1, most))


def check_chunks(chunk_blocks: int | None, *, blocks: int) -> None:
    """Raises ValueError unless `chunk_blocks` divides the blocks of a row."""
    if chunk_blocks and blocks % chunk_blocks:
        raise ValueError(
            f"drafter.chunk_blocks is {chunk_blocks}, but must divide the {blocks} blocks of a row "
            "(data.anchors), or be 0."
        )


class Places(NamedTuple):
    """Positions of queries and keys, for layers of limited reach."""

    slots_BNK: jax.Array
    context_BT: jax.Array


def _within(queries_K: jax.Array, keys_T: jax.Array, reach_2: jax.Array) -> jax.Array:
    """Positions [..., K] and [..., T] -> [..., K, T], True where a query reaches a key."""
    ahead_KT = keys_T[..., None, :] - queries_K[..., None]
    return (ahead_KT >= -reach_2[0]) & (ahead_KT <= reach_2[1])


def _attend(
    q_BRNIC: jax.Array,
    k_BRNKC: jax.Array,
    v_BRNKC: jax.Array,
    context: tuple[jax.Array, jax.Array],
    mask_BNT: jax.Array,
    places: Places | None,
    reach_2: jax.Array | None,
) -> jax.Array:
    """Attention of N blocks, with I = K * U queries each, to the context and to themselves.

    The queries of all blocks share one large product with the context; the products inside the
    blocks are small.
    """
    batch, kv_heads, blocks, rows, width = q_BRNIC.shape
    if places is None or reach_2 is None:
        mask_BRIT = jnp.repeat(mask_BNT, rows, axis=1)[:, None]
        own_BRNIK = None
    else:
        groups = rows // places.slots_BNK.shape[-1]
        slots_BNI = jnp.repeat(places.slots_BNK, groups, axis=-1)
        mask_BNIT = mask_BNT[:, :, None] & _within(slots_BNI, places.context_BT[:, None], reach_2)
        mask_BRIT = mask_BNIT.reshape(batch, 1, blocks * rows, -1)
        own_BRNIK = _within(slots_BNI, places.slots_BNK, reach_2)[:, None]
    seen = attention.part(
        q_BRNIC.reshape(batch, kv_heads, blocks * rows, width), *context, mask_BRIT
    )
    split = (batch, kv_heads, blocks, rows, -1)
    seen = attention.Part(*(array.reshape(split) for array in seen))
    return attention.merge(seen, attention.part(q_BRNIC, k_BRNKC, v_BRNKC, own_BRNIK))


def _attend_in_chunks(
    q_BRNIC: jax.Array,
    k_BRNKC: jax.Array,
    v_BRNKC: jax.Array,
    context: tuple[jax.Array, jax.Array],
    mask_BNT: jax.Array,
    places: Places | None,
    reach_2: jax.Array | None,
    *,
    chunk_blocks: int,
) -> jax.Array:
    """`_attend`, `chunk_blocks` blocks at a time; scores are recomputed in the backward pass."""
    blocks = q_BRNIC.shape[2]
    check_chunks(chunk_blocks, blocks=blocks)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def attend(chunk: tuple[Any, ...]) -> jax.Array:
        *blocks, slots_BnK = chunk
        near = None if places is None else places._replace(slots_BNK=slots_BnK)
        q_BRnIC, k_BRnKC, v_BRnKC, mask_BnT = blocks
        return _attend(q_BRnIC, k_BRnKC, v_BRnKC, context, mask_BnT, near, reach_2)

    split = functools.partial(split_blocks, most=chunk_blocks)
    slots_BNK = None if places is None else split(places.slots_BNK, axis=1)
    of_heads = (split(array, axis=2) for array in (q_BRNIC, k_BRNKC, v_BRNKC))
    mixed = jax.lax.map(attend, (*of_heads, split(mask_BNT, axis=1), slots_BNK))
    return join_blocks(mixed, axis=2, blocks=blocks)


class DFlashLayer(nn.Module):
    """One decoder layer; blocks see the context's keys and their own slots."""

    config: DrafterConfig
    width: int

    def setup(self) -> None:
        cfg = self.config
        self.input_norm = RMSNorm(cfg.rms_norm_eps, cfg.param_dtype)
        self.attention = HeadProjections(
            width=self.width,
            num_heads=cfg.num_heads,
            num_kv_heads=cfg.num_kv_heads,
            head_dim=cfg.head_dim,
            qk_norm=cfg.qk_norm,
            rms_norm_eps=cfg.rms_norm_eps,
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
        )
        self.post_norm = RMSNorm(cfg.rms_norm_eps, cfg.param_dtype)
        self.mlp = Mlp(cfg.intermediate_size, cfg.dtype, cfg.param_dtype)

    def context(
        self, carry: jax.Array, angles: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Keys and values of the context, without an input norm: each [B, R, S, C]."""
        k_BSRC, v_BSRC = self.attention.keys_and_values(carry, *angles)
        return carry, (k_BSRC.swapaxes(1, 2), v_BSRC.swapaxes(1, 2))

    def __call__(
        self,
        x_BNKD: jax.Array,
        context: tuple[jax.Array, jax.Array],
        reach_2: jax.Array | None,
        angles: tuple[jax.Array, jax.Array],
        mask_BNT: jax.Array,
        places: Places | None,
    ) -> tuple[jax.Array, None]:
        cfg = self.config
        batch, blocks, slots, _ = x_BNKD.shape
        kv_heads, width = cfg.num_kv_heads, cfg.head_dim
        x_BNKD = rows(x_BNKD)
        normed = self.input_norm(x_BNKD)
        q_BNKQC = self.attention.queries(normed, *angles)
        k_BNKRC, v_BNKRC = self.attention.keys_and_values(normed, *angles)

        # Queries of one key/value head come together, block after block.
        q_BNKRUC = q_BNKQC.reshape(batch, blocks, slots, kv_heads, -1, width)
        q_BRNIC = jnp.moveaxis(q_BNKRUC, 3, 1).reshape(batch, kv_heads, blocks, -1, width)
        k_BRNKC, v_BRNKC = jnp.moveaxis(k_BNKRC, 3, 1), jnp.moveaxis(v_BNKRC, 3, 1)
        seen = (whole_rows(context[0]), whole_rows(context[1]))
        operands = (q_BRNIC, k_BRNKC, v_BRNKC, seen, mask_BNT, places, reach_2)
        own, chunk_blocks = blocks // context_parts(blocks), cfg.chunk_blocks
        if chunk_blocks is None:
            chunk_blocks = chunks_that_fit(
                blocks=own,
                block_scores=cfg.num_heads * slots * mask_BNT.shape[-1],
                platform=platform(),
            )
        if 0 < chunk_blocks < own:
            mixed_BRNIC = _attend_in_chunks(*operands, chunk_blocks=chunk_blocks)
        else:
            mixed_BRNIC = _attend(*operands)
        mixed_BRNKUC = mixed_BRNIC.reshape(batch, kv_heads, blocks, slots, -1, width)
        mixed_BNKQC = jnp.moveaxis(mixed_BRNKUC, 1, 3).reshape(batch, blocks, slots, -1, width)
        x_BNKD = rows(x_BNKD + self.attention.output(mixed_BNKQC.astype(cfg.dtype)))
        return rows(x_BNKD + self.mlp(self.post_norm(x_BNKD))), None


class DFlash(nn.Module):
    """The drafter.

    Attributes:
      config: a resolved `DrafterConfig` (`resolve_config`).
      width: D, the target's hidden size.
    """

    config: DrafterConfig
    width: int

    def setup(self) -> None:
        cfg = self.config
        self.fc = Linear(self.width, cfg.dtype, cfg.param_dtype)
        self.hidden_norm = RMSNorm(cfg.rms_norm_eps, cfg.param_dtype)
        shared = {
            "variable_axes": {"params": 0},
            "split_rngs": {"params": True},
            "length": cfg.num_layers,
            "unroll": cfg.num_layers if cfg.unroll_layers else 1,
            "check_constancy_invariants": self.is_initializing(),  # As in `scanned`.
        }
        body = DFlashLayer
        if cfg.remat:
            policy = getattr(jax.checkpoint_policies, cfg.remat_policy)
            body = nn.remat(body, prevent_cse=False, methods=["__call__"], policy=policy)
        self.layers = nn.scan(
            body,
            methods={
                "__call__": {"in_axes": (0, 0, *[nn.broadcast] * 3), **shared},
                "context": {"in_axes": (nn.broadcast,), **shared},
            },
        )(cfg, self.width)
        self.final_norm = RMSNorm(cfg.rms_norm_eps, cfg.param_dtype)

    def _angles(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        return rope.rotation_angles(
            positions,
            rope.inverse_frequencies(cfg.head_dim, theta=cfg.rope_theta, scaling=cfg.rope_scaling),
        )

    def context(
        self, features_BSE: jax.Array, positions_BS: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The context's keys and values in every layer.

        They depend only on the target's features, so decoding computes each of them once and caches
        it (`KVCache.write`).

        Args:
          features_BSE: the target's captured features.
          positions_BS: absolute positions.

        Returns:
          keys and values, each [L, B, R, S, C].
        """
        hidden_BSD = self.hidden_norm(self.fc(features_BSE))
        _, (keys_LBRSC, values_LBRSC) = self.layers.context(hidden_BSD, self._angles(positions_BS))
        return keys_LBRSC, values_LBRSC

    def __call__(
        self,
        embeddings_BNKD: jax.Array,
        positions_BNK: jax.Array,
        keys_LBRTC: jax.Array,
        values_LBRTC: jax.Array,
        mask_BNT: jax.Array,
        *,
        context_positions_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states of the N blocks of each row, for the target's head.

        Args:
          embeddings_BNKD: the target's embeddings of [anchor, MASK x (K - 1)].
          positions_BNK: absolute positions, anchor + k.
          keys_LBRTC: what `context` returned, or a cache of it.
          values_LBRTC: likewise.
          mask_BNT: True where block n may see context position t: those before its anchor, in its
            own document. Sliding layers see only what is also in each slot's window.
          context_positions_BT: the absolute position of each context entry; None: entry t holds
            position t, as in a cache. Packed rows need them for sliding layers.

        Returns:
          [B, N, K, D] after the final norm. Slot 0 means nothing.
        """
        reach_L2, places = None, None
        if self.config.reach:
            reach_L2 = jnp.asarray(self.config.reach, jnp.int32)
            if context_positions_BT is None:
                context_positions_BT = jnp.arange(keys_LBRTC.shape[3])[None]
            places = Places(positions_BNK, context_positions_BT)
        x_BNKD, _ = self.layers(
            embeddings_BNKD.astype(self.config.dtype),
            (keys_LBRTC, values_LBRTC),
            reach_L2,
            self._angles(positions_BNK),
            mask_BNT,
            places,
        )
        return self.final_norm(x_BNKD)

    def initialise(self, features_BSE: jax.Array) -> jax.Array:
        """Touches every parameter: `drafter.init(key, features, method="initialise")`."""
        batch, length, _ = features_BSE.shape
        positions_BS = jnp.broadcast_to(jnp.arange(length), (batch, length))
        keys, values = self.context(features_BSE, positions_BS)
        return self(
            jnp.zeros((batch, 1, length, self.width)),
            positions_BS[:, None],
            keys,
            values,
            jnp.ones((batch, 1, length), bool),
        )
