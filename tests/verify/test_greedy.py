from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.verify import verify_greedy
from tests.verify import reference

jitted_greedy = jax.jit(verify_greedy)


def logits_for(best_BH, vocabulary=5):
    return np.eye(vocabulary, dtype=np.float32)[np.asarray(best_BH)]


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_hand_computed_batch_with_every_accepted_length(wrap):
    draft = jnp.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    best = [[1, 2, 3, 4], [1, 2, 0, 4], [1, 0, 3, 4], [0, 2, 3, 4]]
    verdict = wrap(verify_greedy)(draft, logits_for(best))
    assert verdict.num_accepted_B.tolist() == [3, 2, 1, 0]
    assert verdict.next_token_B.tolist() == [4, 0, 0, 0]
    assert verdict.num_accepted_B.dtype == verdict.next_token_B.dtype == jnp.int32
    assert verdict.emitted_BH(draft).tolist() == [
        [1, 2, 3, 4],
        [1, 2, 0, -1],
        [1, 0, -1, -1],
        [0, -1, -1, -1],
    ]


def test_ties_go_to_the_first_token():
    logits = jnp.zeros((1, 2, 4))
    assert jitted_greedy(jnp.array([[0]]), logits).num_accepted_B.tolist() == [1]
    verdict = jitted_greedy(jnp.array([[3]]), logits)
    assert (verdict.num_accepted_B.tolist(), verdict.next_token_B.tolist()) == ([0], [0])


def test_equals_the_reference():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, (200, 4, 3)).astype(np.float32)
    draft = rng.integers(0, 3, (200, 3))
    verdict = jitted_greedy(draft, logits)
    expected = [reference.greedy(*row) for row in zip(draft, logits, strict=True)]
    assert verdict.num_accepted_B.tolist() == [n for n, _ in expected]
    assert verdict.next_token_B.tolist() == [token for _, token in expected]


def test_partly_filled_blocks_ignore_the_rest():
    draft = jnp.array([[1, 2, -7], [1, 2, 99], [1, 2, 3]])
    logits = logits_for([[1, 2, 3, 4]] * 3)
    logits[0, 2:] = logits[1, 3] = np.nan
    verdict = jitted_greedy(draft, logits, num_drafted_B=jnp.array([1, 2, 0]))
    assert verdict.num_accepted_B.tolist() == [1, 2, 0]
    assert verdict.next_token_B.tolist() == [2, 3, 1]


def test_rows_that_cannot_be_judged_fail_and_leave_the_others():
    draft = np.array([[1, 2]] * 5 + [[1, 5], [-1, 2]])
    logits = logits_for([[1, 2, 3]] * 7)
    logits[0, 2, 0] = np.nan
    logits[1, 1, 2] = np.inf
    logits[2, 0] = -np.inf
    logits[3, 0, 0] = -np.inf
    verdict = jitted_greedy(draft, logits)
    assert verdict.failed_B.tolist() == [True, True, True, False, False, True, True]
    assert verdict.num_accepted_B.tolist() == [-1, -1, -1, 2, 2, -1, -1]
    assert verdict.next_token_B.tolist() == [-1, -1, -1, 3, 3, -1, -1]
    assert (np.asarray(verdict.emitted_BH(jnp.asarray(draft)))[[0, 1, 2, 5, 6]] == -1).all()


def test_no_drafted_slots_is_greedy_decoding():
    verdict = jitted_greedy(jnp.zeros((2, 0), jnp.int32), logits_for([[3], [1]]))
    assert verdict.num_accepted_B.tolist() == [0, 0]
    assert verdict.next_token_B.tolist() == [3, 1]


def test_bfloat16_logits():
    verdict = jitted_greedy(jnp.array([[1]]), logits_for([[1, 2]]).astype(jnp.bfloat16))
    assert verdict.next_token_B.tolist() == [2]


@pytest.mark.parametrize(
    ("draft", "logits", "message"),
    [
        (jnp.zeros((2, 3)), jnp.zeros((2, 4, 5)), "integer token ids"),
        (jnp.zeros((3,), int), jnp.zeros((2, 4, 5)), "integer token ids"),
        (jnp.zeros((2, 3), int), jnp.zeros((2, 3, 5)), r"\[2, 4, V\]"),
        (jnp.zeros((2, 3), int), jnp.zeros((2, 4, 0)), r"\[2, 4, V\]"),
        (jnp.zeros((2, 3), int), jnp.zeros((2, 4, 5), int), "floats"),
    ],
)
def test_wrong_arguments_say_what_was_expected(draft, logits, message):
    with pytest.raises(ValueError, match=message):
        verify_greedy(draft, logits)


def test_wrong_num_drafted_says_what_was_expected():
    for wrong in (jnp.zeros((3,), int), jnp.zeros((2,))):
        with pytest.raises(ValueError, match="num_drafted_B"):
            verify_greedy(jnp.zeros((2, 3), int), jnp.zeros((2, 4, 5)), num_drafted_B=wrong)
