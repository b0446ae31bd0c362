"""Round by round, the loops give what they give at once."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

from jaxspec.decoding import Autoregressive, Speculative, generate
from jaxspec.decoding.stream import Round, stream, warm_up
from jaxspec.ops.sampling import Sampling
from tests.decoding import tiny


@pytest.mark.parametrize("number", [0, 1], ids=["autoregressive", "speculative"])
def test_rounds_add_up_to_the_response_of_the_loop(number):
    strategy, params = tiny.strategies()[number]
    whole = tiny.decode(strategy, params, batch_size=1)
    for prompt, name, response in zip(tiny.PROMPTS, tiny.IDS, whole, strict=True):
        first, *rounds = stream(strategy, params, prompt, name=name)
        assert first.drafted == () and len(first.emitted) == 1
        assert first.emitted + sum((r.emitted for r in rounds), ()) == response.tokens
        if isinstance(strategy, Speculative):
            assert tuple(len(r.emitted) for r in rounds) == response.emitted
            assert tuple(r.verified for r in rounds) == response.verified
            assert {len(r.drafted) for r in rounds} <= {tiny.BLOCK_SIZE - 1}
        for each in rounds:
            assert each.accepted + each.bonus == each.emitted
            assert each.accepted == each.drafted[: len(each.accepted)]


def test_sampled_rounds_follow_the_same_random_stream():
    sampling = Sampling(temperature=1.0)
    strategy, params = tiny.strategies()[1]
    proposer = dataclasses.replace(strategy.proposer, sampling=sampling)
    strategy = dataclasses.replace(strategy, proposer=proposer, verifier="token", sampling=sampling)
    for seed in (0, 1):
        (response,) = generate(
            strategy, params, tiny.PROMPTS[1:2], ids=["a"], batch_size=1, seed=seed
        )
        rounds = stream(strategy, params, tiny.PROMPTS[1], name="a", seed=seed)
        assert sum((r.emitted for r in rounds), ()) == response.tokens


def test_a_draft_that_is_known_is_told_apart():
    """A drafter that drafts the response itself, with one error, and its rejected drafts."""
    model, params = tiny.target()
    alone = tiny.decode(Autoregressive(model, tiny.RULES), params)[1].tokens
    script = list(alone)
    script[3] = (script[3] + 1) % 40
    both = {"target": params, "drafter": jnp.asarray([script])}
    strategy = Speculative(model, tiny.Scripted(), tiny.RULES)
    _, second, third, *_ = stream(strategy, both, tiny.PROMPTS[1], name="a")
    assert second.drafted == tuple(script[1:5])
    assert (second.accepted, second.bonus) == (alone[1:3], alone[3:4])
    assert second.rejected == tuple(script[3:5])
    assert third.accepted == alone[4:8] and third.rejected == ()


def test_what_comes_after_the_end_of_a_response_is_not_accepted():
    each = Round(drafted=(1, 2, 3), verified=3, emitted=(1, 2), seconds=0.1)
    assert (each.accepted, each.bonus, each.rejected) == ((1, 2), (), ())


def test_warm_up_compiles_what_the_stream_runs():
    strategy, params = tiny.strategies()[1]
    assert warm_up(strategy, params, tiny.PROMPTS[0]) > 0
    sizes = Speculative.start._cache_size(), Speculative.run._cache_size()
    list(stream(strategy, params, tiny.PROMPTS[1], name="a"))
    assert (Speculative.start._cache_size(), Speculative.run._cache_size()) == sizes


def test_nan_names_the_prompt():
    strategy, params = tiny.strategies()[1]
    with pytest.raises(ValueError, match="NaN or infinite logits on prompt 'a'"):
        list(stream(strategy, tiny.scaled(params, jnp.nan), tiny.PROMPTS[0], name="a"))
