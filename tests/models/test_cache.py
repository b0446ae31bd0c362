"""New slots are written after each row's length, in whichever way a platform writes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.models.cache import KVCache, _put_at_once, _put_in_turn

LAYERS, ROWS, HEADS, CAPACITY, WIDTH = 2, 3, 2, 12, 4


def example(length):
    keys = jax.random.split(jax.random.key(0), 4)
    old = [jax.random.normal(key, (LAYERS, ROWS, HEADS, CAPACITY, WIDTH)) for key in keys[:2]]
    new = [jax.random.normal(key, (LAYERS, ROWS, HEADS, length, WIDTH)) for key in keys[2:]]
    return tuple(old), tuple(new)


@pytest.mark.parametrize("put", [_put_at_once, _put_in_turn])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("length", [1, 5])
def test_each_row_is_written_after_its_length(put, dtype, length):
    old, new = example(length)
    old = jax.tree.map(lambda leaf: leaf.astype(dtype), old)
    lengths = np.array([0, 4, CAPACITY - length])
    expected = [np.array(leaf) for leaf in old]
    for into, values in zip(expected, new, strict=True):
        for row, start in enumerate(lengths):
            into[:, row, :, start : start + length] = np.array(values.astype(dtype))[:, row]
    found = jax.jit(put)(old, new, jnp.asarray(lengths))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert np.array_equal(ours, theirs)


def test_both_ways_agree_on_rows_that_are_full():
    """A row that failed is written one slot further, which may be past its end."""
    old, new = example(5)
    lengths = jnp.array([CAPACITY - 4, CAPACITY, 2])
    at_once, in_turn = (
        jax.jit(_put_at_once)(old, new, lengths),
        jax.jit(_put_in_turn)(old, new, lengths),
    )
    for ours, theirs in zip(at_once, in_turn, strict=True):
        assert np.array_equal(ours, theirs)


def test_the_cache_of_one_row_is_written_too():
    old, new = example(5)
    first = [leaf[:, :1] for leaf in (*old, *new)]
    cache = KVCache(first[0], first[1], jnp.array([3]))
    written = jax.jit(KVCache.write)(cache, first[2], first[3])
    assert np.array_equal(written.keys_LBRTC[..., 3:8, :], first[2])
    assert np.array_equal(written.values_LBRTC[..., 3:8, :], first[3])
    assert np.array_equal(written.keys_LBRTC[..., :3, :], first[0][..., :3, :])
    assert np.array_equal(written.keys_LBRTC[..., 8:, :], first[0][..., 8:, :])
