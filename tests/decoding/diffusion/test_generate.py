"""Continuous batching: rows that have ended are refilled; no answer and no count changes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxspec.decoding import (
    BlockDiffusion,
    DiffusionRules,
    Scheduled,
    Spiffy,
    Threshold,
    generate_diffusion,
)
from jaxspec.decoding.diffusion.draft_graph import chain
from jaxspec.decoding.diffusion.generate import decode_batches, read_diffusion
from jaxspec.ops.sampling import Sampling
from tests.decoding.diffusion_reference import EOS, MASK, MODEL, parameters

RULES = DiffusionRules(
    MASK,
    response_length=12,
    block_length=4,
    unmasking=Threshold(0.5),
    sampling=Sampling(0.8, top_k=20),
    # Some responses end early, in different blocks.
    stop_ids=(3, 11, 20),
)
LENGTHS = (6, 3, 9, 5, 7, 4)
PROMPTS = [np.random.default_rng(n).integers(0, EOS, n).tolist() for n in LENGTHS]
IDS = [f"prompt/{length}" for length in LENGTHS]

CASES = {
    "no cache": {"caching": "none"},
    "prefix": {"caching": "prefix"},
    "dual, guided": {"caching": "dual", "guidance": 1.5},
    "block-causal": {"caching": "dual", "block_causal": True},
    "block-causal, guided": {"caching": "prefix", "block_causal": True, "guidance": 0.5},
}


@functools.cache
def params():
    return parameters()


def decoder_of(name):
    return BlockDiffusion(MODEL, dataclasses.replace(RULES, **CASES[name]))


def one_by_one(decoder):
    found = {}
    batches = decode_batches(decoder, params(), PROMPTS, ids=IDS, batch_size=1, seed=3)
    for group, state in batches:
        host = jax.device_get(state)
        for row, index in enumerate(group):
            found[index] = read_diffusion(host, row, name=IDS[index], decoder=decoder)
    return [found[index] for index in range(len(PROMPTS))]


GUIDED = pytest.mark.slow("the guided case has such a cache, too")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=GUIDED if name == "block-causal" else ()) for name in CASES],
)
def test_answers_and_passes_are_those_of_one_prompt_at_a_time(name, is_slow):
    decoder = decoder_of(name)
    expected = one_by_one(decoder)
    assert len({len(response.passes) for response in expected}) > 1, "some end early"
    # A queue for a single row is the same in every decoder.
    for batch_size in (1, 3) if name == "no cache" or is_slow else (3,):
        got = generate_diffusion(decoder, params(), PROMPTS, ids=IDS, batch_size=batch_size, seed=3)
        assert got == expected
    backwards = generate_diffusion(
        decoder, params(), PROMPTS[::-1], ids=IDS[::-1], batch_size=3, seed=3
    )
    assert backwards[::-1] == expected


def test_drafted_states_in_refilled_rows():
    rules = dataclasses.replace(RULES, caching="dual", unmasking=Scheduled(4))
    drafting = Spiffy(MODEL, rules, graph=chain(2))
    got = generate_diffusion(drafting, params(), PROMPTS, ids=IDS, batch_size=2, seed=3)
    assert got == one_by_one(drafting)


def test_no_row_waits_for_its_neighbours(monkeypatch):
    """With a queue, the loop is left as soon as a row has ended; at the end it runs through."""
    decoder, seen = decoder_of("no cache"), []
    run = BlockDiffusion.run

    def watched(self, params, state, *, leave_on_end):
        seen.append((leave_on_end, int(state.active_B.sum())))
        return run(self, params, state, leave_on_end=leave_on_end)

    monkeypatch.setattr(BlockDiffusion, "run", watched)
    generate_diffusion(decoder, params(), PROMPTS, ids=IDS, batch_size=2, seed=3)
    assert all(active == 2 for leave, active in seen if leave), "a waiting prompt fills the row"
    assert [leave for leave, _ in seen].count(False) == 1


def test_prefill_is_for_models_whose_cache_goes_along():
    assert decoder_of("block-causal").has_prefill
    assert not decoder_of("dual, guided").has_prefill
