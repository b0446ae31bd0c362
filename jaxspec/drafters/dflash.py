"""The DFlash drafter in decoding: a block from one pass over the target's hidden states.

Dimension key: B batch rows, S prompt tokens, K block slots, G = K - 1 drafted slots, V vocabulary,
D width, E captured features.

>>> proposer = DFlashProposer(target=model, drafter=drafter, block_size=8)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.config import DrafterConfig
from jaxspec.drafters.kind import (
    DraftedTarget,
    DrafterKind,
    DraftSettings,
    History,
    never_drafted,
    recorded_loss,
)
from jaxspec.drafters.protocol import Draft, draw, no_draft
from jaxspec.models.cache import KVCache
from jaxspec.models.dflash import DFlash, resolve_config, served_features
from jaxspec.models.registry import LanguageModel
from jaxspec.ops.sampling import GREEDY, Sampling
from jaxspec.ops.suppression import suppress


@dataclasses.dataclass(frozen=True)
class DFlashProposer:
    """Drafts a block from one pass of a `DFlash` drafter over its cached context.

    Parameters are ``{"target": ..., "drafter": ...}``: embedding and head are the target's. The
    state is a `KVCache` of the context's keys and values, each position written once.
    """

    target: LanguageModel
    drafter: DFlash
    block_size: int
    """K; may differ from the block that the drafter was trained with."""
    sampling: Sampling = GREEDY
    suppressed_ids: tuple[int, ...] = ()
    """Never drafted, such as the mask token."""

    marginal_passes = 1
    commits_late = True
    other_passes = 0

    @property
    def capture(self) -> tuple[int, ...]:
        """The layers that the drafter was trained on."""
        return tuple(self.drafter.config.target_layer_ids)

    @property
    def unroll_layers(self) -> bool:
        """As its configuration says."""
        return self.drafter.config.unroll_layers

    def _context(
        self, params: Any, features_BSE: jax.Array | None, start_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        assert features_BSE is not None, "a DFlash drafter reads the target's hidden states"
        features_BSE = served_features(
            self.target, params["target"], features_BSE, layer_ids=self.capture
        )
        batch, length, _ = features_BSE.shape
        positions_BS = jnp.broadcast_to(start_B[:, None] + jnp.arange(length), (batch, length))
        return self.drafter.apply(
            {"params": params["drafter"]}, features_BSE, positions_BS, method="context"
        )

    def begin(
        self,
        params: Any,
        tokens_BS: jax.Array,
        features_BSE: jax.Array | None,
        lengths_B: jax.Array,
        *,
        capacity: int,
    ) -> KVCache:
        """The drafter's keys and values of the prompt."""
        keys, values = self._context(params, features_BSE, jnp.zeros_like(lengths_B))
        return KVCache.prefilled(keys, values, capacity=capacity, lengths_B=lengths_B)

    def propose(
        self,
        params: Any,
        state: KVCache,
        anchor_B: jax.Array,
        keys_B: jax.Array,
    ) -> tuple[Draft, KVCache]:
        """A token for each slot from its marginal."""
        if self.block_size == 1:
            vocabulary = self.target.config.vocab_size
            return no_draft(anchor_B.shape[0], vocabulary, sampling=self.sampling), state
        logits_BGV = self.marginal_logits(params, state, anchor_B)
        return draw(keys_B, logits_BGV, sampling=self.sampling), state

    def marginal_logits(self, params: Any, state: KVCache, anchor_B: jax.Array) -> jax.Array:
        """One pass over [anchor, MASK x G]; the target's head reads slots 1..G: [B, G, V]."""
        slots, batch = self.block_size, anchor_B.shape[0]
        target_params = {"params": params["target"]}
        mask_id = self.drafter.config.mask_token_id
        assert mask_id is not None, "resolve_config gives every drafter a mask token"
        block_BK = jnp.full((batch, slots), mask_id, jnp.int32)
        block_BK = block_BK.at[:, 0].set(anchor_B)
        embeddings_BKD = self.target.apply(target_params, block_BK, method="embed_tokens")
        hidden_B1KD = self.drafter.apply(
            {"params": params["drafter"]},
            embeddings_BKD[:, None],
            (state.lengths_B[:, None] + jnp.arange(slots))[:, None],
            state.keys_LBRTC,
            state.values_LBRTC,
            state.committed_BT()[:, None],
        )
        logits_BGV = self.target.apply(target_params, hidden_B1KD[:, 0, 1:], method="logits")
        return suppress(logits_BGV, self.suppressed_ids)

    def commit(
        self,
        params: Any,
        state: KVCache,
        tokens_BK: jax.Array,
        features_BKE: jax.Array | None,
        count_B: jax.Array,
    ) -> KVCache:
        """Writes the whole block's keys and values; only the emitted ones count."""
        return state.write(*self._context(params, features_BKE, state.lengths_B)).advance(count_B)


def _network(config: DrafterConfig, target: DraftedTarget, where: str) -> DFlash:
    del where
    resolved = resolve_config(config, target=target.model.config, mask_token_id=target.mask_id)
    return DFlash(resolved, target.model.config.hidden_size)


def _proposer(network: DFlash, target: DraftedTarget, settings: DraftSettings) -> DFlashProposer:
    return DFlashProposer(
        target=target.model,
        drafter=network,
        block_size=settings.block_size,
        sampling=settings.sampling,
        suppressed_ids=never_drafted(target, settings, mask_id=network.config.mask_token_id),
    )


def _history(config: DrafterConfig, run: Mapping[str, Any]) -> History:
    return History(loss=recorded_loss(run), block_size=config.block_size)


KIND = DrafterKind(
    proposer=_proposer,
    block_size=16,
    configs=(DrafterConfig,),
    network=_network,
    history=_history,
)
"""Its `block_size` is a fallback: every folder names the block of its training."""
