"""Verification of the chain that the target scores highest.

Dimension key: B batch rows, A sampled chains, G drafted slots, H = G + 1 verified rows,
V vocabulary.

>>> drafts_BAG = jnp.array([[[0], [1]]])
>>> target_probs_BAHV = jnp.array([[[[0.0, 1.0], [1.0, 0.0]]] * 2])
>>> verify_self_selection(jax.random.key(0), drafts_BAG, target_probs_BAHV).chain_B.tolist()
[1]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.ops.sampling import INVALID
from jaxspec.verify.chains import ChainVerdict, check_chains
from jaxspec.verify.point_mass import verify_point_mass


def verify_self_selection(
    key: jax.Array, drafts_BAG: jax.Array, target_probs_BAHV: jax.Array
) -> ChainVerdict:
    """Chooses one chain by the target's own probabilities and judges it as a point mass.

    Formula: the chain x with the largest ``sum_m prod_{j <= m} p(x_j)``, the length that the target
    expects to accept of it, goes to `verify_point_mass`. That is exact because the choice does not
    look at the draws that judge it; a rule for a sampled chain would not be. A walk by the target's
    own draws ("tree") never accepts less of the same chains on average.

    Limiting case: one chain is `verify_point_mass`.

    Args:
      key: a typed key.
      drafts_BAG: integer ids [B, A, G].
      target_probs_BAHV: p, [B, A, G + 1, V]; row (a, h) follows the first h tokens of chain a. Rows
        sum to one.

    Returns:
      `ChainVerdict`, failed (-1) where `verify_point_mass` is.

    Raises:
      ValueError: shapes or types that do not fit together.

    Source: SpecDiff-2, arXiv 2511.00606.
    """
    drafts_BAG, target_probs_BAHV = check_chains(drafts_BAG, target_probs_BAHV)
    probs_BAG = jnp.take_along_axis(
        target_probs_BAHV[:, :, :-1], drafts_BAG[..., None], axis=-1, mode="fill", fill_value=0
    )[..., 0]
    best_B = jnp.cumprod(probs_BAG, axis=-1).sum(axis=-1).argmax(axis=-1).astype(jnp.int32)
    rows_B = jnp.arange(drafts_BAG.shape[0])
    verdict = verify_point_mass(key, drafts_BAG[rows_B, best_B], target_probs_BAHV[rows_B, best_B])
    chain_B = jnp.where(verdict.failed_B, INVALID, best_B)
    return ChainVerdict(verdict.num_accepted_B, chain_B, verdict.next_token_B)
