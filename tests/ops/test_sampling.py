from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxspec.config import MeshConfig
from jaxspec.ops.sampling import (
    INVALID,
    Sampling,
    _largest_in_one_step,
    fine_uniform,
    is_distribution,
    largest_index,
    sample_index,
)
from jaxspec.parallel.mesh import make_mesh
from tests.verify import laws


def shaped(probs, **settings):
    logits = np.log(probs, where=np.asarray(probs) > 0, out=np.full(len(probs), -np.inf))
    return probabilities(Sampling(1.0, **settings), logits)


def probabilities(sampling, logits):
    found = jax.jit(sampling.probabilities)(np.asarray(logits, np.float32))
    assert found.dtype == np.float32
    return np.asarray(found)


# The distribution is all that sampling above temperature 0 looks at: one program for all settings.
draw = jax.jit(Sampling(1.0).sample)
draw_greedy = jax.jit(Sampling(0.0).sample)


def jitted_sample(sampling, key, probs):
    return (draw_greedy if sampling.greedy else draw)(key, probs)


def reference(logits, *, temperature, top_k, top_p, min_p):
    """Plain Python, one row, no ties."""
    scaled = [x / temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda v: -scaled[v])
    kept = order[:top_k] if top_k else order
    weight = {v: np.exp(scaled[v] - scaled[order[0]]) for v in kept}
    mass, nucleus = 0.0, []
    for v in kept:
        if mass < top_p:
            nucleus.append(v)
        mass += weight[v] / sum(weight.values())
    kept = [v for v in nucleus if weight[v] >= min_p * weight[order[0]]]
    total = sum(weight[v] for v in kept)
    return [weight[v] / total if v in kept else 0.0 for v in range(len(logits))]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 4},
        {"top_k": 100},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 2.0, "top_k": 6, "top_p": 0.6, "min_p": 0.1},
    ],
)
def test_probabilities_equal_the_reference(settings):
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | settings
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4, 9)) * 2
    sampling = Sampling(**settings)
    found = probabilities(sampling, logits)
    for index in np.ndindex(5, 4):
        np.testing.assert_allclose(found[index], reference(logits[index], **settings), atol=1e-5)


