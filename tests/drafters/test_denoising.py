"""Samplers of masked diffusion and what they say they drew from, by enumeration at V = 3.

A hand-made table of conditionals stands for the denoiser: one row for every slot of every state.
Branches are every plan with every draft. B rows (one per branch), G slots, O passes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.drafters.denoising import (
    Plan,
    ancestral_plan,
    ancestral_times,
    fill,
    first_hitting_plan,
    follow,
    has_own_distribution,
    left_to_right_plan,
)
from jaxspec.ops.sampling import Sampling
from jaxspec.verify.block import block_law
from jaxspec.verify.point_mass import point_mass_law
from jaxspec.verify.token import token_law
from tests.verify import laws

WORDS, MASK = 3, 3
SYMBOLS = WORDS + 1
SAMPLINGS = {"plain": Sampling(1.0), "cold": Sampling(0.6)}
PlanLaw = dict[tuple[int, ...], float]


def random_table(seed: int, slots: int) -> np.ndarray:
    """p(word | state) of every slot, [SYMBOLS] * G + [G, SYMBOLS]; the mask has none."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(WORDS, 0.7), size=(*(SYMBOLS,) * slots, slots))
    return np.concatenate([table, np.zeros((*table.shape[:-1], 1))], axis=-1)


def shaped(table: np.ndarray, sampling: Sampling) -> np.ndarray:
    """What the sampling makes of a table, by hand."""
    sharper = table ** (1 / sampling.temperature)
    return sharper / sharper.sum(-1, keepdims=True)


def denoiser(table: np.ndarray):
    log_p = jnp.log(jnp.asarray(table))

    def denoise(tokens_BG, times_B):
        del times_B
        return log_p[tuple(tokens_BG.T)]

    return denoise


def ancestral_law(slots: int, passes: int) -> PlanLaw:
    chance = -np.diff(ancestral_times(passes))
    plans = itertools.product(range(passes), repeat=slots)
    return {plan: float(np.prod(chance[list(plan)])) for plan in plans}


