"""What the three sampled rules share: the slow reference, edge rows, failures, arguments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.ops.sampling import fine_uniform
from jaxspec.verify import verify_block, verify_point_mass, verify_token
from jaxspec.verify.block import block_law
from jaxspec.verify.point_mass import point_mass_law
from jaxspec.verify.token import token_law
from tests.verify import reference

RULES = ["token", "point_mass", "block"]
LAST_BELOW_ONE = {np.float32: 1 - 2**-24, np.float64: 1 - 2**-53}


def make_law(rule, draft, q, p, **options):
    if rule == "point_mass":
        return point_mass_law(draft, p, **options)
    return {"token": token_law, "block": block_law}[rule](draft, q, p, **options)


def verify(rule, key, draft, q, p, **options):
    if rule == "point_mass":
        return verify_point_mass(key, draft, p, **options)
    return {"token": verify_token, "block": verify_block}[rule](key, draft, q, p, **options)


jitted_verify = jax.jit(verify, static_argnames="rule")

# One shape for the edge cases, so that each rule is compiled once for all of them.
BATCH, SLOTS, VOCABULARY = 9, 2, 3


def verdict_of(rule, draft, q, p, *, seed=0, count=None):
    """Lists of accepted lengths and next tokens; missing batch rows repeat the last."""

    def filled(rows, dtype):
        rows = np.asarray(rows, dtype)
        return np.concatenate([rows, np.repeat(rows[-1:], BATCH - len(rows), axis=0)])

    drafts, targets = filled(draft, np.int32), filled(p, np.float32)
    assert drafts.shape == (BATCH, SLOTS)
    verdict = jitted_verify(
        rule,
        jax.random.key(seed),
        drafts,
        filled(q, np.float32),
        targets,
        num_drafted_B=filled([SLOTS] if count is None else count, np.int32),
    )
    assert verdict.num_accepted_B.dtype == verdict.next_token_B.dtype == jnp.int32
    found = verdict.num_accepted_B.tolist(), verdict.next_token_B.tolist()
    assert verdict.failed_B.tolist() == [n == -1 for n in found[0]] == [t == -1 for t in found[1]]
    return found[0][: len(draft)], found[1][: len(draft)]


@jax.jit(static_argnames="rule")
def judged(uniforms, draft, q, p, *, rule, num_drafted_B=None):
    """Accepted length and distribution of the next token, for given uniform numbers."""
    law = make_law(rule, draft, q, p, num_drafted_B=num_drafted_B)
    num_accepted = law.num_accepted_B(uniforms)
    weights = law.next_weights(num_accepted)
    return num_accepted, weights / weights.sum(axis=1, keepdims=True)


# One shape, again, of random float64 blocks.
BLOCKS = (300, 4, 5)


def judged_blocks(rule, uniforms, draft, q, p, *, count=None):
    """`judged` in float64, as numpy."""
    assert q.shape == BLOCKS
    count = np.full(BLOCKS[0], BLOCKS[1]) if count is None else count
    with jax.enable_x64(True):
        found = judged(uniforms, draft, q, p, rule=rule, num_drafted_B=jnp.asarray(count))
        accepted, law = jax.tree.map(np.asarray, found)
    assert law.dtype == np.float64
    return accepted, law


def random_blocks(rng):
    """Uniform numbers, drafts, q and p of `BLOCKS`."""
    batch, slots, vocabulary = BLOCKS
    q = random_rows(rng, batch, slots, vocabulary)
    p = random_rows(rng, batch, slots + 1, vocabulary)
    # Near q, so that every accepted length comes up; a few rows are q itself.
    p[:, :slots] = np.where(rng.random((batch, 1, 1)) < 0.1, q, (p[:, :slots] + 4 * q) / 5)
    # Likely ids, and uniform ones: some of these have q(x) = 0.
    draft = np.where(
        rng.random((batch, slots)) < 0.5, q.argmax(-1), rng.integers(0, vocabulary, (batch, slots))
    )
    return rng.random((batch, slots)), draft, q, p


def random_rows(rng, *shape):
    """Dirichlet rows in which some of the tokens have probability 0."""
    rows = rng.dirichlet(np.full(shape[-1], 0.5), size=shape[:-1])
    rows = np.where((rng.random(shape) < 0.3) & (rows < rows.max(-1, keepdims=True)), 0, rows)
    return rows / rows.sum(-1, keepdims=True)


def expected(rule, uniforms, draft, q, p):
    if rule == "point_mass":
        return reference.point_mass(uniforms, draft, p)
    return getattr(reference, rule)(uniforms, draft, q, p)


@pytest.mark.parametrize("rule", RULES)
def test_equals_the_reference_for_the_same_uniforms(rule):
    rng = np.random.default_rng(0)
    uniforms, draft, q, p = random_blocks(rng)
    batch, slots, _ = BLOCKS
    count = rng.integers(0, slots + 1, batch)
    full = judged_blocks(rule, uniforms, draft, q, p)
    partial = judged_blocks(rule, uniforms, draft, q, p, count=count)
    assert set(full[0]) == set(range(slots + 1))
    for b in range(batch):
        for found, n in ((full, slots), (partial, count[b])):
            accepted, law = expected(rule, uniforms[b, :n], draft[b, :n], q[b], p[b])
            assert found[0][b] == accepted
            np.testing.assert_allclose(found[1][b], law, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_draw_throws_the_coins_of_the_law(rule):
    rng = np.random.default_rng(1)
    q = random_rows(rng, BATCH, SLOTS, VOCABULARY)
    p = random_rows(rng, BATCH, SLOTS + 1, VOCABULARY)
    draft = q.argmax(-1)
    seen = set()
    for seed in range(20):
        accepted, following = verdict_of(rule, draft, q, p, seed=seed)
        uniforms = fine_uniform(jax.random.split(jax.random.key(seed))[0], (BATCH, SLOTS))
        uniforms = np.asarray(uniforms, np.float64)
        for b in range(BATCH):
            count, law = expected(rule, uniforms[b], draft[b], q[b], p[b])
            assert accepted[b] == count
            assert law[following[b]] > 0
            seen.add(count)
    assert seen == set(range(SLOTS + 1))


def test_jit_and_eager_agree_and_a_batch_of_one_works():
    rng = np.random.default_rng(2)
    q = jnp.asarray(random_rows(rng, 1, SLOTS, VOCABULARY), jnp.float32)
    p = jnp.asarray(random_rows(rng, 1, SLOTS + 1, VOCABULARY), jnp.float32)
    draft = jnp.array([[1, 2]])
    for seed in range(3):
        key = jax.random.key(seed)
        slow, fast = verify_token(key, draft, q, p), jax.jit(verify_token)(key, draft, q, p)
        assert slow.num_accepted_B.tolist() == fast.num_accepted_B.tolist()
        assert slow.next_token_B.tolist() == fast.next_token_B.tolist()
        assert slow.num_accepted_B.shape == fast.next_token_B.shape == (1,)


@pytest.mark.parametrize(
    ("rule", "dtype"), [*((rule, np.float32) for rule in RULES), ("token", np.float64)]
)
def test_extreme_uniforms(rule, dtype):
    # Slot 1 certain, slot 2 impossible; then slot 2 possible but nearly not.
    q = np.array([[[0.5, 0.5, 0], [0.5, 0.5, 0]]] * 2)
    p = np.array([[[1, 0, 0], [1, 0, 0], [0, 0, 1]], [[1, 0, 0], [1, 1e-30, 0], [0, 0, 1]]])
    draft = np.array([[0, 1], [0, 1]])
    with jax.enable_x64(dtype == np.float64):
        q, p = q.astype(dtype), p.astype(dtype)
        zero = np.zeros((2, 2), dtype)
        low, _ = judged(zero, draft, q, p, rule=rule)
        high, _ = judged(zero + LAST_BELOW_ONE[dtype], draft, q, p, rule=rule)
        # u = 0 accepts whatever is possible, u just under 1 only what is certain.
        assert low.tolist() == [1, 2]
        assert high.tolist() == [1, 1]


@pytest.mark.parametrize("rule", ["token", "block"])
def test_equal_rows_accept_everything_for_every_uniform(rule):
    rng = np.random.default_rng(3)
    rows = random_rows(rng, 50, 4, 7).astype(np.float32)
    draft = rows[:, :3].argmax(-1)
    uniforms = np.full((50, 3), LAST_BELOW_ONE[np.float32], np.float32)
    # Powers of two: another scale moves a normalised row by a rounding.
    accepted, law = judged(uniforms, draft, rows[:, :3] / 4, rows, rule=rule)
    assert (np.asarray(accepted) == 3).all()
    np.testing.assert_allclose(law, rows[:, 3], atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_rows_need_not_sum_to_one(rule):
    rng = np.random.default_rng(4)
    uniforms, _, q, p = random_blocks(rng)
    # Not a draft that q excludes: where p is q nothing but roundings is left of the target then.
    draft = q.argmax(-1)
    once = judged_blocks(rule, uniforms, draft, q, p)
    q = q * rng.uniform(0.5, 2, (*q.shape[:2], 1))
    p = p * rng.uniform(0.5, 2, (*p.shape[:2], 1))
    scaled = judged_blocks(rule, uniforms, draft, q, p)
    assert once[0].tolist() == scaled[0].tolist()
    np.testing.assert_allclose(once[1], scaled[1], atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_one_hot_rows(rule):
    one_hot = np.eye(3)
    draft = np.array([[0, 1], [0, 1], [2, 1]])
    p = one_hot[np.array([[0, 1, 2], [0, 2, 2], [0, 1, 2]])]
    for seed in range(3):
        found = verdict_of(rule, draft, one_hot[draft], p, seed=seed)
        assert found == ([2, 1, 0], [2, 2, 0])


@pytest.mark.parametrize("rule", RULES)
def test_what_is_left_of_nothing_is_the_target(rule):
    # Forces the next token of a slot that accepts for sure, which only rounding can reach.
    rows = np.array([[[0, 1, 0], [0.2, 0.3, 0.5]]], np.float32)

    @jax.jit
    def next_weights(rows):
        law = make_law(rule, np.array([[1]]), rows[:, :1], rows)
        return law.next_weights(jnp.zeros((1,), jnp.int32))

    weights = np.asarray(next_weights(rows))
    np.testing.assert_allclose(weights / weights.sum(), rows[:, 0])


@pytest.mark.parametrize("rule", RULES)
def test_a_draft_row_of_zeros_is_no_failure(rule):
    p = [[[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]]
    accepted, following = verdict_of(rule, [[0, 1], [1, 1]], np.zeros((2, 2, 3)), p)
    assert accepted[0] >= 0
    # p(x) = 0 is rejected, and the next token is drawn from p.
    assert (accepted[1], following[1]) == (0, 0)


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_cannot_be_judged_fail_and_leave_the_others(rule):
    q = np.full((BATCH, SLOTS, VOCABULARY), 1 / 3)
    p = np.full((BATCH, SLOTS + 1, VOCABULARY), 1 / 3)
    draft = np.zeros((BATCH, SLOTS), int)
    p[1, 2, 0] = np.nan
    p[2, 0, 1] = np.inf
    p[3, 1] = 0
    p[4, 1, 1] = -0.1
    draft[5, 1] = 3
    draft[6, 0] = -1
    q[7, 1, 2] = np.nan
    q[8, 0, 0] = -0.1
    wants_q = rule != "point_mass"
    failed = [False, True, True, True, True, True, True, wants_q, wants_q]
    accepted, following = verdict_of(rule, draft, q, p)
    assert [n == -1 for n in accepted] == failed
    assert [token == -1 for token in following] == failed


@pytest.mark.parametrize("rule", RULES)
def test_slots_without_a_drafted_token_are_not_looked_at(rule):
    rng = np.random.default_rng(5)
    q = random_rows(rng, BATCH, SLOTS, VOCABULARY)
    p = random_rows(rng, BATCH, SLOTS + 1, VOCABULARY)
    draft = rng.integers(0, VOCABULARY, (BATCH, SLOTS))
    count = np.arange(BATCH) % (SLOTS + 1)
    clean = verdict_of(rule, draft, q, p, count=count)
    for b, n in enumerate(count):
        q[b, n:] = np.nan
        p[b, n + 1 :] = np.nan
        draft[b, n:] = 77
    assert verdict_of(rule, draft, q, p, count=count) == clean
    assert all(0 <= found <= most for found, most in zip(clean[0], count, strict=True))


@pytest.mark.parametrize("rule", ["token", "block"])
def test_no_drafted_slots_samples_the_target(rule):
    p = np.array([[[0, 1, 0]], [[0, 0, 1]]], np.float32)
    verdict = jitted_verify(
        rule, jax.random.key(0), np.zeros((2, 0), np.int32), np.zeros((2, 0, 3), np.float32), p
    )
    assert verdict.num_accepted_B.tolist() == [0, 0]
    assert verdict.next_token_B.tolist() == [1, 2]


def test_token_and_block_agree_on_one_slot():
    uniforms, draft, q, p = random_blocks(np.random.default_rng(6))
    count = np.ones(BLOCKS[0], int)
    by_token = judged_blocks("token", uniforms, draft, q, p, count=count)
    by_block = judged_blocks("block", uniforms, draft, q, p, count=count)
    assert by_token[0].tolist() == by_block[0].tolist()
    np.testing.assert_allclose(by_token[1], by_block[1], atol=1e-12)


def test_narrow_and_mixed_types_are_computed_in_the_wider():
    def heads(dtype):
        draft, q = jnp.zeros((1, 1), int), jnp.zeros((1, 1, 2), dtype)
        return jax.eval_shape(
            lambda p: token_law(draft, q, p).heads_BG, jnp.zeros((1, 2, 2), jnp.bfloat16)
        )

    assert heads(jnp.float16).dtype == heads(jnp.bfloat16).dtype == jnp.float32
    with jax.enable_x64(True):
        assert heads(jnp.float64).dtype == jnp.float64


@pytest.mark.parametrize("rule", ["token", "block"])
def test_wrong_arguments_say_what_was_expected(rule):
    key, draft = jax.random.key(0), np.zeros((2, 3), np.int32)
    q, p = np.ones((2, 3, 5), np.float32), np.ones((2, 4, 5), np.float32)
    for wrong in (q[:, :2], q[..., :4], q.astype(int), p):
        with pytest.raises(ValueError, match=r"draft_probs_BGV .*\(2, 3, 5\)"):
            verify(rule, key, draft, wrong, p)
    with pytest.raises(ValueError, match=r"target_probs_BHV .*\[2, 4, V\]"):
        verify(rule, key, draft, q, p[:, :3])
    with pytest.raises(ValueError, match="num_drafted_B"):
        verify(rule, key, draft, q, p, num_drafted_B=np.array([1]))


def test_point_mass_checks_its_arguments():
    key, p = jax.random.key(0), np.ones((2, 4, 5), np.float32)
    with pytest.raises(ValueError, match="draft_BG must hold integer"):
        verify_point_mass(key, np.zeros((2, 3)), p)
    with pytest.raises(ValueError, match=r"target_probs_BHV .*\[2, 4, V\]"):
        verify_point_mass(key, np.zeros((2, 3), np.int32), p[:1])
