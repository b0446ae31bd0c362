"""Steps by hand: candidates, confidences, how many are revealed, and the keys of draws."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxspec.config import DiffusionEvaluationConfig
from jaxspec.decoding.diffusion.unmasking import (
    UNMASKING,
    Factor,
    Scheduled,
    Threshold,
    Unmasker,
    make_unmasking,
    position_keys,
)
from jaxspec.ops.sampling import Sampling

MASK, VOCABULARY = 4, 5


def logits(*confidences, first=0):
    """A row of logits: position i gives `confidences[i]` to token first + i (mod 4)."""
    rows = []
    for place, confidence in enumerate(confidences):
        row = np.full(VOCABULARY, (1 - confidence) / 3)
        row[(first + place) % 4] = confidence
        # Whatever the model says of the mask, it is not among the candidates.
        rows.append(np.r_[np.log(row[:4]), 9.0])
    return np.array(rows, "f4")[None]


@functools.partial(jax.jit, static_argnums=0)
def unmask(unmasker, logits_BPV, tokens_BP, **arrays):
    return unmasker.unmask(logits_BPV, tokens_BP, masked_BP=tokens_BP == MASK, **arrays)


@functools.partial(jax.jit, static_argnums=0)
def counted(rule, confidence_BP, **arrays):
    return rule.count(confidence_BP, **arrays)


def step(
    rule, logits_BPV, block, *, initial=None, at=0, sampling=None, keys=None, positions=None, **ids
):
    tokens_BP = np.asarray(block)[None]
    initial = (tokens_BP == MASK).sum() if initial is None else initial
    return unmask(
        Unmasker(rule, MASK, sampling or Sampling(0.0), **ids),
        logits_BPV,
        tokens_BP,
        positions_BP=np.arange(len(block))[None] if positions is None else positions,
        step_B=np.full(1, at),
        initial_B=np.full(1, initial),
        keys_B=jax.random.split(jax.random.key(0), 1) if keys is None else keys,
    )


def block_after(*args, **options):
    return step(*args, **options).tokens_BP[0].tolist()


LOGITS = logits(0.5, 0.9, 0.7, 0.99)


@pytest.mark.parametrize(
    ("rule", "block", "expected"),
    [
        (Scheduled(4), [4, 4, 4, 4], [4, 4, 4, 3]),
        (Scheduled(2), [4, 4, 4, 4], [4, 1, 4, 3]),
        (Scheduled(1), [4, 4, 4, 4], [0, 1, 2, 3]),
        # 4 masks in 3 steps: the first reveals two.
        (Scheduled(3), [4, 4, 4, 4], [4, 1, 4, 3]),
        # Revealed tokens are not read, however sure the model is of something else.
        (Scheduled(3), [4, 4, 4, 0], [4, 1, 4, 0]),
        (Threshold(0.8), [4, 4, 4, 4], [4, 1, 4, 3]),
        (Threshold(0.6), [4, 4, 4, 4], [4, 1, 2, 3]),
        # At least the best one.
        (Threshold(1.0), [4, 4, 4, 0], [4, 1, 4, 0]),
        # 0.99 >= 1 - 1/2, 0.9 >= 1 - 1/3, 0.7 < 1 - 1/4.
        (Factor(1.0), [4, 4, 4, 4], [4, 1, 4, 3]),
        # 0.7 >= 1 - 1.25/4, 0.5 < 1 - 1.25/5.
        (Factor(1.25), [4, 4, 4, 4], [4, 1, 2, 3]),
        (Factor(0.01), [4, 4, 4, 4], [4, 4, 4, 3]),
        (Factor(1.0), [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_steps_by_hand(rule, block, expected):
    assert block_after(rule, LOGITS, block) == expected


@pytest.mark.parametrize(
    ("rule", "block", "expected"),
    [
        # Token 3 has confidence 0; without it, the others have 0.6, 0.93 and 0.78.
        (Scheduled(2), [4, 4, 4, 4], [4, 1, 2, 4]),
        (Threshold(0.95), [4, 4, 4, 4], [4, 1, 4, 4]),
        (Threshold(0.75), [4, 4, 4, 4], [4, 1, 2, 4]),
        # What is left is revealed, sure or not.
        (Scheduled(1), [4, 4, 4, 4], [0, 1, 2, 3]),
        (Threshold(0.75), [0, 1, 2, 4], [0, 1, 2, 3]),
    ],
)
def test_an_answer_ends_last(rule, block, expected):
    assert block_after(rule, LOGITS, block, last_ids=(3,)) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # Without token 3, its position has three tokens of equal probability.
        (Scheduled(1), [0, 1, 2, 0]),
        (Scheduled(2), [4, 1, 2, 4]),
    ],
)
def test_an_answer_does_not_end(rule, expected):
    assert block_after(rule, LOGITS, [4, 4, 4, 4], suppressed_ids=(3,)) == expected


def test_a_schedule_is_larger_at_first():
    """7 masks in 3 steps: 3, 2, 2, as LLaDA's table of transfers has it."""
    rule, revealed = Scheduled(3), []
    for at in range(3):
        count = counted(rule, np.zeros((1, 7)), initial_B=np.array([7]), step_B=np.array([at]))
        revealed.append(int(count[0]))
    assert revealed == [3, 2, 2]
    for masks in range(1, 9):
        counts = [
            int(counted(rule, np.zeros((1, 8)), initial_B=np.array(masks), step_B=np.array(at)))
            for at in range(3)
        ]
        assert sum(counts) == masks and counts == sorted(counts, reverse=True)


