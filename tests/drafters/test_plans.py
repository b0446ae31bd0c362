"""Plans of denoising by hand, and what filling leaves alone or refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.config import DiTConfig
from jaxspec.drafters.denoising import (
    RULES,
    ancestral_plan,
    fill,
    first_hitting_plan,
    left_to_right_plan,
)
from jaxspec.losses import subs_log_probs
from jaxspec.models.dit import DiT
from jaxspec.ops.sampling import Sampling
from tests.drafters.test_denoising import (
    MASK,
    PLAN_LAWS,
    SYMBOLS,
    WORDS,
    denoiser,
    make_plan,
    random_table,
)

filled_by = jax.jit(fill, static_argnums=0, static_argnames=("mask_id", "sampling", "rule"))
first_hitting = jax.jit(first_hitting_plan, static_argnames="num_passes")
left_to_right = jax.jit(left_to_right_plan, static_argnames="num_passes")
planned = jax.jit(make_plan, static_argnums=(0, 3))


def test_clamped_slots_stay_and_are_certain():
    tokens = jnp.array([[1, MASK, 2, MASK], [MASK, 0, MASK, MASK]])
    keys = jax.random.split(jax.random.key(0), 2)
    denoise = denoiser(random_table(0, 4).astype("f4"))
    for sampler in PLAN_LAWS:
        plan = planned(sampler, keys, tokens == MASK, 2)
        filled = filled_by(denoise, tokens, plan, keys, mask_id=MASK, sampling=Sampling(1.0))
        kept = np.asarray(tokens) != MASK
        np.testing.assert_array_equal(filled.tokens_BG[kept], tokens[kept])
        np.testing.assert_array_equal(filled.probs_BGV[kept], np.eye(SYMBOLS)[tokens[kept]])
        assert (filled.tokens_BG < WORDS).all() and (filled.tokens_BG >= 0).all()


def test_left_to_right_shares_differ_by_one_slot_at_most():
    masked = jnp.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
    plan = left_to_right(masked, num_passes=2)
    assert plan.passes_BG[0].tolist() == [0, 0, 0, 1, 1]
    assert plan.passes_BG[1, jnp.array([1, 3, 4])].tolist() == [0, 0, 1]
    np.testing.assert_allclose(plan.times_BO[:2], [[1, 0.4], [1, 1 / 3]], rtol=1e-6)
    assert left_to_right(masked).passes_BG[0].tolist() == [0, 1, 2, 3, 4]


def test_first_hitting_times_are_those_of_the_continuous_process():
    """With n slots masked the next one is hit at t u^(1/n): the first time has mean n / (n + 1)."""
    masked = jnp.ones((20_000, 3), bool)
    plan = first_hitting(jax.random.split(jax.random.key(0), 20_000), masked)
    times = np.asarray(plan.times_BO)
    assert (np.diff(times, axis=1) <= 0).all() and (times > 0).all() and (times <= 1).all()
    # The three times are the order statistics of three uniform numbers.
    np.testing.assert_allclose(times.mean(0), [3 / 4, 2 / 4, 1 / 4], atol=0.01)
    plan = first_hitting(
        jax.random.split(jax.random.key(0), 1), jnp.array([[True, False, True]]), num_passes=2
    )
    assert sorted(plan.passes_BG[0, jnp.array([0, 2])].tolist()) == [0, 1]


def test_times_reach_the_denoiser():
    seen = []

    def denoise(tokens, times):
        jax.debug.callback(lambda t: seen.append(float(t[0])), times)
        return jnp.zeros((*tokens.shape, SYMBOLS)).at[..., MASK].set(-jnp.inf)

    tokens = jnp.full((1, 4), MASK)
    plan = left_to_right(tokens == MASK)
    keys = jax.random.split(jax.random.key(0), 1)
    filled_by(denoise, tokens, plan, keys, mask_id=MASK, sampling=Sampling(1.0))
    jax.effects_barrier()
    assert sorted(seen, reverse=True) == [1.0, 0.75, 0.5, 0.25]


def test_greedy_drafts_are_one_hot_under_every_rule():
    tokens = jnp.full((1, 3), MASK)
    keys = jax.random.split(jax.random.key(0), 1)
    denoise = denoiser(random_table(0, 3).astype("f4"))
    plan = first_hitting(keys, tokens == MASK)
    for rule in RULES:
        filled = filled_by(
            denoise, tokens, plan, keys, mask_id=MASK, sampling=Sampling(0.0), rule=rule
        )
        if rule == "point_mass":
            assert filled.probs_BGV is None
        else:
            expected = jax.nn.one_hot(filled.tokens_BG, SYMBOLS)
            np.testing.assert_array_equal(filled.probs_BGV, expected)


def test_a_denoiser_without_a_distribution_is_noticed():
    def denoise(tokens, times):
        return jnp.full((*tokens.shape, SYMBOLS), jnp.nan)

    tokens = jnp.full((1, 2), MASK)
    keys = jax.random.split(jax.random.key(0), 1)
    plan = left_to_right(tokens == MASK, num_passes=1)
    filled = filled_by(denoise, tokens, plan, keys, mask_id=MASK, sampling=Sampling(1.0))
    assert filled.tokens_BG.tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    "plan",
    [
        lambda keys, masked: ancestral_plan(keys, masked, num_passes=0),
        lambda keys, masked: first_hitting_plan(keys, masked, num_passes=-1),
        lambda keys, masked: left_to_right_plan(masked, num_passes=0),
    ],
)
def test_plans_need_a_pass(plan):
    with pytest.raises(ValueError, match="num_passes"):
        plan(jax.random.split(jax.random.key(0), 1), jnp.ones((1, 2), bool))


def test_a_plan_for_other_slots_is_refused():
    tokens = jnp.full((1, 3), MASK)
    keys = jax.random.split(jax.random.key(0), 1)
    with pytest.raises(ValueError, match="The plan is for"):
        fill(
            denoiser(random_table(0, 3)), tokens, left_to_right_plan(jnp.ones((1, 2), bool)), keys,
            mask_id=MASK, sampling=Sampling(1.0),
        )  # fmt: skip


def test_a_dit_drafts_behind_a_clamped_prefix():
    model = DiT(DiTConfig(vocab_size=9, hidden_size=16, num_layers=1, num_heads=2))
    prefix = np.array([[1, 2, 3, 4]])
    tokens = np.concatenate([prefix, np.full((1, 3), 8)], axis=1)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype("f4"), params)

    @jax.jit
    def draft(params, keys):
        def denoise(slots_BG, times_B):
            row = jnp.concatenate([prefix, slots_BG], axis=1)
            rows_BI = 4 + jnp.arange(3)[None]
            output = model.apply({"params": params}, row, rows_BI=rows_BI)
            return subs_log_probs(output.logits_BSV, slots_BG, mask_id=8)

        slots = jnp.asarray(tokens[:, 4:])
        plan = first_hitting_plan(keys, slots == 8, num_passes=2)
        return fill(denoise, slots, plan, keys, mask_id=8, sampling=Sampling(1.0))

    filled = jax.device_get(draft(params, jax.random.split(jax.random.key(0), 1)))
    assert filled.probs_BGV.shape == (1, 3, 9) and int(filled.num_passes) == 2
    assert not filled.probs_BGV[..., 8].any() and (filled.tokens_BG < 8).all()
    np.testing.assert_allclose(filled.probs_BGV.sum(-1), 1, atol=1e-5)
