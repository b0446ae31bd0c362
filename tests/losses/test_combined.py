import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxspec.losses import (
    LossConfig,
    LossWeights,
    chain_reward,
    cross_entropy,
    drafter_loss,
    first_error_focal,
    loss_terms,
    positional_weights,
    slot_statistics,
    total_from_terms,
)
from tests.losses import reference

LN2 = float(np.log(2.0))
LADDER = [
    LossConfig(decay=None, focal=0.0, chain=0.0),
    LossConfig(decay=10.0, focal=0.0, chain=0.0),
    LossConfig(decay=10.0, focal=0.3, chain=0.0),
    LossConfig(),
    LossConfig(decay=3.0, focal=1.0, chain=5.0, normalize="weight"),
]
TRACES: list[tuple[str, tuple[int, ...]]] = []


@functools.cache
def compiled_step(normalize):
    """Value, metrics and gradient of the loss; its weights are arguments, as in training."""

    def loss(logits, labels, mask, weights):
        TRACES.append((normalize, logits.shape))
        config = LossConfig(normalize=normalize)
        return drafter_loss(logits, labels, mask, config=config, weights=weights)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def step(config, logits, labels, mask):
    function = compiled_step(config.normalize)
    arguments = (jnp.asarray(x) for x in (logits, labels, mask))
    return function(*arguments, LossWeights.from_config(config))