def test_hand_computed_filters():
    probs = [0.1, 0.5, 0.15, 0.25]
    np.testing.assert_allclose(shaped(probs, top_k=1), [0, 1, 0, 0])
    np.testing.assert_allclose(shaped(probs, top_p=0.4), [0, 1, 0, 0])
    np.testing.assert_allclose(shaped(probs, top_p=0.6), [0, 2 / 3, 0, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(shaped(probs, min_p=0.4), [0, 2 / 3, 0, 1 / 3], atol=1e-6)
    # The three largest renormalised are 5/9, 5/18, 1/6: the first two already hold 0.8.
    np.testing.assert_allclose(shaped(probs, top_k=3, top_p=0.8), [0, 2 / 3, 0, 1 / 3], atol=1e-6)


def test_ties_with_the_last_kept_token_are_kept():
    np.testing.assert_allclose(shaped([0.4, 0.2, 0.2, 0.2], top_k=2), [0.4, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(shaped([0.4, 0.2, 0.2, 0.2], top_p=0.5), [0.4, 0.2, 0.2, 0.2])


def test_temperature_zero_is_the_first_argmax():
    sampling = Sampling(0.0, top_k=3)
    assert sampling.greedy
    probs = sampling.probabilities(jnp.array([[1, 3, 3, 0], [5, -jnp.inf, 0, 0]], jnp.bfloat16))
    assert probs.dtype == jnp.float32
    assert probs.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert sampling.sample(jax.random.key(0), probs).tolist() == [1, 0]


def test_small_temperature_tends_to_greedy():
    assert probabilities(Sampling(1e-6), [30.0, 30.5, -np.inf]).tolist() == [0, 1, 0]


def test_excluded_tokens_keep_probability_zero():
    for settings in ({}, {"top_k": 2}, {"top_p": 0.99}, {"min_p": 0.01}):
        probs = shaped([0.5, 0.0, 0.5], **settings)
        np.testing.assert_allclose(probs, [0.5, 0, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_without_a_distribution_are_nan_and_never_a_token(settings, bad):
    sampling = Sampling(**({"temperature": 1.0} | settings))
    logits = np.array([[0.0, 1.0, bad], [0.0, 9.0, -np.inf], [-np.inf] * 3])
    probs = probabilities(sampling, logits)
    assert np.isnan(probs).all(axis=1).tolist() == [True, False, True]
    tokens = np.asarray(jitted_sample(sampling, jax.random.key(0), probs))
    assert (tokens == -1).tolist() == [True, False, True]
    assert tokens.dtype == np.int32


def test_float64_stays():
    with jax.enable_x64(True):
        assert Sampling(1.0).probabilities(jnp.zeros(3)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 1e-9}, "temperature"),
        ({"temperature": 1.0, "top_k": -1}, "top_k"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p"),
        ({"temperature": 1.0, "top_p": float("nan")}, "top_p"),
        ({"temperature": 1.0, "min_p": -0.1}, "min_p"),
        ({"temperature": 1.0, "min_p": 1.1}, "min_p"),
    ],
)
def test_settings_out_of_range_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        Sampling(**settings)


def test_samples_have_the_probabilities():
    probs = np.array([0.0, 0.1, 0.6, 0.0, 0.3])
    rows = jnp.broadcast_to(jnp.asarray(probs, jnp.float32), (laws.ROUNDS, 5))
    tokens = np.asarray(jax.jit(Sampling(1.0).sample)(jax.random.key(0), rows))
    counts = laws.histogram(tokens[:, None], vocabulary=5)
    # Also refuses a single token of probability 0.
    assert laws.chi_square(counts, probs) > laws.FALSE_ALARM
    assert laws.chi_square(counts, np.array([0.0, 0.13, 0.57, 0.0, 0.3])) < laws.FALSE_ALARM


def test_sample_index_takes_any_scale_and_refuses_what_is_no_distribution():
    rows = jnp.array(
        [[0, 3e-20, 0], [0, 0, 0], [0.5, jnp.nan, 0.5], [0.5, jnp.inf, 0], [2, -1, 0], [7e20, 0, 0]]
    )
    assert jax.jit(sample_index)(jax.random.key(0), rows).tolist() == [1, -1, -1, -1, -1, 0]
    assert jax.jit(is_distribution)(rows).tolist() == [True, False, False, False, False, True]


# Past `_SHORT`, so drawn in two stages: filled up at the end, and not.
@pytest.mark.parametrize("size", [97, 128])
def test_long_rows_are_drawn_with_their_probabilities(size):
    rng = np.random.default_rng(size)
    law = rng.dirichlet(np.full(size, 0.5)) * (rng.random(size) < 0.5)
    law[20:60] = 0  # whole stretches of nothing
    law /= law.sum()
    rows = jnp.broadcast_to(jnp.asarray(law * 7, jnp.float32), (8 * laws.ROUNDS, size))
    drawn = np.asarray(jax.jit(sample_index)(jax.random.key(1), rows))
    counts = laws.histogram(drawn[:, None], vocabulary=size)
    assert laws.chi_square(counts, law) > laws.FALSE_ALARM
    assert laws.chi_square(counts, law + 0.05 * np.eye(size)[law.argmax()]) < laws.FALSE_ALARM
    # Rows do not depend on each other.
    first, second = drawn[::2], drawn[1::2]
    pairs = np.histogram2d(first % 2, second % 2, bins=2)[0]
    odd = law[1::2].sum()
    assert laws.chi_square(pairs, np.outer([1 - odd, odd], [1 - odd, odd])) > laws.FALSE_ALARM


def test_long_rows_keep_small_weights_in_proportion():
    # What rejection can leave of a row: a few weights of 1e-9 in stretches that differ.
    small = np.zeros(200)
    small[[3, 4, 120, 121, 199]] = [1e-9, 3e-9, 2e-9, 0, 4e-9]
    scores = jax.jit(
        lambda key: sample_index(key, jnp.broadcast_to(jnp.asarray(small), (laws.ROUNDS, 200)))
    )
    counts = laws.histogram(np.asarray(scores(jax.random.key(2)))[:, None], vocabulary=200)
    assert laws.chi_square(counts, small) > laws.FALSE_ALARM


def test_long_rows_without_a_distribution_are_refused():
    size = 200
    rows = np.full((6, size), 0.5, np.float32)
    rows[0, 199], rows[1, 3], rows[2, 77], rows[3] = np.nan, np.inf, -1e-3, 0
    rows[4] = np.eye(size)[150] * 1e-20
    drawn = jax.jit(sample_index)(jax.random.key(0), rows)
    assert drawn.tolist()[:5] == [-1, -1, -1, -1, 150]
    assert 0 <= drawn[5] < size
    under_vmap = jax.jit(jax.vmap(sample_index))(jax.random.split(jax.random.key(0), 6), rows)
    assert under_vmap.tolist()[:5] == [-1, -1, -1, -1, 150]


@pytest.mark.parametrize("size", [1, 2, 5, 97, 128, 4096])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_largest_index_is_the_first_argmax(size, dtype):
    rng = np.random.default_rng(size)
    rows = np.round(rng.normal(size=(300, size)) * 2)  # many equal ones
    rows[rng.random(rows.shape) < 0.2] = -np.inf
    rows[0], rows[1, size // 2], rows[2, -1], rows[3, 0] = -np.inf, np.nan, np.inf, -np.inf
    expected = np.where(
        np.isfinite(rows.max(1)) & ~np.isnan(rows).any(1), np.nan_to_num(rows).argmax(1), -1
    )
    rows = jnp.asarray(rows, dtype)
    found = jax.jit(largest_index)(rows)
    assert found.dtype == jnp.int32
    assert found.tolist() == expected.tolist()
    if size in (5, 97):  # Op by op, too.
        assert largest_index(rows).tolist() == expected.tolist()
    # What other platforms run.
    assert jax.jit(_largest_in_one_step)(rows).tolist() == expected.tolist()


FLOAT64 = "long rows of float64 with one bit a pass, and two bits with float32, are tried"


def sorted_nucleus(probs, top_p):
    """Kept or not, from the sorted row in float64; None where that is a matter of rounding."""
    order = np.argsort(-probs, kind="stable")
    mass = np.cumsum(probs[order].astype(np.float64))
    if np.abs(mass - top_p).min() < 1e-5:
        return None
    reached = np.flatnonzero(mass >= top_p)
    edge = probs[order][reached[0]] if len(reached) else 0
    return probs >= edge


@pytest.mark.parametrize(
    ("size", "dtype", "platform"),
    [
        (7, np.float32, "cpu"),
        (7, np.float32, "tpu"),
        (300, np.float32, "cpu"),
        (300, np.float32, "tpu"),
        (300, np.float64, "cpu"),
        *(
            pytest.param(size, np.float64, platform, marks=pytest.mark.slow(FLOAT64))
            for size, platform in ((7, "cpu"), (7, "tpu"), (300, "tpu"))
        ),
    ],
)
def test_filters_equal_a_sort(size, dtype, platform, monkeypatch):
    """Found with one bit a pass and with two."""
    monkeypatch.setattr("jaxspec.ops.sampling.platform", lambda: platform)
    rng = np.random.default_rng(size)
    logits = rng.normal(size=(400, size)) * rng.uniform(0.1, 8, (400, 1))
    logits[::2] = np.round(logits[::2])  # ties
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    logits[:, 0] = 0
    logits[5, 1:] = -np.inf
    logits = logits.astype(dtype)
    compared = 0
    with jax.enable_x64(dtype == np.float64):
        plain = np.asarray(Sampling(1.0).probabilities(logits))
        for top_p in (0.05, 0.5, 0.9, 0.999):
            found = np.asarray(jax.jit(Sampling(1.0, top_p=top_p).probabilities)(logits))
            assert found.dtype == dtype
            for row, before in zip(found, plain, strict=True):
                kept = sorted_nucleus(before, top_p)
                if kept is not None:
                    compared += 1
                    assert ((row > 0) == (kept & (before > 0))).all()
        for top_k in (1, 2, size - 1):
            found = np.asarray(jax.jit(Sampling(1.0, top_k=top_k).probabilities)(logits))
            edge = np.sort(logits, axis=1)[:, -top_k][:, None]
            assert ((found > 0) == ((logits >= edge) & (plain > 0))).all()
    assert compared > 1000


def test_a_nucleus_that_rounding_keeps_from_its_mass_is_the_whole_row():
    probs = shaped(np.full(1000, 1e-3), top_p=1 - 1e-9)
    assert (probs > 0).all()


def test_fine_uniform_is_uniform_and_finer_than_a_float32_step():
    drawn = np.asarray(jax.jit(lambda key: fine_uniform(key, (200_000,)))(jax.random.key(0)))
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=64, range=(0, 1))
    assert laws.chi_square(counts, np.full(64, 1 / 64)) > laws.FALSE_ALARM
    small = drawn[drawn < 2**-8].astype(np.float64) * 2**23
    assert (small != np.floor(small)).mean() > 0.9


def test_chi_square_itself():
    law = np.array([0.5, 0.5 - 1e-6, 1e-6, 0])
    assert laws.chi_square(np.array([500, 500, 0, 0]), law) > 0.9
    assert laws.chi_square(np.array([500, 499, 0, 1]), law) == 0
    assert laws.chi_square(np.array([300, 700, 0, 0]), law) < laws.FALSE_ALARM
    assert laws.chi_square(np.array([1000, 0]), np.array([1.0, 0])) == 1


def test_the_largest_index_on_a_mesh_is_that_of_one_device():
    """Ties, and rows that have none."""
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 40, (16, 128)).astype(np.float32)
    logits[1, 70], logits[2, 3], logits[3] = np.nan, np.inf, -np.inf
    logits[4, :64] = -np.inf
    alone = jax.jit(largest_index)(logits)
    devices = jax.devices()[:8]
    mesh = make_mesh(MeshConfig(data=2, tensor=4), devices=devices)
    split = jax.device_put(logits, NamedSharding(mesh, PartitionSpec("data", "tensor")))
    with jax.set_mesh(mesh):
        spread = jax.jit(largest_index)(split)
    np.testing.assert_array_equal(spread, alone)
    assert np.count_nonzero(alone == INVALID) == 3
