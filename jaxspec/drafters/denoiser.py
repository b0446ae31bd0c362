"""A masked-diffusion language model as drafter (SpecDiff, arXiv 2408.05636).

It reads [prefix, anchor, G masks] and fills the masks in several passes. There are two ways of
holding the prefix:

- `DenoiserProposer`, bidirectional: prefix tokens see the masks too, so every pass reads all of
  them again. This is how released MDLMs were trained, and what SpecDiff does.
- `CachedDenoiserProposer`, causal: a prefix token sees only what is before it, so its keys and
  values are stored once and a pass reads the K tokens of the block (block diffusion, arXiv
  2503.09573).

What the rejection rule is told about tokens revealed in earlier passes is a named, exact choice:
see `jaxspec.drafters.denoising`. The drafter's vocabulary is the target's, apart from its mask.

Dimension key: B batch rows, S tokens of the prompt or of a pass, T slots of the prefix, K block
slots, G = K - 1 drafted slots, V the target's vocabulary.

>>> model = make_denoiser(DiTConfig(vocab_size=2049))
>>> proposer = DenoiserProposer(model, vocabulary=2048, block_size=9, num_passes=2)
>>> proposer.marginal_passes
1
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.config import DiTConfig, MaskedTransformerConfig
from jaxspec.drafters.denoising import Order, Rule, fill, make_plan
from jaxspec.drafters.kind import (
    DraftedTarget,
    DrafterKind,
    DraftSettings,
    History,
    never_drafted,
    recorded_group,
    recorded_loss,
)
from jaxspec.drafters.protocol import Draft, no_draft
from jaxspec.models.cache import KVCache
from jaxspec.models.registry import AnyDenoiser, make_denoiser
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.noise import LogLinearSchedule
from jaxspec.ops.sampling import GREEDY, Sampling
from jaxspec.ops.suppression import fit_vocabulary, suppress


@dataclasses.dataclass(frozen=True)
class _Denoising(abc.ABC):
    """What both proposers share: several passes over the masks of a block.

    Raises:
      ValueError: a block longer than the model, sampled drafts that are to be judged as a point
        mass, or no passes.
    """

    model: AnyDenoiser
    vocabulary: int
    """V, the rows of the target's embedding, over which drafts are distributions."""
    block_size: int
    """K: the anchor and what is drafted after it."""
    sampling: Sampling = GREEDY
    num_passes: int = 1
    """Denoising passes; a pass that reveals nothing in any row is skipped."""
    order: Order = "ancestral"
    """Which slots each pass reveals (`jaxspec.drafters.denoising`)."""
    rule: Rule = "in_order"
    """What the verifier is told about each slot."""
    suppressed_ids: tuple[int, ...] = ()
    """Never drafted."""
    capture: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        config = self.model.config
        if self.block_size > config.max_position_embeddings:
            raise ValueError(
                f"A block of {self.block_size} slots is longer than the drafter's "
                f"{config.max_position_embeddings} positions: lower evaluation.block_size."
            )
        if self.rule == "point_mass" and not self.sampling.greedy:
            raise ValueError(
                "A draft that is judged as a point mass consists of the likeliest tokens: use a "
                f"draft temperature of 0, not {self.sampling.temperature}."
            )
        if self.num_passes < 1:
            raise ValueError(f"A draft takes at least 1 denoising pass: got {self.num_passes}.")

    other_passes = 0
    """Passes of a round that do not fill the block."""

    @property
    def marginal_passes(self) -> int:
        """One pass fills the block."""
        return 1 + self.other_passes

    @property
    def unroll_layers(self) -> bool:
        """As its configuration says."""
        return self.model.config.unroll_layers

    def propose(
        self, params: Any, state: Any, anchor_B: jax.Array, keys_B: jax.Array
    ) -> tuple[Draft, Any]:
        """Fills the block, at temperature 0 with the likeliest tokens."""
        if self.block_size == 1:
            draft = no_draft(
                anchor_B.shape[0],
                self.vocabulary,
                sampling=self.sampling,
                passes=self.other_passes,
            )
            return draft, state
        mask_id = self.model.config.mask_id
        slots_BG = jnp.full((anchor_B.shape[0], self.block_size - 1), mask_id, jnp.int32)
        plan = make_plan(self.order, keys_B, slots_BG == mask_id, num_passes=self.num_passes)
        filled = fill(
            self._reader(params, state, anchor_B),
            slots_BG,
            plan,
            keys_B,
            mask_id=mask_id,
            sampling=self.sampling,
            rule="point_mass" if self.sampling.greedy else self.rule,
        )
        passes_B = filled.passes_B + self.other_passes
        return Draft(filled.tokens_BG, filled.probs_BGV, passes_B), state

    def marginal_logits(self, params: Any, state: Any, anchor_B: jax.Array) -> jax.Array:
        """Logits of all slots, [B, G, V], from one pass over a block of masks."""
        shape = (anchor_B.shape[0], self.block_size - 1)
        slots_BG = jnp.full(shape, self.model.config.mask_id, jnp.int32)
        return self._reader(params, state, anchor_B)(slots_BG, jnp.ones(shape[0]))

    @abc.abstractmethod
    def _reader(
        self, params: Any, state: Any, anchor_B: jax.Array
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """(slots [B, G], times [B]) -> logits [B, G, V] over the target's vocabulary."""

    def _logits(self, own: jax.Array) -> jax.Array:
        """The drafter's logits as [B, G, V] over the target's vocabulary, which has no mask."""
        logits_BGV = suppress(own, (self.model.config.mask_id,))
        return suppress(fit_vocabulary(logits_BGV, self.vocabulary), self.suppressed_ids)

    def _sigma(self, times_B: jax.Array) -> jax.Array:
        return LogLinearSchedule().sigma(times_B)


@array_dataclass
class Prefix:
    """Everything before the anchor, as tokens."""

    tokens_BT: jax.Array
    """int32; beyond `lengths_B` is what rejected drafts left behind."""
    lengths_B: jax.Array


@dataclasses.dataclass(frozen=True)
class DenoiserProposer(_Denoising):
    """Drafts with a bidirectional denoiser, whose parameters are under "drafter"."""

    def begin(
        self,
        params: Any,
        tokens_BS: jax.Array,
        features_BSE: jax.Array | None,
        lengths_B: jax.Array,
        *,
        capacity: int,
    ) -> Prefix:
        """The prompt; no pass is needed."""
        del params, features_BSE
        tokens_BT = jnp.pad(tokens_BS, ((0, 0), (0, capacity - tokens_BS.shape[1])))
        return Prefix(tokens_BT.astype(jnp.int32), lengths_B.astype(jnp.int32))

    def commit(
        self,
        params: Any,
        state: Prefix,
        tokens_BK: jax.Array,
        features_BKE: jax.Array | None,
        count_B: jax.Array,
    ) -> Prefix:
        """The prefix with the emitted tokens appended."""
        del params, features_BKE
        tokens_BT = _put(state.tokens_BT, tokens_BK.astype(jnp.int32), state.lengths_B)
        return Prefix(tokens_BT, state.lengths_B + count_B)

    def _reader(
        self, params: Any, state: Prefix, anchor_B: jax.Array
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """Reads anchor, block, and as much of the newest prefix as the model has positions for."""
        block = self.block_size
        width = min(state.tokens_BT.shape[1], self.model.config.max_position_embeddings)
        # Whatever comes after the block is masked out.
        start_B = jnp.maximum(state.lengths_B + block - width, 0)
        prefix_B = state.lengths_B - start_B
        seen_BS = jnp.arange(width) < (prefix_B + block)[:, None]
        newest_BS = jax.vmap(lambda row_T, start: jax.lax.dynamic_slice(row_T, (start,), (width,)))(
            state.tokens_BT, start_B
        )
        rows_BG = prefix_B[:, None] + jnp.arange(1, block)

        def read(slots_BG: jax.Array, times_B: jax.Array) -> jax.Array:
            block_BK = jnp.concatenate([anchor_B[:, None], slots_BG], axis=1)
            output = self.model.apply(
                {"params": params["drafter"]},
                # INVALID must not index the embedding; verification fails such a row.
                jnp.maximum(_put(newest_BS, block_BK, prefix_B), 0),
                mask_BSS=seen_BS[:, None],
                sigma=self._sigma(times_B),
                rows_BI=rows_BG,
            )
            return self._logits(output.logits_BSV)

        return read


@dataclasses.dataclass(frozen=True)
class CachedDenoiserProposer(_Denoising):
    """Drafts with a denoiser whose clean tokens see only what is before them.

    The state is a `KVCache` of everything before the anchor. A round takes one more pass than
    filling does: over the emitted tokens. Where nothing is drafted, it may read those of several
    rounds at once.
    """

    commits_late = True
    other_passes = 1

    def begin(
        self,
        params: Any,
        tokens_BS: jax.Array,
        features_BSE: jax.Array | None,
        lengths_B: jax.Array,
        *,
        capacity: int,
    ) -> KVCache:
        """One causal pass over the prompt."""
        del features_BSE
        output = self.model.apply(
            {"params": params["drafter"]}, tokens_BS, mask_BSS=_causal(tokens_BS.shape[1])
        )
        return KVCache.prefilled(
            output.keys_LBRSC, output.values_LBRSC, capacity=capacity, lengths_B=lengths_B
        )

    def commit(
        self,
        params: Any,
        state: KVCache,
        tokens_BK: jax.Array,
        features_BKE: jax.Array | None,
        count_B: jax.Array,
    ) -> KVCache:
        """One causal pass over the block, of which the emitted tokens count."""
        del features_BKE
        output = self.model.apply(
            {"params": params["drafter"]},
            jnp.maximum(tokens_BK, 0),
            mask_BSS=_causal(tokens_BK.shape[1]),
            cache=state,
        )
        failed_B = jnp.isnan(output.hidden_BSD).any(axis=(1, 2))
        written = state.write_after(output.keys_LBRSC, output.values_LBRSC, failed_B=failed_B)
        return written.advance(count_B)

    def _reader(
        self, params: Any, state: KVCache, anchor_B: jax.Array
    ) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """Reads anchor and block against the cache; the anchor does not see the block."""
        batch, block = anchor_B.shape[0], self.block_size
        order_K = jnp.arange(block)
        mask_BKK = ((order_K[:, None] > 0) | (order_K == 0))[None]
        rows_BG = jnp.broadcast_to(order_K[1:], (batch, block - 1))

        def read(slots_BG: jax.Array, times_B: jax.Array) -> jax.Array:
            block_BK = jnp.concatenate([anchor_B[:, None], slots_BG], axis=1)
            sigma_BK = jnp.where(order_K > 0, self._sigma(times_B)[:, None], 0.0)
            output = self.model.apply(
                {"params": params["drafter"]},
                jnp.maximum(block_BK, 0),
                mask_BSS=mask_BKK,
                sigma=sigma_BK,
                cache=state,
                rows_BI=rows_BG,
            )
            return self._logits(output.logits_BSV)

        return read


def _put(row_BT: jax.Array, new_BK: jax.Array, at_B: jax.Array) -> jax.Array:
    """Rows with `new_BK` written from `at_B` on; the caller ensures that there is room."""
    put = jax.vmap(lambda row_T, new_K, at: jax.lax.dynamic_update_slice(row_T, new_K, (at,)))
    return put(row_BT, new_BK.astype(row_BT.dtype), at_B)


def _causal(length: int) -> jax.Array:
    order = jnp.arange(length)
    return (order[:, None] >= order)[None]


def _network(
    config: DiTConfig | MaskedTransformerConfig, target: DraftedTarget, where: str
) -> AnyDenoiser:
    """Its embedding may differ from the target's in padding rows and have a row for its mask.

    What counts is that the tokenizers' ids mean the same tokens.
    """
    if config.vocab_size < target.num_tokens:
        raise ValueError(
            f"The drafter in {where} has an embedding of {config.vocab_size} rows, but the "
            f"tokenizer of {target.name} has {target.num_tokens} ids: it cannot read all of the "
            "target's tokens."
        )
    return make_denoiser(config)


def _proposer(
    network: AnyDenoiser, target: DraftedTarget, settings: DraftSettings
) -> DenoiserProposer | CachedDenoiserProposer:
    context = network.config.context
    if context == "block_causal":
        raise ValueError(
            "The drafter is block-causal: such a diffusion language model is decoded by itself "
            "(--target.path) and does not draft."
        )
    mask_id = network.config.mask_id
    if mask_id < target.model.config.vocab_size and mask_id not in target.reserved_ids:
        raise ValueError(
            f"The drafter's mask is id {mask_id}, which is text for the target: expected one of "
            "its special or unused ids, or an id beyond its vocabulary."
        )
    kind = CachedDenoiserProposer if context == "causal" else DenoiserProposer
    return kind(
        network,
        target.model.config.vocab_size,
        settings.block_size,
        sampling=settings.sampling,
        num_passes=settings.denoising.num_passes,
        order=settings.denoising.order,
        rule=settings.denoising.rule,
        suppressed_ids=never_drafted(target, settings, mask_id=mask_id),
    )


def _history(config: DiTConfig | MaskedTransformerConfig, run: Mapping[str, Any]) -> History:
    """A run of another objective than "draft" has no loss and no block that tables could show."""
    del config
    settings = recorded_group(run, "denoiser")
    goal = settings.get("objective")
    if goal != "draft":
        return History(loss=goal)
    return History(loss=recorded_loss(run), block_size=settings.get("block_size", 0))


KIND = DrafterKind(
    proposer=_proposer,
    block_size=9,
    denoises=True,
    configs=(DiTConfig, MaskedTransformerConfig),
    network=_network,
    # The released MDLM has no tokenizer in its folder: it is that of GPT-2.
    tokenizer="counted",
    history=_history,
)
"""Its public name is "mdlm", after the first of these models to draft."""
