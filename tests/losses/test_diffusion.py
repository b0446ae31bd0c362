"""The bound of masked diffusion on a law of two tokens, by enumeration and exact quadrature."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.losses.diffusion import (
    elbo_values,
    log_scores,
    score_entropy_values,
    subs_log_probs,
    token_terms,
)
from jaxspec.losses.reduction import ratio
from jaxspec.ops.noise import SMALLEST_TIME, LogLinearSchedule, token_times

WORDS, MASK = 3, 3
VOCABULARY = WORDS + 1
IDEAL = LogLinearSchedule(eps=0.0)
RELEASED = LogLinearSchedule()
PAIRS = list(itertools.product(range(WORDS), repeat=2))
PATTERNS = list(itertools.product([False, True], repeat=2))
# The integrand is a polynomial of t of degree 1: two nodes would be exact.
NODES, NODE_WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(4))
NODES = NODES + 0.5


@pytest.fixture(scope="module")
def law() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(WORDS**2, 0.8)).reshape(WORDS, WORDS)


def true_conditionals(law: np.ndarray) -> np.ndarray:
    """table[a, b] = log p of both tokens given what is not masked, [V, V, 2, V]."""
    table = np.full((VOCABULARY, VOCABULARY, 2, VOCABULARY), -np.inf)
    first, second = law.sum(1), law.sum(0)
    table[:, MASK, 0, :WORDS] = np.log(first)
    table[MASK, :, 1, :WORDS] = np.log(second)
    for word in range(WORDS):
        table[:, word, 0, :WORDS] = np.log(law[:, word] / second[word])
        table[word, :, 1, :WORDS] = np.log(law[word] / first[word])
    return table


def random_table(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((VOCABULARY, VOCABULARY, 2, VOCABULARY))


def cases() -> tuple[np.ndarray, ...]:
    """Every pair, mask pattern and time: labels, masks, times, quadrature weights."""
    rows = [
        (pair, pattern, t, weight)
        for pair in PAIRS
        for pattern in PATTERNS
        for t, weight in zip(NODES, NODE_WEIGHTS, strict=True)
    ]
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def expected_loss(law: np.ndarray, table: np.ndarray, schedule: LogLinearSchedule, kind: str):
    labels, masked, times, weights = cases()
    noisy = np.where(masked, MASK, labels)
    logits = jnp.asarray(table[noisy[:, 0], noisy[:, 1]])
    times_BS = token_times(jnp.asarray(times), length=2)
    common = {"masked_BS": jnp.asarray(masked), "times_BS": times_BS, "mask_id": MASK}
    if kind == "elbo":
        values = elbo_values(logits, jnp.asarray(labels), **common)
    else:
        log_p = subs_log_probs(logits, jnp.asarray(noisy), mask_id=MASK)
        inverse = 1 / jnp.expm1(schedule.sigma(times_BS))
        values = score_entropy_values(
            log_p + jnp.log(inverse)[..., None], jnp.asarray(labels), schedule=schedule, **common
        )
    chance = np.asarray(schedule.mask_probability(times))[:, None]
    chance = np.where(masked, chance, 1 - chance).prod(1) * weights
    chance = chance * law[labels[:, 0], labels[:, 1]]
    return float((np.asarray(values, np.float64).sum(1) * chance).sum())


def mean_over_orders(law: np.ndarray, table: np.ndarray) -> float:
    """The negative ELBO by its other definition: -log p, tokens in either order, averaged."""
    log_p = table - np.log(np.exp(table[..., :WORDS]).sum(-1, keepdims=True))
    total = 0.0
    for a, b in PAIRS:
        left = log_p[MASK, MASK, 0, a] + log_p[a, MASK, 1, b]
        right = log_p[MASK, MASK, 1, b] + log_p[MASK, b, 0, a]
        total -= law[a, b] * (left + right) / 2
    return total


def entropy(law: np.ndarray) -> float:
    return float(-(law * np.log(law)).sum())


@pytest.mark.parametrize("kind", ["elbo", "score_entropy"])
@pytest.mark.parametrize("seed", [1, 2])
def test_expected_loss_is_the_elbo(law, seed, kind):
    table = random_table(seed)
    loss = expected_loss(law, table, IDEAL, kind)
    assert loss == pytest.approx(mean_over_orders(law, table), rel=1e-5)
    assert loss > entropy(law) + 0.1


@pytest.mark.parametrize("kind", ["elbo", "score_entropy"])
def test_bound_is_tight_for_the_true_conditionals(law, kind):
    loss = expected_loss(law, true_conditionals(law), IDEAL, kind)
    assert loss == pytest.approx(entropy(law), rel=1e-5)


def test_released_schedule_by_hand(law):
    """Both masked: weight (1 - eps)^2 / 2; one masked: (1 - eps) - (1 - eps)^2 / 2."""
    marginals = sum(-(p * np.log(p)).sum() for p in (law.sum(0), law.sum(1)))
    keep = 1 - RELEASED.eps
    by_hand = keep**2 / 2 * marginals
    by_hand += (keep - keep**2 / 2) * (2 * entropy(law) - marginals)
    loss = expected_loss(law, true_conditionals(law), RELEASED, "elbo")
    assert loss == pytest.approx(by_hand, rel=1e-5)
    assert entropy(law) - loss == pytest.approx(RELEASED.eps * marginals, rel=1e-2)


def test_subs_never_predicts_the_mask_and_carries_tokens_over():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, VOCABULARY)))
    log_p = subs_log_probs(logits.at[..., MASK].set(50.0), jnp.array([[MASK, 1]]), mask_id=MASK)
    expected = jax.nn.log_softmax(logits[0, 0, :WORDS])
    np.testing.assert_allclose(log_p[0, 0, :WORDS], expected, rtol=1e-5)
    assert log_p[0, 0, MASK] == -jnp.inf
    assert log_p[0, 1].tolist() == [-np.inf, 0.0, -np.inf, -np.inf]
    assert subs_log_probs(
        logits.astype(jnp.bfloat16), jnp.zeros((1, 2), int), mask_id=MASK
    ).dtype == (jnp.float32)


def loss_of(logits, labels, masked, times, attended, kind):
    common = {"masked_BS": masked, "times_BS": times, "mask_id": MASK}
    if kind == "elbo":
        values = elbo_values(logits, labels, **common)
    else:
        scores = log_scores(logits, times_BS=times, schedule=RELEASED)
        values = score_entropy_values(scores, labels, schedule=RELEASED, **common)
    return ratio(*token_terms(values, attended_BS=attended))


@pytest.mark.parametrize("kind", ["elbo", "score_entropy"])
def test_gradients_jit_and_padding(kind):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 5, VOCABULARY)), jnp.float32)
    # A forbidden word, and very small times.
    logits = logits.at[0, 0, 1].set(-jnp.inf)
    labels = jnp.asarray([[0, 1, 2, 0, 0], [2, 2, 1, -100, -100]])
    masked = jnp.asarray([[1, 0, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
    attended = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    times = jnp.asarray([[SMALLEST_TIME] * 5, [1.0] * 5])
    function = jax.value_and_grad(loss_of)
    value, gradient = function(logits, labels, masked, times, attended, kind)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
    assert not gradient[1, 2:].any() and gradient[0, 0].any() and not gradient[..., MASK].any()
    jitted = jax.jit(function, static_argnums=5)(logits, labels, masked, times, attended, kind)
    np.testing.assert_allclose(value, jitted[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, jitted[1], rtol=1e-4, atol=1e-5)
    wider = [jnp.pad(x, ((0, 0), (0, 2)), constant_values=v) for x, v in
             ((labels, -100), (masked, False), (times, 0.5), (attended, False))]  # fmt: skip
    padded = loss_of(jnp.pad(logits, ((0, 0), (0, 2), (0, 0))), *wider, kind)
    np.testing.assert_allclose(padded, value, rtol=1e-6)


def test_terms_are_a_sum_and_the_attended_tokens():
    values = jnp.array([[1.0, 2.0, jnp.nan]])
    total, number = token_terms(values, attended_BS=jnp.array([[1, 1, 0]], bool))
    assert (float(total), float(number)) == (3.0, 2.0)
    assert float(token_terms(values[:, :2])[1]) == 2.0
    with pytest.raises(ValueError, match="one entry for each value"):
        token_terms(values, attended_BS=jnp.ones((1, 2), bool))


def test_score_entropy_is_zero_at_the_true_ratio_and_positive_elsewhere():
    times = jnp.full((1, 1), 0.4)
    log_ratio = -jnp.log(jnp.expm1(RELEASED.sigma(times)))
    scores = jnp.full((1, 1, VOCABULARY), -jnp.inf).at[0, 0, 1].set(log_ratio[0, 0])

    def value(scores):
        return float(
            score_entropy_values(
                scores, jnp.array([[1]]), masked_BS=jnp.ones((1, 1), bool), times_BS=times,
                schedule=RELEASED, mask_id=MASK,
            )[0, 0]
        )  # fmt: skip

    assert value(scores) == pytest.approx(0, abs=1e-5)
    assert value(scores + 0.5) > 0.05 and value(scores - 0.5) > 0.05
    assert value(scores.at[0, 0, 0].set(-1.0)) > 0.05


def test_ids_of_a_narrow_type():
    """256 is 0 in uint8: token 0 looked like a mask, and every label as if it had no score."""
    tokens = jnp.array([[0, 7]], jnp.uint8)
    log_p = subs_log_probs(jnp.zeros((1, 2, 257)), tokens, mask_id=256)
    assert jnp.argmax(log_p, axis=-1).tolist() == [[0, 7]]
    assert log_p.max(axis=-1).tolist() == [[0.0, 0.0]]
    values = score_entropy_values(
        jnp.zeros((1, 2, 256)),
        tokens,
        masked_BS=jnp.ones((1, 2), bool),
        times_BS=jnp.full((1, 2), 0.5),
        schedule=RELEASED,
        mask_id=255,
    )
    assert np.isfinite(values).all()
