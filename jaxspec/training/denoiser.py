"""What a masked-diffusion language model learns: tokens under random masks, or blocks to draft.

Tokens are hidden in one of two ways. With random masks (MDLM, arXiv 2406.07524; SEDD, arXiv
2310.16834) a time is drawn for every row, or for every block if the context is causal or
block-causal (BD3LM, arXiv 2503.09573); LLaDA (arXiv 2502.09992) averages over each row's answer
separately. For drafting (SpecDiff-2, arXiv 2511.00606) whole blocks after a clean prefix are
hidden, and the loss is that of any block drafter: `jaxspec.losses.loss_terms`.

Dimension key: B rows of the batch or of a pass, S tokens of a row or pass, N blocks of a row,
K block slots, G = K - 1 masked slots, V vocabulary.

>>> objective = DenoiserObjective(  # doctest: +SKIP
...     model, LossConfig(), "draft", anchors=4, block_size=9, batch_size=8)
>>> terms, metrics = objective(  # doctest: +SKIP
...     params, {}, batch, key, LossWeights.from_config(LossConfig()))
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxspec.config import AnchorSampling, LossConfig
from jaxspec.data.anchors import coverage
from jaxspec.losses import (
    LossWeights,
    answer_terms,
    chunked_slot_statistics,
    chunked_token_values,
    drafter_metrics,
    elbo_values,
    log_scores,
    loss_terms,
    masked_values,
    ratio,
    score_entropy_values,
    terms_of,
    total_from_terms,
)
from jaxspec.losses.reduction import count
from jaxspec.models.block_diffusion import paired_inputs
from jaxspec.models.cache import KVCache
from jaxspec.models.denoiser import DenoiserOutput
from jaxspec.models.registry import AnyDenoiser
from jaxspec.ops.noise import LogLinearSchedule, antithetic_times, corrupt, token_times
from jaxspec.ops.suppression import suppress
from jaxspec.training.objectives import (
    Batch,
    Metrics,
    Terms,
    draw_blocks,
    mask_counts,
)

Goal = Literal["elbo", "score_entropy", "llada", "draft"]
SCHEDULE = LogLinearSchedule()
_TIMES, _MASKS = 1, 2
"""Streams of random numbers other than that of the anchors."""


@dataclasses.dataclass(frozen=True)
class DenoiserObjective:
    """Trains a denoiser; `context` in its configuration says what clean tokens see."""

    model: AnyDenoiser
    loss: LossConfig
    """The loss of the goal "draft", and how many blocks of it have their logits in memory."""
    goal: Goal
    anchors: int
    block_size: int
    batch_size: int
    """Rows of the global batch; times are spread evenly over them."""
    anchor_sampling: AnchorSampling = "document"
    chunk_tokens: int = 0
    """Tokens of a row whose logits are in memory at once, for other goals; 0: all of them."""

    @property
    def in_blocks(self) -> bool:
        """Whether blocks after anchors are hidden, rather than tokens anywhere in a row."""
        return self.goal == "draft" or self.model.config.context == "causal"

    def __call__(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array, weights: LossWeights
    ) -> tuple[Terms, Metrics]:
        """Terms and metrics; nothing is frozen."""
        del frozen
        if not self.in_blocks:
            return self._row_terms(params, batch, key)
        anchors_BN, labels_BNG, mask_BNG = self.blocks(batch, key)
        if self.goal != "draft":
            return self._block_terms(params, batch, key, anchors_BN, labels_BNG, mask_BNG)
        hidden_slots_BNG = jnp.full_like(labels_BNG, self.model.config.mask_id)
        output = self.read_blocks(params, batch, anchors_BN, hidden_slots_BNG)
        slots = chunked_slot_statistics(
            output.hidden_BSD.reshape(*labels_BNG.shape, -1),
            labels_BNG,
            head=self._head(params),
            chunk_blocks=self.loss.chunk_blocks,
        )
        terms = loss_terms(slots, mask_BNG, config=self.loss, weights=weights)
        metrics = drafter_metrics(slots, mask_BNG, config=self.loss)
        return terms, metrics | {"coverage": coverage(batch["loss_mask"], anchors_BN, mask_BNG)}

    def counts(self, batch: Batch, key: jax.Array, weights: LossWeights) -> dict[str, jax.Array]:
        """See `jaxspec.training.objectives.Objective`."""
        if not self.in_blocks:
            return {self.goal: self._number(batch["loss_mask"])}
        _, _, mask_BNG = self.blocks(batch, key)
        if self.goal != "draft":
            return {self.goal: self._number(mask_BNG)}
        return mask_counts(mask_BNG, loss=self.loss, weights=weights)

    def total(self, terms: Terms, weights: LossWeights) -> jax.Array:
        """See `jaxspec.training.objectives.Objective`."""
        if self.goal != "draft":
            return ratio(*terms[self.goal])
        return total_from_terms(terms, config=self.loss, weights=weights)

    @property
    def runs_own_code(self) -> bool:
        """See `jaxspec.training.objectives.Objective`."""
        return self.goal == "draft" and self.loss.runs_own_code

    def check(self) -> None:
        """See `jaxspec.training.objectives.Objective`."""
        if self.goal != "draft":
            return
        terms = terms_of(self.loss, reread=True)
        if names := [name for name, term in terms.items() if term.needs_target_rows]:
            raise ValueError(
                f"The loss term {names[0]!r} compares with the target's distributions, which "
                "training a denoiser does not compute: choose one that needs only labels."
            )

    def blocks(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Anchors [B, N], labels and their mask [B, N, G]."""
        return draw_blocks(
            batch,
            key,
            count=self.anchors,
            block_size=self.block_size,
            sampling=self.anchor_sampling,
        )

    def _head(self, params: Any) -> Any:
        mask_id = self.model.config.mask_id

        def head(hidden: jax.Array) -> jax.Array:
            logits = self.model.apply({"params": params}, hidden, method="logits")
            # SUBS: the mask is never the clean token.
            return suppress(logits, (mask_id,))

        return head

    def _row_terms(self, params: Any, batch: Batch, key: jax.Array) -> tuple[Terms, Metrics]:
        """Random masks anywhere among the learned tokens, with one time per row or per block."""
        block_length = getattr(self.model.config, "block_length", 0)
        length = batch["tokens"].shape[1]
        shape = (length // block_length,) if block_length else ()
        times_BS = token_times(self._times(key, shape)[batch["rows"]], length=length)
        noisy_BS, masked_BS = _corrupt_rows(
            key,
            batch,
            batch["tokens"],
            self._mask_probability(times_BS),
            mask_id=self.model.config.mask_id,
            maskable=batch["loss_mask"],
        )
        if block_length:
            inputs = paired_inputs(
                noisy_BS,
                batch["tokens"],
                block_size=block_length,
                segments_BS=batch["segments"],
            )
        else:
            inputs = {
                "tokens_BS": noisy_BS,
                "positions_BS": batch["positions"],
                "segments_BS": batch["segments"],
                "sigma": SCHEDULE.sigma(times_BS[:, 0]),
            }
        output = self.model.apply({"params": params}, **inputs, with_logits=False)
        values_BS = self._values(params, output.hidden_BSD, batch["tokens"], masked_BS, times_BS)
        return self._diffusion_terms(values_BS, batch["loss_mask"])

    def _block_terms(
        self,
        params: Any,
        batch: Batch,
        key: jax.Array,
        anchors_BN: jax.Array,
        labels_BNG: jax.Array,
        mask_BNG: jax.Array,
    ) -> tuple[Terms, Metrics]:
        """Random masks in the blocks after anchors, with one time per block."""
        times_BN1 = self._times(key, anchors_BN.shape[1:])[batch["rows"]][..., None]
        noisy_BNG, masked_BNG = _corrupt_rows(
            key,
            batch,
            labels_BNG,
            self._mask_probability(times_BN1),
            mask_id=self.model.config.mask_id,
            maskable=mask_BNG,
        )
        # Slots after the end of a document have no token: they are masked, as in drafting.
        noisy_BNG = jnp.where(mask_BNG, noisy_BNG, self.model.config.mask_id)
        times_BNG = jnp.broadcast_to(times_BN1, labels_BNG.shape)
        output = self.read_blocks(params, batch, anchors_BN, noisy_BNG, times_BNG=times_BNG)
        # The slots of a causal context are one row for the model.
        values_BS = self._values(
            params, output.hidden_BSD, *map(_by_row, (labels_BNG, masked_BNG, times_BNG))
        )
        return self._diffusion_terms(values_BS, _by_row(mask_BNG))

    def _values(
        self,
        params: Any,
        hidden_BSD: jax.Array,
        labels_BS: jax.Array,
        masked_BS: jax.Array,
        times_BS: jax.Array,
    ) -> jax.Array:
        """What each token contributes to the loss, [B, S]."""
        mask_id = self.model.config.mask_id

        def values(
            logits: jax.Array, labels: jax.Array, masked: jax.Array, times: jax.Array
        ) -> jax.Array:
            # A token that fills up a chunk has time 0, at which the gradient would be NaN.
            times = jnp.where(masked, times, 1.0)
            if self.goal == "llada":
                return masked_values(
                    logits, labels, masked_BS=masked, probabilities=self._mask_probability(times)
                )
            if self.goal == "elbo":
                return elbo_values(
                    logits, labels, masked_BS=masked, times_BS=times, mask_id=mask_id
                )
            scores = log_scores(logits, times_BS=times, schedule=SCHEDULE)
            return score_entropy_values(
                scores, labels, masked_BS=masked, times_BS=times, schedule=SCHEDULE, mask_id=mask_id
            )

        return chunked_token_values(
            values,
            hidden_BSD,
            labels_BS,
            masked_BS,
            times_BS,
            head=lambda hidden: self.model.apply({"params": params}, hidden, method="logits"),
            chunk_tokens=self.chunk_tokens,
        )

    def _mask_probability(self, times: jax.Array) -> jax.Array:
        # LLaDA's is p = (1 - eps) t + eps, which is what `antithetic_times` returns.
        return times if self.goal == "llada" else SCHEDULE.mask_probability(times)

    def _diffusion_terms(self, values: jax.Array, learned: jax.Array) -> tuple[Terms, Metrics]:
        if self.goal == "llada":
            term = answer_terms(values, answer_BS=learned)
        else:
            term = (values.sum(dtype=jnp.float32), count(learned))
        return {self.goal: term}, {self.goal: jax.lax.stop_gradient(term)}

    def _number(self, learned: jax.Array) -> jax.Array:
        """How many tokens, or rows that have an answer, the loss is averaged over."""
        return count(_by_row(learned).any(axis=1) if self.goal == "llada" else learned)

    def _times(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A time for each row of the global batch, or for each block of each row."""
        return antithetic_times(jax.random.fold_in(key, _TIMES), (self.batch_size, *shape))

    def read_blocks(
        self,
        params: Any,
        batch: Batch,
        anchors_BN: jax.Array,
        slots_BNG: jax.Array,
        *,
        times_BNG: jax.Array | None = None,
    ) -> DenoiserOutput:
        """The model's output for masked blocks, as drafting would compute it.

        Args:
          params: the model's.
          batch: clean rows; a block sees its document up to its anchor.
          anchors_BN: positions of the anchors within the rows.
          slots_BNG: the tokens after the anchors, including masks.
          times_BNG: for a time-conditioned model; None: 1 everywhere.

        Returns:
          Hidden states, [B, N * G, D] for a causal context and [B * N, G, D] for a bidirectional
          one. There are no logits, and its keys and values are of no further use.
        """
        index_S = jnp.arange(batch["tokens"].shape[1])

        def at_anchors(values_BS: jax.Array) -> jax.Array:
            return jnp.take_along_axis(values_BS, anchors_BN, axis=1)

        context_BNS = (index_S <= anchors_BN[..., None]) & (
            batch["segments"][:, None] == at_anchors(batch["segments"])[..., None]
        )
        slots = slots_BNG.shape[-1]
        positions_BNG = at_anchors(batch["positions"])[..., None] + 1 + jnp.arange(slots)
        sigma_BNG = SCHEDULE.sigma(jnp.ones(slots_BNG.shape) if times_BNG is None else times_BNG)
        read = self._with_causal_context
        if self.model.config.context == "bidirectional":
            read = self._with_bidirectional_context
        return read(params, batch, context_BNS, slots_BNG, positions_BNG, sigma_BNG)

    def _with_causal_context(
        self,
        params: Any,
        batch: Batch,
        context_BNS: jax.Array,
        slots_BNG: jax.Array,
        positions_BNG: jax.Array,
        sigma_BNG: jax.Array,
    ) -> DenoiserOutput:
        """One pass over the clean row, then one over all of its blocks."""
        batch_size, length = batch["tokens"].shape
        _, blocks, slots = slots_BNG.shape
        index_S = jnp.arange(length)
        clean = self.model.apply(
            {"params": params},
            batch["tokens"],
            positions_BS=batch["positions"],
            segments_BS=batch["segments"],
            mask_BSS=(index_S[:, None] >= index_S)[None],
            with_logits=False,
        )
        lengths_B = jnp.full(batch_size, length)
        block_S = jnp.arange(blocks * slots) // slots

        def flat(values_BNG: jax.Array) -> jax.Array:
            return values_BNG.reshape(batch_size, blocks * slots)

        return self.model.apply(
            {"params": params},
            flat(slots_BNG),
            positions_BS=flat(positions_BNG),
            mask_BSS=(block_S[:, None] == block_S)[None],
            sigma=flat(sigma_BNG),
            cache=KVCache(clean.keys_LBRSC, clean.values_LBRSC, lengths_B),
            cache_mask_BST=jnp.repeat(context_BNS, slots, axis=1),
            cache_positions_BT=batch["positions"],
            with_logits=False,
        )

    def _with_bidirectional_context(
        self,
        params: Any,
        batch: Batch,
        context_BNS: jax.Array,
        slots_BNG: jax.Array,
        positions_BNG: jax.Array,
        sigma_BNG: jax.Array,
    ) -> DenoiserOutput:
        """One pass over [row, block] for each block; the mask hides what a block must not see."""
        batch_size, length = batch["tokens"].shape
        _, blocks, slots = slots_BNG.shape

        def rows(clean_BS: jax.Array, block_BNG: jax.Array) -> jax.Array:
            clean_BNS = jnp.broadcast_to(clean_BS[:, None], (batch_size, blocks, length))
            both = jnp.concatenate([clean_BNS, block_BNG], axis=-1)
            return both.reshape(batch_size * blocks, length + slots)

        seen_BS = jnp.concatenate([context_BNS, jnp.ones(slots_BNG.shape, bool)], axis=-1)
        seen_BS = seen_BS.reshape(batch_size * blocks, 1, length + slots)
        sigma_BS = jnp.zeros(batch["tokens"].shape)
        return self.model.apply(
            {"params": params},
            rows(batch["tokens"], slots_BNG),
            positions_BS=rows(batch["positions"], positions_BNG),
            mask_BSS=seen_BS,
            # An MDLM has one time for all tokens of a row, including clean ones.
            sigma=rows(sigma_BS, sigma_BNG).max(axis=-1),
            rows_BI=jnp.broadcast_to(length + jnp.arange(slots), (batch_size * blocks, slots)),
            with_logits=False,
        )


def _by_row(values: jax.Array) -> jax.Array:
    return values.reshape(values.shape[0], -1)


def _corrupt_rows(
    key: jax.Array,
    batch: Batch,
    tokens: jax.Array,
    probabilities: jax.Array,
    *,
    mask_id: int,
    maskable: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`corrupt`, with a random stream per row that does not depend on the row's device."""
    key = jax.random.fold_in(key, _MASKS)

    def row(number: jax.Array, tokens: jax.Array, share: jax.Array, maskable: jax.Array) -> Any:
        own = jax.random.fold_in(key, number)
        return corrupt(own, tokens, share, mask_id=mask_id, maskable_BS=maskable)

    noisy = jax.vmap(row)(batch["rows"], tokens, probabilities, maskable)
    return noisy.tokens_BS, noisy.masked_BS
