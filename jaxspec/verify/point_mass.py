"""Verification of drafts that were not sampled, or whose distribution is not known.

Dimension key: B batch rows, G drafted slots, H = G + 1 verified rows, V vocabulary.

>>> target_probs_BHV = jax.nn.one_hot(jnp.array([[1, 3, 0]]), 4)
>>> verdict = verify_point_mass(jax.random.key(0), jnp.array([[1, 2]]), target_probs_BHV)
>>> verdict.num_accepted_B.tolist(), verdict.next_token_B.tolist()
([1], [3])
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.ops.sampling import INVALID
from jaxspec.verify.law import Law, count_leading, with_floor
from jaxspec.verify.rows import check_block
from jaxspec.verify.verdict import Verdict


def verify_point_mass(
    key: jax.Array,
    draft_BG: jax.Array,
    target_probs_BHV: jax.Array,
    *,
    num_drafted_B: jax.Array | None = None,
) -> Verdict:
    """Accepts each drafted token x with probability p(x), up to the first rejection.

    The next token is drawn from the rejected slot's p without x, renormalised, or from p after the
    last slot when all were accepted: `verify_token` with q a point mass at x (Leviathan et al.
    2023, arXiv 2211.17192). The emitted tokens have the target's distribution for every
    fixed draft, hence also for one that was sampled or chosen in any way, even by the target's
    own scores, as long as the choice does not know `key`. The price is that a sampled draft is
    accepted with probability ``sum_v p q`` instead of ``sum_v min(p, q)``.

    Limiting case: one-hot target rows give `verify_greedy`.

    Args:
      key: a typed key (`jax.random.key`).
      draft_BG: integer ids [B, G].
      target_probs_BHV: p, [B, G + 1, V], float32 or float64 (narrower types are computed in
        float32); row h follows the first h drafted tokens. Rows are scaled to sum to one.
      num_drafted_B: integers [B], how many leading slots hold a drafted token. The other slots, and
        the rows after them, are not read. None: all slots hold one.

    Returns:
      `Verdict`. Failed (-1) where a row in use has a NaN, an infinite or a negative value or is all
      zeros, or a drafted id is outside the vocabulary.

    Raises:
      ValueError: shapes or types that do not fit together.
    """
    return point_mass_law(draft_BG, target_probs_BHV, num_drafted_B=num_drafted_B).draw(key)


def point_mass_law(
    draft_BG: jax.Array,
    target_probs_BHV: jax.Array,
    *,
    num_drafted_B: jax.Array | None = None,
) -> Law:
    """`verify_point_mass` without its randomness."""
    block = check_block(draft_BG, None, target_probs_BHV, num_drafted_B=num_drafted_B)
    # After the last drafted token no id is excluded, which leaves p: the bonus token.
    excluded_BH = jnp.pad(
        jnp.where(block.drafted_BG, block.tokens_BG, INVALID),
        ((0, 0), (0, 1)),
        constant_values=INVALID,
    )

    def next_weights(num_accepted_B: jax.Array) -> jax.Array:
        target_BV = block.target.at(num_accepted_B)
        excluded_B1 = jnp.take_along_axis(excluded_BH, num_accepted_B[:, None], axis=1)
        return with_floor(
            jnp.where(jnp.arange(target_BV.shape[1]) == excluded_B1, 0, target_BV), target_BV
        )

    return Law(
        heads_BG=jnp.where(block.drafted_BG, block.target.of_tokens(block.tokens_BG), 0),
        count=count_leading,
        next_weights=next_weights,
        valid_B=block.valid_B,
    )
