"""The schedule, the laws of times and masks, and which tokens may be masked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxspec.ops.noise import (
    SMALLEST_PROBABILITY,
    SMALLEST_TIME,
    LogLinearSchedule,
    antithetic_times,
    corrupt,
    maskable_tokens,
    masking_probabilities,
    token_times,
)

MASK = 3
RELEASED = LogLinearSchedule()


def test_schedule():
    times = np.linspace(0.01, 0.99, 7)
    with jax.enable_x64(True):
        sigma, rate = RELEASED.sigma(times), RELEASED.sigma_rate(times)
        np.testing.assert_allclose(1 - np.exp(-sigma), 0.999 * times, rtol=1e-12)
        np.testing.assert_allclose(rate / np.expm1(sigma), RELEASED.weight(times), rtol=1e-12)
        derivative = jax.vmap(jax.grad(RELEASED.sigma))(jnp.asarray(times))
        np.testing.assert_allclose(rate, derivative, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1,), (8,), (4, 8)])
def test_times_cover_every_stratum_once(shape):
    times = antithetic_times(jax.random.key(3), shape)
    assert times.shape == shape and times.dtype == jnp.float32
    size = int(np.prod(shape))
    even = (np.sort(np.asarray(times).ravel()) - SMALLEST_TIME) / (1 - SMALLEST_TIME)
    assert (np.floor(even * size + 1e-4).astype(int) == np.arange(size)).all()


def test_every_time_by_itself_is_uniform():
    """In the released order, block n of one row would stay in its own part of [0, 1]."""
    keys = jax.random.split(jax.random.key(0), 4000)
    times = np.asarray(jax.vmap(lambda key: antithetic_times(key, (1, 4)))(keys))[:, 0]
    even = (times - SMALLEST_TIME) / (1 - SMALLEST_TIME)
    for block in range(4):
        assert scipy.stats.kstest(even[:, block], "uniform").pvalue > 1e-9
    assert even.std(1).mean() > np.random.default_rng(0).random((4000, 4)).std(1).mean()


def test_token_times():
    assert token_times(jnp.array([0.5, 1.0]), length=2).tolist() == [[0.5, 0.5], [1.0, 1.0]]
    assert token_times(jnp.array([[0.5, 1.0]]), length=4).tolist() == [[0.5, 0.5, 1.0, 1.0]]
    with pytest.raises(ValueError, match="blocks of equal size"):
        token_times(jnp.ones((1, 3)), length=4)


def test_corruption():
    tokens = jnp.zeros((20_000, 4), jnp.int32)
    chance = jnp.array([0.0, 0.3, 0.8, 1.0])
    noisy = corrupt(jax.random.key(0), tokens, chance, mask_id=MASK)
    assert (noisy.tokens_BS == jnp.where(noisy.masked_BS, MASK, 0)).all()
    masked = np.asarray(noisy.masked_BS)
    assert not masked[:, 0].any() and masked[:, 3].all()
    for slot in (1, 2):
        count = masked[:, slot].sum()
        assert scipy.stats.binomtest(int(count), 20_000, float(chance[slot])).pvalue > 1e-9
    joint = (masked[:, 1] & masked[:, 2]).sum()
    assert scipy.stats.binomtest(int(joint), 20_000, 0.24).pvalue > 1e-9


def test_a_mask_that_does_not_fit_into_the_type_of_the_ids():
    noisy = corrupt(jax.random.key(0), jnp.zeros((1, 2), jnp.uint8), jnp.ones((1, 2)), mask_id=256)
    assert noisy.tokens_BS.tolist() == [[256, 256]]


def test_prefix_and_suffix_are_kept():
    attended = jnp.array([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]], bool)
    tokens = jnp.ones((2, 6), jnp.int32)

    def masked(**options):
        maskable = maskable_tokens(attended, **options)
        return corrupt(
            jax.random.key(1), tokens, jnp.ones(()), mask_id=MASK, maskable_BS=maskable
        ).masked_BS.astype(int)

    assert masked().tolist() == attended.astype(int).tolist()
    behind = masked(prefix_lengths_B=jnp.array([2, 4]))
    assert behind.tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
    last = masked(suffix=2)
    assert last.tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]
    both = masked(prefix_lengths_B=jnp.array([4, 0]), suffix=2)
    assert both.tolist() == [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]]
    with pytest.raises(ValueError, match="at least 1"):
        maskable_tokens(attended, suffix=0)


def test_probabilities_and_the_share_of_masks():
    p_B = masking_probabilities(jax.random.key(0), (4000,))
    assert p_B.min() >= SMALLEST_PROBABILITY and p_B.max() <= 1
    assert p_B.mean() == pytest.approx(0.5, abs=0.02)
    noisy = corrupt(
        jax.random.key(1),
        jnp.zeros((4000, 8), jnp.int32),
        p_B[:, None],
        mask_id=MASK,
        maskable_BS=jnp.broadcast_to(jnp.arange(8) >= 5, (4000, 8)),
    )
    assert not noisy.masked_BS[:, :5].any(), "a prompt is never masked"
    assert noisy.masked_BS[:, 5:].mean() == pytest.approx(0.5, abs=0.02)
    # In expectation every token has weight 1, whatever its sequence's p.
    weights = jnp.where(noisy.masked_BS[:, 5:], 1 / p_B[:, None], 0)
    assert weights.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LogLinearSchedule(eps=1.0), "eps"),
        (lambda: antithetic_times(jax.random.key(0), (2,), smallest=0.0), "smallest"),
        (lambda: masking_probabilities(jax.random.key(0), (2,), smallest=0.0), "smallest"),
    ],
)
def test_settings_outside_their_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()
