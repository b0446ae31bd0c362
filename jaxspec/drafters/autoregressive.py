"""A small language model as drafter: ordinary speculative decoding.

It drafts token by token, so a block takes one pass per token. It reads only the text.
(Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318.)

Dimension key: B batch rows, S tokens of the prompt or of a pass, K block slots, G = K - 1 drafted
slots, V vocabulary.

>>> small_model = make_model(TransformerConfig(num_layers=1))
>>> AutoregressiveProposer(small_model, block_size=5, sampling=Sampling(1.0)).block_size
5
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.config import GPT2Config, GPTNeoXConfig, LanguageModelConfig, TransformerConfig
from jaxspec.drafters.kind import (
    DraftedTarget,
    DrafterKind,
    DraftSettings,
    History,
    never_drafted,
)
from jaxspec.drafters.protocol import Draft, draw, no_draft
from jaxspec.models.cache import KVCache
from jaxspec.models.registry import LanguageModel, make_model
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.sampling import GREEDY, Sampling
from jaxspec.ops.suppression import fit_vocabulary, suppress


@array_dataclass
class AutoregressiveState:
    """What the drafter has read: everything but the newest committed token."""

    cache: KVCache
    newest_B: jax.Array
    """The last committed token. The next draft reads it together with the anchor, because the
    drafter has never read the last token of a draft that was accepted as a whole."""


@dataclasses.dataclass(frozen=True)
class AutoregressiveProposer:
    """Drafts G tokens in G passes of `model`, whose parameters are under "drafter"."""

    model: LanguageModel
    """It shares the target's tokenizer and uses nothing else of the target."""
    block_size: int
    """K: the anchor and what is drafted after it."""
    sampling: Sampling = GREEDY
    suppressed_ids: tuple[int, ...] = ()
    """Never drafted."""
    target_rows: int = 0
    """V: rows of the target's embedding; 0: as many as the drafter's."""
    capture: tuple[int, ...] = ()

    @property
    def unroll_layers(self) -> bool:
        """As its configuration says."""
        return self.model.config.unroll_layers

    @property
    def vocabulary(self) -> int:
        """V: ids that the target's distributions are over."""
        return self.target_rows or self.model.config.vocab_size

    def begin(
        self,
        params: Any,
        tokens_BS: jax.Array,
        features_BSE: jax.Array | None,
        lengths_B: jax.Array,
        *,
        capacity: int,
    ) -> AutoregressiveState:
        """One pass over the prompt."""
        del features_BSE
        output = self.model.apply({"params": params["drafter"]}, self._known(tokens_BS))
        cache = KVCache.prefilled(
            output.keys_LBRSC, output.values_LBRSC, capacity=capacity, lengths_B=lengths_B - 1
        )
        newest_B1 = jnp.take_along_axis(tokens_BS, lengths_B[:, None] - 1, axis=1)
        return AutoregressiveState(cache, newest_B1[:, 0].astype(jnp.int32))

    def propose(
        self, params: Any, state: AutoregressiveState, anchor_B: jax.Array, keys_B: jax.Array
    ) -> tuple[Draft, AutoregressiveState]:
        """One pass over [newest, anchor], then one for each drafted token but the last."""
        tokens_BS = jnp.stack([state.newest_B, anchor_B], axis=1)
        cache, logits_B1V = self._read(params, state.cache, tokens_BS)
        drafts = []
        for slot in range(self.block_size - 1):
            if slot:
                cache, logits_B1V = self._read(params, cache, tokens_BS)
            slot_keys_B = jax.vmap(lambda key, slot=slot: jax.random.fold_in(key, slot))(keys_B)
            drafts.append(draw(slot_keys_B, logits_B1V, sampling=self.sampling))
            # INVALID must not index the embedding; verification fails such a row.
            tokens_BS = jnp.maximum(drafts[-1].tokens_BG, 0)
        written = dataclasses.replace(cache, lengths_B=state.cache.lengths_B)
        if not drafts:
            batch = anchor_B.shape[0]
            none = no_draft(batch, self.vocabulary, sampling=self.sampling, passes=1)
            return none, dataclasses.replace(state, cache=written)
        draft: Draft = jax.tree.map(lambda *slots: jnp.concatenate(slots, axis=1), *drafts)
        draft = dataclasses.replace(draft, passes_B=jnp.full_like(anchor_B, len(drafts)))
        return draft, dataclasses.replace(state, cache=written)

    def _read(self, params: Any, cache: KVCache, tokens_BS: jax.Array) -> tuple[KVCache, jax.Array]:
        """The cache with these tokens added, and the logits [B, 1, V] of the last one."""
        variables = {"params": params["drafter"]}
        output = self.model.apply(variables, self._known(tokens_BS), cache=cache)
        logits_B1V = self.model.apply(variables, output.hidden_BSD[:, -1:], method="logits")
        cache = cache.write_after(
            output.keys_LBRSC,
            output.values_LBRSC,
            failed_B=jnp.isnan(logits_B1V).any(axis=(1, 2)),
        )
        logits_B1V = suppress(fit_vocabulary(logits_B1V, self.vocabulary), self.suppressed_ids)
        return cache.advance(tokens_BS.shape[1]), logits_B1V

    def _known(self, tokens_BS: jax.Array) -> jax.Array:
        """Ids that the drafter has a row for: a target may emit one of its rows without a token."""
        return jnp.minimum(tokens_BS, self.model.config.vocab_size - 1)

    def commit(
        self,
        params: Any,
        state: AutoregressiveState,
        tokens_BK: jax.Array,
        features_BKE: jax.Array | None,
        count_B: jax.Array,
    ) -> AutoregressiveState:
        """Keeps the first `count_B` tokens, which `propose` has already written."""
        del params, features_BKE
        index_B1 = jnp.maximum(count_B - 1, 0)[:, None]
        last_B = jnp.take_along_axis(tokens_BK, index_B1, axis=1)[:, 0].astype(jnp.int32)
        return AutoregressiveState(
            state.cache.advance(count_B), jnp.where(count_B > 0, last_B, state.newest_B)
        )


def _network(config: LanguageModelConfig, target: DraftedTarget, where: str) -> LanguageModel:
    if config.vocab_size < target.num_tokens:
        raise ValueError(
            f"The drafter in {where} has an embedding of {config.vocab_size} rows, but the "
            f"tokenizer of the target {target.name} has {target.num_tokens} ids: they do not "
            "belong together."
        )
    return make_model(config)


def _proposer(
    network: LanguageModel, target: DraftedTarget, settings: DraftSettings
) -> AutoregressiveProposer:
    return AutoregressiveProposer(
        network,
        settings.block_size,
        sampling=settings.sampling,
        suppressed_ids=never_drafted(target, settings, mask_id=target.mask_id),
        target_rows=target.model.config.vocab_size,
    )


def _history(config: LanguageModelConfig, run: Mapping[str, Any]) -> History:
    del config, run  # It was trained to continue text, not to draft.
    return History(loss="autoregressive")


KIND = DrafterKind(
    proposer=_proposer,
    block_size=5,
    configs=(TransformerConfig, GPT2Config, GPTNeoXConfig),
    network=_network,
    tokenizer="compared",
    history=_history,
)
