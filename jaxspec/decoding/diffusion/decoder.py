"""Decoding with a diffusion language model: blocks from left to right, masks by confidence.

The response starts as masks and is filled block by block (semi-autoregressive; LLaDA, Nie et al.
2025, arXiv 2502.09992): passes over the block (`block_model`) alternate with steps that reveal its
most confident masks (`unmasking`) until none is left. Denoising a block is one `lax.while_loop`,
the loop over blocks is another around it, and all of it is one compiled program. Rows of a batch
begin a block together, each its own one; a row that has filled its block waits, and no pass is
counted for it.

The blocks of a block-causal model start at multiples of `block_length` from the beginning of the
prompt, as in its training, so the first one may begin with the prompt's last tokens. Otherwise
blocks are counted from the response's first token.

Dimension key: B batch rows, S tokens of a prompt (padded), T columns of the canvas, N blocks of a
row, P positions of a block, V vocabulary.

>>> rules = DiffusionRules(  # doctest: +SKIP
...     mask_id=126336, response_length=256, block_length=32,
...     unmasking=Threshold(0.9), caching="dual", stop_ids=(126081, 126348))
>>> decoder = BlockDiffusion(model, rules)  # doctest: +SKIP
>>> state = decoder.run(params, decoder.start(prompts))  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxspec.decoding.diffusion.block_model import BlockContext, BlockModel, Caching, check_caching
from jaxspec.decoding.diffusion.unmasking import Scheduled, Unmasker, Unmasking
from jaxspec.decoding.layout import cut_layers, stack_layers
from jaxspec.decoding.placement import placed
from jaxspec.decoding.state import Prompts
from jaxspec.models.cache import KVCache
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.precision import exact_program
from jaxspec.ops.sampling import GREEDY, Sampling

NOT_REVEALED = -1
"""In `DiffusionState.revealed_BT`: positions of the prompt, and masks."""


@dataclasses.dataclass(frozen=True)
class DiffusionRules:
    """What a response is and how it is filled.

    Raises:
      ValueError: a length that is not a multiple of the block, more steps than a block has masks,
        or settings outside their range.
    """

    mask_id: int
    response_length: int = 128
    """Tokens of the response, stop token or not."""
    block_length: int = 32
    unmasking: Unmasking = dataclasses.field(default_factory=lambda: Scheduled(32))
    """How many masks a step reveals."""
    caching: Caching = "none"
    """Which keys and values are kept within a block; see `block_model`."""
    block_causal: bool = False
    """Whether the model's tokens see only their own block and those before it."""
    sampling: Sampling = GREEDY
    guidance: float = 0.0
    """Strength of classifier-free guidance; 0: none."""
    stop_ids: tuple[int, ...] = ()
    """A block that holds one of these is the last. (): all blocks are filled."""
    suppressed_ids: tuple[int, ...] = ()
    """Never revealed; the mask need not be among them."""
    last_ids: tuple[int, ...] = ()
    """Revealed only when a block has no other candidate left (`Unmasker.last_ids`)."""

    def __post_init__(self) -> None:
        check_caching(self.caching)
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1: got {self.block_length}.")
        if self.response_length < 1 or self.response_length % self.block_length:
            raise ValueError(
                "response_length must be a positive multiple of block_length "
                f"({self.block_length}): got {self.response_length}."
            )
        steps = getattr(self.unmasking, "steps", 1)
        if steps > self.block_length:
            raise ValueError(
                f"A block of {self.block_length} masks cannot be filled in {steps} steps: each "
                "step reveals at least one. Lower the steps (they are counted per block)."
            )
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance must be 0 (off) or positive: got {self.guidance}.")
        both = sorted(set(self.stop_ids) & {*self.suppressed_ids, self.mask_id})
        if both:
            raise ValueError(f"Stop tokens cannot be suppressed or be the mask: got {both}.")

    @property
    def num_blocks(self) -> int:
        """The most blocks that a response touches: on a grid of its own, one more."""
        return self.response_length // self.block_length + self.block_causal


