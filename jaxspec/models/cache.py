"""Key/value cache: an argument and a return value of the models, never a hidden collection.

Dimension key: L layers, B batch rows, R key/value heads, T cache slots, S tokens of a pass, C head
width.

Slot t of a row holds the keys and values of absolute position t. Slots below `lengths_B` are
committed; later ones are left over from rejected drafts and get overwritten, because the next pass
starts at `lengths_B`. Cutting back therefore means a smaller length, and nothing is copied.

>>> cache = KVCache.create(num_layers=2, num_kv_heads=2, head_dim=8, batch=1, capacity=64)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxspec.ops.array_dataclass import array_dataclass
from jaxspec.ops.mesh_axes import head_axis, is_spread, row_axes


@array_dataclass
class KVCache:
    """Keys (normed and rotated) and values of the committed positions."""

    keys_LBRTC: jax.Array
    values_LBRTC: jax.Array
    lengths_B: jax.Array
    """int32 [B], committed slots."""

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
        """An empty cache of `capacity` slots per row."""
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
        """A cache of `capacity` slots with a prompt's keys, of which `lengths_B` are committed."""
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
        """Slots per row."""
        return self.keys_LBRTC.shape[3]

    @property
    def spec(self) -> PartitionSpec:
        """How keys and values are split over the mesh (`jaxspec.ops.mesh_axes`)."""
        _, batch, kv_heads, _, _ = self.keys_LBRTC.shape
        return PartitionSpec(None, row_axes(batch), head_axis(kv_heads), None, None)

    def write(self, keys_LBRSC: jax.Array, values_LBRSC: jax.Array) -> KVCache:
        """Puts S new slots after each row's length, which stays as it is.

        The caller makes sure that lengths + S <= capacity: XLA would silently clamp the start and
        overwrite committed slots.
        """
        written = (self.keys_LBRTC, self.values_LBRTC), (keys_LBRSC, values_LBRSC), self.lengths_B
        put = _put_rows
        if is_spread():
            # Each device writes its own rows and heads. Left to the compiler, it would fetch the
            # whole cache to find the row.
            put = jax.shard_map(
                _put_rows,
                in_specs=(self.spec, self.spec, PartitionSpec(self.spec[1])),
                out_specs=self.spec,
            )
        keys_LBRTC, values_LBRTC = put(*written)
        return dataclasses.replace(self, keys_LBRTC=keys_LBRTC, values_LBRTC=values_LBRTC)

    def write_after(
        self, keys_LBRSC: jax.Array, values_LBRSC: jax.Array, *, failed_B: jax.Array
    ) -> KVCache:
        """`write`, once the pass that read this cache and gave these keys and values is over.

        Where it writes depends on `failed_B` (which rows' logits were NaN), known only when the
        pass has computed its logits. Without such a dependency XLA cannot tell that the pass has
        finished reading when the write begins, and copies the whole cache in every iteration of a
        loop. Rows that failed have ended, so writing one slot further does no harm.
        """
        shifted = self.advance(failed_B.astype(jnp.int32))
        written = shifted.write(keys_LBRSC, values_LBRSC)
        return dataclasses.replace(written, lengths_B=self.lengths_B)

    def advance(self, count_B: jax.Array | int) -> KVCache:
        """Commits the first `count_B` of the slots written last."""
        return dataclasses.replace(self, lengths_B=self.lengths_B + count_B)

    def committed_BT(self) -> jax.Array:
        """Slots that hold a committed position, bool [B, T]."""
        return jnp.arange(self.capacity) < self.lengths_B[:, None]


Pair = tuple[jax.Array, jax.Array]


def _put_rows(cached: Pair, new: Pair, lengths_B: jax.Array) -> Pair:
    """Keys and values [L, B, R, T, C] with new ones [L, B, R, S, C] after each row's length."""
    if lengths_B.shape[0] == 1:
        return _put_in_turn(cached, new, lengths_B)
    written: Pair = jax.lax.platform_dependent(
        cached, new, lengths_B, cuda=_put_at_once, rocm=_put_at_once, default=_put_in_turn
    )
    return written


def _put_in_turn(cached: Pair, new: Pair, lengths_B: jax.Array) -> Pair:
    """Row by row and in place.

    A batched `dynamic_update_slice` becomes a scatter along axes B and T, for which XLA transposes
    the whole cache and back, in every step of a loop.
    """

    def put(row: jax.Array, cached: Pair) -> Pair:
        start = (0, row, 0, lengths_B[row], 0)

        def one(cache_LBRTC: jax.Array, new_LBRSC: jax.Array) -> jax.Array:
            new_L1RSC = jax.lax.dynamic_slice_in_dim(new_LBRSC, row, 1, axis=1)
            return jax.lax.dynamic_update_slice(
                cache_LBRTC, new_L1RSC.astype(cache_LBRTC.dtype), start
            )

        return one(cached[0], new[0]), one(cached[1], new[1])

    return jax.lax.fori_loop(0, lengths_B.shape[0], put, cached)


def _put_at_once(cached: Pair, new: Pair, lengths_B: jax.Array) -> Pair:
    """All rows in one kernel and in place; in a loop, a GPU would wait for the host in every turn.

    The scatter goes along one leading axis of all slots, for which nothing is transposed.
    """
    layers, batch, heads, capacity, width = cached[0].shape
    length = new[0].shape[3]
    # Beyond the end, `dynamic_update_slice` starts at the last slot that leaves room.
    start_B = jnp.minimum(lengths_B, capacity - length)
    rows_LBR = jnp.arange(layers * batch * heads).reshape(layers, batch, heads)
    slots_LBRS = (rows_LBR * capacity + start_B[:, None])[..., None] + jnp.arange(length)

    def one(cache_LBRTC: jax.Array, new_LBRSC: jax.Array) -> jax.Array:
        flat = cache_LBRTC.reshape(-1, width)
        flat = flat.at[slots_LBRS.reshape(-1)].set(
            new_LBRSC.reshape(-1, width).astype(flat.dtype),
            indices_are_sorted=True,
            unique_indices=True,
            mode="promise_in_bounds",
        )
        return flat.reshape(cache_LBRTC.shape)

    return one(cached[0], new[0]), one(cached[1], new[1])
