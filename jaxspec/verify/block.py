"""Block verification: the slots of a block are accepted or rejected jointly.

Dimension key: B batch rows, G drafted slots, H = G + 1 verified rows, V vocabulary.

>>> draft_BG, probs_BHV = jnp.array([[1, 2]]), jnp.full((1, 3, 4), 0.25)
>>> verdict = verify_block(jax.random.key(0), draft_BG, probs_BHV[:, :2], probs_BHV)
>>> verdict.num_accepted_B.tolist()  # Draft and target agree: all are accepted.
[2]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.verify.law import Law, capped_ratio, count_last, with_floor
from jaxspec.verify.rows import check_block
from jaxspec.verify.verdict import Verdict


def verify_block(
    key: jax.Array,
    draft_BG: jax.Array,
    draft_probs_BGV: jax.Array,
    target_probs_BHV: jax.Array,
    *,
    num_drafted_B: jax.Array | None = None,
) -> Verdict:
    """Accepts the longest prefix whose own coin lets it pass.

    Sun et al. 2024, arXiv 2403.10444. With p_0 = 1 and the drafted tokens counted from 1::

        p_i = min(1, p_{i-1} p(x_i | x_<i) / q(x_i | x_<i))
        Z_i = sum_v (p_i p(v | x_<=i) - q(v | x_<=i))_+
        h_i = Z_i / (Z_i + 1 - p_i) for i < G (1 if that is 0 / 0),   h_G = p_G

    Each slot has a coin that shows heads with probability h_i. All coins are thrown, and the last
    heads gives the accepted length n, which is 0 if there is none. The next token is drawn from the
    following slot's ``(p_n p - q)_+``, renormalised, or from p when all were accepted. The emitted
    tokens have the target's distribution, as with `verify_token`, and no other rule of which that
    is true accepts more of the block on average: a token that is likelier under p than under q
    makes up for an earlier one that is not.

    Limiting cases: G = 1 is `verify_token`; q == p accepts everything; a one-hot q accepts as much
    as `verify_point_mass` on average.

    Args:
      key: a typed key (`jax.random.key`).
      draft_BG: integer ids [B, G], x_g drawn from row g of `draft_probs_BGV`.
      draft_probs_BGV: q, [B, G, V].
      target_probs_BHV: p, [B, G + 1, V]; row h follows the first h drafted tokens. Both may be
        float32 or float64; narrower types are computed in float32. Rows are scaled to sum to one.
      num_drafted_B: integers [B], how many leading slots hold a drafted token (G in the formula).
        The other slots, and the rows after them, are not read. None: all slots hold one.

    Returns:
      `Verdict`. Failed (-1) where a row in use has a NaN, an infinite or a negative value, a target
      row is all zeros, or a drafted id is outside the vocabulary. For a drafted token with
      q(x) = 0 the ratio is inf, or 0 if p(x) is 0 too.

    Raises:
      ValueError: shapes or types that do not fit together.
    """
    law = block_law(draft_BG, draft_probs_BGV, target_probs_BHV, num_drafted_B=num_drafted_B)
    return law.draw(key)


def block_law(
    draft_BG: jax.Array,
    draft_probs_BGV: jax.Array,
    target_probs_BHV: jax.Array,
    *,
    num_drafted_B: jax.Array | None = None,
) -> Law:
    """`verify_block` without its randomness."""
    block = check_block(draft_BG, draft_probs_BGV, target_probs_BHV, num_drafted_B=num_drafted_B)
    joint_BH = _joint_ratio(
        block.target.of_tokens(block.tokens_BG), block.draft.of_tokens(block.tokens_BG)
    )
    # excess_BG[:, i] is Z_i; after the last drafted token there is no q to compare with. Each row
    # is scaled by one factor, and the draft's rows are not sliced: there is less to copy.
    slots = block.tokens_BG.shape[1]
    target_factor_BG = (joint_BH * block.target.factors_BI())[:, :slots]
    scaled_BGV = target_factor_BG[..., None] * block.target.weights_BIV[:, :slots]
    scaled_draft_BGV = block.draft.factors_BI()[..., None] * block.draft.weights_BIV
    excess_BG = jnp.maximum(scaled_BGV - scaled_draft_BGV, 0).sum(axis=2)
    # Rows after the last drafted token may hold anything.
    excess_BG = jnp.where(block.drafted_BG, excess_BG, 0)
    excess_after_BG = jnp.pad(excess_BG[:, 1:], ((0, 0), (0, min(slots, 1))))
    joint_BG = joint_BH[:, 1:]
    # In this order an excess that is small compared with 1 still counts where joint is near 1.
    total_BG = excess_after_BG + (1 - joint_BG)
    middle_BG = jnp.where(total_BG > 0, excess_after_BG / jnp.where(total_BG > 0, total_BG, 1), 1)
    has_next_BG = jnp.pad(block.drafted_BG[:, 1:], ((0, 0), (0, min(slots, 1))))
    heads_BG = jnp.where(has_next_BG, middle_BG, joint_BG)

    def next_weights(num_accepted_B: jax.Array) -> jax.Array:
        target_BV = block.target.at(num_accepted_B)
        joint_B1 = jnp.take_along_axis(joint_BH, num_accepted_B[:, None], axis=1)
        # After the last drafted token q reads as zeros, which leaves p: the bonus token.
        return with_floor(
            jnp.maximum(joint_B1 * target_BV - block.draft.at(num_accepted_B), 0), target_BV
        )

    return Law(
        heads_BG=jnp.where(block.drafted_BG, heads_BG, 0),
        count=count_last,
        next_weights=next_weights,
        valid_B=block.valid_B,
    )


def _joint_ratio(target_BG: jax.Array, draft_BG: jax.Array) -> jax.Array:
    """p_0 .. p_G, [B, H]: the capped product of likelihood ratios, capped after each factor."""

    def step(joint_B: jax.Array, slot: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        target_B, draft_B = slot
        joint_B = capped_ratio(joint_B * target_B, draft_B)
        return joint_B, joint_B

    ones_B = jnp.ones(target_BG.shape[0], target_BG.dtype)
    _, joint_GB = jax.lax.scan(step, ones_B, (target_BG.T, draft_BG.T))
    return jnp.concatenate([ones_B[:, None], joint_GB.T], axis=1)
