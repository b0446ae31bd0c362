"""Token verification: the rejection rule of speculative sampling.

Dimension key: B batch rows, G drafted slots, H = G + 1 verified rows, V vocabulary.

>>> draft_BG, probs_BHV = jnp.array([[1, 2]]), jnp.full((1, 3, 4), 0.25)
>>> verdict = verify_token(jax.random.key(0), draft_BG, probs_BHV[:, :2], probs_BHV)
>>> verdict.num_accepted_B.tolist()  # Draft and target agree: all are accepted.
[2]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.verify.law import Law, capped_ratio, count_leading, with_floor
from jaxspec.verify.rows import check_block
from jaxspec.verify.verdict import Verdict


def verify_token(
    key: jax.Array,
    draft_BG: jax.Array,
    draft_probs_BGV: jax.Array,
    target_probs_BHV: jax.Array,
    *,
    num_drafted_B: jax.Array | None = None,
) -> Verdict:
    """Accepts each drafted token x with probability min(1, p(x) / q(x)), up to the first rejection.

    The next token is drawn from the rejected slot's ``(p - q)_+``, renormalised, or from p after
    the last slot when all were accepted. The emitted tokens then have the target's own
    distribution, if x was drawn from q: whatever shaped the samples (temperature, top-k, number
    format) must have shaped q too. Leviathan et al. 2023 (arXiv 2211.17192), Chen et al. 2023
    (arXiv 2302.01318).

    Limiting cases: q == p accepts everything; where slots are independent a token is accepted with
    probability ``sum_v min(p, q)``; a one-hot q gives `verify_point_mass`; G = 0 samples p.

    Args:
      key: a typed key (`jax.random.key`).
      draft_BG: integer ids [B, G], x_g drawn from row g of `draft_probs_BGV`.
      draft_probs_BGV: q, [B, G, V].
      target_probs_BHV: p, [B, G + 1, V]; row h follows the first h drafted tokens. Both may be
        float32 or float64; narrower types are computed in float32. Rows are scaled to sum to one.
      num_drafted_B: integers [B], how many leading slots hold a drafted token. The other slots, and
        the rows after them, are not read. None: all slots hold one.

    Returns:
      `Verdict`. Failed (-1) where a row in use has a NaN, an infinite or a negative value, a target
      row is all zeros, or a drafted id is outside the vocabulary. A drafted token with q(x) = 0,
      which q can have drawn only if it underflowed, is accepted if p(x) > 0.

    Raises:
      ValueError: shapes or types that do not fit together.
    """
    law = token_law(draft_BG, draft_probs_BGV, target_probs_BHV, num_drafted_B=num_drafted_B)
    return law.draw(key)


def token_law(
    draft_BG: jax.Array,
    draft_probs_BGV: jax.Array,
    target_probs_BHV: jax.Array,
    *,
    num_drafted_B: jax.Array | None = None,
) -> Law:
    """`verify_token` without its randomness."""
    block = check_block(draft_BG, draft_probs_BGV, target_probs_BHV, num_drafted_B=num_drafted_B)
    heads_BG = capped_ratio(
        block.target.of_tokens(block.tokens_BG), block.draft.of_tokens(block.tokens_BG)
    )

    def next_weights(num_accepted_B: jax.Array) -> jax.Array:
        # After the last drafted token q reads as zeros, which leaves p: the bonus token.
        target_BV = block.target.at(num_accepted_B)
        return with_floor(jnp.maximum(target_BV - block.draft.at(num_accepted_B), 0), target_BV)

    return Law(
        heads_BG=jnp.where(block.drafted_BG, heads_BG, 0),
        count=count_leading,
        next_weights=next_weights,
        valid_B=block.valid_B,
    )