def test_equal_confidences_count_from_the_left():
    assert block_after(Scheduled(2), logits(0.7, 0.7, 0.7, 0.7), [4] * 4) == [0, 1, 4, 4]


def test_factor_equals_the_sequential_search():
    """Fast-dLLM's loop: the first bar that is missed ends it, and one is revealed in any case."""
    rng = np.random.default_rng(0)
    for factor in (0.3, 1.0, 2.0):
        for _ in range(20):
            falling = np.sort(rng.random(6))[::-1]
            expected = 0
            while expected < 6 and falling[expected] >= 1 - factor / (expected + 2):
                expected += 1
            args = {"initial_B": np.array([6]), "step_B": np.array([0])}
            assert int(counted(Factor(factor), falling[None], **args)[0]) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_mask_without_a_distribution_fails_the_row(bad):
    broken = np.concatenate([LOGITS, LOGITS])
    broken[1, 1, 2] = bad
    unmasker = Unmasker(Threshold(0.6), MASK)
    rows = {"step_B": np.zeros(2, int), "keys_B": jax.random.split(jax.random.key(0), 2)}

    def both(block):
        return unmask(
            unmasker,
            broken,
            np.asarray([block, block]),
            positions_BP=np.tile(np.arange(4), (2, 1)),
            initial_B=np.full(2, 4),
            **rows,
        )

    failing = both([4, 4, 4, 4])
    assert failing.failed_B.tolist() == [False, True]
    assert failing.tokens_BP.tolist() == [[4, 1, 2, 3], [4, 4, 4, 4]]
    # Where a token is revealed already, the logits do not matter.
    assert not both([4, 1, 4, 4]).failed_B.any()


def test_confidence_does_not_know_the_temperature():
    """0.5 and 0.9 stay so; only the draw is sharper or flatter."""
    cold = Sampling(temperature=1e-3)
    for block in ([4, 4, 4, 4], [4, 1, 4, 4]):
        expected = block_after(Threshold(0.6), LOGITS, block)
        assert block_after(Threshold(0.6), LOGITS, block, sampling=cold) == expected


def test_draws_follow_the_tempered_distribution():
    rows = 4000
    sampling = Sampling(temperature=0.7)
    unmasker = Unmasker(Scheduled(1), MASK, sampling)
    drawn = unmask(
        unmasker,
        np.tile(LOGITS[:, :1], (rows, 1, 1)),
        np.full((rows, 1), MASK),
        positions_BP=np.full((rows, 1), 9),
        step_B=np.zeros(rows, int),
        initial_B=np.ones(rows, int),
        keys_B=jax.random.split(jax.random.key(3), rows),
    ).tokens_BP[:, 0]
    law = np.array([0.5, *[0.5 / 3] * 3]) ** (1 / 0.7)
    counts = np.bincount(drawn, minlength=4)
    assert scipy.stats.chisquare(counts, rows * law / law.sum()).pvalue > 1e-3


def test_keys_follow_row_step_and_position_alone():
    keys_B = jax.random.split(jax.random.key(0), 3)
    positions = jnp.array([[5, 6], [5, 6], [9, 10]])
    data = jax.random.key_data(position_keys(keys_B, jnp.array([0, 1, 2]), positions))
    assert len({tuple(row) for row in data.reshape(-1, data.shape[-1]).tolist()}) == 6
    # The same row, step and position elsewhere in a batch.
    moved = position_keys(keys_B[1:2], jnp.array([1]), jnp.array([[6, 7]]))
    np.testing.assert_array_equal(jax.random.key_data(moved)[0, 0], data[1, 1])


def test_bad_input():
    with pytest.raises(ValueError, match="steps"):
        Scheduled(0)
    for threshold in (0.0, 1.5):
        with pytest.raises(ValueError, match="threshold"):
            Threshold(threshold)
    with pytest.raises(ValueError, match="factor"):
        Factor(0.0)


def test_rules_are_made_by_name():
    settings = DiffusionEvaluationConfig(threshold=0.8, factor=0.5)
    made = {
        name: make_unmasking(dataclasses.replace(settings, unmasking=name), block_length=8)
        for name in UNMASKING
    }
    assert made == {
        "scheduled": Scheduled(8),
        "threshold": Threshold(0.8),
        "factor": Factor(0.5),
    }
    with pytest.raises(
        ValueError, match=r"unmasking must be one of scheduled, .* mean 'threshold'"
    ):
        make_unmasking(dataclasses.replace(settings, unmasking="treshold"), block_length=8)
