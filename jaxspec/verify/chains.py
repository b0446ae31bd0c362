"""Verification of several drafted chains at once: recursive rejection and K-SEQ.

The chains start at the same anchor. Slot by slot, those that still agree with what was accepted
offer their next token, one after the other. One of these may be accepted, and the chains that do
not hold it drop out. Drafts that were drawn independently stay so among the chains that are left.

Dimension key: B batch rows, A sampled chains, G drafted slots, H = G + 1 verified rows,
V vocabulary.

>>> drafts_BAG, draft_probs_BGV = jnp.array([[[0, 1], [1, 2]]]), jnp.full((1, 2, 4), 0.25)
>>> target_probs_BAHV = jax.nn.one_hot(jnp.array([[[1, 1, 0], [1, 2, 3]]]), 4)
>>> verdict = verify_chains(
...     jax.random.key(0), drafts_BAG, draft_probs_BGV, target_probs_BAHV, rule="k_seq")
>>> verdict.chain_B.tolist(), verdict.num_accepted_B.tolist(), verdict.next_token_B.tolist()
([1], [2], [3])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.sampling import (
    INVALID,
    at_least_float32,
    fine_uniform,
    is_distribution,
    sample_index,
    signed_ids,
)
from jaxspec.verify.law import capped_ratio, with_floor
from jaxspec.verify.rows import is_float, known_ids

ChainRule = Literal["recursive", "recursive_without_replacement", "k_seq"]
_BISECTIONS = 60


@array_dataclass
class ChainVerdict:
    """A round emits ``drafts[chain, :num_accepted]``, then `next_token`; -1 in failed rows."""

    num_accepted_B: jax.Array
    """int32 [B], 0..G."""
    chain_B: jax.Array
    """int32 [B], a chain that holds the accepted tokens; 0 where none was accepted."""
    next_token_B: jax.Array
    """int32 [B]."""

    @property
    def failed_B(self) -> jax.Array:
        """True [B] where the row could not be judged (see `Verdict`)."""
        return self.num_accepted_B < 0


def verify_chains(
    key: jax.Array,
    drafts_BAG: jax.Array,
    draft_probs_BGV: jax.Array,
    target_probs_BAHV: jax.Array,
    *,
    rule: ChainRule = "recursive",
) -> ChainVerdict:
    """Accepts the longest prefix that the rule lets pass in any of A chains, exactly.

    Formula at each slot, with p the target's and q the draft's distribution after the accepted
    prefix:

    - "recursive" (SpecInfer, Miao et al. 2023, arXiv 2305.09781): ``r = p``; each offered token x
      is accepted with probability ``min(1, r(x) / q(x))``, otherwise ``r`` becomes ``(r - q)_+``,
      renormalised; if all are rejected the next token is drawn from ``r``.
    - "recursive_without_replacement": the same for tokens that were drawn without replacement;
      after a rejection x is also removed from q, which is renormalised.
    - "k_seq" (SpecTr, Sun et al. 2023, arXiv 2310.15141): each is accepted with probability
      ``min(1, p / (rho q))``, where rho in [1, k] solves ``1 - (1 - b)^k = rho b`` with
      ``b = sum_v min(q, p / rho)`` and k the chains left; otherwise the next token is drawn from
      ``p - min(q, p / rho) (1 - (1 - b)^k) / b``.

    Limiting case: A = 1 is `verify_token`, for all three.

    Args:
      key: a typed key.
      drafts_BAG: integer ids [B, A, G]. Chains drawn independently from `draft_probs_BGV`; for
        "recursive_without_replacement" the first tokens of a row's chains differ: each is drawn
        from q without the ones before, and what follows them is drawn independently. Where q has
        fewer tokens than there are chains, the first tokens of the others may repeat any of these.
      draft_probs_BGV: q, [B, G, V], the same for all chains (a block drafter's marginals), or
        [B, A, G, V] if each chain has its own.
      target_probs_BAHV: p, [B, A, G + 1, V]; row (a, h) follows the first h tokens of chain a. p
        and q are floats of any width, computed in float32 at least; rows are scaled to sum to one.
      rule: see above.

    Returns:
      `ChainVerdict`. Failed (-1) where a row has a NaN, an infinite or a negative value, a target
      row is all zeros or a drafted id is outside the vocabulary.

    Raises:
      ValueError: shapes or types that do not fit together, or an unknown rule.
    """
    walk = chain_walk(drafts_BAG, draft_probs_BGV, target_probs_BAHV, rule=rule)
    key_coins, key_next = jax.random.split(key)
    uniforms_BGA = fine_uniform(key_coins, walk.shape, walk.dtype)
    end = walk.follow(uniforms_BGA)
    next_token_B = sample_index(key_next, end.next_weights_BV)
    valid_B = walk.valid_B & (next_token_B != INVALID)

    def checked(values_B: jax.Array) -> jax.Array:
        return jnp.where(valid_B, values_B, INVALID).astype(jnp.int32)

    return ChainVerdict(checked(end.num_accepted_B), checked(end.chain_B), checked(next_token_B))


@dataclasses.dataclass(frozen=True)
class WalkEnd:
    """Where a walk with given uniform numbers ends."""

    heads_BGA: jax.Array
    """The probability with which each offered token was accepted; 0 where none was offered."""
    num_accepted_B: jax.Array
    chain_B: jax.Array
    next_weights_BV: jax.Array
    """Of any scale."""


@dataclasses.dataclass(frozen=True)
class ChainWalk:
    """A rule applied to given chains, without its randomness (compare `Law`)."""

    shape: tuple[int, int, int]
    """[B, G, A], of the uniform numbers."""
    dtype: jnp.dtype
    follow: Callable[[jax.Array], WalkEnd]
    """Uniform numbers in [0, 1) -> where they lead. 0 accepts whatever may be accepted."""
    valid_B: jax.Array


def chain_walk(
    drafts_BAG: jax.Array,
    draft_probs_BGV: jax.Array,
    target_probs_BAHV: jax.Array,
    *,
    rule: ChainRule,
) -> ChainWalk:
    """`verify_chains` without its randomness."""
    if rule not in _OFFERS:
        raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(_OFFERS)}.")
    drafts_BAG, q_BAGV, p_BAHV = _check(drafts_BAG, draft_probs_BGV, target_probs_BAHV)
    batch, chains, slots = drafts_BAG.shape
    valid_B = is_distribution(p_BAHV).all(axis=(1, 2))
    q_ok_BAG = jnp.isfinite(q_BAGV.sum(axis=-1)) & (q_BAGV.min(axis=-1) >= 0)
    valid_B &= q_ok_BAG.all(axis=(1, 2))
    valid_B &= known_ids(drafts_BAG, vocabulary=p_BAHV.shape[-1]).all(axis=(1, 2))

    def row(rows_BAIV: jax.Array, alive_BA: jax.Array, slot: int) -> jax.Array:
        """The row of the first chain left: all that are left share their prefix, hence this row."""
        if rows_BAIV.shape[1] == 1:
            rows_BV = rows_BAIV[:, 0, slot]
        else:
            first_B111 = alive_BA.argmax(axis=1)[:, None, None]
            rows_BV = jnp.take_along_axis(rows_BAIV[:, :, slot], first_B111, axis=1)[:, 0]
        total_B1 = rows_BV.sum(axis=1, keepdims=True)
        return jnp.where(total_B1 > 0, rows_BV / jnp.where(total_B1 > 0, total_B1, 1), 0)

    def follow(uniforms_BGA: jax.Array) -> WalkEnd:
        alive_BA = jnp.ones((batch, chains), bool)
        going_B = jnp.ones(batch, bool)
        num_accepted_B = jnp.zeros(batch, jnp.int32)
        chain_B = jnp.zeros(batch, jnp.int32)
        weights_BV = jnp.zeros((batch, p_BAHV.shape[-1]), p_BAHV.dtype)
        heads = []
        for slot in range(slots):
            p_BV = row(p_BAHV, alive_BA, slot)
            offer = Offer(
                tokens_BA=drafts_BAG[:, :, slot],
                offered_BA=alive_BA & going_B[:, None],
                p_BV=p_BV,
                q_BV=row(q_BAGV, alive_BA, slot),
                uniforms_BA=uniforms_BGA[:, slot],
            )
            # Only first tokens are drawn without replacement. Chains that repeat the first one, as
            # they must where q has fewer tokens than there are chains, go on independently.
            is_later = slot > 0 and rule == "recursive_without_replacement"
            judge = _OFFERS["recursive" if is_later else rule]
            heads_BA, taken_BA, rest_BV = judge(offer)
            heads.append(heads_BA)
            accepted_B = taken_BA.any(axis=1)
            token_B1 = jnp.where(taken_BA, offer.tokens_BA, INVALID).max(axis=1, keepdims=True)
            alive_BA = jnp.where(
                accepted_B[:, None], alive_BA & (offer.tokens_BA == token_B1), alive_BA
            )
            chain_B = jnp.where(accepted_B, alive_BA.argmax(axis=1), chain_B).astype(jnp.int32)
            stopped_B1 = (going_B & ~accepted_B)[:, None]
            weights_BV = jnp.where(stopped_B1, with_floor(rest_BV, p_BV), weights_BV)
            going_B &= accepted_B
            num_accepted_B += going_B
        bonus_BV = row(p_BAHV, alive_BA, slots)
        weights_BV = jnp.where(going_B[:, None], bonus_BV, weights_BV)
        shape = (batch, 0, chains)
        heads_BGA = jnp.stack(heads, axis=1) if heads else jnp.zeros(shape, p_BAHV.dtype)
        return WalkEnd(heads_BGA, num_accepted_B, chain_B, weights_BV)

    return ChainWalk((batch, slots, chains), p_BAHV.dtype, follow, valid_B)


@dataclasses.dataclass(frozen=True)
class Offer:
    """The tokens that the chains offer at one slot."""

    tokens_BA: jax.Array
    offered_BA: jax.Array
    p_BV: jax.Array
    q_BV: jax.Array
    uniforms_BA: jax.Array


# Heads [B, A], taken [B, A] (at most one), what is left of the target [B, V].
Outcome = tuple[jax.Array, jax.Array, jax.Array]


def _recursive(offer: Offer, *, replacement: bool = True) -> Outcome:
    rest_BV, q_BV = offer.p_BV, offer.q_BV
    open_B = jnp.ones(len(rest_BV), bool)
    heads, taken = [], []
    for chain in range(offer.tokens_BA.shape[1]):
        token_B1 = offer.tokens_BA[:, chain : chain + 1]
        asked_B = offer.offered_BA[:, chain] & open_B
        ratio_B = capped_ratio(_pick(rest_BV, token_B1), _pick(q_BV, token_B1))[:, 0]
        head_B = jnp.where(asked_B, ratio_B, 0)
        taken_B = asked_B & (offer.uniforms_BA[:, chain] < head_B)
        heads.append(head_B)
        taken.append(taken_B)
        open_B &= ~taken_B
        rejected_B1 = (asked_B & ~taken_B)[:, None]
        rest_BV = jnp.where(rejected_B1, _normalised(rest_BV - q_BV, rest_BV), rest_BV)
        if not replacement:
            here_BV = jnp.arange(q_BV.shape[1]) == token_B1
            q_BV = jnp.where(rejected_B1, _normalised(jnp.where(here_BV, 0, q_BV), q_BV), q_BV)
    return jnp.stack(heads, axis=1), jnp.stack(taken, axis=1), rest_BV


def _without_replacement(offer: Offer) -> Outcome:
    return _recursive(offer, replacement=False)


def _k_seq(offer: Offer) -> Outcome:
    p_BV, q_BV = offer.p_BV, offer.q_BV
    count_B = offer.offered_BA.sum(axis=1).astype(p_BV.dtype)

    def chance(rho_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        one_B = jnp.minimum(q_BV, p_BV / rho_B[:, None]).sum(axis=1)
        return one_B, 1 - (1 - jnp.minimum(one_B, 1)) ** count_B

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds
        middle_B = (low_B + high_B) / 2
        one_B, any_B = chance(middle_B)
        above_B = any_B > middle_B * one_B
        return jnp.where(above_B, middle_B, low_B), jnp.where(above_B, high_B, middle_B)

    bounds = (jnp.ones_like(count_B), jnp.maximum(count_B, 1))
    # The upper end: there the chains' chance is at most what the residual can make up for.
    _, rho_B = jax.lax.fori_loop(0, _BISECTIONS, halve, bounds)
    one_B, any_B = chance(rho_B)
    # The chances do not depend on earlier rejections: all are judged at once, the first that
    # passes is taken.
    ratio_BA = capped_ratio(
        _pick(p_BV, offer.tokens_BA), rho_B[:, None] * _pick(q_BV, offer.tokens_BA)
    )
    passed_BA = offer.offered_BA & (offer.uniforms_BA < ratio_BA)
    asked_BA = offer.offered_BA & (jnp.cumsum(passed_BA, axis=1) - passed_BA == 0)
    scale_B = jnp.where(one_B > 0, any_B / jnp.where(one_B > 0, one_B, 1), 0)
    covered_BV = jnp.minimum(q_BV, p_BV / rho_B[:, None]) * scale_B[:, None]
    heads_BA = jnp.where(asked_BA, ratio_BA, 0)
    return heads_BA, passed_BA & asked_BA, jnp.maximum(p_BV - covered_BV, 0)


_OFFERS: dict[str, Callable[[Offer], Outcome]] = {
    "recursive": _recursive,
    "recursive_without_replacement": _without_replacement,
    "k_seq": _k_seq,
}


def _pick(rows_BV: jax.Array, tokens_BA: jax.Array) -> jax.Array:
    return jnp.take_along_axis(rows_BV, tokens_BA, axis=1, mode="fill", fill_value=0)


def _normalised(weights_BV: jax.Array, otherwise_BV: jax.Array) -> jax.Array:
    """Positive parts scaled to sum to one; `otherwise_BV` where none is left."""
    weights_BV = jnp.maximum(weights_BV, 0)
    total_B1 = weights_BV.sum(axis=1, keepdims=True)
    return jnp.where(total_B1 > 0, weights_BV / jnp.where(total_B1 > 0, total_B1, 1), otherwise_BV)


def check_chains(
    drafts_BAG: jax.Array, target_probs_BAHV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The chains as signed ids, and the target's rows; ValueError for wrong shapes or types."""
    drafts_BAG, p = signed_ids(jnp.asarray(drafts_BAG)), jnp.asarray(target_probs_BAHV)
    if (
        drafts_BAG.ndim != 3
        or drafts_BAG.shape[1] < 1
        or not jnp.issubdtype(drafts_BAG.dtype, jnp.integer)
    ):
        raise ValueError(
            "drafts_BAG must hold integer token ids [B, A, G] of at least one chain, the anchor "
            f"left out: got {drafts_BAG.dtype} {drafts_BAG.shape}."
        )
    batch, chains, slots = drafts_BAG.shape
    if p.ndim != 4 or p.shape[:3] != (batch, chains, slots + 1) or not is_float(p):
        raise ValueError(
            f"target_probs_BAHV must hold floats [{batch}, {chains}, {slots + 1}, V]: got "
            f"{p.dtype} {p.shape}."
        )
    return drafts_BAG, p


def _check(
    drafts_BAG: jax.Array, draft_probs_BGV: jax.Array, target_probs_BAHV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    drafts_BAG, p = check_chains(drafts_BAG, target_probs_BAHV)
    q = jnp.asarray(draft_probs_BGV)
    batch, chains, slots = drafts_BAG.shape
    shapes = ((batch, slots, p.shape[3]), (batch, chains, slots, p.shape[3]))
    if q.shape not in shapes or not is_float(q):
        raise ValueError(
            f"draft_probs_BGV must hold floats of shape {shapes[0]} (or {shapes[1]}): got "
            f"{q.dtype} {q.shape}."
        )
    q_BAGV = q[:, None] if q.ndim == 3 else q
    dtype = at_least_float32(jnp.promote_types(p.dtype, q.dtype))
    return drafts_BAG, q_BAGV.astype(dtype), p.astype(dtype)