def test_hand_computed():
    # Label 0 of two ids has p = 1/2 1/4 3/4 and 3/4 3/4 1/2. Equal logits are won by id 0, so only
    # slot 1 of block 0 is wrong.
    p = np.array([[0.5, 0.25, 0.75], [0.75, 0.75, 0.5]], np.float32)
    logits = jnp.asarray(np.log(np.stack([p, 1 - p], axis=-1)))
    config = LossConfig(decay=None, focal=0.5, chain=2.0)
    loss, metrics = drafter_loss(logits, jnp.zeros((2, 3), jnp.int32), config=config)
    third = float(np.log(4 / 3))
    # CE: (ln 2 + 2 ln 2 + ln 4/3) and (2 ln 4/3 + ln 2), mean over two blocks
    cross = (4 * LN2 + 3 * third) / 2
    # products 1/2 1/8 3/32 (sum 23/32) and 3/4 9/16 9/32 (sum 51/32), each over 3, mean 37/96
    reward = 37 / 96
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(cross + 0.5 * 2 * LN2 - 2 * reward, rel=1e-6)
    expected = {
        "cross_entropy": (4 * LN2 + 3 * third, 6),
        "first_error_focal": (2 * LN2, 1),
        "chain_reward": (37 / 48, 2),
        "accepted": (1 + 3, 2),
        "accept_at": ([2, 1, 1], [2, 2, 1]),
        "wasted": (1, 2),
        "term/cross_entropy": (4 * LN2 + 3 * third, 2),
        "term/first_error_focal": (2 * LN2, 1),
        "term/chain_reward": (37 / 48, 2),
    }
    assert metrics.keys() == expected.keys()
    for name, (numerator, denominator) in expected.items():
        np.testing.assert_allclose(metrics[name][0], numerator, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(metrics[name][1], denominator, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("config", LADDER, ids=lambda c: f"{c.label}-{c.normalize}")
def test_matches_the_reference_and_finite_differences(config):
    logits, labels, mask = reference.random_batch(8)

    def slow(x):
        return reference.total(
            *reference.statistics(x, labels),
            mask,
            decay=config.decay,
            focal=config.focal,
            chain_weight=config.chain,
            normalize=config.normalize,
        )

    (loss, _), gradient = step(config, logits, labels, mask)
    assert float(loss) == pytest.approx(slow(logits), rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(gradient, reference.finite_differences(slow, logits), atol=2e-5)


def test_one_compiled_step_serves_the_whole_ladder():
    batch = reference.random_batch(9)
    values = [float(step(config, *batch)[0][0]) for config in LADDER]
    assert len({round(value, 4) for value in values}) == len(LADDER)
    # Over all tests of this file: no shape was traced twice for the same normalisation.
    assert len(TRACES) == len(set(TRACES))


def test_is_the_sum_of_the_public_parts():
    logits, labels, mask = reference.random_batch(9)
    config = LADDER[-1]
    (loss, metrics), _ = step(config, logits, labels, mask)
    log_p, correct = (jnp.asarray(x) for x in reference.statistics(logits, labels))
    w = positional_weights(labels.shape[-1], decay=config.decay)
    reward = chain_reward(log_p, mask_NG=mask)
    expected = (
        cross_entropy(log_p, weights_G=w, mask_NG=mask, normalize="weight")
        + config.focal * first_error_focal(log_p, correct_NG=correct, weights_G=w, mask_NG=mask)
        - config.chain * reward
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    mean_reward = float(metrics["chain_reward"][0] / metrics["chain_reward"][1])
    assert mean_reward == pytest.approx(float(reward), rel=1e-6)


@pytest.mark.parametrize("seed", [10, 11, 12])
def test_metrics_match_the_reference(seed):
    logits, labels, mask = reference.random_batch(seed)
    log_p, correct = reference.statistics(logits, labels)
    (_, metrics), _ = step(LossConfig(), logits, labels, mask)
    accepted, blocks, sums, counts, wasted = reference.acceptance(correct, mask)
    assert [float(x) for x in metrics["accepted"]] == [accepted, blocks]
    assert [float(x) for x in metrics["wasted"]] == [wasted, blocks]
    np.testing.assert_array_equal(metrics["accept_at"], [sums, counts])
    # The metrics know nothing of the positional weights, unlike the terms of the loss.
    ones = [1.0] * labels.shape[-1]
    for name, expected in {
        "cross_entropy": reference.cross_entropy(log_p, ones, mask, "weight"),
        "first_error_focal": reference.first_error(log_p, correct, ones, mask),
        "chain_reward": reference.chain(log_p, mask),
    }.items():
        assert float(metrics[name][0] / metrics[name][1]) == pytest.approx(expected, rel=1e-5)


def test_accepted_is_the_sum_of_the_unconditional_acceptances():
    logits, labels, mask = reference.random_batch(11)
    (_, metrics), _ = step(LossConfig(), logits, labels, np.ones_like(mask))
    sums, counts = (np.asarray(x) for x in metrics["accept_at"])
    reach = np.cumprod(sums / np.maximum(counts, 1))
    assert float(metrics["accepted"][0] / len(labels)) == pytest.approx(reach.sum(), rel=1e-6)


def test_target_metrics_appear_with_target_logits_alone():
    logits, labels, mask = reference.random_batch(12)
    loss = jax.jit(functools.partial(drafter_loss, config=LossConfig(objective="tv")))
    _, metrics = loss(logits, labels, mask, target_logits_NGV=logits)
    assert float(metrics["overlap"][0] / metrics["overlap"][1]) == pytest.approx(1.0)
    assert float(metrics["kl"][0]) == pytest.approx(0.0, abs=1e-5)
    assert "term/tv" in metrics
    assert "term/cross_entropy" not in metrics


@pytest.mark.parametrize("config", LADDER, ids=lambda c: f"{c.label}-{c.normalize}")
def test_padding_adds_nothing(config):
    logits, labels, mask = reference.random_batch(12)
    blocks, slots, vocab = logits.shape
    big = np.full((blocks + 3, slots + 2, vocab), 7.0)
    big[:blocks, :slots] = logits
    # Padding as a data pipeline leaves it: any logits, label -100, masked.
    big_labels = np.full((blocks + 3, slots + 2), -100, np.int32)
    big_labels[:blocks, :slots] = labels
    big_mask = np.zeros((blocks + 3, slots + 2), bool)
    big_mask[:blocks, :slots] = mask
    (loss, metrics), gradient = step(config, logits, labels, mask)
    (big_loss, big_metrics), big_gradient = step(config, big, big_labels, big_mask)
    big_gradient = np.array(big_gradient)
    assert float(big_loss) == pytest.approx(float(loss), rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(big_gradient[:blocks, :slots], gradient, atol=1e-6)
    big_gradient[:blocks, :slots] = 0
    assert not big_gradient.any()
    for name in metrics:
        for short, long in zip(metrics[name], big_metrics[name], strict=True):
            got = np.asarray(long)[: len(short)] if short.ndim else long
            np.testing.assert_allclose(got, short, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("config", LADDER, ids=lambda c: f"{c.label}-{c.normalize}")
def test_finite_at_underflow_forbidden_ids_and_empty_batches(config):
    _, labels, mask = reference.random_batch(13)
    labels, mask = np.zeros_like(labels), np.ones_like(mask)
    logits = np.zeros((*labels.shape, 7))
    logits[..., 6] = -np.inf  # a special id that may not be drafted
    logits[0, :, 1] = 400.0  # every label of the block underflows
    logits[1, 2, 1] = 1e30
    logits[2, :, 0] = 1e4  # certain
    logits[3, 1, 0] = -np.inf  # the label itself is forbidden; masked
    mask[3, 1] = False
    logits[4, 3] = -np.inf  # nothing is allowed; masked
    mask[4, 3] = False
    (loss, metrics), gradient = step(config, logits, labels, mask)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert all(np.isfinite(x).all() for pair in metrics.values() for x in pair)
    (loss, metrics), gradient = step(config, logits, labels, np.zeros_like(mask))
    assert float(loss) == 0.0
    assert not np.any(gradient)
    assert not any(np.any(x) for pair in metrics.values() for x in pair)


def test_a_term_without_weight_adds_nothing_even_if_it_is_infinite():
    """The label is forbidden, and it is the first error: its cross-entropy is infinite."""
    logits = jnp.array([[[-jnp.inf, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    labels = jnp.zeros((1, 2), jnp.int32)

    def loss(logits, objective):
        config = LossConfig(decay=None, focal=0.0, chain=0.0, objective=objective)
        return drafter_loss(
            logits, labels, config=config, target_logits_NGV=jnp.zeros_like(logits)
        )[0]

    for objective, expected in (("tv", 1 / 3), ("streak", 0.0), ("cross_entropy", np.inf)):
        value, gradient = jax.value_and_grad(loss)(logits, objective)
        assert float(value) == pytest.approx(expected, abs=1e-6)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("config", LADDER[-2:], ids=lambda c: c.normalize)
def test_shards_add_up_to_the_whole(config):
    # Shards with different numbers of slots, errors and blocks: a mean of means would be off.
    logits, labels, mask = reference.random_batch(14)
    mask[3:, 1:] = False
    mask[5] = False

    @jax.jit
    def terms_of(logits, labels, mask):
        return loss_terms(slot_statistics(logits, labels), mask, config=config)

    def total(terms):
        return float(total_from_terms(terms, config=config))

    whole = terms_of(logits, labels, mask)
    parts = [
        terms_of(logits[half], labels[half], mask[half]) for half in (slice(0, 3), slice(3, 6))
    ]
    summed = jax.tree.map(lambda a, b: a + b, *parts)
    for name in whole:
        np.testing.assert_allclose(summed[name], whole[name], rtol=1e-6, err_msg=name)
    assert total(summed) == pytest.approx(total(whole), rel=1e-5)
    # The form of a data-parallel step: own numerator, everyone's denominator, losses added.
    shares = [total({name: (part[name][0], summed[name][1]) for name in part}) for part in parts]
    assert sum(shares) == pytest.approx(total(whole), rel=1e-5)
    assert abs(np.mean([total(part) for part in parts]) - total(whole)) > 1e-2


def test_gradient_under_shard_map_equals_one_device():
    devices = jax.devices()[: 3 if len(jax.devices()) >= 3 else 1]
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    logits, labels, mask = reference.random_batch(15)
    config = LossConfig()

    def share(x, labels, mask):
        terms = loss_terms(slot_statistics(x, labels), mask, config=config)
        terms = {
            name: (numerator, jax.lax.psum(denominator, "data"))
            for name, (numerator, denominator) in terms.items()
        }
        return total_from_terms(terms, config=config)

    split = P("data")
    sharded = jax.jit(
        jax.shard_map(jax.grad(share), mesh=mesh, in_specs=(split, split, split), out_specs=split)
    )
    _, expected = step(config, logits, labels, mask)
    gradient = sharded(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_leading_dimensions_are_flattened():
    logits, labels, mask = reference.random_batch(16)
    (loss, metrics), gradient = step(LossConfig(), logits, labels, mask)
    (loss_4d, metrics_4d), gradient_4d = step(
        LossConfig(),
        logits.reshape(2, 3, *logits.shape[1:]),
        labels.reshape(2, 3, *labels.shape[1:]),
        mask.reshape(2, 3, *mask.shape[1:]),
    )
    assert float(loss_4d) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(gradient_4d.reshape(gradient.shape), gradient, atol=1e-6)
    for name in metrics:
        np.testing.assert_allclose(metrics_4d[name], metrics[name], rtol=1e-6, err_msg=name)


def test_errors():
    logits, labels = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(ValueError, match="unknown objective 'ce'"):
        drafter_loss(logits, labels, config=LossConfig(objective="ce"))
    with pytest.raises(ValueError, match="one entry for each slot"):
        drafter_loss(logits, labels, jnp.ones((2, 4)), config=LossConfig())
    with pytest.raises(ValueError, match="terms lack chain_reward, tv"):
        total_from_terms(
            {"first_error_focal": (jnp.ones(()), jnp.ones(()))}, config=LossConfig(objective="tv")
        )
