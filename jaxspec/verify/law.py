"""What the sampled rules share: everything that is settled before a random number is drawn.

A rule turns a drafted block into a `Law`: the chance that the coin of each slot shows heads, how
the accepted length follows from the coins, and the distribution of the next token for each length.
`Law.draw` then throws the coins. Tests enumerate a law's coins and next tokens instead, which gives
the exact distribution of the code that users run.

Dimension key: B batch rows, G drafted slots, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxspec.ops.sampling import INVALID, fine_uniform, sample_index
from jaxspec.verify.verdict import Verdict

# Too small to change a weight that is not itself a rounding error, and large enough for the
# target's likeliest token (at least 1 / V) to stay a normal float32.
_FLOOR = 1e-30


@dataclasses.dataclass(frozen=True)
class Law:
    """A rule applied to given drafts and distributions, with the randomness left out."""

    heads_BG: jax.Array
    """The chance that the slot's coin shows heads; 0 in slots that hold no drafted token."""
    count: Callable[[jax.Array], jax.Array]
    """coins_BG (bool) -> accepted length, int32 [B]: `count_leading` or `count_last`."""
    next_weights: Callable[[jax.Array], jax.Array]
    """Accepted length [B] -> weights of the next token [B, V], of any scale. A function, so that
    only the row in use is computed: all of them would be as large as the logits."""
    valid_B: jax.Array
    """False where the row's input cannot be judged."""

    def num_accepted_B(self, uniforms_BG: jax.Array) -> jax.Array:
        """The accepted length, int32 [B], for given uniform numbers in [0, 1).

        Heads is a strictly smaller number, so that 0 never accepts what has probability 0, and
        numbers below 1 always accept what has probability 1.
        """
        return self.count(uniforms_BG < self.heads_BG)

    def draw(self, key: jax.Array) -> Verdict:
        """Throws the coins and draws the next token."""
        key_coins, key_next = jax.random.split(key)
        uniforms_BG = fine_uniform(key_coins, self.heads_BG.shape, self.heads_BG.dtype)
        num_accepted_B = self.num_accepted_B(uniforms_BG)
        next_token_B = sample_index(key_next, self.next_weights(num_accepted_B))
        return Verdict.create(
            num_accepted_B, next_token_B, valid_B=self.valid_B & (next_token_B != INVALID)
        )


def count_leading(coins_BG: jax.Array) -> jax.Array:
    """Heads before the first tails, int32 [B]."""
    return jnp.cumprod(coins_BG.astype(jnp.int32), axis=1).sum(axis=1, dtype=jnp.int32)


def count_last(coins_BG: jax.Array) -> jax.Array:
    """Slots up to and including the last heads, int32 [B]; 0 where there is none."""
    length_G = jnp.arange(1, coins_BG.shape[1] + 1, dtype=jnp.int32)
    return jnp.where(coins_BG, length_G, 0).max(axis=1, initial=0)


def capped_ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """min(1, numerator / denominator), elementwise, for values >= 0.

    Exactly 1 for equal positive values, also on hardware whose division is approximate. A
    denominator of 0 gives the limit: 1 for a positive numerator and 0 for 0.
    """
    below = numerator < denominator
    quotient = numerator / jnp.where(below, denominator, 1)
    return jnp.where(below, quotient, (numerator > 0).astype(quotient.dtype))


def with_floor(weights_BV: jax.Array, target_BV: jax.Array) -> jax.Array:
    """Weights [B, V] of the next token plus a tiny multiple of the target's row: never all 0.

    What the draft leaves of the target is 0 everywhere only where the rule is sure to accept, so
    only rounding errors lead to a row of zeros, and then the target's row replaces it. It is added,
    not selected where the weights sum to 0: the compiler may compute the sum separately from the
    weights, with different rounding, and the two would then disagree about what is 0.
    """
    return weights_BV + _FLOOR * target_BV
