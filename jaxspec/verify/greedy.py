"""Greedy verification: the output is the target's own greedy output.

Dimension key: B batch rows, G drafted slots, H = G + 1 verified rows, V vocabulary.

>>> target_logits_BHV = jax.nn.one_hot(jnp.array([[1, 3, 0]]), 4)
>>> verdict = verify_greedy(jnp.array([[1, 2]]), target_logits_BHV)
>>> verdict.num_accepted_B.tolist(), verdict.next_token_B.tolist()
([1], [3])
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.ops.sampling import INVALID, largest_index, signed_ids
from jaxspec.verify.law import count_leading
from jaxspec.verify.rows import check_draft, known_ids, needed_rows
from jaxspec.verify.verdict import Verdict


def verify_greedy(
    draft_BG: jax.Array,
    target_logits_BHV: jax.Array,
    *,
    num_drafted_B: jax.Array | None = None,
) -> Verdict:
    """Accepts the longest drafted prefix that the target's argmax would have produced.

    ``a_h = argmax_v logits[h, v]``, the first of equal ones; ``num_accepted`` is the largest n with
    x_1 = a_0, ..., x_n = a_{n-1} (tokens counted from 1), and the next token is ``a_n``.
    It is the limit at temperature 0 of every other rule. Blockwise parallel decoding (Stern et al.
    2018, arXiv 1811.03115) verifies this way.

    Args:
      draft_BG: integer ids [B, G]; G may be 0, which is plain greedy decoding.
      target_logits_BHV: floats of any width [B, G + 1, V]; row h follows the first h drafted
        tokens. -inf excludes a token. Probabilities will do too.
      num_drafted_B: integers [B], how many leading slots hold a drafted token. The other slots, and
        the rows after them, are not read. None: all slots hold one.

    Returns:
      `Verdict`. Failed (-1) where a row in use has a NaN, +inf or nothing but -inf, or a drafted id
      is outside the vocabulary.

    Raises:
      ValueError: shapes or types that do not fit together.
    """
    draft_BG = signed_ids(jnp.asarray(draft_BG))
    target_logits_BHV = jnp.asarray(target_logits_BHV)
    drafted_BG = check_draft(
        draft_BG, target_logits_BHV, name="target_logits_BHV", num_drafted_B=num_drafted_B
    )
    best_BH = largest_index(target_logits_BHV)
    num_accepted_B = count_leading((draft_BG == best_BH[:, :-1]) & drafted_BG)
    next_token_B = jnp.take_along_axis(best_BH, num_accepted_B[:, None], axis=1)[:, 0]
    rows_ok_BH = (best_BH != INVALID) | ~needed_rows(drafted_BG)
    ids_ok_BG = known_ids(draft_BG, vocabulary=target_logits_BHV.shape[2]) | ~drafted_BG
    valid_B = rows_ok_BH.all(axis=1) & ids_ok_BG.all(axis=1)
    return Verdict.create(num_accepted_B, next_token_B, valid_B=valid_B)
