"""Speculative decoding: a drafter proposes a block, one target pass checks it, exactly.

A round drafts G = K - 1 tokens after the anchor, runs the target over [anchor, draft], and lets a
rule of `jaxspec.verify` decide how many drafts are accepted and which token of the target follows.
Both caches are then cut back to what was emitted, by length: nothing is copied.

Dimension key: B batch rows, S tokens of a pass, K block slots, G = K - 1 drafted slots, Y rows of
the target's pass (the anchor first; Y = K in a chain), O rounds, D model width, E captured
features, V vocabulary.

>>> rules = DecodeRules(max_new_tokens=64, stop_ids=(2,))
>>> strategy = Speculative(model, proposer, rules)  # doctest: +SKIP
>>> state = strategy.start(params, prompts, capacity=192)  # doctest: +SKIP
>>> state = strategy.run(params, state)  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.decoding.autoregressive import choose
from jaxspec.decoding.layout import cut_layers, stack_layers
from jaxspec.decoding.state import (
    NO_LIMIT,
    NO_ROUND,
    DecodeRules,
    DecodeState,
    Prompts,
    emit,
    first_state,
    loop,
    prefill,
    stream_keys,
)
from jaxspec.drafters.protocol import Draft, Proposer
from jaxspec.models.cache import KVCache
from jaxspec.models.registry import LanguageModel
from jaxspec.models.transformer import TransformerOutput
from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.precision import exact_program
from jaxspec.ops.sampling import GREEDY, INVALID, Sampling
from jaxspec.ops.suppression import suppress
from jaxspec.verify import Verdict
from jaxspec.verify.rules import RULES, find_rule, rule_names


def check_verifier(verifier: str, *, sampling: Sampling, draft_sampling: Sampling) -> None:
    """Refuses combinations of verifier, temperature and kind of draft that are not exact.

    Raises:
      ValueError: says what the verifier needs.
    """
    names = rule_names("block")
    rule = find_rule(verifier, among=names)
    if not rule.fits(greedy=sampling.greedy):
        raise ValueError(
            f"Verifier {verifier!r} does not fit temperature {sampling.temperature}: 'greedy' is "
            "for temperature 0, the others for temperatures above it."
        )
    if rule.told_rows == draft_sampling.greedy:
        kind = "deterministic" if draft_sampling.greedy else "sampled"
        sampled = " and ".join(repr(name) for name in names if RULES[name].told_rows)
        raise ValueError(
            f"Verifier {verifier!r} does not fit {kind} drafts: {sampled} are for "
            "sampled ones, the others are for deterministic ones."
        )


@array_dataclass
class Plan:
    """What a round drafted, and how the target has to read it."""

    rows_BY: jax.Array
    """Tokens, the anchor first; -1 in empty rows."""
    drafter: Any
    """The proposer's state after drafting."""
    detail: Any
    """What verification needs to know of the draft: a `Draft`, unless a strategy says otherwise."""
    depths_BY: jax.Array | None = None
    """How far each row's position is after the anchor's; None: 0, 1, 2, ..."""
    mask_BYY: jax.Array | None = None
    """True where row i sees row j; None: all rows up to itself."""
    passes_B: jax.Array | None = None
    """Forward passes of the drafter (`Draft.passes_B`); None: one per row."""


@array_dataclass
class Choice:
    """What verification accepted of a plan."""

    verdict: Verdict
    path_BK: jax.Array | None = None
    """The anchor's row, the accepted ones, then padding; None: the first rows are accepted."""


