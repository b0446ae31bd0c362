"""What is learned: the next token by a target, blocks by a drafter of a frozen target.

An objective turns (params, frozen, batch, key) into loss terms whose numerators and denominators
are still separate, so that the step can divide by counts of the whole global batch.

Dimension key: B batch rows, S tokens of a row, N blocks of a row, K block slots,
G = K - 1 drafted slots, D width, E captured features.

>>> objective = DrafterObjective(  # doctest: +SKIP
...     target=target, drafter=drafter, loss=LossConfig(), anchors=16)
>>> terms, metrics = objective(  # doctest: +SKIP
...     params, frozen, batch, key, LossWeights.from_config(LossConfig()))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxspec.config import AnchorSampling, LossConfig
from jaxspec.data.anchors import block_labels, coverage, sample_anchors
from jaxspec.losses import (
    LossWeights,
    SlotStatistics,
    chunked_slot_statistics,
    drafter_metrics,
    loss_terms,
    ratio,
    terms_needing_target_rows,
    terms_of,
    total_from_terms,
)
from jaxspec.models.dflash import DFlash, served_features
from jaxspec.models.registry import LanguageModel
from jaxspec.parallel.constraints import by_rows, ends_whole, whole_rows
from jaxspec.parallel.step import Body

Batch = dict[str, jax.Array]
"""tokens, segments, positions int32 [B, S]; loss_mask bool [B, S]; rows int32 [B]: a row's number
in the global batch, which decides its random numbers on every device."""
Terms = dict[str, tuple[jax.Array, jax.Array]]
"""name -> (numerator, denominator), scalars."""
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""name -> (sum, count)."""


class Objective(Protocol):
    """What a training step minimises."""

    def __call__(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array, weights: LossWeights
    ) -> tuple[Terms, Metrics]:
        """Terms and metrics of the given rows."""
        ...

    def counts(self, batch: Batch, key: jax.Array, weights: LossWeights) -> dict[str, jax.Array]:
        """Denominators of the terms that follow from the masks alone, without running a model."""
        ...

    def total(self, terms: Terms, weights: LossWeights) -> jax.Array:
        """The loss, from the numerators of these rows and the denominators of all rows."""
        ...

    def __hash__(self) -> int:
        """Equal objectives that do not run the user's own code compute the same."""
        ...

    @property
    def runs_own_code(self) -> bool:
        """Whether a term is the user's own: its code may change while the objective stays equal."""
        ...

    def check(self) -> None:
        """Imports the loss terms that the user names, before anything is written.

        Only training calls it: export and plan build objectives from what a run has recorded, and
        reading a run must not execute the files that it names.

        Raises:
          ValueError: an unknown objective or term, or one that cannot be computed here.
        """
        ...


def same_for_equal(make: Callable[..., Body]) -> Callable[..., Body]:
    """Lets a function of an objective give the same body for equal arguments.

    `jaxspec.parallel.step.spread` then gives the same compiled function: a second run in one
    process, such as that of another seed or learning rate in a notebook, neither traces nor
    compiles its step again. An objective that runs the user's own code gets a new body each time.

    Args:
      make: takes an objective, then anything; all of it hashable.
    """
    remembered = functools.lru_cache(maxsize=8)(make)

    @functools.wraps(make)
    def body_of(objective: Objective, *args: Any, **kwargs: Any) -> Body:
        return (make if objective.runs_own_code else remembered)(objective, *args, **kwargs)

    return body_of


