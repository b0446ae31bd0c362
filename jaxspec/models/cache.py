"""Key/value cache: an argument and a return value of the models, never a hidden collection.

Dimension key: L layers, B batch, R key/value heads, T slots, S new rows, C head width.

Slot t of a row holds the keys and values of absolute position t. Rows are committed up to
`lengths_B`; whatever lies behind is left from rejected drafts and gets overwritten, because the
next pass starts at `lengths_B`. Cutting back is therefore a smaller length, and nothing is copied.

>>> cache = KVCache.create(num_layers=2, num_kv_heads=2, head_dim=8, batch=1, capacity=64)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class KVCache:
    """Keys (normed and rotated) and values of the committed positions."""

    keys_LBRTC: jax.Array
    values_LBRTC: jax.Array
    lengths_B: jax.Array
    """int32 [B], committed rows."""

    @classmethod
    def create(
        cls,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        batch: int,
        capacity: int,
        dtype: jnp.dtype | str = jnp.float32,
    ) -> KVCache:
        """An empty cache of `capacity` slots a row."""
        shape = (num_layers, batch, num_kv_heads, capacity, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch,), jnp.int32))

    @classmethod
    def prefilled(
        cls,
        keys_LBRSC: jax.Array,
        values_LBRSC: jax.Array,
        *,
        capacity: int,
        lengths_B: jax.Array,
    ) -> KVCache:
        """A cache of `capacity` slots with a prompt's rows, of which `lengths_B` are committed."""
        layers, batch, kv_heads, _, width = keys_LBRSC.shape
        cache = cls.create(
            num_layers=layers,
            num_kv_heads=kv_heads,
            head_dim=width,
            batch=batch,
            capacity=capacity,
            dtype=keys_LBRSC.dtype,
        )
        return cache.write(keys_LBRSC, values_LBRSC).advance(lengths_B)

    @property
    def capacity(self) -> int:
        """Slots a row."""
        return self.keys_LBRTC.shape[3]

    def write(self, keys_LBRSC: jax.Array, values_LBRSC: jax.Array) -> KVCache:
        """Puts S new rows behind each row's length, which stays as it is.

        The caller sees to it that lengths + S <= capacity: XLA would clamp the start silently and
        overwrite committed rows.
        """

        # Row by row and in place. One write for all rows (a batched dynamic_update_slice) becomes a
        # scatter, for which XLA turns the whole cache over and back, in every step of a loop.
        def put(row: jax.Array, cached: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            start = (0, row, 0, self.lengths_B[row], 0)

            def one(cache_LBRTC: jax.Array, new_LBRSC: jax.Array) -> jax.Array:
                new_L1RSC = jax.lax.dynamic_slice_in_dim(new_LBRSC, row, 1, axis=1)
                return jax.lax.dynamic_update_slice(
                    cache_LBRTC, new_L1RSC.astype(cache_LBRTC.dtype), start
                )

            return one(cached[0], keys_LBRSC), one(cached[1], values_LBRSC)

        keys_LBRTC, values_LBRTC = jax.lax.fori_loop(
            0, self.lengths_B.shape[0], put, (self.keys_LBRTC, self.values_LBRTC)
        )
        return dataclasses.replace(self, keys_LBRTC=keys_LBRTC, values_LBRTC=values_LBRTC)

    def write_after(
        self, keys_LBRSC: jax.Array, values_LBRSC: jax.Array, *, failed_B: jax.Array
    ) -> KVCache:
        """`write`, once the pass that gave these keys and values, and read this cache, is over.

        The place depends on `failed_B` (which rows' logits were NaN), which is known only when the
        pass has come to its logits. Without a dependency of this kind XLA cannot tell that the pass
        has finished reading when the write begins, and copies the whole cache in every iteration of
        a loop. Rows that failed have ended: one slot further does no harm.
        """
        shifted = self.advance(failed_B.astype(jnp.int32))
        written = shifted.write(keys_LBRSC, values_LBRSC)
        return dataclasses.replace(written, lengths_B=self.lengths_B)

    def advance(self, count_B: jax.Array | int) -> KVCache:
        """Commits `count_B` of the rows written last."""
        return dataclasses.replace(self, lengths_B=self.lengths_B + count_B)

    def committed_BT(self) -> jax.Array:
        """Slots that hold a committed position, bool [B, T]."""
        return jnp.arange(self.capacity) < self.lengths_B[:, None]
