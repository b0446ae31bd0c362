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
    drafter_metrics,
    first_error_focal,
    label_log_prob,
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


def by_hand():
    """Two blocks of three slots over two ids; label 0 has p = 1/2 1/4 3/4 and 3/4 3/4 1/2."""
    p = jnp.array([[0.5, 0.25, 0.75], [0.75, 0.75, 0.5]])
    logits = jnp.log(jnp.stack([p, 1 - p], axis=-1))
    return logits, jnp.zeros((2, 3), jnp.int32)


def test_hand_computed():
    # Equal logits are won by id 0, so only slot 1 of block 0 is wrong (p = 1/4).
    logits, labels = by_hand()
    third = float(np.log(4 / 3))
    config = LossConfig(decay=None, focal=0.5, chain=2.0)
    loss, metrics = drafter_loss(logits, labels, config=config)
    # CE: (ln 2 + 2 ln 2 + ln 4/3) and (2 ln 4/3 + ln 2), mean over two blocks
    cross = (4 * LN2 + 3 * third) / 2
    # products 1/2 1/8 3/32 (sum 23/32) and 3/4 9/16 9/32 (sum 51/32), each over 3, mean 37/96
    reward = 37 / 96
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


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("config", LADDER, ids=lambda c: f"{c.label}-{c.normalize}")
def test_matches_the_reference_and_finite_differences(config, wrap):
    logits, labels, mask = reference.random_batch(8, blocks=4, slots=3, vocab=4)

    def slow(x):
        return reference.total(
            *reference.statistics(x, labels),
            mask,
            decay=config.decay,
            focal=config.focal,
            chain_weight=config.chain,
            normalize=config.normalize,
        )

    function = wrap(
        jax.value_and_grad(functools.partial(drafter_loss, config=config), has_aux=True)
    )
    (loss, _), gradient = function(jnp.asarray(logits), labels, mask)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(slow(logits), rel=1e-5)
    np.testing.assert_allclose(gradient, reference.finite_differences(slow, logits), atol=2e-5)


def test_is_the_sum_of_the_public_parts():
    logits, labels, mask = reference.random_batch(9)
    logits = jnp.asarray(logits)
    config = LossConfig(decay=4.0, focal=0.7, chain=3.0, normalize="weight")
    loss, metrics = drafter_loss(logits, labels, mask, config=config)
    log_p = label_log_prob(logits, labels)
    w = positional_weights(labels.shape[-1], decay=4.0)
    correct = jnp.argmax(logits, -1) == labels
    reward = chain_reward(log_p, mask_NG=mask)
    expected = (
        cross_entropy(log_p, weights_G=w, mask_NG=mask, normalize="weight")
        + 0.7 * first_error_focal(log_p, correct_NG=correct, weights_G=w, mask_NG=mask)
        - 3.0 * reward
    )
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(metrics["chain_reward"][0] / metrics["chain_reward"][1], reward)


def test_metrics_match_the_reference():
    logits, labels, mask = reference.random_batch(10, blocks=30)
    log_p, correct = reference.statistics(logits, labels)
    metrics = drafter_metrics(slot_statistics(jnp.asarray(logits), labels), mask)
    accepted, blocks, sums, counts, wasted = reference.acceptance(correct, mask)
    ones = [1.0] * labels.shape[-1]
    assert [float(x) for x in metrics["accepted"]] == [accepted, blocks]
    assert [float(x) for x in metrics["wasted"]] == [wasted, blocks]
    np.testing.assert_array_equal(metrics["accept_at"], [sums, counts])
    for name, expected in {
        "cross_entropy": reference.cross_entropy(log_p, ones, mask, "weight"),
        "first_error_focal": reference.first_error(log_p, correct, ones, mask),
        "chain_reward": reference.chain(log_p, mask),
    }.items():
        assert float(metrics[name][0] / metrics[name][1]) == pytest.approx(expected, rel=1e-5)


def test_accepted_is_the_sum_of_the_unconditional_acceptances():
    logits, labels, _ = reference.random_batch(11, blocks=30)
    metrics = drafter_metrics(slot_statistics(jnp.asarray(logits), labels))
    sums, counts = metrics["accept_at"]
    reach = np.cumprod(np.asarray(sums) / np.asarray(counts))
    assert float(metrics["accepted"][0] / 30) == pytest.approx(reach.sum(), rel=1e-6)