@array_dataclass
class DiffusionState:
    """What the loops carry. Every array keeps its shape."""

    tokens_BT: jax.Array
    """The canvas: prompt, response with its masks, padding."""
    revealed_BT: jax.Array
    """int32, the step of its block at which a position was revealed, or `NOT_REVEALED`."""
    prompt_B: jax.Array
    """int32, length of each prompt: the response's first column."""
    active_B: jax.Array
    """Rows that are not finished."""
    failed_B: jax.Array
    """Rows that met NaN (or another distribution that nothing can be chosen from)."""
    keys_B: jax.Array
    """Each row's random key (`Prompts.keys_B`)."""
    block_B: jax.Array
    """int32, blocks of the row that are done."""
    step_B: jax.Array
    """int32, steps that the row has taken in this block."""
    initial_B: jax.Array
    """int32, masks that the row's block began with."""
    passes_BN: jax.Array
    """int32, forward passes of the model that the row took part in, per block: its NFE. A guided
    pass, which reads the row with and without its prompt, counts as one."""
    steps_BN: jax.Array
    """int32, steps that revealed something, per block: one per pass, unless drafted states save
    passes (`spiffy`)."""
    cache: KVCache | None = None
    """A block-causal model's, inside `run` or from `prefill`; other models make a cache for each
    block."""