def draw_blocks(
    batch: Batch, key: jax.Array, *, count: int, block_size: int, sampling: AnchorSampling
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Anchors [B, N], labels and their mask [B, N, G]; each row has its own random stream."""

    def row(
        key: jax.Array, number: jax.Array, loss_mask_S: jax.Array, segments_S: jax.Array
    ) -> Any:
        own = jax.random.fold_in(key, number)
        anchors, valid = sample_anchors(
            own, loss_mask_S[None], segments_S[None], count=count, sampling=sampling
        )
        return anchors[0], valid[0]

    anchors_BN, valid_BN = by_rows(
        jax.vmap(row, in_axes=(None, 0, 0, 0)),
        *(batch["rows"], batch["loss_mask"], batch["segments"]),
        shared=key,
    )
    labels_BNG, mask_BNG = block_labels(
        batch["tokens"],
        batch["loss_mask"],
        batch["segments"],
        anchors_BN,
        valid_BN,
        block_size=block_size,
    )
    return anchors_BN, labels_BNG, mask_BNG


def mask_counts(
    mask_BNG: jax.Array, *, loss: LossConfig, weights: LossWeights
) -> dict[str, jax.Array]:
    """Denominators of the loss terms that follow from the masks alone."""
    # Any statistics will do: these denominators do not depend on them.
    zero_BNG = jnp.zeros(mask_BNG.shape)
    slots = SlotStatistics(zero_BNG, mask_BNG, overlap_NG=zero_BNG, kl_NG=zero_BNG)
    terms, table = loss_terms(slots, mask_BNG, config=loss, weights=weights), terms_of(loss)
    return {
        name: count
        for name, (_, count) in terms.items()
        if not table[name].counts_follow_predictions
    }


@dataclasses.dataclass(frozen=True)
class TargetObjective:
    """Next-token cross-entropy, averaged over the learned tokens of the global batch."""

    model: LanguageModel
    chunk_tokens: int = 0

    def __call__(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array, weights: LossWeights
    ) -> tuple[Terms, Metrics]:
        del frozen, key, weights
        hidden_BSD = self.model.apply(
            {"params": params},
            batch["tokens"],
            positions_BS=batch["positions"],
            segments_BS=batch["segments"],
        ).hidden_BSD
        # Token s is predicted from s - 1; the mask is true only if both are in one document.
        mask = batch["loss_mask"][:, 1:].astype(jnp.float32)
        slots = chunked_slot_statistics(
            hidden_BSD[:, :-1, None],
            batch["tokens"][:, 1:, None],
            head=lambda hidden: self.model.apply({"params": params}, hidden, method="logits"),
            chunk_blocks=self.chunk_tokens,
        )
        total, count = -(slots.log_p_NG[..., 0] * mask).sum(), mask.sum()
        correct = (slots.correct_NG[..., 0] * mask).sum()
        terms = {"cross_entropy": (total, count)}
        return terms, {"cross_entropy": (total, count), "accuracy": (correct, count)}

    def counts(self, batch: Batch, key: jax.Array, weights: LossWeights) -> dict[str, jax.Array]:
        del key, weights
        return {"cross_entropy": batch["loss_mask"][:, 1:].astype(jnp.float32).sum()}

    def total(self, terms: Terms, weights: LossWeights) -> jax.Array:
        del weights
        return ratio(*terms["cross_entropy"])

    @property
    def runs_own_code(self) -> bool:
        return False

    def check(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class DrafterObjective:
    """The drafter's loss on blocks that start at random anchors (DFlash, arXiv 2602.06036, sec. 4).

    The target runs inside the step: its hidden states are used once and never stored.
    """

    target: LanguageModel
    drafter: DFlash
    loss: LossConfig
    anchors: int
    anchor_sampling: AnchorSampling = "document"

    def __call__(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array, weights: LossWeights
    ) -> tuple[Terms, Metrics]:
        anchors_BN, labels_BNG, mask_BNG = self.blocks(batch, key)
        frozen = ends_whole(frozen, dtype=self.target.config.dtype)
        output = self.target.apply(
            {"params": frozen},
            batch["tokens"],
            positions_BS=batch["positions"],
            segments_BS=batch["segments"],
            capture=self.drafter.config.target_layer_ids,
        )
        output = jax.lax.stop_gradient(output)
        features_BSE = served_features(
            self.target,
            frozen,
            output.features_BSE,
            layer_ids=self.drafter.config.target_layer_ids,
        )
        hidden_BNGD = self.hidden(params, frozen, batch, anchors_BN, features_BSE)
        target_hidden_BNGD = None
        if terms_needing_target_rows(self.loss):
            # The target's row for slot k is its prediction after the token before that slot.
            source_BNG = anchors_BN[..., None] + jnp.arange(labels_BNG.shape[-1])
            source_BNG = jnp.minimum(source_BNG, batch["tokens"].shape[1] - 1)
            (hidden_BSD,) = whole_rows(output.hidden_BSD[None].swapaxes(0, 1)).swapaxes(0, 1)
            target_hidden_BNGD = jax.vmap(lambda hidden_SD, index: hidden_SD[index])(
                hidden_BSD, source_BNG
            )
        slots = chunked_slot_statistics(
            hidden_BNGD,
            labels_BNG,
            head=lambda hidden: self.target.apply({"params": frozen}, hidden, method="logits"),
            chunk_blocks=self.loss.chunk_blocks,
            target_hidden_BNGD=target_hidden_BNGD,
            frozen_head=True,
        )
        terms = loss_terms(slots, mask_BNG, config=self.loss, weights=weights)
        metrics = drafter_metrics(slots, mask_BNG, config=self.loss)
        return terms, metrics | {"coverage": coverage(batch["loss_mask"], anchors_BN, mask_BNG)}

    def counts(self, batch: Batch, key: jax.Array, weights: LossWeights) -> dict[str, jax.Array]:
        _, _, mask_BNG = self.blocks(batch, key)
        return mask_counts(mask_BNG, loss=self.loss, weights=weights)

    def total(self, terms: Terms, weights: LossWeights) -> jax.Array:
        return total_from_terms(terms, config=self.loss, weights=weights)

    @property
    def runs_own_code(self) -> bool:
        return self.loss.runs_own_code

    def check(self) -> None:
        terms_of(self.loss, reread=True)

    def blocks(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Anchors [B, N], labels and their mask [B, N, G]."""
        block_size = self.drafter.config.block_size
        return draw_blocks(
            batch,
            key,
            count=self.anchors,
            block_size=block_size,
            sampling=self.anchor_sampling,
        )

    def hidden(
        self,
        params: Any,
        frozen: Any,
        batch: Batch,
        anchors_BN: jax.Array,
        features_BSE: jax.Array,
    ) -> jax.Array:
        """The drafter's hidden states of the drafted slots, [B, N, G, D]."""
        config = self.drafter.config
        mask_id = config.mask_token_id
        assert mask_id is not None, "resolve_config fills it"

        def at_anchors(values_BS: jax.Array) -> jax.Array:
            return jnp.take_along_axis(values_BS, anchors_BN, axis=1)

        slots_K = jnp.arange(config.block_size)
        tokens_BNK = jnp.where(slots_K == 0, at_anchors(batch["tokens"])[..., None], mask_id)
        embeddings_BNKD = self.target.apply({"params": frozen}, tokens_BNK, method="embed_tokens")
        keys, values = self.drafter.apply(
            {"params": params}, features_BSE, batch["positions"], method="context"
        )
        # Strictly before the anchor: decoding has no features of the anchor when it drafts.
        index_S = jnp.arange(batch["tokens"].shape[1])
        mask_BNS = (index_S < anchors_BN[..., None]) & (
            batch["segments"][:, None, :] == at_anchors(batch["segments"])[..., None]
        )
        hidden_BNKD = self.drafter.apply(
            {"params": params},
            embeddings_BNKD,
            at_anchors(batch["positions"])[..., None] + slots_K,
            keys,
            values,
            mask_BNS,
            context_positions_BT=batch["positions"],
        )
        return hidden_BNKD[:, :, 1:]
