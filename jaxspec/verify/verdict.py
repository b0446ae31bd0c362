"""What verification says about a drafted block.

Dimension key: B batch rows, G drafted slots, H = G + 1 verified rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.sampling import INVALID


@array_dataclass
class Verdict:
    """A round emits ``draft[:num_accepted]``, then `next_token`.

    A row that could not be judged holds `INVALID` (-1) in both fields: its drafted slots had NaN,
    infinite or negative probabilities, a target row that is all zeros, or a drafted id outside the
    vocabulary. Traced code cannot raise, so whoever reads the result must check `failed_B` and
    raise with the prompt's name; no token is invented for the row.
    """

    num_accepted_B: jax.Array
    """int32 [B], 0..G drafted tokens accepted; -1 where the row failed."""
    next_token_B: jax.Array
    """int32 [B], the correction after a rejection, or the bonus token when all were accepted; -1
    where the row failed."""

    @classmethod
    def create(
        cls, num_accepted_B: jax.Array, next_token_B: jax.Array, *, valid_B: jax.Array
    ) -> Verdict:
        """Both fields as int32, with `INVALID` in rows that are not valid."""
        return cls(
            jnp.where(valid_B, num_accepted_B, INVALID).astype(jnp.int32),
            jnp.where(valid_B, next_token_B, INVALID).astype(jnp.int32),
        )

    @property
    def failed_B(self) -> jax.Array:
        """True [B] where the row could not be judged."""
        return self.num_accepted_B < 0

    def emitted_BH(self, draft_BG: jax.Array, *, fill: int = INVALID) -> jax.Array:
        """The round's tokens, int32 [B, H]; `fill` after the ``num_accepted + 1`` real ones.

        >>> Verdict(jnp.array([1]), jnp.array([9])).emitted_BH(jnp.array([[4, 5, 6]]))
        Array([[ 4,  9, -1, -1]], dtype=int32)
        """
        padded_BH = jnp.pad(draft_BG.astype(jnp.int32), ((0, 0), (0, 1)))
        slot_H = jnp.arange(padded_BH.shape[1])
        count_B1 = self.num_accepted_B[:, None]
        tail_BH = jnp.where(slot_H == count_B1, self.next_token_B[:, None], fill)
        return jnp.where(slot_H < count_B1, padded_BH, tail_BH)
