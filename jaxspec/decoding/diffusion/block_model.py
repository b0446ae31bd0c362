"""Logits of a diffusion model's current block: one pass, against one of Fast-dLLM's caches.

A row's canvas is [prompt ; response ; padding], one column per absolute position, so the keys and
values of column t are in slot t of a cache. `BlockModel.open` is a block's first pass, over the
whole canvas. What later passes read depends on the cache (Fast-dLLM, Wu et al. 2025, arXiv
2505.22618):

- "none": the whole canvas again;
- "prefix": the block and everything after it; the keys and values of what is before it are those of
  the first pass;
- "dual": only the block; all other keys and values are those of the first pass.

A block-causal model (SDAR, BD3LM) does not see what comes after the block. Its context does not
depend on the block, so "prefix" and "dual" are the same for it and exact. It keeps one cache from
block to block: after `prefill`, a block's first pass reads the block and the one before it.

A pass takes several states of the block at once, which speculation uses: [B, Y, P] tokens. The
first is the real one. In "mask" layout the others are appended to the same sequence: each sees
itself and everything except the block that it replaces, and nothing sees it. In "batch" layout
every state is a row of the batch. With a cached context (dual, or block-causal) both give the
logits that a pass over each state alone would give. In "mask" layout without a cache, or with the
prefix cache, the surroundings of a draft have seen the real block instead.

Classifier-free guidance (LLaDA, arXiv 2502.09992, appendix): each pass also reads the canvas with
its prompt masked, and its logits are ``u + (1 + guidance) (c - u)``.

Dimension key: B batch rows, Y states of a block that are read (the present one first), X nodes
(the drafted ones), P positions of a block, T columns of the canvas, S tokens of a pass,
I rows asked for, V vocabulary.

>>> blocks = BlockModel(model, block_length=32, mask_id=126336, caching="dual")  # doctest: +SKIP
>>> logits_BPV, context = blocks.open(params, context)  # doctest: +SKIP
>>> logits_BPV = blocks.block_logits(params, block_BP, context)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.models.cache import KVCache
from jaxspec.ops.array_dataclass import array_dataclass

Caching = Literal["none", "prefix", "dual"]
Layout = Literal["mask", "batch"]


@array_dataclass
class BlockContext:
    """What the logits of a block depend on, apart from the block."""

    tokens_BT: jax.Array
    """The canvas. The content of the block's columns does not matter."""
    prompt_B: jax.Array
    """Length of the prompt: the columns that guidance masks."""
    end_B: jax.Array
    """Length of prompt and response; later columns are padding, which nothing sees."""
    start_B: jax.Array
    """The block's first column."""
    cache: KVCache | None = None
    """None before the block's first pass and with caching "none". With guidance it has 2 B rows."""


def check_caching(caching: str) -> None:
    """Raises ValueError for an unknown kind of cache."""
    if caching not in get_args(Caching):
        raise ValueError(f"caching must be one of {', '.join(get_args(Caching))}: got {caching!r}.")