def test_target_metrics_appear_with_target_logits_alone():
    logits, labels = by_hand()
    config = LossConfig(objective="tv")
    _, metrics = drafter_loss(logits, labels, config=config, target_logits_NGV=logits)
    assert float(metrics["overlap"][0] / metrics["overlap"][1]) == pytest.approx(1.0)
    assert float(metrics["kl"][0]) == pytest.approx(0.0, abs=1e-6)
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
    function = jax.jit(
        jax.value_and_grad(functools.partial(drafter_loss, config=config), has_aux=True)
    )
    (loss, metrics), gradient = function(jnp.asarray(logits), labels, mask)
    (big_loss, big_metrics), big_gradient = function(jnp.asarray(big), big_labels, big_mask)
    assert float(big_loss) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(big_gradient[:blocks, :slots], gradient, atol=1e-6)
    assert not big_gradient[blocks:].any()
    assert not big_gradient[:, slots:].any()
    for name in metrics:
        for short, long in zip(metrics[name], big_metrics[name], strict=True):
            long = long[: len(short)] if short.ndim else long
            np.testing.assert_allclose(long, short, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("config", LADDER, ids=lambda c: f"{c.label}-{c.normalize}")
def test_finite_at_underflow_forbidden_ids_and_empty_batches(config):
    logits = jnp.array(
        [
            [[0.0, 400.0, -jnp.inf], [400.0, 0.0, -jnp.inf], [0.0, 0.0, -jnp.inf]],
            [[1e4, -1e4, -1e4], [-1e30, 1e30, 0.0], [0.0, 0.0, 0.0]],
            [[0.0, 0.0, 0.0], [-jnp.inf, 0.0, 0.0], [0.0, 0.0, 0.0]],
        ]
    )
    labels = jnp.zeros((3, 3), jnp.int32)
    # The label that is itself forbidden is masked.
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [1, 0, 0]])
    function = jax.value_and_grad(functools.partial(drafter_loss, config=config), has_aux=True)
    for some_mask in (mask, jnp.zeros((3, 3))):
        (loss, metrics), gradient = function(logits, labels, some_mask)
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        assert all(np.isfinite(x).all() for pair in metrics.values() for x in pair)
    # The empty batch costs nothing, and moves nothing.
    assert float(loss) == 0.0
    assert not gradient.any()


def test_one_compiled_step_serves_the_whole_ladder():
    logits, labels, mask = reference.random_batch(13)
    logits = jnp.asarray(logits)
    traces = 0

    @jax.jit
    def step(weights):
        nonlocal traces
        traces += 1
        return drafter_loss(logits, labels, mask, config=LossConfig(), weights=weights)[0]

    rungs = [config for config in LADDER if config.normalize == "block"]
    values = [float(step(LossWeights.from_config(config))) for config in rungs]
    expected = [float(drafter_loss(logits, labels, mask, config=config)[0]) for config in rungs]
    assert traces == 1
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert len({round(value, 4) for value in values}) == len(rungs)


@pytest.mark.parametrize("config", LADDER[-2:], ids=lambda c: c.normalize)
def test_shards_add_up_to_the_whole(config):
    # Shards with different numbers of slots, errors and blocks: a mean of means would be off.
    logits, labels, mask = reference.random_batch(14, blocks=8)
    mask[4:, 1:] = False
    mask[7] = False
    slots = slot_statistics(jnp.asarray(logits), labels)
    whole = loss_terms(slots, mask, config=config)
    parts = [
        loss_terms(jax.tree.map(lambda x: x[half], slots), mask[half], config=config)  # noqa: B023
        for half in (slice(0, 4), slice(4, 8))
    ]
    summed = jax.tree.map(lambda a, b: a + b, *parts)
    for name in whole:
        np.testing.assert_allclose(summed[name], whole[name], rtol=1e-6, err_msg=name)
    total = float(total_from_terms(whole, config=config))
    assert float(total_from_terms(summed, config=config)) == pytest.approx(total, rel=1e-6)
    # The form of a data-parallel step: own numerator, everyone's denominator, losses added.
    shares = [
        float(
            total_from_terms(
                {name: (part[name][0], summed[name][1]) for name in part}, config=config
            )
        )
        for part in parts
    ]
    assert sum(shares) == pytest.approx(total, rel=1e-5)
    mean_of_means = np.mean([float(total_from_terms(part, config=config)) for part in parts])
    assert abs(mean_of_means - total) > 1e-2


def test_gradient_under_shard_map_equals_one_device():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    logits, labels, mask = reference.random_batch(15, blocks=8)
    logits, labels, mask = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask)
    config = LossConfig()

    def share(x, labels, mask):
        terms = loss_terms(slot_statistics(x, labels), mask, config=config)
        terms = {
            name: (numerator, jax.lax.psum(denominator, "data"))
            for name, (numerator, denominator) in terms.items()
        }
        return total_from_terms(terms, config=config)

    sharded = jax.jit(
        jax.shard_map(
            jax.grad(share),
            mesh=mesh,
            in_specs=(P("data"), P("data"), P("data")),
            out_specs=P("data"),
        )
    )
    expected = jax.jit(jax.grad(lambda x: drafter_loss(x, labels, mask, config=config)[0]))(logits)
    np.testing.assert_allclose(sharded(logits, labels, mask), expected, atol=1e-5)


def test_leading_dimensions_are_flattened():
    logits, labels, mask = reference.random_batch(16, blocks=6)
    logits = jnp.asarray(logits)
    loss, metrics = drafter_loss(logits, labels, mask, config=LossConfig())
    folded = (2, 3, *labels.shape[1:])
    loss_3d, metrics_3d = drafter_loss(
        logits.reshape(*folded, -1),
        labels.reshape(folded),
        mask.reshape(folded),
        config=LossConfig(),
    )
    assert float(loss_3d) == pytest.approx(float(loss), rel=1e-6)
    for name in metrics:
        np.testing.assert_allclose(metrics_3d[name], metrics[name], rtol=1e-6, err_msg=name)


def test_errors():
    logits, labels = by_hand()
    with pytest.raises(ValueError, match="unknown objective 'ce'"):
        drafter_loss(logits, labels, config=LossConfig(objective="ce"))
    with pytest.raises(ValueError, match="one entry for each slot"):
        drafter_loss(logits, labels, jnp.ones((2, 4)), config=LossConfig())
    with pytest.raises(ValueError, match="terms lack chain_reward, tv"):
        total_from_terms(
            {"first_error_focal": (jnp.ones(()), jnp.ones(()))}, config=LossConfig(objective="tv")
        )