@dataclasses.dataclass(frozen=True)
class Speculative:
    """Draft and verify. Parameters: ``{"target": ..., "drafter": ...}``.

    Parameters are arguments of the compiled loop, so drafters of one shape share one program. With
    blocks of 1 nothing is drafted; the drafter only follows what the target emits.

    Raises:
      ValueError: a verifier that does not fit the temperature or the drafts.
    """

    model: LanguageModel
    proposer: Proposer
    rules: DecodeRules
    verifier: str = "greedy"
    sampling: Sampling = GREEDY
    """Shapes the target's distribution. The drafter may use another: the output does not depend on
    it."""

    def __post_init__(self) -> None:
        check_verifier(self.verifier, sampling=self.sampling, draft_sampling=self.proposer.sampling)

    @property
    def round_tokens(self) -> int:
        """The most tokens that a round emits."""
        return self.proposer.block_size

    @property
    def verified_rows(self) -> int:
        """Tokens that the target reads in a round."""
        return self.proposer.block_size

    def prepare(self, params: Any) -> Any:
        """Parameters in the layout that the loop wants, for callers that `run` more than once."""
        return self.cut(params, now=True)

    @exact_program(static_argnames=("capacity",))
    def start(self, params: Any, prompts: Prompts, *, capacity: int) -> DecodeState:
        """Prefills target and drafter, and emits the target's first token: the first anchor."""
        params = stack_layers(params)
        cache, hidden_BD, features_BSE = prefill(
            self.model,
            params["target"],
            prompts,
            capacity=capacity,
            capture=self.proposer.capture,
        )
        drafter = self.proposer.begin(
            params, prompts.tokens_BS, features_BSE, prompts.lengths_B, capacity=capacity
        )
        logits_BV = self.model.apply({"params": params["target"]}, hidden_BD, method="logits")
        logits_BV = suppress(logits_BV, self.rules.suppressed_ids)
        (first_keys_B,) = stream_keys(prompts.keys_B, jnp.zeros_like(prompts.lengths_B), "token")
        return first_state(
            cache,
            drafter,
            *choose(logits_BV, first_keys_B, sampling=self.sampling),
            prompts,
            rules=self.rules,
            round_tokens=self.round_tokens,
            drafted_nodes=max(1, self.verified_rows - 1),
        )

    @exact_program(donate_argnames=("state",))
    def run(
        self,
        params: Any,
        state: DecodeState,
        *,
        leave_on_end: jax.Array | bool = False,
        max_rounds: jax.Array | int = NO_LIMIT,
    ) -> DecodeState:
        """Decodes to the end (see `jaxspec.decoding.state.loop`) without the host."""
        pieces = self.cut(params)
        return loop(
            lambda state: self._round(stack_layers(pieces), state),
            state,
            leave_on_end=leave_on_end,
            max_rounds=max_rounds,
        )

    def cut(self, params: Any, *, now: bool = False) -> Any:
        """Parameters in the layout that loops want; `stack_layers` undoes it inside."""
        unrolled = {
            "target": self.model.config.unroll_layers,
            "drafter": self.proposer.unroll_layers,
        }
        cut = {
            name: cut_layers(params[name], unrolled=unrolled[name], now=now) for name in unrolled
        }
        return {**params, **cut}

    def _round(self, params: Any, state: DecodeState) -> DecodeState:
        draft_keys_B, verify_keys_B = stream_keys(
            state.keys_B, state.rounds_B + 1, "draft", "verify"
        )
        plan = self.draft(params, state, draft_keys_B)
        output, logits_BYV = self.target_pass(params, plan, state.cache)
        choice = self.verify(verify_keys_B, plan, logits_BYV)
        return self.finish(params, state, plan, output, choice)

    def draft(self, params: Any, state: DecodeState, keys_B: jax.Array) -> Plan:
        """What the target has to read in this round."""
        draft, drafter = self.proposer.propose(params, state.drafter, state.anchor_B, keys_B)
        rows_BK = jnp.concatenate([state.anchor_B[:, None], draft.tokens_BG], axis=1)
        return Plan(rows_BK, drafter, draft, passes_B=draft.passes_B)

    def target_pass(
        self, params: Any, plan: Plan, cache: KVCache
    ) -> tuple[TransformerOutput, jax.Array]:
        """The target's pass over a plan's rows, after the cache: output and logits [B, Y, V]."""
        target_params = {"params": params["target"]}
        positions_BY = None
        if plan.depths_BY is not None:
            positions_BY = cache.lengths_B[:, None] + plan.depths_BY
        # INVALID (-1), where there was nothing to draw from, must not index the embedding from its
        # end; the verdict on such a row is a failure in any case.
        output = self.model.apply(
            target_params,
            jnp.maximum(plan.rows_BY, 0),
            cache=cache,
            capture=self.proposer.capture,
            positions_BS=positions_BY,
            mask_BSS=plan.mask_BYY,
        )
        logits_BYV = self.model.apply(target_params, output.hidden_BSD, method="logits")
        return output, suppress(logits_BYV, self.rules.suppressed_ids)

    def verify(self, keys_B: jax.Array, plan: Plan, logits_BYV: jax.Array) -> Choice:
        """Which of the plan's rows are accepted, and what follows them."""
        draft: Draft = plan.detail
        rule = RULES[self.verifier]
        if self.sampling.greedy:
            return Choice(rule.function(draft.tokens_BG, logits_BYV))
        probs_BYV = self.sampling.probabilities(logits_BYV)
        told_BGV = draft.probs_BGV if rule.told_rows else None
        assert rule.told_rows == (told_BGV is not None), "sampled drafts come with probabilities"
        # A key for each row: the rules take one for the batch.
        verdict = jax.vmap(
            lambda key, x, q, p: rule.judge(key, x[None], None if q is None else q[None], p[None])
        )(keys_B, draft.tokens_BG, told_BGV, probs_BYV)
        return Choice(jax.tree.map(lambda leaf: leaf[:, 0], verdict))

    def finish(
        self,
        params: Any,
        state: DecodeState,
        plan: Plan,
        output: TransformerOutput,
        choice: Choice,
    ) -> DecodeState:
        """Appends the emitted tokens and keeps their slots in both caches."""
        before, verdict, block_BK = state, choice.verdict, plan.rows_BY
        if choice.path_BK is not None:
            block_BK = jnp.take_along_axis(block_BK, choice.path_BK, axis=1)
            output = _rows_of(output, choice.path_BK)
        cache = state.cache.write_after(
            output.keys_LBRSC, output.values_LBRSC, failed_B=verdict.failed_B
        )
        state, emitted_B = emit(
            state,
            verdict.emitted_BH(block_BK[:, 1:]),
            verdict.num_accepted_B + 1,
            verdict.failed_B,
            rules=self.rules,
        )
        ran_B = before.active_B & ~verdict.failed_B
        rows_B = jnp.arange(ran_B.shape[0])

        def record(rounds_BO: jax.Array | None, values_B: jax.Array) -> jax.Array:
            assert rounds_BO is not None, "a speculative state records its rounds"
            values_B = jnp.where(ran_B, values_B, NO_ROUND)
            # A row that has ended is past its last round, maybe past the last column.
            return rounds_BO.at[rows_B, before.rounds_B].set(values_B, mode="drop")

        assert state.accepted_at_X is not None, "a speculative state counts accepted drafts"
        assert state.draft_passes_B is not None, "a speculative state counts the drafter's passes"
        assert state.drafted_BX is not None, "a speculative state holds the newest draft"
        # A smaller size (`Adaptive`) drafts fewer tokens than the state has room for.
        drafts_BX = plan.rows_BY[:, 1:]
        drafted_BX = (
            jnp.full_like(state.drafted_BX, INVALID).at[:, : drafts_BX.shape[1]].set(drafts_BX)
        )
        passes_B = jnp.ones_like(emitted_B) if plan.passes_B is None else plan.passes_B
        slots_B = jnp.full_like(emitted_B, block_BK.shape[1] - 1)
        if plan.depths_BY is not None:
            is_drafted_BX = drafts_BX != INVALID
            slots_B = jnp.where(is_drafted_BX, plan.depths_BY[:, 1:], 0).max(axis=1, initial=0)
        slot_G = jnp.arange(block_BK.shape[1] - 1)
        accepted_BG = ran_B[:, None] & (slot_G < verdict.num_accepted_B[:, None])
        ranks_BG = slot_G if choice.path_BK is None else choice.path_BK[:, 1:] - 1
        ranks_BG = jnp.broadcast_to(ranks_BG, accepted_BG.shape)
        return dataclasses.replace(
            state,
            cache=cache.advance(emitted_B),
            drafter=self.proposer.commit(
                params, plan.drafter, block_BK, output.features_BSE, emitted_B
            ),
            draft_passes_B=state.draft_passes_B + jnp.where(ran_B, passes_B, 0),
            accepted_at_X=state.accepted_at_X.at[ranks_BG].add(accepted_BG, mode="drop"),
            verified_BO=record(state.verified_BO, verdict.num_accepted_B),
            emitted_BO=record(state.emitted_BO, emitted_B),
            slots_BO=record(state.slots_BO, slots_B),
            drafted_BX=jnp.where(ran_B[:, None], drafted_BX, state.drafted_BX),
        )


def _rows_of(output: TransformerOutput, path_BK: jax.Array) -> TransformerOutput:
    """The rows of a pass that are on a path, in its order."""

    def of_tokens(array_BSD: jax.Array) -> jax.Array:
        return jnp.take_along_axis(array_BSD, path_BK[..., None], axis=1)

    def of_cache(array_LBRSC: jax.Array) -> jax.Array:
        return jnp.take_along_axis(array_LBRSC, path_BK[None, :, None, :, None], axis=3)

    return TransformerOutput(
        of_tokens(output.hidden_BSD),
        None if output.features_BSE is None else of_tokens(output.features_BSE),
        of_cache(output.keys_LBRSC),
        of_cache(output.values_LBRSC),
    )