@dataclasses.dataclass(frozen=True)
class BlockDiffusion:
    """The decoder: a model and the rules. `start` lays out the canvas, `run` is the whole loop.

    Raises:
      ValueError: ids outside the vocabulary, a response longer than the model's positions, or a
        model that has to be told the noise.
    """

    model: nn.Module
    """A `jaxspec.models.denoiser.Denoiser`."""
    rules: DiffusionRules

    def __post_init__(self) -> None:
        config, rules = self.model.config, self.rules
        named = {
            "mask_id": (rules.mask_id,),
            "stop_ids": rules.stop_ids,
            "suppressed_ids": rules.suppressed_ids,
            "last_ids": rules.last_ids,
        }
        for name, ids in named.items():
            wrong = [i for i in ids if not 0 <= i < config.vocab_size]
            if wrong:
                raise ValueError(
                    f"{name} must lie in the model's vocabulary, 0..{config.vocab_size - 1}: got "
                    f"{wrong}."
                )
        if getattr(config, "time_conditioning", False):
            raise ValueError(
                "This model has to be told how much of a text is masked (time_conditioning), which "
                "decoding by blocks does not do: expected a model without it, such as a LLaDA."
            )
        if rules.response_length >= config.max_position_embeddings:
            raise ValueError(
                f"A response of {rules.response_length} tokens leaves no room for a prompt in the "
                f"model's {config.max_position_embeddings} positions."
            )

    @property
    def block_model(self) -> BlockModel:
        """The model in the form that the loop calls."""
        rules = self.rules
        return BlockModel(
            self.model,
            block_length=rules.block_length,
            mask_id=rules.mask_id,
            caching=rules.caching,
            block_causal=rules.block_causal,
            guidance=rules.guidance,
        )

    @property
    def unmasker(self) -> Unmasker:
        """The unmasking rule in the form that the loop calls."""
        rules = self.rules
        return Unmasker(
            rules.unmasking, rules.mask_id, rules.sampling, rules.suppressed_ids, rules.last_ids
        )

    @exact_program()
    def start(self, prompts: Prompts) -> DiffusionState:
        """The canvas, with a response of masks; no pass is made."""
        rules = self.rules
        batch, padded = prompts.tokens_BS.shape
        # A block on a grid of its own may end after the response.
        slack = rules.block_length if rules.block_causal else 0
        columns_T = jnp.arange(padded + rules.response_length + slack)
        prompt_B1 = prompts.lengths_B[:, None]
        tokens_BT = jnp.pad(prompts.tokens_BS, ((0, 0), (0, columns_T.size - padded)))
        tokens_BT = jnp.where(columns_T < prompt_B1, tokens_BT, 0)
        of_response_BT = _of_response(columns_T[None], prompts.lengths_B, rules)
        zeros_B = jnp.zeros(batch, jnp.int32)
        state = DiffusionState(
            tokens_BT=jnp.where(of_response_BT, rules.mask_id, tokens_BT).astype(jnp.int32),
            revealed_BT=jnp.full(tokens_BT.shape, NOT_REVEALED, jnp.int32),
            prompt_B=prompts.lengths_B,
            active_B=prompts.active_B,
            failed_B=jnp.zeros(batch, bool),
            keys_B=prompts.keys_B,
            block_B=zeros_B,
            step_B=zeros_B,
            initial_B=zeros_B,
            passes_BN=jnp.zeros((batch, rules.num_blocks), jnp.int32),
            steps_BN=jnp.zeros((batch, rules.num_blocks), jnp.int32),
        )
        return placed(state)

    def prepare(self, params: Any) -> Any:
        """Parameters in the layout that the loop wants, for those who call `run` more than once."""
        return cut_layers(params, unrolled=self.model.config.unroll_layers, now=True)

    @property
    def has_prefill(self) -> bool:
        """Whether a cache goes along from block to block, so that `prefill` has something to do."""
        return self.rules.block_causal and self.rules.caching != "none"

    @exact_program()
    def prefill(self, params: Any, state: DiffusionState) -> DiffusionState:
        """The state with the cache of its prompts, which `run` then takes on and gives back."""
        # Not a denoising pass, so it is not counted, just as a language model's prefill is not.
        cache = self.block_model.prefill(stack_layers(params), self.context(state))
        return placed(dataclasses.replace(state, cache=cache))

    @exact_program(donate_argnames=("state",))
    def run(
        self, params: Any, state: DiffusionState, *, leave_on_end: jax.Array | bool = False
    ) -> DiffusionState:
        """Fills all blocks, or leaves with the block in which a row ends; the state is donated."""
        pieces = cut_layers(params, unrolled=self.model.config.unroll_layers)
        keeps_cache = state.cache is not None
        if self.has_prefill and not keeps_cache:
            state = self.prefill(pieces, state)
        enough = jnp.where(leave_on_end, state.active_B.sum(), 1)
        for reach, until in self.stages():

            def unfinished(state: DiffusionState, until: int = until) -> jax.Array:
                # Rows may be in different blocks: the earliest one decides how far a pass reads.
                active_B = state.active_B
                earliest = jnp.where(active_B, state.block_B, self.rules.num_blocks).min()
                return (earliest < until) & (active_B.sum() >= enough)

            def one_block(state: DiffusionState, reach: int = reach) -> DiffusionState:
                return placed(self.fill_block(stack_layers(pieces), state, reach=reach))

            state = jax.lax.while_loop(unfinished, one_block, placed(state))
        return state if keeps_cache else dataclasses.replace(state, cache=None)

    def stages(self) -> Iterator[tuple[int, int]]:
        """(reach, until): how far passes read, in blocks, for the blocks before number `until`.

        Shapes are static, but what follows a block gets shorter with every block. A program for
        each length would be too many, so with a prefix cache the loop over blocks is split whenever
        the rest has halved: a pass never reads more than twice the masks that are left.
        """
        rules, total = self.rules, self.rules.num_blocks
        if rules.caching != "prefix" or rules.block_causal:
            yield 1, total
            return
        reach = total
        while reach:
            yield reach, total - reach // 2
            reach //= 2

    def fill_block(self, params: Any, state: DiffusionState, *, reach: int) -> DiffusionState:
        """Denoises the next block of every active row."""
        state, block_model = self.begin_block(state), self.block_model
        context = self.context(state)
        if self.rules.caching != "none":
            logits_BPV, context, state = self.open_block(params, state)
            state = self.reveal(state, logits_BPV)

        def one_step(state: DiffusionState) -> DiffusionState:
            logits_BPV = block_model.block_logits(
                params, self.block_tokens(state), context, reach=reach
            )
            return self.reveal(self.count_pass(state), logits_BPV)

        state = jax.lax.while_loop(lambda state: self.masked(state).any(), one_step, state)
        return self.end_block(state)

    def open_block(
        self, params: Any, state: DiffusionState
    ) -> tuple[jax.Array, BlockContext, DiffusionState]:
        """The block's first pass, which is counted: its logits, and what later passes read."""
        logits_BPV, context = self.block_model.open(params, self.context(state))
        if state.cache is not None:
            state = dataclasses.replace(state, cache=context.cache)
        return logits_BPV, context, self.count_pass(state)

    def begin_block(self, state: DiffusionState) -> DiffusionState:
        """Counts the block's masks."""
        return dataclasses.replace(
            state,
            step_B=jnp.zeros_like(state.step_B),
            initial_B=self.masked(state).sum(axis=1, dtype=jnp.int32),
        )

    def context(self, state: DiffusionState) -> BlockContext:
        """What the block's passes depend on, as it is before the first one."""
        return BlockContext(
            state.tokens_BT,
            state.prompt_B,
            state.prompt_B + self.rules.response_length,
            self.columns(state)[:, 0],
            state.cache,
        )

    def columns(self, state: DiffusionState) -> jax.Array:
        """The block's columns, which are its absolute positions: [B, P]."""
        length = self.rules.block_length
        first_B = state.prompt_B
        if self.rules.block_causal:
            first_B = first_B // length * length
        return (first_B + state.block_B * length)[:, None] + jnp.arange(length)

    def block_tokens(self, state: DiffusionState) -> jax.Array:
        """The block's tokens, masks included: [B, P]."""
        return jnp.take_along_axis(state.tokens_BT, self.columns(state), axis=1, mode="clip")

    def masked(self, state: DiffusionState) -> jax.Array:
        """The block's positions that are still to be revealed, in active rows: bool [B, P]."""
        columns_BP = self.columns(state)
        masked_BP = self.block_tokens(state) == self.rules.mask_id
        of_response_BP = _of_response(columns_BP, state.prompt_B, self.rules)
        return masked_BP & of_response_BP & state.active_B[:, None]

    def count_pass(self, state: DiffusionState) -> DiffusionState:
        """Counts a pass for the rows that need it."""
        needed_B = self.masked(state).any(axis=1)
        return dataclasses.replace(state, passes_BN=_add(state.passes_BN, state.block_B, needed_B))

    def reveal(
        self, state: DiffusionState, logits_BPV: jax.Array, *, rows_B: jax.Array | None = None
    ) -> DiffusionState:
        """One step of the block, from the logits of its present state.

        Args:
          state: before the step.
          logits_BPV: of the model.
          rows_B: rows that take the step; None: all.
        """
        masked_BP, columns_BP = self.masked(state), self.columns(state)
        if rows_B is not None:
            masked_BP = masked_BP & rows_B[:, None]
        unmasked = self.unmasker.unmask(
            logits_BPV,
            self.block_tokens(state),
            masked_BP=masked_BP,
            positions_BP=columns_BP,
            step_B=state.step_B,
            initial_B=state.initial_B,
            keys_B=state.keys_B,
        )
        rows_B1 = jnp.arange(columns_BP.shape[0])[:, None]
        # Elsewhere nothing is written: a row's block may reach past the end of the canvas.
        where_BP = jnp.where(unmasked.revealed_BP, columns_BP, state.tokens_BT.shape[1])
        steps_BP = jnp.broadcast_to(state.step_B[:, None], where_BP.shape)
        took_B = masked_BP.any(axis=1) & ~unmasked.failed_B
        return dataclasses.replace(
            state,
            tokens_BT=state.tokens_BT.at[rows_B1, where_BP].set(unmasked.tokens_BP, mode="drop"),
            revealed_BT=state.revealed_BT.at[rows_B1, where_BP].set(steps_BP, mode="drop"),
            active_B=state.active_B & ~unmasked.failed_B,
            failed_B=state.failed_B | unmasked.failed_B,
            step_B=state.step_B + took_B,
            steps_BN=_add(state.steps_BN, state.block_B, took_B),
        )

    def end_block(self, state: DiffusionState) -> DiffusionState:
        """Moves on to the next block, except in rows that end with this one."""
        active_B = state.active_B & self._anything_masked(state)
        if self.rules.stop_ids:
            stops_BP = jnp.isin(self.block_tokens(state), jnp.asarray(self.rules.stop_ids))
            stops_BP &= _of_response(self.columns(state), state.prompt_B, self.rules)
            active_B = active_B & ~stops_BP.any(axis=1)
        return dataclasses.replace(state, active_B=active_B, block_B=state.block_B + state.active_B)

    def _anything_masked(self, state: DiffusionState) -> jax.Array:
        """Whether a row has masks left, [B]."""
        columns_1T = jnp.arange(state.tokens_BT.shape[1])[None]
        masked_BT = state.tokens_BT == self.rules.mask_id
        masked_BT &= _of_response(columns_1T, state.prompt_B, self.rules)
        return masked_BT.any(axis=1)


def _add(counts_BN: jax.Array, block_B: jax.Array, more_B: jax.Array) -> jax.Array:
    """Counts of each row's block, increased."""
    return counts_BN.at[jnp.arange(block_B.shape[0]), block_B].add(more_B)


def _of_response(columns_BT: jax.Array, prompt_B: jax.Array, rules: DiffusionRules) -> jax.Array:
    """Columns that are in the response."""
    offset_BT = columns_BT - prompt_B[:, None]
    return (offset_BT >= 0) & (offset_BT < rules.response_length)