@dataclasses.dataclass(frozen=True)
class BlockModel:
    """A `jaxspec.models.denoiser.Denoiser`, asked about one block at a time.

    Raises:
      ValueError: an unknown kind of cache.
    """

    model: nn.Module
    block_length: int
    mask_id: int
    caching: Caching = "none"
    block_causal: bool = False
    """Whether a token sees only its own block and those before it."""
    guidance: float = 0.0
    """Strength of classifier-free guidance. 0: none, and half the work."""

    def __post_init__(self) -> None:
        check_caching(self.caching)

    def open(self, params: Any, context: BlockContext) -> tuple[jax.Array, BlockContext]:
        """The block's first pass: over the whole canvas, or after what a cache already holds.

        Args:
          params: the model's parameters.
          context: without a cache; for a block-causal model, with the cache of the previous block
            (of `prefill`, for the first one).

        Returns:
          Its logits [B, P, V], and the context with the cache for the passes that follow.
        """
        if context.cache is not None:
            return self._go_on(params, context, context.cache)
        columns_BT = _canvas_columns(context)
        rows_BP = _block_columns(context, self.block_length)
        logits_BPV, keys_LBRTC, values_LBRTC = self._pass(
            params,
            context.tokens_BT,
            columns_BT,
            self._window_mask(columns_BT, context),
            dataclasses.replace(context, cache=None),
            rows_BP,
        )
        if self.caching == "none":
            return logits_BPV, context
        start_B = _twice(context.start_B) if self.guidance else context.start_B
        cache = KVCache(keys_LBRTC, values_LBRTC, start_B)
        return logits_BPV, dataclasses.replace(context, cache=cache)

    def prefill(self, params: Any, context: BlockContext) -> KVCache:
        """Keys and values of everything before the first block, for a block-causal model."""
        _, opened = self.open(params, dataclasses.replace(context, cache=None))
        assert opened.cache is not None, "caching is not 'none' where there is a prefill"
        return opened.cache

    def _go_on(
        self, params: Any, context: BlockContext, cache: KVCache
    ) -> tuple[jax.Array, BlockContext]:
        """A pass over the previous block, which is final by now, and the block."""
        length = self.block_length
        before_B = context.start_B - length
        columns_BS = before_B[:, None] + jnp.arange(2 * length)
        mask_BSS = self._window_mask(columns_BS, context)
        # There is nothing before column 0; what is computed there is seen only by itself.
        nothing_BS = columns_BS < 0
        mask_BSS = mask_BSS & (nothing_BS[:, :, None] | ~nothing_BS[:, None])
        rows_BP = jnp.broadcast_to(length + jnp.arange(length), (before_B.shape[0], length))
        logits_BPV, keys_LBRSC, values_LBRSC = self._pass(
            params,
            _take(context.tokens_BT, columns_BS),
            columns_BS,
            mask_BSS,
            dataclasses.replace(context, start_B=before_B),
            rows_BP,
        )
        # Slots from the block's start on are not read, and those of "nothing" are among them.
        first_B, start_B = jnp.maximum(before_B, 0), context.start_B
        if self.guidance:
            first_B, start_B = _twice(first_B), _twice(start_B)
        cache = dataclasses.replace(cache, lengths_B=first_B).write(
            keys_LBRSC[:, :, :, :length], values_LBRSC[:, :, :, :length]
        )
        cache = dataclasses.replace(cache, lengths_B=start_B)
        return logits_BPV, dataclasses.replace(context, cache=cache)

    def block_logits(
        self, params: Any, block_BP: jax.Array, context: BlockContext, *, reach: int = 1
    ) -> jax.Array:
        """The logits of one state of the block, [B, P, V]; see `state_logits`."""
        return self.state_logits(params, block_BP[:, None], context, reach=reach)[:, 0]

    def state_logits(
        self,
        params: Any,
        states_BYP: jax.Array,
        context: BlockContext,
        *,
        reach: int = 1,
        layout: Layout = "mask",
    ) -> jax.Array:
        """The logits of several states of the block, in one pass.

        Args:
          params: the model's parameters.
          states_BYP: tokens of the block; the first state is the real one.
          context: with the cache that `open` made, unless `caching` is "none".
          reach: at least the number of blocks from this one to the end of the response. Only a
            prefix cache without block-causal attention reads that far.
          layout: see the module.

        Returns:
          float32 [B, Y, P, V].

        Raises:
          ValueError: a cache where `caching` is "none", or none where it is not.
        """
        if (context.cache is None) != (self.caching == "none"):
            raise ValueError(
                f"caching {self.caching!r} needs the context that `open` returns for the block."
            )
        batch, number, length = states_BYP.shape
        if layout == "batch":
            context = _repeated(context, number)
            states_BYP = states_BYP.reshape(batch * number, 1, length)
        tokens_BS, columns_BS, own_mask, rows_BI = self.lay_out(states_BYP, context, reach=reach)
        logits_BIV, _, _ = self._pass(params, tokens_BS, columns_BS, own_mask, context, rows_BI)
        return logits_BIV.reshape(batch, number, length, -1)

    def lay_out(
        self, states_BYP: jax.Array, context: BlockContext, *, reach: int
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Several states of a block as one sequence: its tokens, columns, mask, and rows asked for.

        Returns:
          Tokens and columns [B, S], who sees whom [B, S, S] or [B, 1, S], and where the states lie
          in the sequence [B, Y * P].
        """
        length = states_BYP.shape[-1]
        columns_BS = self._columns(context, reach)
        offset_BS = columns_BS - context.start_B[:, None]
        inside_BS = (offset_BS >= 0) & (offset_BS < length)
        window_BS = jnp.where(
            inside_BS,
            _take(states_BYP[:, 0], offset_BS),
            _take(context.tokens_BT, columns_BS),
        )
        own_mask = self._window_mask(columns_BS, context)
        # A window that starts at the block has it in front; else the window is the whole canvas.
        rows_BP = _block_columns(context, length)
        if self.caching != "none":
            rows_BP = jnp.broadcast_to(jnp.arange(length), rows_BP.shape)
        drafts = states_BYP.shape[1] - 1
        if not drafts:
            return window_BS, columns_BS, own_mask, rows_BP
        rows_BI = columns_BS.shape[1] + jnp.arange(drafts * length)
        rows_BI = jnp.broadcast_to(rows_BI, (rows_BP.shape[0], drafts * length))
        rows_BI = jnp.concatenate([rows_BP, rows_BI], axis=1)
        return *self._append(window_BS, columns_BS, own_mask, states_BYP[:, 1:], context), rows_BI

    def _columns(self, context: BlockContext, reach: int) -> jax.Array:
        """Columns that a pass reads, [B, S]; some may be past the end."""
        if self.caching == "none":
            return _canvas_columns(context)
        reads_on = self.caching == "prefix" and not self.block_causal
        return _block_columns(context, self.block_length * (reach if reads_on else 1))

    def _kept(self, context: BlockContext) -> jax.Array:
        """Columns whose cached keys and values the block's later passes see: bool [B, T]."""
        columns_BT = _canvas_columns(context)
        before_BT = columns_BT < context.start_B[:, None]
        if self.caching == "prefix" or self.block_causal:
            return before_BT
        after_BT = columns_BT >= context.start_B[:, None] + self.block_length
        return before_BT | (after_BT & (columns_BT < context.end_B[:, None]))

    def _window_mask(self, columns_BS: jax.Array, context: BlockContext) -> jax.Array:
        """Who sees whom in a window, [B, S, S] or [B, 1, S]."""
        mask_BSS = (columns_BS < context.end_B[:, None])[:, None]
        if self.block_causal:
            number_BS = (columns_BS - context.start_B[:, None]) // self.block_length
            mask_BSS = mask_BSS & (number_BS[:, :, None] >= number_BS[:, None])
        return mask_BSS

    def _append(
        self,
        window_BS: jax.Array,
        columns_BS: jax.Array,
        own_mask: jax.Array,
        drafts_BAP: jax.Array,
        context: BlockContext,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A window followed by X drafts of its block: tokens, columns and mask of the pass."""
        batch, drafts, length = drafts_BAP.shape
        width, rows = columns_BS.shape[1], drafts * length
        offset_BS = columns_BS - context.start_B[:, None]
        around_BS = (offset_BS < 0) | (offset_BS >= length)
        if self.block_causal:
            around_BS = offset_BS < 0
        around_BS = around_BS & (columns_BS < context.end_B[:, None])
        block_BP = _block_columns(context, length)
        draft_I = jnp.arange(rows) // length
        own_BII = (draft_I[:, None] == draft_I) & jnp.tile(
            block_BP < context.end_B[:, None], (1, drafts)
        )[:, None]
        of_window = jnp.concatenate(
            [
                jnp.broadcast_to(own_mask, (batch, width, width)),
                jnp.zeros((batch, width, rows), bool),
            ],
            axis=2,
        )
        of_drafts = jnp.concatenate(
            [jnp.broadcast_to(around_BS[:, None], (batch, rows, width)), own_BII], axis=2
        )
        return (
            jnp.concatenate([window_BS, drafts_BAP.reshape(batch, rows)], axis=1),
            jnp.concatenate([columns_BS, jnp.tile(block_BP, (1, drafts))], axis=1),
            jnp.concatenate([of_window, of_drafts], axis=1),
        )

    def _pass(
        self,
        params: Any,
        tokens_BS: jax.Array,
        columns_BS: jax.Array,
        mask_BSS: jax.Array,
        context: BlockContext,
        rows_BI: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits at `rows_BI`, and the pass's keys and values."""
        kept_BST = None
        if context.cache is not None:
            kept_B1T = self._kept(context)[:, None]
            kept_BST = jnp.repeat(kept_B1T, tokens_BS.shape[1], axis=1)
        if self.guidance:
            of_prompt_BS = columns_BS < context.prompt_B[:, None]
            without_BS = jnp.where(of_prompt_BS, self.mask_id, tokens_BS)
            tokens_BS = jnp.concatenate([tokens_BS, without_BS])
            columns_BS, mask_BSS, rows_BI = _twice(columns_BS), _twice(mask_BSS), _twice(rows_BI)
            kept_BST = None if kept_BST is None else _twice(kept_BST)
        output = self.model.apply(
            {"params": params},
            tokens_BS,
            positions_BS=columns_BS,
            mask_BSS=mask_BSS,
            cache=context.cache,
            cache_mask_BST=kept_BST,
            rows_BI=rows_BI,
        )
        logits_BIV = output.logits_BSV
        if self.guidance:
            with_BIV, without_BIV = jnp.split(logits_BIV, 2)
            logits_BIV = without_BIV + (1 + self.guidance) * (with_BIV - without_BIV)
        return logits_BIV, output.keys_LBRSC, output.values_LBRSC


def _canvas_columns(context: BlockContext) -> jax.Array:
    """All columns, [B, T]."""
    return jnp.broadcast_to(jnp.arange(context.tokens_BT.shape[1]), context.tokens_BT.shape)


def _block_columns(context: BlockContext, length: int) -> jax.Array:
    """The first `length` columns from the block's start, [B, length]."""
    return context.start_B[:, None] + jnp.arange(length)


def _take(values_BT: jax.Array, index_BS: jax.Array) -> jax.Array:
    """Values of each row; an index outside gives the value at the nearest end."""
    return jnp.take_along_axis(values_BT, index_BS, axis=1, mode="clip")


def _twice(values: jax.Array) -> jax.Array:
    return jnp.concatenate([values, values])


def _repeated(context: BlockContext, number: int) -> BlockContext:
    """The context of each row, `number` times in a row: one for each of its states."""
    cache = context.cache

    def rows(values: jax.Array, axis: int = 0) -> jax.Array:
        return jnp.repeat(values, number, axis=axis)

    # With guidance the rows without a prompt come after all others, before this and after it.
    if cache is not None:
        cache = KVCache(
            rows(cache.keys_LBRTC, 1), rows(cache.values_LBRTC, 1), rows(cache.lengths_B)
        )
    return BlockContext(
        rows(context.tokens_BT),
        rows(context.prompt_B),
        rows(context.end_B),
        rows(context.start_B),
        cache,
    )
