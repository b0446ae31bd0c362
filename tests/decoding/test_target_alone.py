"""While drafting is off, the drafter reads later, and knows the same."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.decoding import Speculative
from jaxspec.decoding.target_alone import TargetAlone
from tests.decoding import tiny
from tests.decoding.test_denoiser_drafter import proposer as tiny_denoiser


def both(room):
    model, params = tiny.target()
    proposer, drafter = tiny.dflash(model, suppressed_ids=tiny.RULES.suppressed_ids, block_size=1)
    each_round = Speculative(model, proposer, tiny.RULES)
    late = TargetAlone(model, proposer, tiny.RULES, room=room)
    return each_round, late, {"target": params, "drafter": drafter}


def both_of_a_denoiser(room):
    """A cached denoiser, which reads in a pass of its own."""
    (plain, params), *_ = tiny.strategies()
    proposer, weights = tiny_denoiser(tiny.VOCABULARY, block_size=1)
    strategy = Speculative(plain.model, proposer, tiny.RULES)
    late = TargetAlone(plain.model, proposer, tiny.RULES, room=room)
    return strategy, late, {"target": params, "drafter": weights}


def committed(cache):
    """Keys and values that count; later slots are left over."""
    seen_BT = cache.committed_BT()[None, :, None, :, None]
    return [jnp.where(seen_BT, array, 0) for array in (cache.keys_LBRTC, cache.values_LBRTC)]


@pytest.mark.parametrize("room", [4, 16])
@pytest.mark.parametrize("max_rounds", [3, 9, 100])
@pytest.mark.parametrize("drafter", [both, both_of_a_denoiser])
def test_the_drafter_knows_what_it_would_have_read_round_by_round(drafter, room, max_rounds):
    each_round, late, params = drafter(room)
    prompts, capacity = tiny.batch()
    # Started twice, as a loop takes its state away.
    expected, start = (each_round.start(params, prompts, capacity=capacity) for _ in range(2))
    expected = each_round.run(params, expected, max_rounds=max_rounds)
    found = late.run(params, start, max_rounds=max_rounds)
    assert int(found.step) == int(expected.step) <= max_rounds
    records = ("emitted_BO", "verified_BO", "slots_BO", "drafted_BX", "accepted_at_X")
    for name in ("tokens_BT", "count_B", "active_B", "anchor_B", "rounds_B", *records):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    # A pass in each round, or in each stretch. DFlash projects features, which is no pass.
    passes = each_round.proposer.other_passes
    assert np.array_equal(expected.draft_passes_B, passes * expected.rounds_B)
    assert np.array_equal(found.draft_passes_B, passes * np.ceil(expected.rounds_B / room))
    assert np.array_equal(found.drafter.lengths_B, expected.drafter.lengths_B)
    for ours, theirs in zip(committed(found.drafter), committed(expected.drafter), strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)


def test_it_leaves_when_a_row_ends():
    each_round, late, params = both(4)
    prompts, capacity = tiny.batch()
    # Started twice, as a loop takes its state away.
    expected, start = (each_round.start(params, prompts, capacity=capacity) for _ in range(2))
    expected = each_round.run(params, expected, leave_on_end=True)
    found = late.run(params, start, leave_on_end=True)
    assert int(found.step) == int(expected.step)
    assert np.array_equal(found.active_B, expected.active_B)


def test_it_is_for_blocks_of_one():
    each_round, _, _ = both(4)
    longer = dataclasses.replace(each_round.proposer, block_size=2)
    with pytest.raises(AssertionError):
        TargetAlone(each_round.model, longer, tiny.RULES)