def first_hitting_law(slots: int, passes: int) -> PlanLaw:
    law: PlanLaw = {}
    orders = list(itertools.permutations(range(slots)))
    for rank in orders:
        plan = tuple(r * passes // slots for r in rank)
        law[plan] = law.get(plan, 0.0) + 1 / len(orders)
    return law


def left_to_right_law(slots: int, passes: int) -> PlanLaw:
    return {tuple(g * passes // slots for g in range(slots)): 1.0}


PLAN_LAWS = {
    "ancestral": ancestral_law,
    "first_hitting": first_hitting_law,
    "left_to_right": left_to_right_law,
}


def make_plan(name: str, keys, masked, passes: int) -> Plan:
    if name == "left_to_right":
        return left_to_right_plan(masked, num_passes=passes)
    make = {"ancestral": ancestral_plan, "first_hitting": first_hitting_plan}[name]
    return make(keys, masked, num_passes=passes)


FILLED_UP = {2: 36, 3: 729}
"""Branches of as many slots, so that all samplers share programs: the most that any has here."""


@dataclasses.dataclass(frozen=True)
class Branches:
    """Every plan with every draft; then the last one again and again, with weight 0."""

    passes_BG: np.ndarray
    drafts_BG: np.ndarray
    weights_B: np.ndarray
    reveal_BGV: np.ndarray
    """What each token was drawn from."""

    @classmethod
    def create(cls, plan_law: PlanLaw, table: np.ndarray) -> Branches:
        slots = table.shape[-2]
        drafts = laws.all_sequences(WORDS, slots)
        passes = np.repeat(np.array(list(plan_law)), len(drafts), axis=0)
        chance = np.repeat(list(plan_law.values()), len(drafts))
        drafts = np.tile(drafts, (len(plan_law), 1))
        missing = max(0, FILLED_UP[slots] - len(drafts))
        drafts, passes = (np.pad(x, ((0, missing), (0, 0)), mode="edge") for x in (drafts, passes))
        chance = np.pad(chance, (0, missing))
        rows = []
        for slot in range(slots):
            state = np.where(passes < passes[:, slot : slot + 1], drafts, MASK)
            rows.append(table[tuple(state.T)][:, slot])
        reveal = np.stack(rows, axis=1)
        drawn = np.take_along_axis(reveal, drafts[..., None], axis=-1)[..., 0]
        return cls(passes, drafts, chance * drawn.prod(1), reveal[..., :WORDS])


@functools.partial(jax.jit, static_argnames=("num_passes", "rule", "sampling"))
def followed(log_p, drafts_BG, passes_BG, *, num_passes, rule, sampling):
    def denoise(tokens_BG, times_B):
        del times_B
        return log_p[tuple(tokens_BG.T)]

    return follow(
        denoise,
        jnp.full(drafts_BG.shape, MASK),
        Plan(passes_BG, jnp.ones((len(drafts_BG), num_passes))),
        lambda index, probs: drafts_BG,
        mask_id=MASK,
        shape=sampling.probabilities,
        rule=rule,
    )


def shipped_rows(branches: Branches, table, *, num_passes, rule, sampling) -> np.ndarray:
    """q of every branch as the sampler returns it, float64 [R, G, WORDS]."""
    with jax.enable_x64(True), np.errstate(divide="ignore"):
        filled = followed(
            jnp.asarray(np.log(table)),
            jnp.asarray(branches.drafts_BG),
            jnp.asarray(branches.passes_BG, jnp.int32),
            num_passes=num_passes,
            rule=rule,
            sampling=sampling,
        )
        np.testing.assert_array_equal(filled.tokens_BG, branches.drafts_BG)
        if filled.probs_BGV is None:
            return np.zeros((*branches.drafts_BG.shape, WORDS))
        probs = np.asarray(filled.probs_BGV)
    assert probs.dtype == np.float64 and not probs[..., MASK].any()
    return probs[..., :WORDS]


@dataclasses.dataclass(frozen=True)
class GivenRows:
    """Stands where `laws.output_law` takes a draft: rows that depend on more than the prefix."""

    rows_BGV: np.ndarray

    def along(self, drafts_BG: np.ndarray, *, count: int) -> np.ndarray:
        assert drafts_BG.shape[0] == len(self.rows_BGV)
        return self.rows_BGV[:, :count]


def point_mass_without_q(draft, draft_probs, target_probs):
    del draft_probs
    return point_mass_law(draft, target_probs)


def verified(make_law, branches: Branches, rows: np.ndarray, seed: int):
    """TV of the emitted tokens' law from the target's, and the mean accepted length."""
    slots = branches.drafts_BG.shape[1]
    target = laws.random_tree(np.random.default_rng([seed, 9]), vocabulary=WORDS, depth=slots + 1)
    law, accepted = laws.output_law(
        make_law,
        target=target,
        draft=GivenRows(rows),
        drafts_BG=branches.drafts_BG,
        weights_B=branches.weights_B,
    )
    return laws.total_variation(law, target.law(slots + 1)), float(accepted @ np.arange(slots + 1))


# Which rules are exact.

SETTINGS = [(2, 1), (2, 2), (3, 2), (3, 3)]
VERIFIERS = {"token": token_law, "block": block_law}


@pytest.mark.parametrize(("slots", "passes"), SETTINGS)
@pytest.mark.parametrize("sampler", PLAN_LAWS)
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_every_rule_is_exact(sampler, slots, passes, verifier):
    gains = []
    for seed, sampling in enumerate(SAMPLINGS.values()):
        table = random_table(seed, slots)
        branches = Branches.create(PLAN_LAWS[sampler](slots, passes), shaped(table, sampling))
        assert branches.weights_B.sum() == pytest.approx(1, abs=1e-12)
        means = []
        for rule in ("in_order", "last_pass"):
            rows = shipped_rows(branches, table, num_passes=passes, rule=rule, sampling=sampling)
            distance, mean = verified(VERIFIERS[verifier], branches, rows, seed)
            assert distance < 1e-12, rule
            means.append(mean)
        rows = shipped_rows(
            branches, table, num_passes=passes, rule="point_mass", sampling=sampling
        )
        distance, mean = verified(point_mass_without_q, branches, rows, seed)
        assert distance < 1e-12
        gains.append((means[0] - means[1], means[1] - mean))
    assert np.min(gains) > -1e-12
    if passes > 1:
        assert np.max(gains, axis=0).min() > 1e-3


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting"])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_reveal_time_rows_of_a_random_order_are_refused(sampler, slots, verifier):
    """The negative control: what each token was drawn from is no valid q for all of them."""
    distances = []
    for seed in range(3):
        table = random_table(seed, slots)
        branches = Branches.create(PLAN_LAWS[sampler](slots, 2), table)
        distances.append(verified(VERIFIERS[verifier], branches, branches.reveal_BGV, seed)[0])
    assert max(distances) > 1e-3


@pytest.mark.parametrize(("slots", "passes"), SETTINGS)
def test_reveal_time_rows_from_left_to_right_are_those_in_order(slots, passes):
    table = random_table(5, slots)
    branches = Branches.create(left_to_right_law(slots, passes), table)
    rows = shipped_rows(
        branches, table, num_passes=passes, rule="in_order", sampling=SAMPLINGS["plain"]
    )
    np.testing.assert_allclose(rows, branches.reveal_BGV, atol=1e-14)
    assert verified(token_law, branches, rows, 5)[0] < 1e-12


def test_wrong_temperature_of_q_is_refused():
    table = random_table(0, 2)
    branches = Branches.create(left_to_right_law(2, 2), shaped(table, SAMPLINGS["cold"]))
    rows = shipped_rows(branches, table, num_passes=2, rule="in_order", sampling=SAMPLINGS["plain"])
    assert verified(token_law, branches, rows, 0)[0] > 1e-3


def test_slots_with_a_distribution_of_their_own_by_hand():
    passes = jnp.array([[1, 0, 2, 1], [0, 1, 1, 2], [3, 2, 1, 0]])
    masked = jnp.ones((3, 4), bool).at[1, 3].set(False)

    def own(rule):
        return has_own_distribution(passes, masked, rule=rule).astype(int).tolist()

    assert own("in_order") == [[1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert own("last_pass") == [[0, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0]]
    assert own("point_mass") == [[0] * 4] * 3
    with pytest.raises(ValueError, match="in_order, last_pass, point_mass"):
        own("reveal_time")


# What the samplers sample.


def reverse_process_law(table: np.ndarray, passes: int) -> np.ndarray:
    """The ancestral sampler over all states, step by step: stay masked w.p. s / t."""
    slots = table.shape[-2]
    states = list(itertools.product(range(SYMBOLS), repeat=slots))
    law = {state: float(state == (MASK,) * slots) for state in states}
    times = ancestral_times(passes)
    for t, s in itertools.pairwise(times):
        moved = dict.fromkeys(states, 0.0)
        for before, after in itertools.product(states, repeat=2):
            chance = law[before]
            for slot, (old, new) in enumerate(zip(before, after, strict=True)):
                if old != MASK:
                    chance *= float(new == old)
                elif new == MASK:
                    chance *= s / t
                else:
                    chance *= (1 - s / t) * table[before][slot, new]
            moved[after] += chance
        law = moved
    cells = np.array([law[state] for state in states]).reshape((SYMBOLS,) * slots)
    return cells[(slice(WORDS),) * slots]


def any_order_law(table: np.ndarray) -> np.ndarray:
    """One random slot at a time."""
    slots = table.shape[-2]
    law = np.zeros((WORDS,) * slots)
    orders = list(itertools.permutations(range(slots)))
    for order, draft in itertools.product(orders, np.ndindex(law.shape)):
        state, chance = [MASK] * slots, 1 / len(orders)
        for slot in order:
            chance *= table[tuple(state)][slot, draft[slot]]
            state[slot] = draft[slot]
        law[draft] += chance
    return law


def branch_law(branches: Branches) -> np.ndarray:
    law = np.zeros((WORDS,) * branches.drafts_BG.shape[1])
    np.add.at(law, tuple(branches.drafts_BG.T), branches.weights_B)
    return law


def test_laws_of_the_samplers():
    table = random_table(1, 2)
    for passes in (1, 2, 3):
        law = branch_law(Branches.create(ancestral_law(2, passes), table))
        assert laws.total_variation(law, reverse_process_law(table, passes)) < 1e-12
    law = branch_law(Branches.create(first_hitting_law(2, 2), table))
    assert laws.total_variation(law, any_order_law(table)) < 1e-12
    # Many small steps hit one slot at a time.
    limit = branch_law(Branches.create(ancestral_law(2, 60), table))
    assert laws.total_variation(law, limit) < 0.02
    law = branch_law(Branches.create(left_to_right_law(2, 2), table))
    blank = table[MASK, MASK, 0, :WORDS]
    chain = np.stack([p * table[word, MASK, 1, :WORDS] for word, p in enumerate(blank)])
    assert laws.total_variation(law, chain) < 1e-12


@functools.partial(jax.jit, static_argnames=("sampler", "passes", "slots", "rule"))
def sampled(table, keys, *, sampler, passes, slots, rule="in_order"):
    tokens = jnp.full((len(keys), slots), MASK)
    plan = make_plan(sampler, keys, tokens == MASK, passes)
    filled = fill(
        denoiser(table), tokens, plan, keys, mask_id=MASK, sampling=Sampling(1.0), rule=rule
    )
    return plan, filled


@pytest.mark.parametrize(("slots", "passes"), [(2, 2), (3, 2)])
@pytest.mark.parametrize("sampler", PLAN_LAWS)
def test_jitted_samplers_follow_their_law(sampler, slots, passes):
    table = random_table(2, slots)
    keys = jax.random.split(jax.random.key(4), laws.ROUNDS)
    plan, filled = sampled(table.astype("f4"), keys, sampler=sampler, passes=passes, slots=slots)
    plan_law = PLAN_LAWS[sampler](slots, passes)
    cells = np.zeros((passes,) * slots)
    for key, chance in plan_law.items():
        cells[key] = chance
    counted = laws.histogram(np.asarray(plan.passes_BG), vocabulary=passes)
    assert laws.chi_square(counted, cells) > laws.FALSE_ALARM
    law = branch_law(Branches.create(plan_law, table))
    laws.assert_same_law(np.asarray(filled.tokens_BG), law)
    np.testing.assert_allclose(filled.probs_BGV.sum(-1), 1, atol=1e-5)


def test_passes_that_reveal_nothing_are_not_run():
    keys = jax.random.split(jax.random.key(0), 1)
    table = random_table(0, 2).astype("f4")
    _, filled = sampled(table, keys, sampler="ancestral", passes=30, slots=2)
    assert 1 <= int(filled.num_passes) <= 2
    _, filled = sampled(table, keys, sampler="left_to_right", passes=1, slots=2)
    assert int(filled.num_passes) == 1


def test_jit_and_no_jit_agree_and_rows_do_not_depend_on_neighbours():
    table = random_table(3, 3).astype("f4")
    keys = jax.random.split(jax.random.key(1), 5)
    _, together = sampled(table, keys, sampler="first_hitting", passes=3, slots=3)
    tokens = jnp.full((5, 3), MASK)
    plan = first_hitting_plan(keys, tokens == MASK)
    plain = fill(denoiser(table), tokens, plan, keys, mask_id=MASK, sampling=Sampling(1.0))
    np.testing.assert_array_equal(plain.tokens_BG, together.tokens_BG)
    np.testing.assert_allclose(plain.probs_BGV, together.probs_BGV, atol=1e-6)
    _, alone = sampled(table, keys[2:3], sampler="first_hitting", passes=3, slots=3)
    np.testing.assert_array_equal(alone.tokens_BG[0], together.tokens_BG[2])
